//! WireGuard's outer side: datagrams as they are, and those of a real peer, bent, doubled and late.
//!
//! Seeds: a handshake, data both ways, and the four kinds of message.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use netstack::key::{NodePrivate, NodePublic};
use netstack::wireguard::{
    DATAGRAM_BYTES_MAX, Encapsulated, MTU_BYTES, Received, TunnelStats, Tunnels,
};

use super::script::{Script, bend, epoch};

const SRC: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
/// Datagrams that are kept to be sent once more.
const KEPT_MAX: usize = 32;

/// One end of a tunnel.
pub struct Side {
    pub key: NodePublic,
    pub tunnels: Tunnels,
}

impl Side {
    pub fn new(seed: u8) -> Self {
        let private = NodePrivate::from_bytes([seed; 32]);
        Self {
            key: private.public(),
            tunnels: Tunnels::new(&private),
        }
    }

    /// Takes a datagram of `peer`: a packet that came out, and what is to be sent back.
    pub fn receive(
        &mut self,
        now: Instant,
        peer: &NodePublic,
        datagram: &[u8],
    ) -> (Option<Vec<u8>>, Vec<Vec<u8>>) {
        let (mut scratch, mut back) = ([0; 2048], Vec::new());
        let mut is_peer = |key: &NodePublic| key == peer;
        let before = dropped(&self.tunnels.stats());
        let received = self
            .tunnels
            .handle_datagram(now, SRC, datagram, &mut is_peer, &mut scratch);
        let (mut packet, mut nothing) = (None, false);
        match received {
            Received::Packet {
                peer: from,
                packet: inner,
                ..
            } => {
                assert_eq!(from, *peer);
                assert!(inner.len() >= 20 && inner.len() <= datagram.len());
                packet = Some(inner.to_vec());
            }
            Received::Send { peer: to, datagram } => {
                assert_eq!(to, *peer);
                back.push(datagram.to_vec());
            }
            Received::Keepalive { peer: from } => assert_eq!(from, *peer),
            Received::Cookie { datagram: cookie } => assert!(cookie.len() < datagram.len()),
            Received::Nothing => nothing = true,
        }
        let counted = dropped(&self.tunnels.stats()) - before;
        if nothing {
            assert_eq!(counted, 1, "a datagram is dropped in exactly one counter");
        }
        let mut dst = [0; DATAGRAM_BYTES_MAX];
        while let Some(datagram) = self.tunnels.drain(peer, &mut dst) {
            back.push(datagram.to_vec());
        }
        (packet, back)
    }

    /// What leaves when `packet` is for `peer`.
    pub fn send(&mut self, now: Instant, peer: &NodePublic, packet: &[u8]) -> Option<Vec<u8>> {
        let mut dst = [0; DATAGRAM_BYTES_MAX];
        match self.tunnels.encapsulate(now, peer, packet, &mut dst) {
            Encapsulated::Datagram(length) | Encapsulated::HandshakeStarted(length) => {
                assert!(packet.len() <= MTU_BYTES);
                dst.get(..length).map(<[u8]>::to_vec)
            }
            Encapsulated::Queued | Encapsulated::Dropped => None,
        }
    }
}

/// Datagrams that were dropped, or a cookie, which leaves no trace otherwise.
fn dropped(stats: &TunnelStats) -> u64 {
    stats.cookies_received
        + stats.unknown_kind
        + stats.wrong_size
        + stats.oversize
        + stats.unknown_index
        + stats.bad_mac
        + stats.unknown_peer
        + stats.stale_initiation
        + stats.replayed
        + stats.undecryptable
        + stats.malformed_packet
        + stats.refused
}

/// The bytes are a script: what the peer does, and what becomes of its datagrams on the way to us.
pub fn wireguard(data: &[u8]) {
    let (mut us, mut peer) = (Side::new(0x10), Side::new(0x20));
    let mut now = epoch();
    let (mut to_us, mut to_peer) = (Vec::new(), Vec::new());
    let (mut kept, mut said): (Vec<Vec<u8>>, Vec<Vec<u8>>) = (Vec::new(), Vec::new());
    let mut script = Script::new(data);
    while let Some(step) = script.step() {
        match step & 7 {
            0 => to_us.push(script.piece().to_vec()),
            1 => {
                let mut dst = [0; DATAGRAM_BYTES_MAX];
                let started = match step & 8 {
                    0 => peer.tunnels.initiate(now, &us.key, &mut dst),
                    _ => peer.tunnels.renew(now, &us.key, &mut dst),
                };
                to_us.extend(started.map(<[u8]>::to_vec));
            }
            2 => {
                let packet = script.piece();
                let mut padded = packet.to_vec();
                padded.resize(packet.len().next_multiple_of(16), 0);
                said.push(padded);
                to_us.extend(peer.send(now, &us.key, packet));
            }
            3 => to_peer.extend(us.send(now, &peer.key, script.piece())),
            4 => {
                if let Some(datagram) = to_us.last_mut() {
                    bend(&mut script, datagram);
                    if step & 8 != 0 {
                        datagram.truncate(usize::from(script.u16()));
                    }
                }
            }
            5 => {
                let again = usize::from(script.byte()) % kept.len().max(1);
                to_us.extend(kept.get(again).cloned());
            }
            6 => {
                now += Duration::from_millis(u64::from(script.u16()));
                us.tunnels
                    .handle_timeout(now, &mut |_, datagram| to_peer.push(datagram.to_vec()));
                peer.tunnels
                    .handle_timeout(now, &mut |_, datagram| to_us.push(datagram.to_vec()));
            }
            // Lost on the way.
            _ => drop(to_us.pop()),
        }
        if step & 0x10 == 0 {
            continue;
        }
        for _ in 0..8 {
            for datagram in to_us.split_off(0) {
                let (packet, back) = us.receive(now, &peer.key, &datagram);
                if let Some(packet) = packet {
                    assert!(
                        said.iter().any(|said| said.starts_with(&packet)),
                        "a packet that the peer never sent"
                    );
                }
                to_peer.extend(back);
                if kept.len() < KEPT_MAX {
                    kept.push(datagram);
                }
            }
            for datagram in to_peer.split_off(0) {
                to_us.extend(peer.receive(now, &us.key, &datagram).1);
            }
        }
        let waiting = us.tunnels.status(&peer.key);
        assert!(waiting.is_none_or(|status| status.waiting_packets <= 8));
    }
}
