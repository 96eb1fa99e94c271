//! Two nodes on an in-memory wire with virtual time: from the first SYN to the last byte.
#![expect(
    clippy::disallowed_methods,
    reason = "tests need some instant to count from"
)]

use std::time::Duration;

use super::*;
use crate::key::DiscoPublic;
use crate::tailcfg::{FilterRule, NetPortRange, Node as TailNode, PortRange, UserProfile};
use crate::tcpip::{CloseReason, TcpConfig, TcpError};

mod flood;
mod forgetful_peer;
mod relayed;

/// One end of the wire.
struct Host {
    node: Node,
    addr: SocketAddr,
    key: NodePrivate,
    /// The whole datagrams that left, for tests that look at the wire.
    sent: Vec<Vec<u8>>,
}

struct Wire {
    now: Instant,
    hosts: [Host; 2],
    /// Data messages lost on the way, by number. Handshakes are not: boringtun repeats them by its
    /// own clock.
    lose: fn(usize) -> bool,
    carried: usize,
    relay: relayed::Relay,
    udp_is_cut: bool,
}

fn host(n: u8) -> Host {
    let start = Instant::now();
    let key = NodePrivate::from_bytes([n; 32]);
    let node = Node::new(config(n, &key), [n; 32], start);
    Host {
        node,
        addr: SocketAddr::from(([192, 0, 2, n], 41641)),
        key,
        sent: Vec::new(),
    }
}

fn config(n: u8, key: &NodePrivate) -> NodeConfig {
    NodeConfig {
        control: ControlConfig {
            hostname: format!("host{n}"),
            auth_key: None,
            ephemeral: false,
            app: "test".to_owned(),
            version_text: "0".to_owned(),
            capability_version: 130,
        },
        node_key: Some(key.clone()),
        tcp: TcpConfig::default(),
    }
}

fn tail_node(n: u8, host: &Host) -> TailNode {
    let addresses = vec![
        format!("100.64.0.{n}/32").parse().unwrap(),
        format!("fd7a:115c:a1e0::{n}/128").parse().unwrap(),
    ];
    TailNode {
        id: i64::from(n),
        stable_id: format!("n{n}"),
        name: format!("host{n}.tail.test."),
        user: 1,
        key: host.key.public(),
        disco_key: disco_of(host),
        addresses,
        endpoints: vec![host.addr],
        machine_authorized: true,
        ..TailNode::default()
    }
}

fn disco_of(host: &Host) -> DiscoPublic {
    host.node.disco.public()
}

fn allow_all() -> Vec<FilterRule> {
    vec![FilterRule {
        src_ips: vec!["*".to_owned()],
        dst_ports: vec![NetPortRange {
            ip: "*".to_owned(),
            bits: None,
            ports: PortRange {
                first: 0,
                last: 65535,
            },
        }],
        ..FilterRule::default()
    }]
}

impl Wire {
    fn new(filter: &[FilterRule]) -> Self {
        let mut hosts = [host(1), host(2)];
        let nodes = [tail_node(1, &hosts[0]), tail_node(2, &hosts[1])];
        let now = Instant::now();
        for (own, host) in hosts.iter_mut().enumerate() {
            let map = MapResponse {
                node: Some(nodes[own].clone()),
                peers: vec![nodes[1 - own].clone()],
                packet_filter: Some(filter.to_vec()),
                user_profiles: vec![UserProfile {
                    id: 1,
                    login_name: "alice@example.com".to_owned(),
                    display_name: "Alice".to_owned(),
                }],
                ..MapResponse::default()
            };
            host.node.apply_map(now, map);
        }
        Self {
            now,
            hosts,
            lose: |_| false,
            carried: 0,
            relay: relayed::Relay::default(),
            udp_is_cut: false,
        }
    }

    /// Carries datagrams to and fro until nothing moves; returns whether anything did.
    fn settle(&mut self) -> bool {
        let mut moved = false;
        for _ in 0..10_000 {
            let mut any = false;
            for from in 0..2 {
                let now = self.now;
                let node = &mut self.hosts[from].node;
                node.flush(now);
                // Control never answers here; the map was given by hand.
                while node.poll_control(now).is_some() {}
                let mut batch = TransmitBatch::default();
                self.hosts[from].node.take_transmits(&mut batch);
                any |= self.carry_relayed(from, &mut batch);
                for run in batch.iter() {
                    for datagram in run.contents.chunks(run.segment_bytes) {
                        any = true;
                        self.hosts[from].sent.push(datagram.to_vec());
                        let is_data = datagram.first() == Some(&4);
                        self.carried += usize::from(is_data);
                        let to = self
                            .hosts
                            .iter()
                            .position(|host| host.addr == run.destination);
                        let src = self.hosts[from].addr;
                        if let Some(to) = to
                            && !self.udp_is_cut
                            && !(is_data && (self.lose)(self.carried))
                        {
                            self.hosts[to].node.handle_datagram(self.now, src, datagram);
                        }
                    }
                }
            }
            moved |= any;
            if !any {
                return moved;
            }
        }
        panic!("the wire never falls silent");
    }

