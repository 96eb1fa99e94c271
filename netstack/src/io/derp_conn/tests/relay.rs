//! Connections over TLS on loopback to the devnet's relay.

use tokio::time::timeout;

use super::*;
use crate::derp::client::DerpClientError;
use crate::derp::{ClientInfo, PeerGoneReason};
use crate::devnet::{DerpServer, DerpServerConfig, DevNet, DevNetConfig};
use crate::tailcfg::{DerpNode, DerpRegion};

/// Nothing here waits for time to pass; this only ends a test that hangs.
const HANG: Duration = Duration::from_secs(30);

async fn relay() -> DerpServer {
    DerpServer::start(DerpServerConfig::default())
        .await
        .unwrap()
}

fn no_roots() -> DerpDialer {
    DerpDialer::with_roots([]).unwrap()
}

fn key(byte: u8) -> NodePrivate {
    NodePrivate::from_bytes([byte; 32])
}

async fn try_join(region: &DerpRegion, byte: u8) -> Result<DerpConn, DerpConnError> {
    let config = DerpConnConfig {
        node: key(byte),
        home: true,
        ipv6_works: false,
    };
    let dialer = no_roots();
    let connecting = DerpConn::connect(&dialer, region, config);
    timeout(HANG, connecting).await.unwrap()
}

async fn join(relay: &DerpServer, byte: u8) -> DerpConn {
    try_join(&relay.region(), byte).await.unwrap()
}

async fn event(conn: &mut DerpConn) -> DerpEvent {
    timeout(HANG, conn.next()).await.unwrap().unwrap()
}

/// All events until everything that was sent before has been seen by the relay and answered. The relay
/// writes a pong before what it owes otherwise, hence the second question.
async fn settle(conn: &mut DerpConn) -> Vec<DerpEvent> {
    let mut events = Vec::new();
    for _ in 0..2 {
        conn.sender().check_alive();
        loop {
            let event = event(conn).await;
            if matches!(event, DerpEvent::Alive { .. }) {
                break;
            }
            events.push(event);
        }
    }
    events
}

fn disco() -> Bytes {
    let mut packet = crate::disco::MAGIC.to_vec();
    packet.resize(100, 1);
    packet.into()
}

/// TLS to the relay, and nothing said yet.
async fn raw(relay: &DerpServer) -> impl AsyncRead + AsyncWrite + Unpin {
    let roots = Arc::new(RootCertStore::empty());
    dial(&relay.region(), &roots, false).await.unwrap().stream
}

