//! What goes wrong on the way to a relay, or with a connection to one, told so that an operator knows what to do.
//!
//! Invariant: no secret is in any of them. Made by `derp_conn`, shown where a region's state is shown.

use std::io;

use tokio_rustls::rustls;

use super::CONNECT_DURATION_MAX;
use super::dial::NODE_DURATION_MAX;
use super::tls::PinError;
use crate::derp::client::DerpClientError;

/// No connection to a region's relay, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum DerpConnError {
    /// The region has no node that relays.
    #[error("DERP region {region} has no node that relays; correct the DERP map")]
    NoNode {
        /// The region's id.
        region: u32,
    },
    /// A node's host name cannot be one.
    #[error("the DERP map names the host {host:?}, which is no host name; correct the map")]
    Host {
        /// As the map has it.
        host: String,
    },
    /// A node's certificate name is neither a host name nor a pin.
    #[error(
        "the DERP map wants the certificate {cert_name:?} of {host}, which is neither a host name nor sha256-raw: and 64 hex digits; correct the map"
    )]
    CertName {
        /// The node's host name.
        host: String,
        /// As the map has it.
        cert_name: String,
    },
    /// No family of addresses is allowed, or known, for this node.
    #[error("{host} has no address that the DERP map allows")]
    NoAddress {
        /// The node's host name.
        host: String,
    },
    /// TCP did not connect, or the name did not resolve.
    #[error("connecting to the relay {host} on port {port}")]
    Dial {
        /// The node's host name.
        host: String,
        /// TCP port.
        port: u16,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// TCP did not connect in time.
    #[error(
        "the relay {host} did not answer on port {port} within {:?}; a firewall may be in the way",
        NODE_DURATION_MAX
    )]
    NodeSlow {
        /// The node's host name.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// The whole region took too long.
    #[error("connecting to DERP region {region} took longer than {} s", CONNECT_DURATION_MAX.as_secs())]
    Slow {
        /// The region's id.
        region: u32,
    },
    /// TLS cannot be set up with these roots.
    #[error("setting up TLS")]
    Setup(#[source] rustls::Error),
    /// The relay does not show the certificate that the map pins.
    #[error("the certificate of the relay {host}")]
    Pin {
        /// The node's host name.
        host: String,
        /// What is wrong with it.
        #[source]
        source: PinError,
    },
    /// The relay is not the one that the map names, or TLS broke.
    #[error("TLS with the relay {host}")]
    Tls {
        /// The node's host name.
        host: String,
        /// TLS' error, which says what is wrong with the certificate.
        #[source]
        source: io::Error,
    },
    /// Reading or writing failed.
    #[error("{what} the relay")]
    Io {
        /// What was being done.
        what: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The relay broke the protocol, fell silent, or closed.
    #[error(transparent)]
    Client(#[from] DerpClientError),
    /// The task that drives the connection was ended.
    #[error("the connection to the relay was given up")]
    GivenUp,
}
