//! The 4-tuple that names a connection, and the keyed hash that finds it.
//!
//! Peers choose three of the four parts, so the hash is SipHash-1-3 (Aumasson and Bernstein, 2012) under a key from the caller's seed: nobody who does not
//! know the seed can pile flows onto one bucket. Both addresses are kept as 128 bits (IPv4 mapped, RFC 4291 §2.5.5.2), so one comparison serves both families.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// One connection's addresses and ports, seen from here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Flow {
    local: u128,
    remote: u128,
    /// Local port in the upper half, remote port in the lower.
    ports: u32,
}

impl Flow {
    /// Both addresses must be of one family; [`super::inbound`] drops IPv6 packets from mapped addresses, which would break that.
    pub(super) fn new(local: IpAddr, local_port: u16, remote: IpAddr, remote_port: u16) -> Self {
        let ports = (u32::from(local_port) << 16) | u32::from(remote_port);
        Self {
            local: address_bits(local),
            remote: address_bits(remote),
            ports,
        }
    }

    pub(super) fn local(&self) -> SocketAddr {
        SocketAddr::new(
            address(self.local),
            u16::try_from(self.ports >> 16).unwrap_or_default(),
        )
    }

    pub(super) fn remote(&self) -> SocketAddr {
        SocketAddr::new(
            address(self.remote),
            u16::try_from(self.ports & 0xffff).unwrap_or_default(),
        )
    }

    /// The remote address as the key of the per-peer count.
    pub(super) fn peer(&self) -> u128 {
        self.remote
    }
}

impl Hash for Flow {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u128(self.remote);
        // Our own address is one of few, and not the peer's to choose: it takes part in equality only.
        state.write_u64(u64::from(self.ports));
    }
}

fn address_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn address(bits: u128) -> IpAddr {
    Ipv6Addr::from_bits(bits).to_canonical()
}

/// A map whose hash is keyed.
pub(super) type KeyedMap<K, V> = HashMap<K, V, HashKey>;

/// The key of the hash.
#[derive(Clone, Copy)]
pub(super) struct HashKey {
    k0: u64,
    k1: u64,
}

impl HashKey {
    /// Stretches the seed to the two words of the key (SplitMix64, Steele et al., 2014).
    pub(super) fn new(seed: u64) -> Self {
        let mut state = seed;
        let mut word = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ (mixed >> 31)
        };
        Self {
            k0: word(),
            k1: word(),
        }
    }
}

impl std::fmt::Debug for HashKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HashKey(..)")
    }
}

impl BuildHasher for HashKey {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13 {
            v0: self.k0 ^ 0x736f_6d65_7073_6575,
            v1: self.k1 ^ 0x646f_7261_6e64_6f6d,
            v2: self.k0 ^ 0x6c79_6765_6e65_7261,
            v3: self.k1 ^ 0x7465_6462_7974_6573,
            words: 0,
        }
    }
}

/// SipHash-1-3 over whole 64-bit words, which is all that the keys here consist of.
pub(super) struct SipHasher13 {
    v0: u64,
    v1: u64,
    v2: u64,
    v3: u64,
    words: u64,
}

impl SipHasher13 {
    fn round(&mut self) {
        self.v0 = self.v0.wrapping_add(self.v1);
        self.v2 = self.v2.wrapping_add(self.v3);
        self.v1 = self.v1.rotate_left(13) ^ self.v0;
        self.v3 = self.v3.rotate_left(16) ^ self.v2;
        self.v0 = self.v0.rotate_left(32);
        self.v2 = self.v2.wrapping_add(self.v1);
        self.v0 = self.v0.wrapping_add(self.v3);
        self.v1 = self.v1.rotate_left(17) ^ self.v2;
        self.v3 = self.v3.rotate_left(21) ^ self.v0;
        self.v2 = self.v2.rotate_left(32);
    }

    fn absorb(&mut self, word: u64) {
        self.v3 ^= word;
        self.round();
        self.v0 ^= word;
    }
}

impl Hasher for SipHasher13 {
    fn write_u64(&mut self, word: u64) {
        self.words = self.words.wrapping_add(1);
        self.absorb(word);
    }

    fn write_u128(&mut self, value: u128) {
        // The lower half first, as the bytes of a little-endian machine lie.
        self.write_u64(u64::try_from(value & u128::from(u64::MAX)).unwrap_or_default());
        self.write_u64(u64::try_from(value >> 64).unwrap_or_default());
    }

    /// Every key in this room is made of whole words; other bytes are padded to words, so that no input is refused.
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let word = chunk
                .iter()
                .rev()
                .fold(0_u64, |word, &byte| (word << 8) | u64::from(byte));
            self.write_u64(word);
        }
    }

    fn finish(&self) -> u64 {
        let mut last = Self { ..*self };
        last.absorb((self.words << 3) << 56);
        last.v2 ^= 0xff;
        last.round();
        last.round();
        last.round();
        last.v0 ^ last.v1 ^ last.v2 ^ last.v3
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hash::DefaultHasher;

    #[test]
    fn the_hash_agrees_with_the_standard_library_under_its_key() {
        for (a, b) in [
            (0, 0),
            (1, 2),
            (u128::MAX, u64::MAX),
            (0x0123_4567_89ab_cdef_0011_2233_4455_6677, 42),
        ] {
            let mut ours = HashKey { k0: 0, k1: 0 }.build_hasher();
            let mut foreign = DefaultHasher::new();
            for hasher in [&mut ours as &mut dyn Hasher, &mut foreign] {
                hasher.write_u128(a);
                hasher.write_u64(b);
            }
            assert_eq!(ours.finish(), foreign.finish());
        }
    }

    #[test]
    fn two_seeds_hash_one_flow_differently() {
        let flow = Flow::new(
            "100.64.0.1".parse().unwrap(),
            80,
            "100.64.0.2".parse().unwrap(),
            50_000,
        );
        assert_ne!(
            HashKey::new(1).hash_one(flow),
            HashKey::new(2).hash_one(flow)
        );
        assert_eq!(
            HashKey::new(1).hash_one(flow),
            HashKey::new(1).hash_one(flow)
        );
    }

    #[test]
    fn a_flow_gives_back_the_addresses_it_was_made_of() {
        for (local, remote) in [
            ("100.64.0.1", "100.64.0.2"),
            ("fd7a:115c:a1e0::1", "fd7a:115c:a1e0::2"),
        ] {
            let (local, remote): (IpAddr, IpAddr) =
                (local.parse().unwrap(), remote.parse().unwrap());
            let flow = Flow::new(local, 80, remote, 65_535);
            assert_eq!(flow.local(), SocketAddr::new(local, 80));
            assert_eq!(flow.remote(), SocketAddr::new(remote, 65_535));
        }
    }
}
