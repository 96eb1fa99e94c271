//! What comes of a datagram or a packet given to `Tunnels`, and what is counted meanwhile.
//!
//! Invariant: data only; nothing here decides. Called by `wireguard`, which fills these in, and
//! by `node`, which reads them.

use std::time::Instant;

use crate::key::NodePublic;

/// What a datagram turned out to be.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum Received<'a> {
    /// A decrypted IP packet, cut to the length that its header states. Its source address is not
    /// yet checked against the peer's allowed IPs.
    Packet {
        /// Who sent it, authenticated.
        peer: NodePublic,
        /// The IP packet, in the caller's scratch space.
        packet: &'a [u8],
        /// Packets for the peer waited for this: call [`Tunnels::drain`](super::Tunnels::drain) afterwards.
        drain: bool,
    },
    /// An answer to send to `peer` by path selection. Call [`Tunnels::drain`](super::Tunnels::drain) afterwards.
    Send {
        /// Whom to send it to.
        peer: NodePublic,
        /// A handshake response, or the keepalive that confirms one.
        datagram: &'a [u8],
    },
    /// An authenticated packet with nothing in it. Call [`Tunnels::drain`](super::Tunnels::drain) afterwards.
    Keepalive {
        /// Who sent it, authenticated.
        peer: NodePublic,
    },
    /// We are under load: to be sent to the very address that the datagram came from.
    Cookie {
        /// A cookie reply, smaller than what it answers.
        datagram: &'a [u8],
    },
    /// Nothing to do; if it was dropped, [`TunnelStats`] has counted why.
    Nothing,
}

/// What became of a packet that was to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Encapsulated {
    /// `dst` holds a data message of this many bytes.
    Datagram(usize),
    /// The packet waits; `dst` holds a handshake initiation of this many bytes.
    HandshakeStarted(usize),
    /// The packet waits for a handshake that is under way.
    Queued,
    /// The packet is gone: too large, too many waiting, or equal to one that waits.
    Dropped,
}

/// Counters since the start; each dropped datagram is in exactly one of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TunnelStats {
    /// Handshakes that we answered.
    pub handshakes_answered: u64,
    /// Handshakes that we began and that were answered.
    pub handshakes_completed: u64,
    /// Data messages that were authentic, keepalives included.
    pub decrypted: u64,
    /// Cookie replies sent instead of looking at an initiation.
    pub cookies_sent: u64,
    /// Cookie replies that we could use.
    pub cookies_received: u64,
    /// Not WireGuard: the first four bytes name no message.
    pub unknown_kind: u64,
    /// The size is wrong for the kind of message.
    pub wrong_size: u64,
    /// Larger than the scratch space that was offered.
    pub oversize: u64,
    /// The receiver index names no tunnel, or no session of it.
    pub unknown_index: u64,
    /// An initiation or response whose first MAC is not made with our public key.
    pub bad_mac: u64,
    /// An initiation by a key that is not a peer's.
    pub unknown_peer: u64,
    /// An initiation as old as or older than one seen before.
    pub stale_initiation: u64,
    /// A data message seen before, or outside the replay window, or past a session's last counter.
    pub replayed: u64,
    /// Does not decrypt.
    pub undecryptable: u64,
    /// Decrypted, but its content is not an IP packet, or is shorter than its header says.
    pub malformed_packet: u64,
    /// Packets to send that were dropped: too large, or no room in `dst`.
    pub unsendable: u64,
    /// Packets to send that were dropped: too many waiting, or equal to one that waits.
    pub queue_full: u64,
    /// Packets that waited for a handshake that never came.
    pub expired_waiting: u64,
    /// Anything else that boringtun refuses.
    pub refused: u64,
}

/// What is known of one peer's tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunnelStatus {
    /// Whether packets can be sent now.
    pub has_session: bool,
    /// When a handshake was last authenticated.
    pub last_handshake: Option<Instant>,
    /// Packets that wait for a handshake.
    pub waiting_packets: usize,
}
