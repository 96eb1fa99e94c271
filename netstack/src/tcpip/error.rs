//! Why a call of the TCP room did nothing.
//!
//! Invariant: an error leaves everything as it was. Returned by [`super::TcpIp`], read by the shell.

use std::net::{IpAddr, SocketAddr};

use super::CloseReason;

/// Why a call on a connection did nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TcpError {
    /// Nothing to read, or no room to write; an event follows.
    #[error("the operation would block")]
    WouldBlock,
    /// The handle was released, or never was one.
    #[error("no such connection")]
    Stale,
    /// Written to after [`TcpIp::shutdown`](super::TcpIp::shutdown).
    #[error("writing to a connection whose sending side is shut down")]
    ShutDown,
    /// The connection is over.
    #[error("the connection is over: {0:?}")]
    Closed(CloseReason),
}

/// Why a port is not listened on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ListenError {
    /// Someone listens there.
    #[error("listening on port {0}: it is in use")]
    InUse(u16),
    /// Port 0 cannot be reached.
    #[error("listening on port 0")]
    PortZero,
}

/// Why no connection was begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConnectError {
    /// The local address is not ours, of another family, or the remote one cannot be reached by TCP.
    #[error("connecting from {0} to {1}: not possible with these addresses")]
    Unaddressable(IpAddr, SocketAddr),
    /// No port is left for this remote address.
    #[error("connecting to {0}: no local port is free")]
    NoPort(SocketAddr),
    /// A limit on connections or memory is reached.
    #[error("connecting to {0}: too many connections")]
    Exhausted(SocketAddr),
}
