//! DERP: the relay protocol, by which nodes reach each other while no direct path is known.
//!
//! Invariant: a frame is read only if its length is within the limit of its kind; parsing never
//! panics, never copies a packet and never keeps more than one frame. Called by `derp::client`, by
//! the relay of devnet, and by the shell that dials relays.
//!
//! ```text
//! frame    kind 1 | length 4, big-endian | payload           kinds that we do not know are skipped
//! 01 ServerKey      "DERP" f0 9f 94 91 | relay's key 32      what follows is ignored
//! 02 ClientInfo     node key 32 | nonce 24 | NaCl box of JSON
//! 03 ServerInfo     nonce 24 | NaCl box of JSON
//! 04 SendPacket     destination 32 | packet                  05 RecvPacket   source 32 | packet
//! 06 KeepAlive      -                                        07 NotePreferred  home 1
//! 08 PeerGone       peer 32 | reason 1 (absent: 0)           09 PeerPresent  peer 32 | addr18 | flags 1
//! 0a ForwardPacket  source 32 | destination 32 | packet      10 WatchConns -   11 ClosePeer  peer 32
//! 12 Ping  8        13 Pong  the same 8
//! 14 Health         text, empty: healthy again               15 Restarting   after ms 4 | try for ms 4
//! ```
//!
//! Source: tailscale.com `derp/derp.go`, `derp/derp_client.go`.

use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use crate::key::NodePublic;

pub mod client;
mod decoder;
mod info;
#[cfg(test)]
mod tests;

pub use self::decoder::Decoder;
pub use self::info::{ClientInfo, ServerInfo};

/// The version of the protocol that both sides name.
pub const PROTOCOL_VERSION: i64 = 2;
/// Begins the payload of a ServerKey: "DERP" and U+1F511.
pub const MAGIC: [u8; 8] = [0x44, 0x45, 0x52, 0x50, 0xf0, 0x9f, 0x94, 0x91];
/// Kind and length.
pub const HEADER_BYTES: usize = 5;
/// The longest packet that is relayed.
pub const PACKET_BYTES_MAX: usize = 65_536;
/// The longest payload of a frame whose kind has no tighter limit, and of one that is skipped.
pub const PAYLOAD_BYTES_MAX: usize = 1024 * 1024;
/// The longest ServerKey; bytes behind the key are ignored.
pub const SERVER_KEY_BYTES_MAX: usize = 1024;
/// The longest ClientInfo that a relay accepts.
pub const CLIENT_INFO_BYTES_MAX: usize = 256 * 1024;

const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;

const SERVER_KEY: u8 = 0x01;
const CLIENT_INFO: u8 = 0x02;
const SERVER_INFO: u8 = 0x03;
const SEND_PACKET: u8 = 0x04;
const RECV_PACKET: u8 = 0x05;
const KEEP_ALIVE: u8 = 0x06;
const NOTE_PREFERRED: u8 = 0x07;
const PEER_GONE: u8 = 0x08;
const PEER_PRESENT: u8 = 0x09;
const FORWARD_PACKET: u8 = 0x0a;
const WATCH_CONNS: u8 = 0x10;
const CLOSE_PEER: u8 = 0x11;
const PING: u8 = 0x12;
const PONG: u8 = 0x13;
const HEALTH: u8 = 0x14;
const RESTARTING: u8 = 0x15;

/// Why a frame could not be read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DerpError {
    /// The header announces more than frames of this kind may hold.
    #[error("a DERP frame of kind {kind:#04x} announces {length} bytes, and may have {max}")]
    TooLong {
        /// The kind byte.
        kind: u8,
        /// Bytes of the payload.
        length: usize,
        /// The limit of this kind.
        max: usize,
    },
    /// The payload is shorter than the fixed part of its kind, or has another length than the only one.
    #[error("a DERP frame of kind {kind:#04x} cannot have {length} bytes")]
    Length {
        /// The kind byte.
        kind: u8,
        /// Bytes of the payload.
        length: usize,
    },
    /// The first frame of the relay does not begin with the magic: this is no relay.
    #[error("the first frame does not begin with the magic of DERP")]
    Magic,
    /// A box does not open: sealed under another key, or bent.
    #[error("the box of the {what} does not open")]
    Open {
        /// The frame that it came in.
        what: &'static str,
    },
    /// What was in the box is not the JSON that belongs there.
    #[error("the {what} is not the JSON that it should be")]
    Json {
        /// The frame that it came in.
        what: &'static str,
    },
}

