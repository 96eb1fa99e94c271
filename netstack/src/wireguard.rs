//! One WireGuard tunnel per peer: encrypts, decrypts, shakes hands. The only file that names
//! boringtun, which reads its own clock and random source; no other file of the core has either.
//!
//! Invariants: nothing reaches boringtun before its size is known to be right (a short buffer
//! makes it panic); no state is made for a key that is not a peer's, nor by an initiation that does
//! not authenticate; the address a datagram came from decides nothing about where answers go.
//! Called by `node`, with datagrams that are neither STUN nor disco.
//!
//! Order of calls: after [`Tunnels::handle_datagram`] returned anything that names a peer, send
//! what it holds, then call [`Tunnels::drain`] for that peer until `None`. Call
//! [`Tunnels::handle_timeout`] at [`Tunnels::poll_timeout`].
//!
//! Source: wireguard.com `papers/wireguard.pdf`; boringtun 0.7.1 `src/noise`.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use x25519_dalek::{PublicKey, StaticSecret};

use crate::key::{NodePrivate, NodePublic};
use wire::{COOKIE_BYTES, DATA_OVERHEAD_BYTES, INITIATION_BYTES, Kind, Misfit};

pub use outcome::{Encapsulated, Received, TunnelStats, TunnelStatus};
pub(crate) use wire::is_handshake;

mod outcome;
#[cfg(test)]
mod tests;
mod timers;
mod wire;

/// The largest inner packet: the tunnel MTU of every Tailscale node.
pub const MTU_BYTES: usize = 1280;

/// The largest datagram that we send. A `dst` of this size is enough for every call.
pub const DATAGRAM_BYTES_MAX: usize = MTU_BYTES + DATA_OVERHEAD_BYTES;

/// The least room that a `dst` or `scratch` must have, whatever it is to hold: one initiation.
pub const SCRATCH_BYTES_MIN: usize = INITIATION_BYTES;

/// Inner packets are padded with zeros to a multiple of this, so that their sizes tell less
/// (WireGuard paper, §5.4.6); boringtun does not do it.
const PADDING_BYTES: usize = 16;

/// Packets that wait for a peer's handshake. A few SYNs; more would leave as one burst.
const WAITING_PACKETS_MAX: usize = 8;

/// Initiations that are looked at in one second before each sender must first prove its address
/// with a cookie. One costs a third of a millisecond, so a flood takes 3 % of a core at most.
const INITIATIONS_PER_SECOND: u64 = 100;

/// The second of [`INITIATIONS_PER_SECOND`].
const GATE_PERIOD: Duration = Duration::from_secs(1);

/// Tunnels held at once, 11 KB each. The netmap is the real bound; this one is for the day when
/// control sends a netmap that no node could serve.
const TUNNELS_MAX: usize = 65_536;

/// Slots that boringtun's index can name: the upper 24 bits of a receiver index.
const SLOTS: u32 = 1 << 24;

/// All tunnels of this node. See the file's head for the order of calls.
pub struct Tunnels {
    private: StaticSecret,
    public: PublicKey,
    /// Checked before any handshake arithmetic; the tunnels' own limiters are out of the way.
    gate: RateLimiter,
    gate_reset_at: Option<Instant>,
    /// Where the upper 24 bits of a receiver index lead.
    slots: HashMap<u32, Tunnel>,
    by_peer: HashMap<NodePublic, u32>,
    /// Where the last packet went: they come in runs to one peer. Always an entry of `by_peer`.
    last_peer: Option<(NodePublic, u32)>,
    /// Counts up, so that datagrams for a tunnel that is gone do not hit its successor.
    last_slot: u32,
    /// Slots whose timers run; may name slots that are gone until the next tick.
    active: Vec<u32>,
    tick_at: Option<Instant>,
    stats: TunnelStats,
}

struct Tunnel {
    peer: NodePublic,
    tunn: Box<Tunn>,
    /// Whether boringtun would encrypt now. Sessions come up in `handle_datagram` and go in
    /// `tick`, and nowhere else, so this need not ask boringtun (and its clock) per packet.
    session: bool,
    /// Ever authenticated: boringtun then holds the newest timestamp seen, without which an old
    /// initiation could be replayed, so the tunnel stays for as long as the peer does.
    authenticated: bool,
    /// Whether the slot is in `Tunnels::active`.
    active: bool,
    attempt_at: Instant,
    last_handshake: Option<Instant>,
    waiting: VecDeque<Vec<u8>>,
}

/// Prints how many, and no keys.
impl fmt::Debug for Tunnels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnels")
            .field("tunnels", &self.slots.len())
            .field("active", &self.active.len())
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

