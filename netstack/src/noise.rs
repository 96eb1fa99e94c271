//! Noise IK handshake and record layer of ts2021: bytes in, bytes out, for both sides.
//!
//! Invariant: a record is opened only in the order in which it was sealed; any failure is final for
//! the connection. No clock and no random source: the ephemeral key is an argument. Key material is
//! wiped on drop and never printed. Called by `io::control_conn` (initiator) and devnet (responder).
//!
//! ```text
//! initiation (101)  version u16 BE │ 01 │ 0060 │ ephemeral 32 │ AEAD(machine key) 48 │ AEAD("") 16
//! response    (51)  02 │ 0030 │ ephemeral 32 │ AEAD("") 16
//! error             03 │ length u16 BE │ clear UTF-8, not authenticated
//! record            04 │ length u16 BE (16..=4093) │ ciphertext; nonce = 4 zero bytes, u64 BE counter
//! early payload     ff ff ff 'T' 'S' │ length u32 BE │ JSON      (plaintext, before HTTP/2)
//! ```
//!
//! Source: tailscale.com `control/controlbase` (messages.go, handshake.go, conn.go),
//! `control/ts2021`; the Noise Protocol Framework, revision 34.

mod early;
mod handshake;
mod record;

pub use early::{EarlyPayloadReader, encode_early_payload};
pub use handshake::{Initiator, Responder, message_bytes};
pub use record::Records;

/// Bytes of the client's first message, version prefix included.
pub const INITIATION_BYTES: usize = 101;
/// Bytes of the server's answer to it.
pub const RESPONSE_BYTES: usize = 51;
/// Largest record on the wire, header included; upstream's `maxMessageSize`.
pub const RECORD_BYTES_MAX: usize = 4096;
/// Largest plaintext of one record: 4096 less the header (3) and the tag (16).
pub const RECORD_PLAIN_BYTES_MAX: usize = RECORD_BYTES_MAX - HEADER_BYTES - TAG_BYTES;
/// Longest early payload that we read. Real ones have 94 bytes; upstream allows far more than sense.
pub const EARLY_PAYLOAD_BYTES_MAX: usize = 64 * 1024;
/// How much of a peer's error text is kept; it is not authenticated and only a hint for logs.
pub const ERROR_TEXT_BYTES_MAX: usize = 1024;

/// Type and length in front of every message except the first, which has a version before them.
const HEADER_BYTES: usize = 3;
/// Poly1305.
const TAG_BYTES: usize = 16;

const TYPE_INITIATION: u8 = 1;
const TYPE_RESPONSE: u8 = 2;
const TYPE_ERROR: u8 = 3;
const TYPE_RECORD: u8 = 4;

/// What went wrong between the two ends of a ts2021 connection. Every case is final for it.
#[derive(Debug, thiserror::Error)]
pub enum NoiseError {
    /// The handshake could not be set up or a message of it did not authenticate.
    #[error("noise handshake: {step}")]
    Handshake {
        /// Which step failed.
        step: &'static str,
        /// What the Noise library says.
        #[source]
        source: snow::Error,
    },
    /// A handshake message has the wrong type or length.
    #[error("malformed {message} message")]
    Malformed {
        /// Which message.
        message: &'static str,
    },
    /// The other side refused in clear text, escaped and cut; nobody vouches for the words.
    #[error("the peer refused the handshake, saying {text:?}")]
    Refused {
        /// The peer's words.
        text: String,
    },
    /// A frame that is not a record came after the handshake.
    #[error("message of type {kind} where a record belongs")]
    NotARecord {
        /// The type that came.
        kind: u8,
    },
    /// A record's length lies outside 16..=4093.
    #[error("record of {length} ciphertext bytes")]
    RecordLength {
        /// The announced length.
        length: usize,
    },
    /// More plaintext than one record may hold.
    #[error("{length} bytes are too many for one record")]
    PlainLength {
        /// The length that was given.
        length: usize,
    },
    /// A record did not authenticate.
    #[error("record {counter} does not authenticate")]
    Open {
        /// Its place in the sequence.
        counter: u64,
    },
    /// The counter has reached its end; there is no rekeying.
    #[error("record counter exhausted")]
    Exhausted,
    /// The early payload announces more than we read.
    #[error("early payload of {length} bytes")]
    EarlyPayloadLength {
        /// The announced length.
        length: u32,
    },
    /// The connection already failed.
    #[error("connection already failed")]
    Dead,
}

#[cfg(test)]
mod tests;