/// One frame. Packets and boxes share the buffer in which they arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// The relay's first frame: its key.
    ServerKey {
        /// Seals ServerInfo, and ClientInfo to it.
        key: NodePublic,
    },
    /// The client's first frame: who it is, proven by the box.
    ClientInfo {
        /// The client.
        key: NodePublic,
        /// Nonce and box; see [`ClientInfo::open`].
        sealed: Bytes,
    },
    /// What the relay says of itself.
    ServerInfo {
        /// Nonce and box; see [`ServerInfo::open`].
        sealed: Bytes,
    },
    /// A packet for a peer.
    SendPacket {
        /// Whom it is for.
        to: NodePublic,
        /// At most [`PACKET_BYTES_MAX`].
        packet: Bytes,
    },
    /// A packet of a peer.
    RecvPacket {
        /// Who sent it; the relay vouches for it.
        from: NodePublic,
        /// At most [`PACKET_BYTES_MAX`].
        packet: Bytes,
    },
    /// Nothing but a sign of life.
    KeepAlive,
    /// Whether this relay is the client's home.
    NotePreferred {
        /// It is.
        home: bool,
    },
    /// A peer cannot be reached here.
    PeerGone {
        /// The peer.
        peer: NodePublic,
        /// Why.
        reason: PeerGoneReason,
    },
    /// Relay to relay: a peer is connected. Its address and flags are not read.
    PeerPresent {
        /// The peer.
        peer: NodePublic,
    },
    /// Relay to relay: a packet for a peer of the other.
    ForwardPacket {
        /// Who sent it.
        from: NodePublic,
        /// Whom it is for.
        to: NodePublic,
        /// At most [`PACKET_BYTES_MAX`].
        packet: Bytes,
    },
    /// Relay to relay: tell of every connection.
    WatchConns,
    /// Relay to relay: close the connection of a peer.
    ClosePeer {
        /// The peer.
        peer: NodePublic,
    },
    /// To be answered with a Pong.
    Ping([u8; 8]),
    /// The bytes of the Ping that it answers.
    Pong([u8; 8]),
    /// What is wrong with this connection; empty: nothing any more.
    Health {
        /// UTF-8, not to be trusted.
        text: Bytes,
    },
    /// The relay goes away and comes back.
    Restarting {
        /// When to connect again.
        reconnect_in: Duration,
        /// How long to keep trying from then on.
        try_for: Duration,
    },
}

/// Why a peer cannot be reached through a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerGoneReason {
    /// It was here, and packets went to and fro; now it is disconnected.
    Disconnected,
    /// It is not here; told to those who send disco to it.
    NotHere,
    /// Any other; upstream uses 0xf0 inside itself.
    Other(u8),
}

impl PeerGoneReason {
    fn from_byte(byte: u8) -> Self {
        match byte {
            0 => Self::Disconnected,
            1 => Self::NotHere,
            other => Self::Other(other),
        }
    }

    fn to_byte(self) -> u8 {
        match self {
            Self::Disconnected => 0,
            Self::NotHere => 1,
            Self::Other(other) => other,
        }
    }
}

/// The longest payload that a frame of `kind` may have. Kinds of fixed length leave room for fields
/// that later versions add; what is not known is skipped and has the largest limit.
pub fn payload_bytes_max(kind: u8) -> usize {
    match kind {
        SERVER_KEY => SERVER_KEY_BYTES_MAX,
        CLIENT_INFO => CLIENT_INFO_BYTES_MAX,
        SEND_PACKET | RECV_PACKET => KEY_BYTES + PACKET_BYTES_MAX,
        FORWARD_PACKET => 2 * KEY_BYTES + PACKET_BYTES_MAX,
        SERVER_INFO | HEALTH => 64 * 1024,
        KEEP_ALIVE | NOTE_PREFERRED | PEER_GONE | PEER_PRESENT | WATCH_CONNS | CLOSE_PEER
        | PING | PONG | RESTARTING => 1024,
        _ => PAYLOAD_BYTES_MAX,
    }
}

