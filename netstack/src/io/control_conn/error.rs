//! What goes wrong on the way to control, told so that an operator knows what to do.
//!
//! Invariant: no secret is in any of them; keys are public halves. Made by `control_conn`, shown by the
//! driver as the reason why a node is out of touch.

use std::net::SocketAddr;

use http::StatusCode;

use super::{ANSWER_BYTES_MAX, CONNECT_DURATION_MAX};
use crate::key::MachinePublic;
use crate::noise::NoiseError;

/// What went wrong on the way to control, or back.
#[derive(Debug, thiserror::Error)]
pub enum ControlConnError {
    /// The control URL cannot be used.
    #[error("control URL {url:?}: {reason}")]
    Url {
        /// As it was given.
        url: String,
        /// Why.
        reason: &'static str,
    },
    /// An `http://` URL leads to an address that is neither loopback nor private.
    #[error("{address} is not a private address, and http:// would show this node's key to anyone")]
    NotPrivate {
        /// Where it leads.
        address: SocketAddr,
    },
    /// The name did not resolve, or TCP did not connect.
    #[error("connecting to {authority}")]
    Dial {
        /// Host and port.
        authority: String,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// Nothing happened within the limit.
    #[error("{step} took longer than {} s", CONNECT_DURATION_MAX.as_secs())]
    Slow {
        /// What was being done.
        step: &'static str,
    },
    /// HTTP failed.
    #[error("{step}")]
    Http {
        /// What was being done.
        step: &'static str,
        /// HTTP's error.
        #[source]
        source: hyper::Error,
    },
    /// The answer to `/key` or `/ts2021` was another than the protocol's.
    #[error("{step}: unexpected answer with status {status}")]
    Answer {
        /// What was asked.
        step: &'static str,
        /// The answer's status.
        status: StatusCode,
    },
    /// `/key` did not yield a key.
    #[error("reading the control server's key")]
    Key {
        /// The JSON error.
        #[source]
        source: serde_json::Error,
    },
    /// The server has no ts2021 key.
    #[error("the control server is too old: it has no Noise key")]
    NoKey,
    /// The server closed right after the upgrade, which is how Headscale turns old clients away.
    #[error("the control server closed after the upgrade; it may consider this client too old")]
    ClosedAfterUpgrade,
    /// The Noise handshake failed; with a pinned key, the server may have another one now.
    #[error("ts2021 handshake with {server}")]
    Noise {
        /// The key that was expected.
        server: MachinePublic,
        /// Noise's error.
        #[source]
        source: NoiseError,
    },
    /// The server shows another key than the pinned one.
    #[error(
        "the control server at {authority} shows key {offered}, but {pinned} is pinned: if it was set up \
         anew, remove `control` from the stored state and start again; if not, do not trust it"
    )]
    KeyChanged {
        /// Host and port.
        authority: String,
        /// As stored.
        pinned: MachinePublic,
        /// As shown.
        offered: MachinePublic,
    },
    /// Bytes could not be read during the handshake.
    #[error("reading the ts2021 response")]
    Read(#[source] std::io::Error),
    /// An answer's body is larger than is read.
    #[error("answer of more than {ANSWER_BYTES_MAX} bytes, or broken off")]
    Body,
}

impl ControlConnError {
    /// Whether this is how a handshake fails when the server no longer has the key that we expect.
    pub(super) fn may_mean_another_key(&self) -> bool {
        match self {
            Self::Answer { .. } | Self::Noise { .. } | Self::ClosedAfterUpgrade => true,
            Self::Url { .. }
            | Self::NotPrivate { .. }
            | Self::Dial { .. }
            | Self::Slow { .. }
            | Self::Http { .. }
            | Self::Key { .. }
            | Self::NoKey
            | Self::KeyChanged { .. }
            | Self::Read(_)
            | Self::Body => false,
        }
    }
}
