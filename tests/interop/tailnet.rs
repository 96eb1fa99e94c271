//! What a scenario needs to know of the tailnet under test, whoever made it. Filled by `reference.rs` from stock parts.

use std::net::SocketAddr;

/// A tailnet with a recorder in it.
#[derive(Debug, Clone)]
pub(crate) struct Tailnet {
    /// URL of the control server.
    pub(crate) control_url: String,
    /// A key by which any number of nodes may join.
    pub(crate) auth_key: String,
    /// Tailnet address and port of the recorder.
    pub(crate) recorder: SocketAddr,
}
