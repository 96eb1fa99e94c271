//! Why a connection to a relay ends, told so that an operator knows what to do.
//!
//! Invariant: no key's private half and no byte that a relay sent unescaped is in any of them. Made by
//! `derp::client`.

use super::{
    BODY_BYTES_MAX, HANDSHAKE_DURATION_MAX, HEAD_BYTES_MAX, PING_DURATION_MAX, SILENCE_DURATION_MAX,
};
use crate::derp::DerpError;

/// A connection to a relay cannot begin, or has ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DerpClientError {
    /// The host name of the DERP map cannot stand in a request.
    #[error("the DERP map names the host {host:?}, which is no host name; correct the map")]
    Host {
        /// As the map has it.
        host: String,
    },
    /// The answer to the upgrade is not HTTP.
    #[error("the relay's answer to the upgrade is not HTTP/1.1: {reason}")]
    Http {
        /// What the parser says.
        reason: &'static str,
    },
    /// The head of the answer is larger than is read.
    #[error("the head of the relay's answer has more than {HEAD_BYTES_MAX} bytes")]
    HeadTooLong,
    /// The relay did not switch to DERP.
    #[error(
        "the relay answers the upgrade with status {status} instead of 101, and says (first {BODY_BYTES_MAX} bytes): \"{body}\""
    )]
    Refused {
        /// HTTP status.
        status: u16,
        /// The first KiB of the body, escaped.
        body: String,
    },
    /// A frame cannot be read.
    #[error("reading what the relay sends")]
    Frame(#[from] DerpError),
    /// A frame came before those that must come first.
    #[error("the relay sends a frame of kind {kind:#04x} before its key")]
    Order {
        /// The kind byte.
        kind: u8,
    },
    /// The relay did not finish the handshake in time.
    #[error("the relay did not {missing} within {} s", HANDSHAKE_DURATION_MAX.as_secs())]
    Slow {
        /// What it did not do.
        missing: &'static str,
    },
    /// No frame for too long.
    #[error("the relay has been silent for {} s", SILENCE_DURATION_MAX.as_secs())]
    Silent,
    /// A ping was not answered.
    #[error("the relay did not answer a ping within {} s", PING_DURATION_MAX.as_secs())]
    NoPong,
    /// The stream ended before the relay told of itself: how a relay turns a node away.
    #[error(
        "the relay closed the connection before it would {missing}; it may not admit this node's key"
    )]
    TurnedAway {
        /// What it did not do.
        missing: &'static str,
    },
    /// The stream ended.
    #[error("the relay closed the connection")]
    Closed,
}