/// The answer to one request, to its end.
async fn ask(relay: &DerpServer, head: &str) -> String {
    let mut stream = raw(relay).await;
    let request = format!("{head}\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = timeout(HANG, stream.read_to_end(&mut answer))
        .await
        .unwrap();
    if let Err(error) = read {
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
    String::from_utf8(answer).unwrap()
}

/// What the relay sends after the upgrade and `frames`, until it closes.
async fn say(relay: &DerpServer, frames: &[Bytes]) -> Vec<Frame> {
    let mut stream = raw(relay).await;
    let request = "GET /derp HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: derp\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    for frame in frames {
        stream.write_all(frame).await.unwrap();
    }
    let mut answer = Vec::new();
    let read = timeout(HANG, stream.read_to_end(&mut answer))
        .await
        .unwrap();
    assert!(read.is_err() || !answer.is_empty());
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let mut decoder = Decoder::new();
    decoder.push(&answer[end.unwrap() + 4..]);
    std::iter::from_fn(|| decoder.next_frame().unwrap()).collect()
}

#[tokio::test]
async fn packets_are_relayed_both_ways_over_tls() {
    let relay = relay().await;
    let (mut a, mut b) = (join(&relay, 1).await, join(&relay, 2).await);
    assert_eq!(a.relay(), relay.key());
    assert_eq!(a.address(), Some(relay.address()));
    let longest = Bytes::from(vec![9; crate::derp::PACKET_BYTES_MAX]);
    for packet in [packet(), disco(), longest] {
        a.sender().send_packet(key(2).public(), packet.clone());
        let from = key(1).public();
        let arrived = event(&mut b).await;
        assert!(
            arrived
                == DerpEvent::Packet {
                    from,
                    packet: packet.clone()
                }
        );
        b.sender().send_packet(key(1).public(), packet.clone());
        let from = key(2).public();
        assert!(event(&mut a).await == DerpEvent::Packet { from, packet });
    }
    let homes = [1, 2].map(|byte| (key(byte).public(), true));
    let mut clients = relay.clients();
    clients.sort_by_key(|(key, _)| *key != homes[0].0);
    assert_eq!(clients, homes);
    assert_eq!(relay.stats().packets_relayed, 6);
}

#[tokio::test]
async fn another_certificate_than_the_pinned_one_is_refused() {
    let (relay, other) = (relay().await, relay().await);
    let mut region = relay.region();
    region.nodes[0].cert_name = other.region().nodes[0].cert_name.clone();
    let refused = try_join(&region, 1).await;
    assert!(matches!(
        refused,
        Err(DerpConnError::Pin {
            source: PinError::Digest,
            ..
        })
    ));

    region.nodes[0].cert_name = String::new();
    let refused = try_join(&region, 1).await;
    assert!(matches!(refused, Err(DerpConnError::Tls { .. })));
    region.nodes[0].insecure_for_tests = true;
    assert!(try_join(&region, 1).await.is_ok());
    assert_eq!(relay.stats().clients_admitted, 1);
}

#[tokio::test]
async fn the_first_node_that_answers_is_taken_in_the_order_of_the_map() {
    let (relay, second) = (relay().await, relay().await);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = listener.local_addr().unwrap().port();
    drop(listener);
    let working = relay.region().nodes[0].clone();
    let dead = DerpNode {
        name: "dead".to_owned(),
        derp_port: closed,
        ..working.clone()
    };
    let stun = DerpNode {
        stun_only: true,
        ..second.region().nodes[0].clone()
    };
    let later = second.region().nodes[0].clone();
    let mut region = relay.region();
    region.nodes = vec![dead.clone(), stun.clone(), working, later];
    let conn = try_join(&region, 1).await.unwrap();
    assert_eq!(conn.relay(), relay.key());
    let dialed = dial(&region, &no_roots().roots, false).await.unwrap();
    assert_eq!(dialed.ideal_node.as_deref(), Some("dead"));

    region.nodes = vec![dead, stun];
    let failed = try_join(&region, 1).await;
    assert!(matches!(failed, Err(DerpConnError::Dial { port, .. }) if port == closed));
    region.nodes.remove(0);
    let failed = try_join(&region, 1).await;
    assert!(matches!(failed, Err(DerpConnError::NoNode { region: 900 })));
}

#[tokio::test]
async fn a_family_that_the_map_rules_out_is_not_dialled() {
    let relay = relay().await;
    let mut region = relay.region();
    region.nodes[0].ipv4 = "none".to_owned();
    let failed = try_join(&region, 1).await;
    assert!(matches!(failed, Err(DerpConnError::NoAddress { .. })));
    // The host name is an address, so resolving it needs no DNS.
    region.nodes[0].ipv4 = String::new();
    assert!(try_join(&region, 1).await.is_ok());
}

#[tokio::test]
async fn those_who_got_packets_of_a_peer_are_told_when_it_goes_and_others_are_not() {
    let relay = relay().await;
    let (a, mut b, mut c) = (
        join(&relay, 1).await,
        join(&relay, 2).await,
        join(&relay, 3).await,
    );
    a.sender().send_packet(key(2).public(), packet());
    assert!(matches!(event(&mut b).await, DerpEvent::Packet { .. }));
    drop(a);
    let peer = key(1).public();
    let reason = PeerGoneReason::Disconnected;
    assert_eq!(event(&mut b).await, DerpEvent::PeerGone { peer, reason });
    assert_eq!(settle(&mut c).await, []);
}

#[tokio::test]
async fn a_sender_of_disco_is_told_that_a_peer_is_not_here_three_times_at_once() {
    let relay = relay().await;
    let mut a = join(&relay, 1).await;
    let peer = key(9).public();
    a.sender().send_packet(peer, packet());
    assert_eq!(settle(&mut a).await, []);
    for _ in 0..6 {
        a.sender().send_packet(peer, disco());
    }
    let reason = PeerGoneReason::NotHere;
    let gone = DerpEvent::PeerGone { peer, reason };
    let told = settle(&mut a).await;
    // A second may pass on a busy machine, which allows one more.
    assert!((3..6).contains(&told.len()), "{told:?}");
    assert!(told.iter().all(|event| *event == gone));
    assert_eq!(relay.stats().packets_for_nobody, 7);
}

#[tokio::test]
async fn of_two_connections_with_one_key_the_one_that_sent_last_gets_the_packets() {
    let relay = relay().await;
    let mut old = join(&relay, 1).await;
    let mut new = join(&relay, 1).await;
    let mut other = join(&relay, 2).await;
    // A new connection says at once that this is its home, and wins by it.
    settle(&mut new).await;
    for round in 0..2 {
        let (winner, loser) = if round == 0 {
            (&mut new, &mut old)
        } else {
            settle(&mut old).await;
            (&mut old, &mut new)
        };
        other.sender().send_packet(key(1).public(), packet());
        settle(&mut other).await;
        assert!(matches!(event(winner).await, DerpEvent::Packet { .. }));
        assert_eq!(settle(loser).await, []);
        settle(winner).await;
    }
    drop(old);
    // The key is still here by its other connection, so nobody is told that it went.
    assert_eq!(settle(&mut other).await, []);
    assert_eq!(relay.clients().len(), 2);
}

#[tokio::test]
async fn a_restart_closes_connections_and_new_ones_are_served_under_the_same_key() {
    let relay = relay().await;
    let mut a = join(&relay, 1).await;
    let (reconnect_in, try_for) = (Duration::from_millis(10), Duration::from_secs(5));
    relay.announce_health("overloaded");
    relay.announce_restart(reconnect_in, try_for);
    let problem = Some("overloaded".to_owned());
    assert_eq!(event(&mut a).await, DerpEvent::Health { problem });
    let restarting = DerpEvent::Restarting {
        reconnect_in,
        try_for,
    };
    assert_eq!(event(&mut a).await, restarting);
    relay.restart();
    let ended = timeout(HANG, a.next()).await.unwrap().unwrap_err();
    assert!(
        matches!(
            ended,
            DerpConnError::Client(DerpClientError::Closed) | DerpConnError::Io { .. }
        ),
        "{ended:?}"
    );
    let again = join(&relay, 1).await;
    assert_eq!(again.relay(), relay.key());
}

#[tokio::test]
async fn a_relay_that_refuses_says_so_and_one_that_is_silent_writes_nothing() {
    let relay = relay().await;
    relay.set_refusing(true);
    let refused = try_join(&relay.region(), 1).await;
    let Err(DerpConnError::Client(DerpClientError::Refused { status, body })) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!((status, body.contains("refuses")), (503, true));
    relay.set_refusing(false);

    let (a, mut b) = (join(&relay, 1).await, join(&relay, 2).await);
    relay.set_silent(true);
    a.sender().send_packet(key(2).public(), packet());
    timeout(HANG, async {
        while relay.stats().packets_relayed == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert_eq!(b.sender().stats().packets_received, 0);
    relay.set_silent(false);
    // What waited is written with whatever wakes the connection next.
    assert!(matches!(event(&mut b).await, DerpEvent::Packet { .. }));
}

#[tokio::test]
async fn a_rate_that_the_relay_sets_is_kept() {
    let mut config = DerpServerConfig::default();
    config.info.bytes_per_second = 1;
    config.info.burst_bytes = 300;
    let relay = DerpServer::start(config).await.unwrap();
    let mut a = join(&relay, 1).await;
    assert_eq!(a.info().burst_bytes, 300);
    for _ in 0..5 {
        a.sender().send_packet(key(2).public(), packet());
    }
    settle(&mut a).await;
    assert_eq!(relay.stats().packets_for_nobody, 2);
    assert_eq!(a.sender().stats().dropped_rate, 3);
}

#[tokio::test]
async fn the_relay_answers_probes_and_asks_for_the_upgrade() {
    let relay = relay().await;
    for (head, status) in [
        ("GET /derp/probe HTTP/1.1", "200"),
        ("HEAD /derp/latency-check HTTP/1.1", "200"),
        ("POST /derp/probe HTTP/1.1", "405"),
        ("GET /derp HTTP/1.1", "426"),
        ("GET /derp HTTP/1.1\r\nUpgrade: websocket", "426"),
        ("GET /generate_204 HTTP/1.1", "204"),
        ("GET /elsewhere HTTP/1.1", "404"),
    ] {
        let answer = ask(&relay, head).await;
        let expected = format!("HTTP/1.1 {status} ");
        assert!(answer.starts_with(&expected), "{head}: {answer}");
    }
}

#[tokio::test]
async fn the_relay_closes_on_whoever_does_not_prove_a_key_or_speaks_as_a_relay() {
    let relay = relay().await;
    let server_key = Frame::ServerKey { key: relay.key() };
    // Sealed by one key, signed with another.
    let Frame::ClientInfo { sealed, .. } = ClientInfo::ours().seal([1; 24], &key(1), &relay.key())
    else {
        panic!("another frame");
    };
    let claimed = Frame::ClientInfo {
        key: key(2).public(),
        sealed,
    };
    for first in [claimed, Frame::KeepAlive] {
        let first = first.encode().unwrap();
        assert_eq!(
            say(&relay, &[first]).await,
            std::slice::from_ref(&server_key)
        );
    }
    assert_eq!(relay.stats().clients_admitted, 0);

    let hello = ClientInfo::ours().seal([1; 24], &key(1), &relay.key());
    let frames = [hello, Frame::WatchConns].map(|frame| frame.encode().unwrap());
    let answers = say(&relay, &frames).await;
    assert_eq!(answers[0], server_key);
    assert_eq!(relay.stats().clients_admitted, 1);
    assert_eq!(relay.clients(), []);
}

#[tokio::test]
async fn a_devnet_hands_out_the_relays_that_were_added() {
    let net = DevNet::start(DevNetConfig::default()).await.unwrap();
    let relay = net.add_relay(DerpServerConfig::default()).await.unwrap();
    let map = serde_json::to_value(relay.map()).unwrap();
    let node = &map["Regions"]["900"]["Nodes"][0];
    assert_eq!(node["HostName"], "127.0.0.1");
    assert_eq!(node["STUNPort"], -1);
    let pin = node["CertName"].as_str().unwrap();
    assert_eq!(pin.len(), "sha256-raw:".len() + 64);
    let elsewhere = DerpServerConfig {
        bind: SocketAddr::from(([0, 0, 0, 0], 0)),
        ..DerpServerConfig::default()
    };
    assert!(net.add_relay(elsewhere).await.is_err());
    relay.shutdown().await;
}
