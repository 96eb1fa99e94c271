//! How the recorder joins: its settings as netstack takes them, and the addresses of its tunnel.
//!
//! Invariant: the tunnel is bound to addresses of this host by which control is reached, or to those that the settings name, and to nothing else.
//! Called by the run of `serve`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use anyhow::Context;
use netstack::control::AuthKey;
use netstack::io::TailnetConfig;
use netstack::io::keystore::KeyStore;
use netstack::tcpip::TcpConfig;

use crate::config::Config;

/// Connections of one address beyond those that ingest serves: half open (256), waiting to be accepted (512), and closing after a refusal.
const UNSERVED_PER_PEER_MAX: usize = 1_024;

/// What joining needs, once the tunnel's addresses are known.
pub(super) fn tailnet_config(
    config: &Config,
    keys: KeyStore,
    addresses: &[IpAddr],
) -> TailnetConfig {
    let key = config.auth_key.as_ref();
    TailnetConfig {
        control_url: config.control_url.clone(),
        hostname: config.hostname.clone(),
        auth_key: key.map(|key| AuthKey::new(key.expose())),
        ephemeral: false,
        app: "tailtape".to_owned(),
        version_text: env!("CARGO_PKG_VERSION").to_owned(),
        keys,
        bind: addresses
            .iter()
            .map(|address| SocketAddr::new(*address, config.udp_port))
            .collect(),
        udp_offload: true,
        tcp: tcp_config(config),
    }
}

/// The tunnel's TCP takes more connections of one address than ingest serves of one node: so the refusal that has a name, a log line and a counter comes first.
fn tcp_config(config: &Config) -> TcpConfig {
    let tcp = config.tcp_config();
    TcpConfig {
        connections_per_peer_max: tcp
            .connections_per_peer_max
            .saturating_add(UNSERVED_PER_PEER_MAX),
        ..tcp
    }
}

/// The addresses of the tunnel: those of the settings, else this host's own on the way to control.
///
/// # Errors
/// Control's name does not resolve, or no route leads there.
pub(super) async fn tunnel_addresses(config: &Config) -> anyhow::Result<Vec<IpAddr>> {
    if !config.udp_address.is_empty() {
        return Ok(config.udp_address.clone());
    }
    let context = || format!("cannot find the way to {}", config.control_url);
    let control = control_addresses(config).await?;
    let mut addresses = Vec::new();
    let mut refusal = None;
    for is_v4 in [true, false] {
        let of_family = control.iter().find(|address| address.is_ipv4() == is_v4);
        match of_family.map(|control| address_towards(*control)) {
            Some(Ok(address)) => addresses.push(address),
            Some(Err(error)) => refusal = Some(error),
            None => {}
        }
    }
    match (addresses.is_empty(), refusal) {
        (false, _) => Ok(addresses),
        (true, Some(error)) => Err(error).with_context(context),
        (true, None) => Err(io::Error::from(io::ErrorKind::NotFound)).with_context(context),
    }
}

/// The addresses that control's name has.
///
/// # Errors
/// It does not resolve.
pub(super) async fn control_addresses(config: &Config) -> anyhow::Result<Vec<SocketAddr>> {
    let context = || format!("cannot find the way to {}", config.control_url);
    let url = url::Url::parse(&config.control_url).with_context(context)?;
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let port = url.port_or_known_default().unwrap_or(80);
    let found = tokio::net::lookup_host((host, port)).await;
    Ok(found.with_context(context)?.collect())
}

/// The address from which this host would send to `remote`. Connecting a UDP socket asks the routing table and sends nothing.
fn address_towards(remote: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = match remote.is_ipv4() {
        true => Ipv4Addr::UNSPECIFIED.into(),
        false => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(remote)?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn towards_loopback_the_address_is_loopback() {
        let address = address_towards("127.0.0.1:9".parse().unwrap()).unwrap();
        assert!(address.is_loopback());
    }
}
