//! What one packet costs with many connections open: N connections between two stacks in memory, then K data packets, round robin, into one of them.
//!
//! `packet_cost N K` prints the counters. Under `valgrind --tool=callgrind --toggle-collect='*measured*'` only the receiving of packets, the polls and the reads are counted,
//! so instructions divided by K compare across N. Time is virtual, so two runs do the same.

#![expect(
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a measuring program: it prints, it stops at the first surprise, and it needs some Instant to count from"
)]

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use netstack::tcpip::{ConnId, TcpConfig, TcpError, TcpIp};
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;

/// Like a chunk of terminal output.
const PAYLOAD: [u8; 400] = [b'x'; 400];
/// Packets of one round, each for another connection if there are that many: then every N sees the same mix of data and delayed acks.
const ROUND_PACKETS: usize = 10;
/// Longer than an ack is held back.
const PAUSE: Duration = Duration::from_millis(20);

struct Nodes {
    now: Instant,
    sender: TcpIp,
    receiver: TcpIp,
    rng: ChaCha8Rng,
}

fn main() {
    let mut arguments = std::env::args()
        .skip(1)
        .map(|argument| argument.parse::<usize>().unwrap());
    let (connections, packets) = (
        arguments.next().unwrap_or(1_000),
        arguments.next().unwrap_or(100_000),
    );
    let mut nodes = Nodes::new();
    let conns: Vec<(ConnId, ConnId)> = (0..connections).map(|_| nodes.open()).collect();
    let before = nodes.receiver.stats();
    let (mut pushed, mut at) = (0, 0);
    while pushed < packets {
        let mut round = Vec::new();
        for _ in 0..ROUND_PACKETS.min(packets - pushed) {
            let (from, to) = conns[at % connections];
            at += 1;
            nodes.sender.send(from, &PAYLOAD).unwrap();
            nodes
                .sender
                .poll(nodes.now, &mut |packet| round.push((to, packet.to_vec())));
        }
        pushed += round.len();
        let mut acks = Vec::new();
        measured(&mut nodes.receiver, &mut nodes.now, &round, &mut acks);
        for ack in acks {
            nodes.sender.handle_packet(nodes.now, &ack);
        }
        nodes.settle();
    }
    let after = nodes.receiver.stats();
    println!(
        "connections {} packets_in {} stack_polls {} timer_polls {}",
        after.connections,
        pushed,
        after.stack_polls - before.stack_polls,
        after.timer_polls - before.timer_polls
    );
}

/// One poll and one read for each packet, then the acks: what a node does that gets its packets singly.
#[inline(never)]
fn measured(
    receiver: &mut TcpIp,
    now: &mut Instant,
    round: &[(ConnId, Vec<u8>)],
    acks: &mut Vec<Vec<u8>>,
) {
    let mut buf = [0; 4096];
    for (conn, packet) in round {
        *now += Duration::from_micros(100);
        receiver.handle_packet(*now, packet);
        receiver.poll(*now, &mut |packet| acks.push(packet.to_vec()));
        while receiver.poll_event().is_some() {}
        match receiver.recv(*conn, &mut buf) {
            Ok(_) | Err(TcpError::WouldBlock) => {}
            Err(error) => panic!("{error}"),
        }
    }
    *now += PAUSE;
    receiver.poll(*now, &mut |packet| acks.push(packet.to_vec()));
}

impl Nodes {
    fn new() -> Self {
        let now = Instant::now();
        let config = TcpConfig {
            receive_buffer_bytes: 16 << 10,
            send_buffer_bytes: 4 << 10,
            ..TcpConfig::default()
        };
        let node = |seed, host| {
            let mut node = TcpIp::new(config.clone(), seed, now);
            node.set_addresses(&[address(host)]);
            node
        };
        let mut receiver = node(1, 2);
        receiver.listen(80, 1024).unwrap();
        Self {
            now,
            sender: node(2, 1),
            receiver,
            rng: ChaCha8Rng::seed_from_u64(3),
        }
    }

    fn open(&mut self) -> (ConnId, ConnId) {
        let dialled = self
            .sender
            .connect(
                self.now,
                address(1),
                SocketAddr::new(address(2), 80),
                &mut self.rng,
            )
            .unwrap();
        self.settle();
        (dialled, self.receiver.accept(80).unwrap().conn)
    }

    /// Exchanges packets until both sides are silent, delayed acks included.
    fn settle(&mut self) {
        loop {
            let (mut to_receiver, mut to_sender) = (Vec::new(), Vec::new());
            self.sender
                .poll(self.now, &mut |packet| to_receiver.push(packet.to_vec()));
            self.receiver
                .poll(self.now, &mut |packet| to_sender.push(packet.to_vec()));
            to_receiver
                .iter()
                .for_each(|packet| self.receiver.handle_packet(self.now, packet));
            to_sender
                .iter()
                .for_each(|packet| self.sender.handle_packet(self.now, packet));
            while self.sender.poll_event().is_some() {}
            if to_receiver.is_empty()
                && to_sender.is_empty()
                && !self.sender.needs_poll()
                && !self.receiver.needs_poll()
            {
                let next = self
                    .receiver
                    .poll_timeout()
                    .into_iter()
                    .chain(self.sender.poll_timeout())
                    .min();
                match next.filter(|&at| at < self.now + Duration::from_millis(100)) {
                    Some(at) => self.now = self.now.max(at),
                    None => return,
                }
            }
        }
    }
}

fn address(host: u8) -> IpAddr {
    IpAddr::from([100, 64, 0, host])
}