    /// Lets time pass up to the next deadline of either host.
    fn step(&mut self) {
        self.settle();
        let next = self
            .hosts
            .iter()
            .filter_map(|host| host.node.poll_timeout())
            .min();
        let limit = self.now + Duration::from_secs(1);
        self.now = next.map_or(limit, |at| at.clamp(self.now, limit));
        for host in &mut self.hosts {
            host.node.handle_timeout(self.now);
        }
        self.settle();
        for host in &self.hosts {
            let next = host.node.poll_timeout();
            assert!(
                next.is_none_or(|at| at > self.now),
                "a deadline that has passed stays due"
            );
        }
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let begin = self.now;
        while !done(self) {
            assert!(
                self.now < begin + Duration::from_secs(60),
                "not within a minute: {what}"
            );
            self.step();
        }
    }

    /// A connection from host 1 to `port` of host 2, both ends.
    fn connection(&mut self, remote: &str) -> (ConnId, ConnId) {
        let remote: SocketAddr = remote.parse().unwrap();
        let (near, _) = self.hosts[0].node.connect(self.now, remote).unwrap();
        let mut far = None;
        self.until("a connection", |wire| {
            far = far.or_else(|| {
                wire.hosts[1]
                    .node
                    .tcp()
                    .accept(remote.port())
                    .map(|a| a.conn)
            });
            far.is_some()
        });
        (near, far.unwrap())
    }
}

#[test]
fn bytes_cross_the_tunnel_on_both_families_and_in_both_directions() {
    for remote in ["100.64.0.2:80", "[fd7a:115c:a1e0::2]:80"] {
        let mut wire = Wire::new(&allow_all());
        wire.hosts[1].node.tcp().listen(80, 4).unwrap();
        let (near, far) = wire.connection(remote);
        for (from, to, sender, receiver) in [(0, 1, near, far), (1, 0, far, near)] {
            let text: Vec<u8> = (0..300_000_u32)
                .map(|n| u8::try_from(n % 251).unwrap())
                .collect();
            let (mut sent, mut got) = (0, Vec::new());
            wire.until("all bytes", |wire| {
                while sent < text.len() {
                    match wire.hosts[from].node.tcp().send(sender, &text[sent..]) {
                        Ok(count) => sent += count,
                        Err(TcpError::WouldBlock) => break,
                        Err(error) => panic!("{error}"),
                    }
                }
                let mut buf = [0; 4096];
                while let Ok(count @ 1..) = wire.hosts[to].node.tcp().recv(receiver, &mut buf) {
                    got.extend_from_slice(&buf[..count]);
                }
                got.len() >= text.len()
            });
            assert!(got == text);
        }
    }
}

#[test]
fn without_a_rule_no_connection_gets_in() {
    let mut wire = Wire::new(&[]);
    wire.hosts[1].node.tcp().listen(80, 4).unwrap();
    let remote = "100.64.0.2:80".parse().unwrap();
    let (_, _) = wire.hosts[0].node.connect(wire.now, remote).unwrap();
    for _ in 0..200 {
        wire.step();
    }
    assert!(wire.hosts[1].node.tcp().accept(80).is_none());
    assert!(wire.hosts[1].node.stats().drops.filtered > 0);
}

#[test]
fn a_node_without_a_netmap_drops_everything_and_says_so() {
    let mut lonely = host(9);
    lonely.node.plane = None;
    let now = Instant::now();
    for len in [0, 1, 62, 124, 148, 1312, 65_507] {
        lonely.node.handle_datagram(now, lonely.addr, &vec![1; len]);
    }
    lonely.node.flush(now);
    assert_eq!(lonely.node.stats().drops.before_netmap, 7);
    assert!(
        lonely
            .node
            .connect(now, "100.64.0.2:80".parse().unwrap())
            .is_err()
    );
}

#[test]
fn lost_datagrams_delay_a_connection_but_do_not_end_it() {
    let mut wire = Wire::new(&allow_all());
    wire.lose = |n| n % 3 == 0;
    wire.hosts[1].node.tcp().listen(80, 4).unwrap();
    let (near, far) = wire.connection("100.64.0.2:80");
    assert_eq!(wire.hosts[0].node.tcp().send(near, b"hello").unwrap(), 5);
    let mut got = Vec::new();
    wire.until("five bytes", |wire| {
        let mut buf = [0; 16];
        if let Ok(count) = wire.hosts[1].node.tcp().recv(far, &mut buf) {
            got.extend_from_slice(&buf[..count]);
        }
        got == b"hello"
    });
}

