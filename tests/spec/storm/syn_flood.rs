//! More SYNs than there are ports, from a node of the tailnet that answers nothing, while the session of another node goes on.
//!
//! The flooder is the pure node on a socket of its own: it joins and shakes hands as it should, then sends SYNs and is deaf to what they are answered.

use std::net::{SocketAddr, UdpSocket};
use std::time::Instant;

use netstack::control::{AuthKey, ControlConfig, ControlRequest, RequestId};
use netstack::devnet::{AuthKeySpec, DevNet};
use netstack::io::control_conn::{ControlClient, ControlConnError};
use netstack::key::MachinePrivate;
use netstack::node::{Node, NodeConfig, TransmitBatch};
use netstack::tailcfg::CAPABILITY_VERSION;
use netstack::tcpip::TcpConfig;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use tokio::sync::mpsc;

use super::*;

const SYNS: u64 = 100_000;
/// Ports are chosen anew in each round, so the rounds repeat each other's.
const ROUND_SYNS: usize = 1_000;
/// So many datagrams wait in the recorder's socket at most: less than any kernel's default room for them.
const UNREAD_MAX: usize = 100;
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// First byte of a WireGuard data message, and the size of one with nothing in it.
const DATA_KIND: u8 = 4;
const KEEPALIVE_BYTES: usize = 32;

/// What came of a control request.
enum Input {
    Answer(RequestId, u16, Vec<u8>),
    Bytes(RequestId, bytes::Bytes),
    Failed(RequestId, String),
}

