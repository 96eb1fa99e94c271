//! The outside of WireGuard's four messages, for sorting and for refusing what has a wrong size.
//!
//! Invariant: what passes [`classify`] cannot make the Noise code write past its buffer. Called by
//! `wireguard` on every datagram, before anything else looks at it.
//!
//! ```text
//! 01 00 00 00 | sender 4 | ...                          148 bytes   initiation
//! 02 00 00 00 | sender 4 | receiver 4 | ...              92 bytes   response
//! 03 00 00 00 | receiver 4 | nonce 24 | cookie 32        64 bytes   cookie reply
//! 04 00 00 00 | receiver 4 | counter 8 | n | tag 16      32 + n     data; n = 0: keepalive
//! ```
//!
//! Little-endian. Source: wireguard.com `papers/wireguard.pdf` §5.4.

/// Bytes of a handshake initiation.
pub(super) const INITIATION_BYTES: usize = 148;
/// Bytes of a handshake response.
const RESPONSE_BYTES: usize = 92;
/// Bytes of a cookie reply.
pub(super) const COOKIE_BYTES: usize = 64;
/// Header and tag of a data message.
pub(super) const DATA_OVERHEAD_BYTES: usize = 32;
/// Header of a data message: what is before its ciphertext.
const DATA_HEADER_BYTES: usize = 16;
/// The least that any IP packet has.
pub(super) const IP_HEADER_BYTES_MIN: usize = 20;

/// WireGuard's `Reject-After-Messages`: no session counts this far (2^64 - 2^13 - 1).
const COUNTER_END: u64 = u64::MAX - (1 << 13);

/// Which of the four messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Initiation,
    Response { receiver: u32 },
    Cookie { receiver: u32 },
    Data { receiver: u32 },
}

/// Why a datagram is none of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Misfit {
    /// The first four bytes name no message.
    Kind,
    /// Not the size that its kind has.
    Size,
    /// More ciphertext than there is room for.
    Room,
    /// A counter that no session reaches, and with which boringtun's window overflows.
    Counter,
}

/// Sorts a datagram by kind and size; `room` is the size of the buffer that it will be opened in.
pub(super) fn classify(datagram: &[u8], room: usize) -> Result<Kind, Misfit> {
    let (&[kind, 0, 0, 0], body) = datagram.split_first_chunk().ok_or(Misfit::Kind)? else {
        return Err(Misfit::Kind);
    };
    // An answer to any kind may need as much room as an initiation does.
    if room < INITIATION_BYTES {
        return Err(Misfit::Room);
    }
    let (first, body) = body.split_first_chunk().ok_or(Misfit::Size)?;
    let first = u32::from_le_bytes(*first);
    match (kind, datagram.len()) {
        (1, INITIATION_BYTES) => Ok(Kind::Initiation),
        (2, RESPONSE_BYTES) => {
            let (receiver, _) = body.split_first_chunk().ok_or(Misfit::Size)?;
            let receiver = u32::from_le_bytes(*receiver);
            Ok(Kind::Response { receiver })
        }
        (3, COOKIE_BYTES) => Ok(Kind::Cookie { receiver: first }),
        (4, length @ DATA_OVERHEAD_BYTES..) => {
            if length - DATA_HEADER_BYTES > room {
                return Err(Misfit::Room);
            }
            let (counter, _) = body.split_first_chunk().ok_or(Misfit::Size)?;
            if u64::from_le_bytes(*counter) >= COUNTER_END {
                return Err(Misfit::Counter);
            }
            Ok(Kind::Data { receiver: first })
        }
        (1..=4, _) => Err(Misfit::Size),
        _ => Err(Misfit::Kind),
    }
}

/// Whether a datagram of our own making is a handshake initiation or response.
pub(crate) fn is_handshake(datagram: &[u8]) -> bool {
    matches!(datagram.first(), Some(1 | 2))
}

/// Whether a datagram that [`classify`] let pass is a cookie reply.
pub(super) fn is_cookie(datagram: &[u8]) -> bool {
    datagram.first() == Some(&3)
}
