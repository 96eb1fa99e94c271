//! The whole node: it has joined by hand-made answers of control, and a real peer speaks to it
//! through a real tunnel; the bytes say what they all do.
//!
//! Seeds: a join, a path, a handshake and a connection, as scripts.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use netstack::control::{ControlRequest, RequestId};
use netstack::disco::{DiscoBox, Message};
use netstack::key::{DiscoPrivate, DiscoPublic, NodePrivate, NodePublic};
use netstack::node::{Node, NodeConfig, NodeEvent, TransmitBatch};
use netstack::tcpip::TcpConfig;

use super::control::config;
use super::script::{Script, bend, epoch, whatever};
use super::segment::{self, Place};
use super::tcpip::address;
use super::wireguard::Side;

/// Where the peer is; its other addresses are of no importance.
const PEER_AT: ([u8; 4], u16) = ([192, 0, 2, 1], 41641);
/// Datagrams that one call may make.
const SENT_MAX: usize = 128;
/// The one port that the filter lets in, and one that it does not.
const OPEN_PORT: u16 = 80;
const CLOSED_PORT: u16 = 81;

struct World {
    node: Node,
    now: Instant,
    key: NodePublic,
    disco: DiscoPublic,
    peer: Side,
    peer_disco: DiscoPrivate,
    seal: DiscoBox,
    stream: RequestId,
    /// What the node has sent to the peer.
    sent: Vec<Vec<u8>>,
    place: Place,
    /// A map of the script's own may open ports.
    filter_is_ours: bool,
}

impl World {
    fn joined() -> Self {
        let (now, own) = (epoch(), NodePrivate::from_bytes([2; 32]));
        let key = own.public();
        let mut node = Node::new(
            NodeConfig {
                control: config(None),
                node_key: Some(own),
                tcp: TcpConfig {
                    buffer_budget_bytes: 1 << 20,
                    connections_max: 12,
                    ..TcpConfig::default()
                },
            },
            [9; 32],
            now,
        );
        let register = node.poll_control(now).expect("it registers at once");
        let accepted = br#"{"User":{"ID":1},"MachineAuthorized":true}"#;
        let control = node.control();
        control.handle_response(now, register.id(), 200, None, accepted);
        node.flush(now);
        let request = node.poll_control(now).expect("the stream comes first");
        let stream = request.id();
        let ControlRequest::MapStream { body, .. } = request else {
            panic!("the stream comes first")
        };
        let body: serde_json::Value = serde_json::from_slice(&body).expect("we wrote it");
        let disco = body.get("DiscoKey").and_then(serde_json::Value::as_str);
        let disco: DiscoPublic = disco.and_then(|key| key.parse().ok()).expect("our key");
        let peer_disco = DiscoPrivate::from_bytes([0x22; 32]);
        let mut world = Self {
            seal: DiscoBox::new(&peer_disco, &disco),
            peer: Side::new(1),
            node,
            now,
            key,
            disco,
            peer_disco,
            stream,
            sent: Vec::new(),
            place: Place::default(),
            filter_is_ours: true,
        };
        let control = world.node.control();
        control.handle_response(now, stream, 200, None, b"");
        world.map(world.first_map().to_string().as_bytes());
        for port in [OPEN_PORT, CLOSED_PORT] {
            let listening = world.node.tcp().listen(port, 4);
            listening.expect("no one listens yet");
        }
        assert!(matches!(world.node.poll_event(), Some(NodeEvent::Up)));
        world
    }

    fn first_map(&self) -> serde_json::Value {
        let of = |host: u8| [false, true].map(|v6| address(v6, host).to_string());
        let prefixes = |host| {
            let [v4, v6] = of(host);
            [format!("{v4}/32"), format!("{v6}/128")]
        };
        serde_json::json!({
            "Node": {"ID": 2, "StableID": "n2", "Name": "us.tail.test.", "User": 1,
                "Key": self.key.to_string(), "Addresses": prefixes(2), "MachineAuthorized": true},
            "Peers": [{"ID": 1, "StableID": "n1", "Name": "peer.tail.test.", "User": 1,
                "Key": self.peer.key.to_string(), "DiscoKey": self.peer_disco.public().to_string(),
                "Addresses": prefixes(1), "Endpoints": [SocketAddr::from(PEER_AT).to_string()],
                "MachineAuthorized": true}],
            "PacketFilter": [{"SrcIPs": ["*"],
                "DstPorts": [{"IP": "*", "Ports": {"First": OPEN_PORT, "Last": OPEN_PORT}}]}],
        })
    }

    /// One message of the map stream.
    fn map(&mut self, json: &[u8]) {
        let length = u32::try_from(json.len()).unwrap_or(u32::MAX).to_le_bytes();
        let frame = [&length, json].concat();
        let (now, stream) = (self.now, self.stream);
        self.node.control().handle_map_bytes(now, stream, &frame);
        self.node.flush(self.now);
    }

    fn receive(&mut self, datagram: &[u8]) {
        let (before, src) = (self.node.stats().datagrams_in, SocketAddr::from(PEER_AT));
        self.node.handle_datagram(self.now, src, datagram);
        assert_eq!(self.node.stats().datagrams_in, before + 1);
    }

    fn say(&mut self, message: &Message) {
        let from = self.peer_disco.public();
        let datagram = self.seal.seal([3; 24], message, &from);
        self.receive(&datagram);
    }