/// Whether frames of this kind are read; others are skipped by their length.
fn is_known(kind: u8) -> bool {
    matches!(kind, SERVER_KEY..=FORWARD_PACKET | WATCH_CONNS..=RESTARTING)
}

impl Frame {
    /// Reads the payload of a frame of `kind`; `None` if we do not know the kind.
    ///
    /// # Errors
    /// [`DerpError::TooLong`], [`DerpError::Length`], [`DerpError::Magic`].
    pub fn parse(kind: u8, mut payload: Bytes) -> Result<Option<Self>, DerpError> {
        let length = payload.len();
        let max = payload_bytes_max(kind);
        if length > max {
            return Err(DerpError::TooLong { kind, length, max });
        }
        let bad = DerpError::Length { kind, length };
        let frame = match kind {
            SERVER_KEY => {
                let magic: [u8; 8] = take(&mut payload).ok_or(bad)?;
                if magic != MAGIC {
                    return Err(DerpError::Magic);
                }
                let key = key(&mut payload).ok_or(bad)?;
                Self::ServerKey { key }
            }
            CLIENT_INFO => Self::ClientInfo {
                key: key(&mut payload).ok_or(bad)?,
                sealed: sealed(payload).ok_or(bad)?,
            },
            SERVER_INFO => Self::ServerInfo {
                sealed: sealed(payload).ok_or(bad)?,
            },
            SEND_PACKET => Self::SendPacket {
                to: key(&mut payload).ok_or(bad)?,
                packet: payload,
            },
            RECV_PACKET => Self::RecvPacket {
                from: key(&mut payload).ok_or(bad)?,
                packet: payload,
            },
            KEEP_ALIVE => Self::KeepAlive,
            NOTE_PREFERRED => match *payload {
                [home] => Self::NotePreferred { home: home != 0 },
                _ => return Err(bad),
            },
            PEER_GONE => Self::PeerGone {
                peer: key(&mut payload).ok_or(bad)?,
                reason: PeerGoneReason::from_byte(payload.first().copied().unwrap_or(0)),
            },
            PEER_PRESENT => Self::PeerPresent {
                peer: key(&mut payload).ok_or(bad)?,
            },
            FORWARD_PACKET => Self::ForwardPacket {
                from: key(&mut payload).ok_or(bad)?,
                to: key(&mut payload).ok_or(bad)?,
                packet: payload,
            },
            WATCH_CONNS => Self::WatchConns,
            CLOSE_PEER => Self::ClosePeer {
                peer: key(&mut payload).ok_or(bad)?,
            },
            PING => Self::Ping(take(&mut payload).ok_or(bad)?),
            PONG => Self::Pong(take(&mut payload).ok_or(bad)?),
            HEALTH => Self::Health { text: payload },
            RESTARTING => Self::Restarting {
                reconnect_in: millis(&mut payload).ok_or(bad)?,
                try_for: millis(&mut payload).ok_or(bad)?,
            },
            _ => return Ok(None),
        };
        Ok(Some(frame))
    }

    /// The kind byte.
    pub fn kind(&self) -> u8 {
        match self {
            Self::ServerKey { .. } => SERVER_KEY,
            Self::ClientInfo { .. } => CLIENT_INFO,
            Self::ServerInfo { .. } => SERVER_INFO,
            Self::SendPacket { .. } => SEND_PACKET,
            Self::RecvPacket { .. } => RECV_PACKET,
            Self::KeepAlive => KEEP_ALIVE,
            Self::NotePreferred { .. } => NOTE_PREFERRED,
            Self::PeerGone { .. } => PEER_GONE,
            Self::PeerPresent { .. } => PEER_PRESENT,
            Self::ForwardPacket { .. } => FORWARD_PACKET,
            Self::WatchConns => WATCH_CONNS,
            Self::ClosePeer { .. } => CLOSE_PEER,
            Self::Ping(_) => PING,
            Self::Pong(_) => PONG,
            Self::Health { .. } => HEALTH,
            Self::Restarting { .. } => RESTARTING,
        }
    }

