//! Whole nodes that reach each other through relays: real TLS, real sockets, a devnet that names the relays.

use netstack::devnet::{DerpServer, DerpServerConfig, StunFaults};
use netstack::key::NodePublic;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

impl Net {
    async fn relay(&self, region_id: u32) -> DerpServer {
        let config = DerpServerConfig {
            region_id,
            ..DerpServerConfig::default()
        };
        self.devnet.add_relay(config).await.unwrap()
    }

    /// A node without a UDP socket.
    async fn join_by_relay_alone(&self, hostname: &str) -> Tailnet {
        let mut config = self.config(hostname, &self.auth_key(&[], true));
        config.bind = Vec::new();
        Tailnet::join(config, HANG).await.unwrap()
    }
}

/// Waits until the relay serves so many nodes.
async fn serves(relay: &DerpServer, count: usize) -> Vec<NodePublic> {
    within("nodes at the relay", async {
        loop {
            let clients = relay.clients();
            if clients.len() >= count {
                return clients.into_iter().map(|(key, _)| key).collect();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}

#[tokio::test]
async fn two_nodes_without_udp_speak_through_the_relay() {
    let net = Net::new().await;
    let relay = net.relay(900).await;
    let (one, two) = tokio::join!(
        net.join_by_relay_alone("one"),
        net.join_by_relay_alone("two")
    );
    knows(&one, &two).await;
    knows(&two, &one).await;
    serves(&relay, 2).await;
    serve_echo(two.listen(80, 4).unwrap());
    let text = pattern(300_000, 1);
    let stream = within("a connection", one.dial(v4(&two, 80)))
        .await
        .unwrap();
    assert_eq!(echo(stream, &text).await, text);
    assert!(one.status().peers.iter().all(|peer| peer.direct.is_none()));
    assert!(one.stats().relays.received > 0);
    assert_eq!(one.stats().datagrams_in, 0);
}

#[tokio::test]
async fn a_node_with_udp_and_one_without_speak_through_two_relays() {
    let net = Net::new().await;
    let (nine, ten) = (net.relay(900).await, net.relay(901).await);
    let (one, two) = tokio::join!(net.join("one"), net.join_by_relay_alone("two"));
    knows(&one, &two).await;
    knows(&two, &one).await;
    within("both at a relay", async {
        while nine.clients().len() + ten.clients().len() < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    serve_echo(one.listen(80, 4).unwrap());
    let text = pattern(20_000, 2);
    let stream = within("a connection", two.dial(v4(&one, 80)))
        .await
        .unwrap();
    assert_eq!(echo(stream, &text).await, text);
}

#[tokio::test]
async fn what_begins_beside_a_relay_takes_the_direct_path() {
    let net = Net::new().await;
    let relay = net.relay(900).await;
    let (one, two) = net.pair().await;
    serves(&relay, 2).await;
    serve_echo(two.listen(80, 4).unwrap());
    let text = pattern(2_000_000, 3);
    let stream = within("a connection", one.dial(v4(&two, 80)))
        .await
        .unwrap();
    assert_eq!(echo(stream, &text).await, text);
    assert!(one.status().peers.iter().any(|peer| peer.direct.is_some()));
    let relayed = one.stats().relays.routed;
    assert!(relayed < 100, "{relayed} of some 4,000 packets");
}

#[tokio::test]
async fn a_stream_outlives_relays_that_restart() {
    let net = Net::new().await;
    let relay = net.relay(900).await;
    let (one, two) = tokio::join!(
        net.join_by_relay_alone("one"),
        net.join_by_relay_alone("two")
    );
    knows(&one, &two).await;
    knows(&two, &one).await;
    serves(&relay, 2).await;
    let (mut near, mut far) = connection(&one, &two, 80).await;
    for round in 0..3_u64 {
        let text = pattern(50_000, round);
        let (send, receive) = (text.clone(), async {
            let mut got = vec![0; 50_000];
            far.read_exact(&mut got).await.unwrap();
            got
        });
        let sent = async {
            near.write_all(&send[..25_000]).await.unwrap();
            relay.restart();
            near.write_all(&send[25_000..]).await.unwrap();
        };
        let (got, ()) = within("all bytes", async { tokio::join!(receive, sent) }).await;
        assert!(got == text);
    }
    assert!(one.stats().relays.failures >= 3);
}

#[tokio::test]
async fn home_is_the_nearest_region_and_control_hears_what_was_measured() {
    let net = Net::new().await;
    let relays = [net.relay(900).await, net.relay(901).await];
    let distant = net.devnet.start_stun(900).await.unwrap();
    distant.set_faults(StunFaults {
        delay: Duration::from_millis(200),
        ..StunFaults::default()
    });
    let near = net.devnet.start_stun(901).await.unwrap();
    let node = net.join("one").await;
    within("a home", async {
        while !relays[1].clients().iter().any(|(_, home)| *home) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert!(near.stats().answers > 0);
    assert!(relays[0].clients().is_empty());
    let told = within("control to hear of it", async {
        loop {
            let told = net.devnet.nodes().into_iter().next();
            if let Some(told) = told.filter(|told| told.home_derp == 901) {
                return told;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let local = node.endpoints()[0];
    assert!(told.endpoints.contains(&local), "{told:?}");
    let report = node.network_report().unwrap();
    assert_eq!(report.home, Some(901));
    assert!(report.udp);
}

#[tokio::test]
async fn where_udp_is_blocked_home_is_measured_by_https() {
    let net = Net::new().await;
    let relays = [net.relay(900).await, net.relay(901).await];
    let node = net.join_by_relay_alone("one").await;
    within("a home", async {
        loop {
            let homes = relays.iter().flat_map(DerpServer::clients);
            if homes.filter(|(_, home)| *home).count() == 1 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let report = within("a report", async {
        loop {
            if let Some(report) = node.network_report() {
                return report;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert!(!report.udp);
    assert_eq!(report.latency_https.len(), 2, "{report:?}");
}