    /// Sends an IP packet through the peer's end of the tunnel; a handshake goes first if it must.
    fn send_inner(&mut self, packet: &[u8]) {
        let datagram = self.peer.send(self.now, &self.key, packet);
        if let Some(datagram) = datagram {
            self.receive(&datagram);
        }
    }

    fn step(&mut self, step: u8, script: &mut Script<'_>) {
        match step & 15 {
            0 => self.receive(script.piece()),
            1 => {
                if let Ok(message) = Message::parse(script.piece()) {
                    self.say(&message);
                }
            }
            2 => {
                let mut dst = [0; 2048];
                let started = self.peer.tunnels.renew(self.now, &self.key, &mut dst);
                if let Some(mut datagram) = started.map(<[u8]>::to_vec) {
                    if step & 0x10 != 0 {
                        bend(script, &mut datagram);
                    }
                    self.receive(&datagram);
                }
            }
            3..=6 => {
                let v6 = step & 0x10 != 0;
                let from = if step & 0x20 != 0 { script.byte() } else { 1 };
                let port = if step & 0x40 != 0 {
                    CLOSED_PORT
                } else {
                    OPEN_PORT
                };
                let ends = (address(v6, from), address(v6, 2));
                let packet = segment::tcp(script, ends, (40_000, port), self.place);
                self.send_inner(&packet);
            }
            7 => {
                let protocol = script.byte();
                let packet = segment::ip(
                    address(false, 1),
                    address(false, 2),
                    protocol,
                    script.piece(),
                );
                self.send_inner(&packet);
            }
            8 => self.send_inner(script.piece()),
            9 => {
                self.filter_is_ours = false;
                self.map(script.piece());
            }
            10 => {
                let remote = SocketAddr::new(address(step & 0x10 != 0, 1), script.u16());
                // Refused or not, it is the node's answer.
                whatever(self.node.connect(self.now, remote));
            }
            11 => {
                let accepted = self.node.tcp().accept(OPEN_PORT);
                if let Some(accepted) = accepted {
                    let tcp = self.node.tcp();
                    whatever(tcp.send(accepted.conn, script.piece()));
                    whatever(tcp.recv(accepted.conn, &mut [0; 512]));
                    if step & 0x10 != 0 {
                        whatever(tcp.shutdown(accepted.conn));
                    }
                    tcp.release(accepted.conn);
                }
            }
            12 => {
                let seconds = 1_700_000_000 + i64::from(script.u16()) * 100_000;
                self.node.handle_wall_time(self.now, seconds);
            }
            _ => {
                self.now += Duration::from_millis(u64::from(script.u16()));
                self.node.handle_timeout(self.now);
            }
        }
    }

    /// Ends the batch, hands the peer what is for it, and lets it answer.
    fn settle(&mut self, answers: bool) {
        for _ in 0..4 {
            self.node.flush(self.now);
            while self.node.poll_control(self.now).is_some() {}
            self.collect();
            let events = std::iter::from_fn(|| self.node.poll_event()).count();
            assert!(events <= 256, "{events} events at once");
            if !answers || self.sent.is_empty() {
                break;
            }
            for datagram in std::mem::take(&mut self.sent) {
                if let Ok(Message::Ping { txid, .. }) = self.seal.open(&datagram) {
                    let src = SocketAddr::from(([192, 0, 2, 2], 41641));
                    self.say(&Message::Pong { txid, src });
                } else {
                    let (packet, back) = self.peer.receive(self.now, &self.key, &datagram);
                    let place = packet.as_deref().and_then(segment::answer_to);
                    self.place = place.unwrap_or(self.place);
                    for datagram in back {
                        self.receive(&datagram);
                    }
                }
            }
        }
        let mut tcp = self.node.stats().tcp;
        assert!(tcp.connections <= 12 && tcp.buffer_bytes <= 1 << 20);
        tcp = self.node.tcp().stats();
        assert_eq!(tcp, self.node.stats().tcp);
        if self.filter_is_ours {
            assert!(
                self.node.tcp().accept(CLOSED_PORT).is_none(),
                "past the filter"
            );
        }
        self.node.flush(self.now);
        self.node.handle_timeout(self.now);
        self.node.flush(self.now);
        while self.node.poll_control(self.now).is_some() {}
        let due = self.node.poll_timeout();
        assert!(due.is_none_or(|at| at > self.now), "stays due");
        self.collect();
    }

    fn collect(&mut self) {
        let mut batch = TransmitBatch::default();
        self.node.take_transmits(&mut batch);
        let mut count = 0;
        for run in batch.iter() {
            for datagram in run.contents.chunks(run.segment_bytes) {
                count += 1;
                // To an address that nobody has proven goes nothing but disco, and what it asked for.
                if run.destination == SocketAddr::from(PEER_AT) {
                    self.sent.push(datagram.to_vec());
                } else {
                    let opened = self.seal.open(datagram).is_ok();
                    assert!(opened || !self.filter_is_ours, "to {}", run.destination);
                }
            }
        }
        assert!(count <= SENT_MAX, "{count} datagrams at once");
    }
}

/// The bytes are a script: datagrams, disco, what comes through the tunnel, maps, calls, time.
pub fn node(data: &[u8]) {
    let mut world = World::joined();
    assert_ne!(world.disco, DiscoPublic::default());
    let mut script = Script::new(data);
    while let Some(step) = script.step() {
        world.step(step, &mut script);
        world.settle(step & 0x80 == 0);
    }
}