struct Flooder {
    node: Node,
    socket: UdpSocket,
    control: ControlClient,
    inputs: mpsc::Receiver<Input>,
    sender: mpsc::Sender<Input>,
    /// Data messages are not heard: neither the answers to SYNs nor anything else.
    deaf: bool,
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl Flooder {
    fn new(devnet: &DevNet) -> Self {
        let spec = AuthKeySpec {
            user: devnet.add_user("you@example.com"),
            tags: Vec::new(),
            reusable: false,
            ephemeral: false,
        };
        let control = ControlConfig {
            hostname: "flooder".to_owned(),
            auth_key: Some(AuthKey::new(&devnet.auth_key(spec).unwrap())),
            ephemeral: false,
            app: "tailtape".to_owned(),
            version_text: "spec".to_owned(),
            capability_version: CAPABILITY_VERSION,
        };
        let config = NodeConfig {
            control,
            node_key: None,
            tcp: TcpConfig::default(),
        };
        let machine = MachinePrivate::generate(&mut ChaCha20Rng::from_seed([21; 32]));
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut node = Node::new(config, [22; 32], now());
        node.set_endpoints(now(), vec![socket.local_addr().unwrap()], None);
        let (sender, inputs) = mpsc::channel(16);
        Self {
            node,
            socket,
            control: ControlClient::new(&devnet.url(), machine, None, CAPABILITY_VERSION),
            inputs,
            sender,
            deaf: false,
        }
    }

    /// Takes in what is there, does what is due, and gives what is to be sent.
    fn turn(&mut self) -> TransmitBatch {
        let now = now();
        while let Ok(input) = self.inputs.try_recv() {
            let control = self.node.control();
            match input {
                Input::Answer(id, status, body) => {
                    control.handle_response(now, id, status, None, &body);
                }
                Input::Bytes(id, bytes) => control.handle_map_bytes(now, id, &bytes),
                Input::Failed(id, reason) => control.handle_failed(now, id, reason),
            }
        }
        let mut datagram = vec![0; 65_536];
        while let Ok((length, from)) = self.socket.recv_from(&mut datagram) {
            if !(self.deaf && datagram[0] == DATA_KIND) {
                self.node.handle_datagram(now, from, &datagram[..length]);
            }
        }
        if self.node.poll_timeout().is_some_and(|due| due <= now) {
            self.node.handle_timeout(now);
        }
        self.node.flush(now);
        while self.node.poll_event().is_some() {}
        while let Some(request) = self.node.poll_control(now) {
            let (control, sender) = (self.control.clone(), self.sender.clone());
            tokio::spawn(async move {
                let id = request.id();
                if let Err(error) = carry(control, request, &sender).await {
                    // The test may be over.
                    drop(sender.send(Input::Failed(id, error.to_string())).await);
                }
            });
        }
        let mut batch = TransmitBatch::default();
        self.node.take_transmits(&mut batch);
        batch
    }

    fn send(&self, batch: &TransmitBatch) {
        for (to, datagram) in datagrams(batch) {
            self.socket.send_to(datagram, to).unwrap();
        }
    }

    async fn until(&mut self, what: &str, mut is_so: impl FnMut(&Node) -> bool) {
        soon(what, async {
            while !is_so(&self.node) {
                let batch = self.turn();
                self.send(&batch);
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        })
        .await;
    }

    /// Joins, and has a proven path and a session with the recorder.
    async fn meet(&mut self, recorder: SocketAddr) {
        self.until("the recorder in the netmap", |node| {
            node.netmap().route(recorder.ip()).is_some()
        })
        .await;
        let (conn, _) = self.node.connect(now(), recorder).unwrap();
        self.until("a session with the recorder", |node| {
            let peers = node.status().peers;
            let recorder = peers
                .iter()
                .find(|peer| peer.addresses.contains(&recorder.ip()));
            recorder.is_some_and(|peer| peer.session && peer.direct.is_some())
        })
        .await;
        self.node.tcp().release(conn);
        self.until("a quiet node", |node| node.stats().tcp.connections == 0)
            .await;
        self.deaf = true;
    }

    /// One round of SYNs, as datagrams. Then the flooder forgets that it asked.
    fn syns(&mut self, recorder: SocketAddr) -> TransmitBatch {
        let now = now();
        let dial = |_| self.node.connect(now, recorder).unwrap().0;
        let dials: Vec<_> = (0..ROUND_SYNS).map(dial).collect();
        let batch = self.turn();
        self.node.tcp().cut_off(recorder.ip());
        for dial in dials {
            self.node.tcp().release(dial);
        }
        batch
    }
}

fn datagrams(batch: &TransmitBatch) -> impl Iterator<Item = (SocketAddr, &[u8])> {
    batch.iter().flat_map(|run| {
        let datagrams = run.contents.chunks(run.segment_bytes);
        datagrams.map(move |datagram| (run.destination, datagram))
    })
}

async fn carry(
    control: ControlClient,
    request: ControlRequest,
    to: &mpsc::Sender<Input>,
) -> Result<(), ControlConnError> {
    let id = request.id();
    let is_stream = matches!(request, ControlRequest::MapStream { .. });
    let mut response = control.send(request).await?;
    let status = response.status;
    if !is_stream || status != 200 {
        let body = response.collect().await?.to_vec();
        drop(to.send(Input::Answer(id, status, body)).await);
        return Ok(());
    }
    drop(to.send(Input::Answer(id, status, Vec::new())).await);
    while let Some(bytes) = response.chunk().await? {
        drop(to.send(Input::Bytes(id, bytes)).await);
    }
    drop(to.send(Input::Failed(id, "it ended".to_owned())).await);
    Ok(())
}

impl Storm {
    async fn network(&self) -> tailtape::status::NetworkReport {
        self.service.status().await.network
    }

    /// Sends a batch no faster than the recorder reads; gives how many of its datagrams have a packet in them.
    async fn pour(&self, flooder: &Flooder, batch: &TransmitBatch) -> u64 {
        let all: Vec<_> = datagrams(batch).collect();
        for part in all.chunks(UNREAD_MAX) {
            let read = async || self.network().await.counted["node_datagrams_in"];
            let expected = read().await + part.len() as u64;
            for (to, datagram) in part {
                flooder.socket.send_to(datagram, to).unwrap();
            }
            // The honest session's datagrams count too, so this may let a few more wait.
            soon("the datagrams to be read", async {
                while read().await < expected {
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
            })
            .await;
        }
        let with_packet = all
            .iter()
            .filter(|(_, datagram)| datagram[0] == DATA_KIND && datagram.len() > KEEPALIVE_BYTES);
        with_packet.count() as u64
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_syns_of_one_node_leave_the_session_of_another_and_the_memory_alone() {
    let mut storm = Storm::begin().await;
    let recorder = storm.service.address().await;
    let mut flooder = Flooder::new(&storm.site.devnet);
    flooder.meet(recorder).await;
    let before = storm.network().await;
    let calm = storm.service.memory_peak_bytes();
    let mut half_open_max = 0;
    let mut sent = 0;
    let flood = async {
        for round in 0..SYNS / ROUND_SYNS as u64 {
            let batch = flooder.syns(recorder);
            sent += storm.pour(&flooder, &batch).await;
            let half_open = storm.network().await.counted["tcp_half_open"];
            half_open_max = half_open.max(half_open_max);
            if round % 10 == 9 {
                storm.unharmed("SYNs").await;
                // Others still get in.
                drop(storm.dial().await);
            }
        }
    };
    tokio::time::timeout(BULK_PATIENCE, flood).await.unwrap();
    let peak = storm.service.memory_peak_bytes();
    let after = storm.network().await;
    let rose = |name: &str| after.dropped[name] - before.dropped[name];
    let dropped = rose("tcp_syn_dropped");
    say_memory(
        &format!("{sent} SYNs, {dropped} dropped, {half_open_max} half open at most"),
        calm,
        peak,
    );
    assert_eq!(sent, SYNS);
    // The rest fell on handshakes that were open already, or took the place of one that timed out.
    assert!((SYNS * 9 / 10..SYNS).contains(&dropped), "{after:?}");
    assert_eq!(rose("tcp_syn_dropped_per_peer"), 0, "{after:?}");
    // Half of the backlog of 512.
    assert!((1..=256).contains(&half_open_max), "{half_open_max}");
    let shown = storm.site.output(&["status"]).await;
    let shown = String::from_utf8(shown.stdout).unwrap();
    let line = shown.lines().find(|line| line.starts_with("network "));
    assert!(line.unwrap().contains("tcp_syn_dropped "), "{shown}");
    storm
        .service
        .until("the half open to be given up", |service| {
            let client = service.client.clone();
            async move { client.status().await.unwrap().network.counted["tcp_half_open"] == 0 }
        })
        .await;
    let listed = storm.end().await;
    assert_eq!(listed.len(), 1, "the honest session alone: {listed:?}");
}