#[test]
fn no_plaintext_and_no_keystroke_sizes_cross_the_wire() {
    let mut wire = Wire::new(&allow_all());
    wire.hosts[1].node.tcp().listen(80, 4).unwrap();
    let (near, _) = wire.connection("100.64.0.2:80");
    wire.hosts[0].sent.clear();
    for len in 1..40 {
        let secret = vec![b'Q'; len];
        assert_eq!(wire.hosts[0].node.tcp().send(near, &secret).unwrap(), len);
        wire.step();
    }
    let data: Vec<_> = wire.hosts[0].sent.iter().filter(|d| d[0] == 4).collect();
    assert!(data.len() >= 39);
    for datagram in data {
        assert_eq!(
            datagram.len() % 16,
            0,
            "an unpadded datagram of {}",
            datagram.len()
        );
        assert!(!datagram.windows(8).any(|window| window == b"QQQQQQQQ"));
    }
}

#[test]
fn a_ping_inside_the_tunnel_is_answered() {
    let mut wire = Wire::new(&allow_all());
    wire.hosts[1].node.tcp().listen(80, 4).unwrap();
    wire.connection("100.64.0.2:80");
    // An echo request from host 1, as a peer's kernel would send it.
    let mut echo = vec![
        0x45, 0, 0, 36, 0, 0, 0, 0, 64, 1, 0, 0, 100, 64, 0, 1, 100, 64, 0, 2,
    ];
    let sum = tsmp::header_checksum(&echo);
    echo.splice(10..12, sum.to_be_bytes());
    let mut icmp = vec![8, 0, 0, 0, 0, 7, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8];
    let sum = tsmp::header_checksum(&icmp);
    icmp.splice(2..4, sum.to_be_bytes());
    echo.extend_from_slice(&icmp);
    let (now, peer) = (wire.now, wire.hosts[1].key.public());
    let Host { node, .. } = &mut wire.hosts[0];
    let Node {
        plane, relays, out, ..
    } = node;
    let mut exit = Exit::new(relays, out);
    let plane = plane.as_mut().unwrap();
    plane.send_packet(now, &peer, &echo, &mut exit);
    let before = wire.hosts[0].node.stats().tcp.packets_in;
    wire.settle();
    assert_eq!(
        wire.hosts[0].node.stats().tcp.packets_in,
        before + 1,
        "the echo reply"
    );
}

#[test]
fn a_peer_that_leaves_the_netmap_is_deaf_and_dumb() {
    let mut wire = Wire::new(&allow_all());
    wire.hosts[1].node.tcp().listen(80, 4).unwrap();
    let (near, far) = wire.connection("100.64.0.2:80");
    wire.settle();
    let gone = MapResponse {
        peers_removed: vec![1],
        ..MapResponse::default()
    };
    let now = wire.now;
    wire.hosts[1].node.apply_map(now, gone);
    wire.hosts[0].node.tcp().send(near, b"anyone?").unwrap();
    for _ in 0..50 {
        wire.step();
    }
    let mut buf = [0; 16];
    let aborted = Err(TcpError::Closed(CloseReason::Aborted));
    assert_eq!(wire.hosts[1].node.tcp().recv(far, &mut buf), aborted);
    assert_eq!(
        wire.hosts[0].node.tcp().recv(near, &mut buf),
        Err(TcpError::WouldBlock)
    );
    assert!(
        wire.hosts[1]
            .node
            .netmap()
            .whois("100.64.0.1".parse().unwrap(), "100.64.0.2".parse().unwrap())
            .is_none()
    );
}

#[test]
fn a_connection_ends_when_its_address_passes_to_another_node_and_not_when_the_key_changes() {
    for (id, ends) in [(1, false), (7, true)] {
        let mut wire = Wire::new(&allow_all());
        wire.hosts[1].node.tcp().listen(80, 4).unwrap();
        let (_, far) = wire.connection("100.64.0.2:80");
        let heir = TailNode {
            id,
            key: NodePrivate::from_bytes([77; 32]).public(),
            ..tail_node(1, &wire.hosts[0])
        };
        let map = MapResponse {
            peers: vec![heir],
            ..MapResponse::default()
        };
        let now = wire.now;
        wire.hosts[1].node.apply_map(now, map);
        wire.hosts[1].node.flush(now);
        let ended = wire.hosts[1].node.tcp().recv(far, &mut [0; 16]);
        assert_eq!(ended != Err(TcpError::WouldBlock), ends, "{ended:?}");
    }
}

