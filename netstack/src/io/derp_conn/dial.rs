//! TCP and TLS to one relay of a region: nodes in the order of the map, both families at once.
//!
//! Invariant: each node has [`NODE_DURATION_MAX`] for TCP, and no address is tried that the map rules out.
//! Called by `derp_conn`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::RootCertStore;

use super::error::DerpConnError;
use super::tls;
use crate::tailcfg::{DerpNode, DerpRegion};

/// For TCP to one node, its name's resolution included; upstream's value.
pub const NODE_DURATION_MAX: Duration = Duration::from_millis(1500);
/// How long IPv4 waits where IPv6 is known to work.
const IPV6_HEAD_START: Duration = Duration::from_millis(200);
/// Nodes of one region, and addresses of one name, that are tried.
const NODES_MAX: usize = 16;
const ADDRESSES_MAX: usize = 8;

/// A relay that answered.
#[derive(Debug)]
pub(super) struct Dialed {
    pub(super) stream: TlsStream<TcpStream>,
    pub(super) host: String,
    /// The region's first node, if this is another one.
    pub(super) ideal_node: Option<String>,
    pub(super) address: SocketAddr,
}

/// Dials the first node of the region that answers.
pub(super) async fn dial(
    region: &DerpRegion,
    roots: &Arc<RootCertStore>,
    ipv6_works: bool,
) -> Result<Dialed, DerpConnError> {
    let mut failure = DerpConnError::NoNode {
        region: region.region_id,
    };
    let nodes = region.nodes.iter().filter(|node| !node.stun_only);
    for node in nodes.take(NODES_MAX) {
        match dial_node(node, ipv6_works).await {
            Ok(stream) => {
                let mut dialed = handshake(node, stream, roots).await?;
                let first = region.nodes.first().map(|first| &first.name);
                dialed.ideal_node = first.filter(|first| **first != node.name).cloned();
                return Ok(dialed);
            }
            Err(error) => {
                tracing::debug!(node = %node.name, error = &error as &dyn std::error::Error, "a relay does not answer");
                failure = error;
            }
        }
    }
    Err(failure)
}

async fn handshake(
    node: &DerpNode,
    stream: TcpStream,
    roots: &Arc<RootCertStore>,
) -> Result<Dialed, DerpConnError> {
    let host = node.host_name.clone();
    let failed = |source| DerpConnError::Tls {
        host: host.clone(),
        source,
    };
    stream.set_nodelay(true).map_err(failed)?;
    let address = stream.peer_addr().map_err(failed)?;
    let (config, name) = tls::config(node, Arc::clone(roots))?;
    let connector = TlsConnector::from(Arc::new(config));
    let stream = connector.connect(name, stream).await.map_err(|source| {
        let host = node.host_name.clone();
        match tls::pin_error(&source) {
            Some(source) => DerpConnError::Pin { host, source },
            None => DerpConnError::Tls { host, source },
        }
    })?;
    Ok(Dialed {
        stream,
        host: node.host_name.clone(),
        ideal_node: None,
        address,
    })
}

async fn dial_node(node: &DerpNode, ipv6_works: bool) -> Result<TcpStream, DerpConnError> {
    let port = port(node);
    let host = node.host_name.clone();
    match timeout(NODE_DURATION_MAX, race(node, port, ipv6_works)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(Some(source))) => Err(DerpConnError::Dial { host, port, source }),
        Ok(Err(None)) => Err(DerpConnError::NoAddress { host }),
        Err(_) => Err(DerpConnError::NodeSlow { host, port }),
    }
}

fn port(node: &DerpNode) -> u16 {
    match node.derp_port {
        0 => 443,
        port => port,
    }
}

/// The first of both families that connects; `None`: neither is allowed.
async fn race(
    node: &DerpNode,
    port: u16,
    ipv6_works: bool,
) -> Result<TcpStream, Option<io::Error>> {
    let ipv6 = family(&node.ipv6, IpAddr::is_ipv6);
    let ipv4 = family(&node.ipv4, IpAddr::is_ipv4);
    let host = node.host_name.as_str();
    let six = connect(host, port, ipv6, IpAddr::is_ipv6);
    let four = connect(host, port, ipv4, IpAddr::is_ipv4);
    tokio::pin!(six, four);
    let head_start = async {
        if ipv6_works && ipv6 != Family::Off {
            sleep(IPV6_HEAD_START).await;
        }
    };
    // While IPv6 has its head start, only it runs; a failure ends the head start.
    tokio::select! {
        outcome = &mut six => match outcome {
            Ok(stream) => return Ok(stream),
            Err(error) => return four.await.map_err(|other| other.or(error)),
        },
        () = head_start => {}
    }
    tokio::select! {
        outcome = &mut six => match outcome {
            Ok(stream) => Ok(stream),
            Err(error) => four.await.map_err(|other| other.or(error)),
        },
        outcome = &mut four => match outcome {
            Ok(stream) => Ok(stream),
            Err(error) => six.await.map_err(|other| other.or(error)),
        },
    }
}

/// What the map says of one family of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Resolve,
    At(IpAddr),
    Off,
}

fn family(text: &str, belongs: fn(&IpAddr) -> bool) -> Family {
    if text.is_empty() {
        return Family::Resolve;
    }
    let ip = text.parse().ok().filter(belongs);
    ip.map_or(Family::Off, Family::At)
}

/// Connects within one family; `None`: it has no address.
async fn connect(
    host: &str,
    port: u16,
    family: Family,
    belongs: fn(&IpAddr) -> bool,
) -> Result<TcpStream, Option<io::Error>> {
    let addresses = match family {
        Family::Off => return Err(None),
        Family::At(ip) => vec![SocketAddr::new(ip, port)],
        Family::Resolve => tokio::net::lookup_host((host, port))
            .await
            .map_err(Some)?
            .filter(|address| belongs(&address.ip()))
            .take(ADDRESSES_MAX)
            .collect(),
    };
    let mut failure = None;
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = Some(error),
        }
    }
    Err(failure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_taken_nothing_is_resolved_and_the_rest_rules_the_family_out() {
        let ip = "192.0.2.1".parse().unwrap();
        for (text, expected) in [
            ("", Family::Resolve),
            ("192.0.2.1", Family::At(ip)),
            ("none", Family::Off),
            ("2001:db8::1", Family::Off),
        ] {
            assert_eq!(family(text, IpAddr::is_ipv4), expected, "{text}");
        }
    }
}