impl Tunnels {
    /// No tunnels yet, for the node that holds `private`.
    pub fn new(private: &NodePrivate) -> Self {
        let private = private.secret().clone();
        let public = PublicKey::from(&private);
        Self {
            gate: RateLimiter::new(&public, INITIATIONS_PER_SECOND),
            gate_reset_at: None,
            private,
            public,
            slots: HashMap::new(),
            by_peer: HashMap::new(),
            last_peer: None,
            last_slot: 0,
            active: Vec::new(),
            tick_at: None,
            stats: TunnelStats::default(),
        }
    }

    /// Takes one datagram from `src`, which only a cookie is bound to. `is_peer` says whether a
    /// key is in the netmap; it is asked only about the key inside an authentic-looking
    /// initiation. What decrypts is written to `scratch`: datagrams with more ciphertext than
    /// that are dropped, so 2 KiB is plenty; less than [`SCRATCH_BYTES_MIN`] drops everything.
    pub fn handle_datagram<'a>(
        &mut self,
        now: Instant,
        src: IpAddr,
        datagram: &[u8],
        is_peer: &mut dyn FnMut(&NodePublic) -> bool,
        scratch: &'a mut [u8],
    ) -> Received<'a> {
        match wire::classify(datagram, scratch.len()) {
            Ok(Kind::Initiation) => self.handle_initiation(now, src, datagram, is_peer, scratch),
            Ok(
                Kind::Response { receiver } | Kind::Cookie { receiver } | Kind::Data { receiver },
            ) => self.handle_indexed(now, receiver, datagram, scratch),
            Err(misfit) => {
                *match misfit {
                    Misfit::Kind => &mut self.stats.unknown_kind,
                    Misfit::Size => &mut self.stats.wrong_size,
                    Misfit::Room => &mut self.stats.oversize,
                    Misfit::Counter => &mut self.stats.replayed,
                } += 1;
                Received::Nothing
            }
        }
    }

    fn handle_initiation<'a>(
        &mut self,
        now: Instant,
        src: IpAddr,
        datagram: &[u8],
        is_peer: &mut dyn FnMut(&NodePublic) -> bool,
        scratch: &'a mut [u8],
    ) -> Received<'a> {
        // Unless told when a second is over, the gate would stay under load for ever.
        if self.gate_reset_at.is_none_or(|at| now >= at) {
            self.gate.reset_count();
            self.gate_reset_at = Some(now + GATE_PERIOD);
        }
        let mut cookie = [0; COOKIE_BYTES];
        let initiation = match self.gate.verify_packet(Some(src), datagram, &mut cookie) {
            Ok(Packet::HandshakeInit(initiation)) => initiation,
            Err(TunnResult::WriteToNetwork(cookie)) => {
                let Some(room) = scratch.get_mut(..cookie.len()) else {
                    return Received::Nothing;
                };
                room.copy_from_slice(cookie);
                self.stats.cookies_sent += 1;
                return Received::Cookie { datagram: room };
            }
            Err(TunnResult::Err(error)) => return self.count(&error),
            Ok(_) | Err(_) => return self.count(&WireGuardError::WrongPacketType),
        };
        let peer = match parse_handshake_anon(&self.private, &self.public, &initiation) {
            Ok(half) => NodePublic::from_bytes(half.peer_static_public),
            Err(error) => return self.count(&error),
        };
        if peer.as_bytes() == self.public.as_bytes() || !is_peer(&peer) {
            self.stats.unknown_peer += 1;
            return Received::Nothing;
        }
        let fresh = !self.by_peer.contains_key(&peer);
        let Some(slot) = self.slot_of(now, &peer) else {
            self.stats.refused += 1;
            return Received::Nothing;
        };
        self.activate(now, slot);
        let Some(tunnel) = self.slots.get_mut(&slot) else {
            return Received::Nothing;
        };
        match tunnel.tunn.decapsulate(None, datagram, scratch) {
            TunnResult::WriteToNetwork(datagram) => {
                tunnel.authenticated = true;
                tunnel.last_handshake = Some(now);
                tunnel.attempt_at = now;
                self.stats.handshakes_answered += 1;
                Received::Send { peer, datagram }
            }
            TunnResult::Err(error) => {
                // Its static key can be forged by anyone who knows both public keys: what has
                // proven nothing leaves nothing behind.
                if fresh {
                    self.remove(slot);
                }
                self.count(&error)
            }
            TunnResult::Done
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => self.count(&WireGuardError::WrongPacketType),
        }
    }

    fn handle_indexed<'a>(
        &mut self,
        now: Instant,
        receiver: u32,
        datagram: &[u8],
        scratch: &'a mut [u8],
    ) -> Received<'a> {
        let Some(tunnel) = self.slots.get_mut(&(receiver >> 8)) else {
            self.stats.unknown_index += 1;
            return Received::Nothing;
        };
        let peer = tunnel.peer;
        // A response is not held against the gate: it must name a handshake that is in flight,
        // and boringtun compares that before it computes anything.
        let packet: &'a [u8] = match tunnel.tunn.decapsulate(None, datagram, scratch) {
            TunnResult::WriteToNetwork(datagram) => {
                tunnel.session = true;
                tunnel.authenticated = true;
                tunnel.last_handshake = Some(now);
                self.stats.handshakes_completed += 1;
                return Received::Send { peer, datagram };
            }
            TunnResult::Done if wire::is_cookie(datagram) => {
                self.stats.cookies_received += 1;
                return Received::Nothing;
            }
            TunnResult::Done => {
                tunnel.session = true;
                self.stats.decrypted += 1;
                return Received::Keepalive { peer };
            }
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                packet
            }
            // Only after it has decrypted can a data message be found to hold no IP packet.
            TunnResult::Err(WireGuardError::InvalidPacket) => &[],
            TunnResult::Err(error) => return self.count(&error),
        };
        tunnel.session = true;
        let drain = !tunnel.waiting.is_empty();
        self.stats.decrypted += 1;
        if packet.len() < wire::IP_HEADER_BYTES_MIN {
            self.stats.malformed_packet += 1;
            return Received::Keepalive { peer };
        }
        Received::Packet {
            peer,
            packet,
            drain,
        }
    }

    /// One packet that waited for `peer`'s session, encrypted into `dst` ([`DATAGRAM_BYTES_MAX`]
    /// is enough). Call until `None`; without a session it is `None` at once.
    pub fn drain<'a>(&mut self, peer: &NodePublic, dst: &'a mut [u8]) -> Option<&'a [u8]> {
        let tunnel = self.slots.get_mut(self.by_peer.get(peer)?)?;
        if !tunnel.session || dst.len() < DATAGRAM_BYTES_MAX {
            return None;
        }
        let packet = tunnel.waiting.pop_front()?;
        let length = tunnel.seal(&packet, dst)?;
        dst.get(..length)
    }

    /// Encrypts one IP packet of at most [`MTU_BYTES`] for `peer`, which the caller has found in
    /// the netmap. Without a session the packet waits, and a handshake starts unless one is under
    /// way. `dst` must hold [`DATAGRAM_BYTES_MAX`] bytes, or the packet is dropped.
    pub fn encapsulate(
        &mut self,
        now: Instant,
        peer: &NodePublic,
        packet: &[u8],
        dst: &mut [u8],
    ) -> Encapsulated {
        if packet.is_empty() || packet.len() > MTU_BYTES || dst.len() < DATAGRAM_BYTES_MAX {
            self.stats.unsendable += 1;
            return Encapsulated::Dropped;
        }
        let Some(slot) = self.slot_of(now, peer) else {
            self.stats.unsendable += 1;
            return Encapsulated::Dropped;
        };
        let Some(tunnel) = self.slots.get_mut(&slot) else {
            return Encapsulated::Dropped;
        };
        if tunnel.session {
            return match tunnel.seal(packet, dst) {
                Some(length) => Encapsulated::Datagram(length),
                None => {
                    self.stats.unsendable += 1;
                    Encapsulated::Dropped
                }
            };
        }
        // Equal packets are retransmitted SYNs, which a peer's TCP should not see in one burst.
        let dropped = tunnel.waiting.len() >= WAITING_PACKETS_MAX
            || tunnel.waiting.iter().any(|waiting| waiting == packet);
        if dropped {
            self.stats.queue_full += 1;
        } else {
            tunnel.waiting.push_back(packet.to_vec());
        }
        match self.start_handshake(now, slot, false, dst) {
            Some(length) => Encapsulated::HandshakeStarted(length),
            None if dropped => Encapsulated::Dropped,
            None => Encapsulated::Queued,
        }
    }

    /// Starts a handshake with `peer` unless there is a session or a handshake under way: the
    /// initiation to send, in `dst` (at least [`SCRATCH_BYTES_MIN`]).
    pub fn initiate<'a>(
        &mut self,
        now: Instant,
        peer: &NodePublic,
        dst: &'a mut [u8],
    ) -> Option<&'a [u8]> {
        let slot = self.slot_of(now, peer)?;
        if self.slots.get(&slot)?.session {
            return None;
        }
        let length = self.start_handshake(now, slot, false, dst)?;
        dst.get(..length)
    }

    /// Starts a handshake with `peer` whatever its state: for when it is known to have lost its
    /// own, as when its disco key changed. The session in use stays until the new one is up.
    pub fn renew<'a>(
        &mut self,
        now: Instant,
        peer: &NodePublic,
        dst: &'a mut [u8],
    ) -> Option<&'a [u8]> {
        let slot = self.slot_of(now, peer)?;
        let length = self.start_handshake(now, slot, true, dst)?;
        dst.get(..length)
    }

    /// Whether packets to `peer` can be encrypted now.
    pub fn has_session(&self, peer: &NodePublic) -> bool {
        self.tunnel(peer).is_some_and(|tunnel| tunnel.session)
    }

    /// What is known of `peer`'s tunnel; `None` if there is none.
    pub fn status(&self, peer: &NodePublic) -> Option<TunnelStatus> {
        let tunnel = self.tunnel(peer)?;
        Some(TunnelStatus {
            has_session: tunnel.session,
            last_handshake: tunnel.last_handshake,
            waiting_packets: tunnel.waiting.len(),
        })
    }

    /// Counters since the start.
    pub fn stats(&self) -> TunnelStats {
        self.stats
    }

    /// Drops the tunnels of peers that `keep` does not name: those no longer in the netmap.
    pub fn retain_peers(&mut self, keep: &dyn Fn(&NodePublic) -> bool) {
        self.last_peer = None;
        self.slots.retain(|_, tunnel| keep(&tunnel.peer));
        self.by_peer.retain(|peer, _| keep(peer));
    }

    fn tunnel(&self, peer: &NodePublic) -> Option<&Tunnel> {
        self.slots.get(self.by_peer.get(peer)?)
    }

    /// The slot of the peer's tunnel, made if there is none; `None` only at [`TUNNELS_MAX`].
    fn slot_of(&mut self, now: Instant, peer: &NodePublic) -> Option<u32> {
        let last = self.last_peer.filter(|(last, _)| last == peer);
        self.last_peer = last.or_else(|| Some((*peer, *self.by_peer.get(peer)?)));
        if let Some((_, slot)) = self.last_peer {
            return Some(slot);
        }
        if self.slots.len() >= TUNNELS_MAX {
            return None;
        }
        // Ends, since far fewer slots are in use than there are.
        let mut slot = self.last_slot;
        loop {
            slot = (slot + 1) % SLOTS;
            if !self.slots.contains_key(&slot) {
                break;
            }
        }
        self.last_slot = slot;
        let tunn = Tunn::new(
            self.private.clone(),
            PublicKey::from(*peer.as_bytes()),
            None,
            None,
            slot,
            Some(Arc::new(RateLimiter::new(&self.public, u64::MAX))),
        );
        self.by_peer.insert(*peer, slot);
        self.slots.insert(
            slot,
            Tunnel {
                peer: *peer,
                tunn: Box::new(tunn),
                session: false,
                authenticated: false,
                active: false,
                attempt_at: now,
                last_handshake: None,
                waiting: VecDeque::new(),
            },
        );
        Some(slot)
    }

    fn remove(&mut self, slot: u32) {
        self.last_peer = None;
        if let Some(tunnel) = self.slots.remove(&slot) {
            self.by_peer.remove(&tunnel.peer);
        }
    }

    fn count(&mut self, error: &WireGuardError) -> Received<'static> {
        let stats = &mut self.stats;
        *match error {
            WireGuardError::InvalidMac => &mut stats.bad_mac,
            WireGuardError::WrongTai64nTimestamp | WireGuardError::InvalidTai64nTimestamp => {
                &mut stats.stale_initiation
            }
            WireGuardError::InvalidCounter | WireGuardError::DuplicateCounter => {
                &mut stats.replayed
            }
            WireGuardError::InvalidAeadTag => &mut stats.undecryptable,
            WireGuardError::WrongIndex
            | WireGuardError::NoCurrentSession
            | WireGuardError::UnexpectedPacket => &mut stats.unknown_index,
            WireGuardError::InvalidPacket => &mut stats.malformed_packet,
            WireGuardError::DestinationBufferTooSmall
            | WireGuardError::IncorrectPacketLength
            | WireGuardError::WrongPacketType
            | WireGuardError::WrongKey
            | WireGuardError::LockFailed
            | WireGuardError::ConnectionExpired
            | WireGuardError::UnderLoad => &mut stats.refused,
        } += 1;
        Received::Nothing
    }
}

impl Tunnel {
    /// Encrypts under the session in use, padded. The caller has checked the packet's size, the
    /// room in `dst`, and that there is a session (without one boringtun would queue the packet).
    fn seal(&mut self, packet: &[u8], dst: &mut [u8]) -> Option<usize> {
        let mut padded;
        let packet = if packet.len().is_multiple_of(PADDING_BYTES) {
            packet
        } else {
            padded = [0; MTU_BYTES];
            padded.get_mut(..packet.len())?.copy_from_slice(packet);
            padded.get(..packet.len().next_multiple_of(PADDING_BYTES).min(MTU_BYTES))?
        };
        match self.tunn.encapsulate(packet, dst) {
            TunnResult::WriteToNetwork(datagram) => Some(datagram.len()),
            TunnResult::Done
            | TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => None,
        }
    }
}