#[test]
fn a_port_that_the_filter_forbids_refuses_at_once() {
    let mut rules = allow_all();
    rules[0].dst_ports[0].ports = PortRange {
        first: 80,
        last: 80,
    };
    let mut wire = Wire::new(&rules);
    wire.hosts[1].node.tcp().listen(81, 4).unwrap();
    for remote in ["100.64.0.2:81", "[fd7a:115c:a1e0::2]:81"] {
        let remote = remote.parse().unwrap();
        let (near, _) = wire.hosts[0].node.connect(wire.now, remote).unwrap();
        wire.until("the refusal", |wire| {
            let refused = Err(TcpError::Closed(CloseReason::Refused));
            wire.hosts[0].node.tcp().send(near, b"x") == refused
        });
    }
    assert_eq!(wire.hosts[1].node.stats().drops.filtered, 2);
}

#[test]
fn a_map_that_breaks_a_limit_changes_nothing_and_gives_the_stream_up() {
    let mut wire = Wire::new(&allow_all());
    let node = &mut wire.hosts[0].node;
    node.flush(wire.now);
    while node.poll_event().is_some() {}
    let too_many = vec![FilterRule::default(); crate::netmap::RULES_MAX + 1];
    let map = MapResponse {
        packet_filter: Some(too_many),
        ..MapResponse::default()
    };
    let ControlRequest::Register { id, .. } = node.poll_control(wire.now).unwrap() else {
        panic!("a node begins by registering");
    };
    node.control()
        .handle_response(wire.now, id, 200, None, br#"{"MachineAuthorized":true}"#);
    node.flush(wire.now);
    let stream = node.poll_control(wire.now).unwrap().id();
    node.apply_map(wire.now, map);
    node.flush(wire.now);
    let events: Vec<NodeEvent> = std::iter::from_fn(|| node.poll_event()).collect();
    assert!(
        matches!(&events[..], [NodeEvent::CancelControl { id, reconnect: false }, NodeEvent::ControlDown { reason }]
            if *id == stream && reason.contains("filter rules")),
        "{events:?}"
    );
    assert_eq!(node.netmap().peers().count(), 1);
}

#[test]
fn a_map_message_with_nothing_but_what_we_do_not_know_changes_nothing() {
    let mut wire = Wire::new(&allow_all());
    let node = &mut wire.hosts[0].node;
    let json = r#"{"PingRequest":{"URL":"http://127.0.0.1/ping","Types":"c2n","Payload":"R0VU"},"ControlTime":"2026-01-01T00:00:00Z","New":[{}]}"#;
    node.apply_map(wire.now, serde_json::from_str(json).unwrap());
    node.flush(wire.now);
    assert_eq!(node.netmap().peers().count(), 1);
    wire.hosts[1].node.tcp().listen(80, 4).unwrap();
    wire.connection("100.64.0.2:80");
}

#[test]
fn a_thousand_idle_connections_cost_no_more_wakeups_than_one() {
    let wakeups = |count: usize| {
        let mut wire = Wire::new(&allow_all());
        wire.hosts[1].node.tcp().listen(80, 2_000).unwrap();
        let remote = "100.64.0.2:80".parse().unwrap();
        for _ in 0..count {
            wire.hosts[0].node.connect(wire.now, remote).unwrap();
            wire.settle();
        }
        wire.until("all connections", |wire| {
            wire.hosts[1].node.stats().tcp.connections == count
                && wire.hosts[1].node.stats().tcp.half_open == 0
        });
        for _ in 0..40 {
            wire.step();
        }
        let (before, begin) = (wire.hosts[1].node.stats().tcp, wire.now);
        let mut steps = 0;
        while wire.now < begin + Duration::from_secs(60) {
            wire.step();
            steps += 1;
        }
        assert_eq!(wire.hosts[1].node.stats().tcp, before, "{count} idle");
        steps
    };
    // Tunnels and paths have timers of their own, a few each second at the most.
    let (one, thousand) = (wakeups(1), wakeups(1_000));
    assert!(thousand <= one + one / 4, "{one} and {thousand} wake-ups");
}

#[test]
fn debug_shows_neither_what_was_carried_nor_who_is_in_the_tailnet() {
    let mut wire = Wire::new(&allow_all());
    wire.hosts[1].node.tcp().listen(80, 4).unwrap();
    let (near, _) = wire.connection("100.64.0.2:80");
    let text = [b'Q'; 200];
    wire.hosts[0].node.tcp().send(near, &text).unwrap();
    wire.settle();
    let shown = format!("{:?}", wire.hosts[1].node);
    assert!(!shown.contains("81, 81, 81") && !shown.contains("alice") && !shown.contains("host1"));
    assert!(shown.len() < 2_000, "{} bytes", shown.len());
}