    /// Header and payload in one buffer.
    ///
    /// # Errors
    /// [`DerpError::TooLong`] when what it carries is longer than a frame of its kind may be.
    pub fn encode(&self) -> Result<Bytes, DerpError> {
        let kind = self.kind();
        let mut out = BytesMut::with_capacity(HEADER_BYTES + 2 * KEY_BYTES + self.carried().len());
        out.put_u8(kind);
        out.put_u32(0);
        match self {
            Self::ServerKey { key } => {
                out.put_slice(&MAGIC);
                out.put_slice(key.as_bytes());
            }
            Self::ClientInfo { key, .. }
            | Self::SendPacket { to: key, .. }
            | Self::RecvPacket { from: key, .. }
            | Self::PeerPresent { peer: key }
            | Self::ClosePeer { peer: key } => out.put_slice(key.as_bytes()),
            Self::NotePreferred { home } => out.put_u8(u8::from(*home)),
            Self::PeerGone { peer, reason } => {
                out.put_slice(peer.as_bytes());
                out.put_u8(reason.to_byte());
            }
            Self::ForwardPacket { from, to, .. } => {
                out.put_slice(from.as_bytes());
                out.put_slice(to.as_bytes());
            }
            Self::Restarting {
                reconnect_in,
                try_for,
            } => {
                for time in [reconnect_in, try_for] {
                    out.put_u32(u32::try_from(time.as_millis()).unwrap_or(u32::MAX));
                }
            }
            Self::ServerInfo { .. }
            | Self::KeepAlive
            | Self::WatchConns
            | Self::Ping(_)
            | Self::Pong(_)
            | Self::Health { .. } => {}
        }
        out.put_slice(self.carried());
        let length = out.len() - HEADER_BYTES;
        let max = payload_bytes_max(kind);
        let too_long = DerpError::TooLong { kind, length, max };
        let announced = u32::try_from(length).map_err(|_| too_long)?;
        if length > max {
            return Err(too_long);
        }
        if let Some(place) = out.get_mut(1..HEADER_BYTES) {
            place.copy_from_slice(&announced.to_be_bytes());
        }
        Ok(out.freeze())
    }

    /// What stands at the end of the payload and is not ours to read.
    fn carried(&self) -> &[u8] {
        match self {
            Self::ClientInfo { sealed, .. } | Self::ServerInfo { sealed } => sealed,
            Self::SendPacket { packet, .. }
            | Self::RecvPacket { packet, .. }
            | Self::ForwardPacket { packet, .. } => packet,
            Self::Ping(data) | Self::Pong(data) => data,
            Self::Health { text } => text,
            Self::ServerKey { .. }
            | Self::KeepAlive
            | Self::NotePreferred { .. }
            | Self::PeerGone { .. }
            | Self::PeerPresent { .. }
            | Self::WatchConns
            | Self::ClosePeer { .. }
            | Self::Restarting { .. } => &[],
        }
    }
}

/// Splits `N` bytes off the front.
fn take<const N: usize>(payload: &mut Bytes) -> Option<[u8; N]> {
    let taken = *payload.first_chunk::<N>()?;
    payload.advance(N);
    Some(taken)
}

fn key(payload: &mut Bytes) -> Option<NodePublic> {
    take(payload).map(NodePublic::from_bytes)
}

fn millis(payload: &mut Bytes) -> Option<Duration> {
    let millis = u32::from_be_bytes(take(payload)?);
    Some(Duration::from_millis(millis.into()))
}

/// A nonce and a box, which is never without its tag.
fn sealed(payload: Bytes) -> Option<Bytes> {
    (payload.len() >= NONCE_BYTES + TAG_BYTES).then_some(payload)
}
