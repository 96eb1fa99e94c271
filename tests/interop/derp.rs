//! A stock `derper` with TLS and STUN on loopback, and the DERP map that names it. Stock nodes never leave `Starting` without
//! a relay that they can reach. Its certificate is self-signed and pinned by hash, as a private relay's would be. Called by
//! the scenarios.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::time::Duration;

use anyhow::{Context, ensure};
use netstack::tailcfg::{DerpMap, DerpNode, DerpRegion};

use crate::bench::Bench;
use crate::process::{Line, Process};

/// The first region id that is free for own relays.
const REGION_ID: u32 = 900;
const START_LIMIT: Duration = Duration::from_secs(20);

/// The running relay.
#[derive(Debug)]
pub(crate) struct Derper {
    _process: Process,
    node: DerpNode,
}

impl Derper {
    /// Starts the relay and waits until it says where.
    pub(crate) fn start(bench: &Bench) -> anyhow::Result<Self> {
        let directory = bench.directory("derper")?;
        let derp_port = free_tcp_port()?;
        let stun_port = free_udp_port()?;
        let mut command = bench.peers().command("derper");
        command
            .arg("-a")
            .arg(format!("127.0.0.1:{derp_port}"))
            .args(["-http-port", "-1", "-stun", "-stun-port"])
            .arg(stun_port.to_string())
            .args(["-hostname", "127.0.0.1", "-certmode", "manual", "-certdir"])
            .arg(&directory)
            // Without a file of its own, a derper run by root keeps its key under /var/lib.
            .arg("-c")
            .arg(directory.join("derper.key"));
        let process = Process::start(bench, "derper", command)?;

        // It prints the node for the DERP map with the hash of its certificate, and then listens.
        let printed = process.wait_for("its DERP node", START_LIMIT, |line| match line {
            Line::Stderr(line) => serde_json::from_str::<DerpNode>(line).ok(),
            Line::Stdout(_) => None,
        })?;
        ensure!(
            printed.cert_name.starts_with("sha256-raw:"),
            "derper pinned no certificate: {printed:?}"
        );
        let node = DerpNode {
            name: format!("{REGION_ID}a"),
            region_id: REGION_ID,
            ipv4: Ipv4Addr::LOCALHOST.to_string(),
            ipv6: "none".to_owned(),
            derp_port,
            stun_port: i32::from(stun_port),
            stun_test_ip: Ipv4Addr::LOCALHOST.to_string(),
            ..printed
        };
        Ok(Self {
            _process: process,
            node,
        })
    }

    /// A DERP map with this relay as its only one.
    pub(crate) fn map(&self) -> DerpMap {
        let region = DerpRegion {
            region_id: REGION_ID,
            region_code: "loopback".to_owned(),
            region_name: "Loopback".to_owned(),
            nodes: vec![self.node.clone()],
            ..DerpRegion::default()
        };
        DerpMap {
            regions: Some(BTreeMap::from([(REGION_ID, Some(region))])),
            omit_default_regions: true,
            ..DerpMap::default()
        }
    }
}

/// A port that was free a moment ago. Nothing keeps it so; a derper that lost it ends at once, and the scenario says so.
fn free_tcp_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("finding a TCP port")?;
    Ok(listener.local_addr().context("finding a TCP port")?.port())
}

fn free_udp_port() -> anyhow::Result<u16> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("finding a UDP port")?;
    Ok(socket.local_addr().context("finding a UDP port")?.port())
}
