//! Two nodes on an in-memory wire in virtual time: what a caller and a peer see of the TCP room.

mod close;
mod cost;
mod fit;
mod hostile;
mod limits;
mod open;
mod transfer;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{TcpPacket, TcpRepr};

use super::inbound::Inbound;
use super::{Accepted, CloseReason, ConnId, TcpConfig, TcpError, TcpEvent, TcpIp};

const PORT: u16 = 80;

/// `a` dials, `b` listens; packets take no time unless a test holds them back.
struct Pair {
    now: Instant,
    a: TcpIp,
    b: TcpIp,
    rng: ChaCha8Rng,
    to_a: VecDeque<Vec<u8>>,
    to_b: VecDeque<Vec<u8>>,
    a_events: Vec<TcpEvent>,
    b_events: Vec<TcpEvent>,
    /// Of a thousand packets, how many are lost and how many are put behind their successors.
    loss: u32,
    reorder: u32,
    v6: bool,
}

fn address(v6: bool, host: u16) -> IpAddr {
    let text = if v6 {
        format!("fd7a:115c:a1e0::{host:x}")
    } else {
        format!("100.64.0.{host}")
    };
    text.parse().unwrap()
}

impl Pair {
    fn new(config: &TcpConfig, v6: bool) -> Self {
        let (now, mut rng) = (epoch(), ChaCha8Rng::seed_from_u64(7));
        let mut node = |host| {
            let mut node = TcpIp::new(config.clone(), rng.next_u64(), now);
            node.set_addresses(&[address(false, host), address(true, host)]);
            node
        };
        let (a, mut b) = (node(1), node(2));
        b.listen(PORT, 16).unwrap();
        let (to_a, to_b) = (VecDeque::new(), VecDeque::new());
        Self {
            now,
            a,
            b,
            rng,
            to_a,
            to_b,
            a_events: Vec::new(),
            b_events: Vec::new(),
            loss: 0,
            reorder: 0,
            v6,
        }
    }

    fn remote(&self) -> SocketAddr {
        SocketAddr::new(address(self.v6, 2), PORT)
    }

    fn dial(&mut self) -> ConnId {
        let remote = self.remote();
        self.a
            .connect(self.now, address(self.v6, 1), remote, &mut self.rng)
            .unwrap()
    }

    fn poll_a(&mut self) {
        self.a
            .poll(self.now, &mut |packet| self.to_b.push_back(packet.to_vec()));
        self.a_events
            .extend(std::iter::from_fn(|| self.a.poll_event()));
    }

    fn poll_b(&mut self) {
        self.b
            .poll(self.now, &mut |packet| self.to_a.push_back(packet.to_vec()));
        self.b_events
            .extend(std::iter::from_fn(|| self.b.poll_event()));
    }

    /// Hands over every packet that is under way; both ends are polled once after that.
    fn exchange(&mut self) -> bool {
        self.poll_a();
        self.poll_b();
        let (to_a, to_b) = (
            std::mem::take(&mut self.to_a),
            std::mem::take(&mut self.to_b),
        );
        let moved = !(to_a.is_empty() && to_b.is_empty());
        to_a.iter().chain(&to_b).for_each(|packet| checked(packet));
        for (packets, receiver) in [(to_a, &mut self.a), (to_b, &mut self.b)] {
            let mut late = Vec::new();
            for packet in packets {
                match self.rng.next_u32() % 1000 {
                    dice if dice < self.loss => {}
                    dice if dice < self.loss + self.reorder => late.push(packet),
                    _ => receiver.handle_packet(self.now, &packet),
                }
            }
            late.iter()
                .for_each(|packet| receiver.handle_packet(self.now, packet));
        }
        moved
    }

    /// Exchanges until nobody has anything to say at this instant.
    fn calm(&mut self) {
        for _ in 0..100_000 {
            if !self.exchange() && !self.a.needs_poll() && !self.b.needs_poll() {
                return;
            }
        }
        panic!("the wire never falls silent");
    }

    /// Lets the time pass, stopping at every deadline.
    fn pass(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            self.calm();
            let next = [self.a.poll_timeout(), self.b.poll_timeout()]
                .into_iter()
                .flatten()
                .min();
            match next {
                Some(at) if at <= end => self.now = self.now.max(at),
                Some(_) | None => break,
            }
        }
        self.now = end;
        self.calm();
    }

    /// A connection that is open on both sides: (dialler's, listener's).
    fn open(&mut self) -> (ConnId, ConnId) {
        let dialled = self.dial();
        self.calm();
        let accepted = self.b.accept(PORT).expect("a connection is waiting");
        (dialled, accepted.conn)
    }
}

/// The zero of virtual time.
#[expect(
    clippy::disallowed_methods,
    reason = "an Instant can be had in no other way, and only differences to it count"
)]
fn epoch() -> Instant {
    Instant::now()
}

fn read_all(node: &mut TcpIp, conn: ConnId) -> (Vec<u8>, Result<usize, TcpError>) {
    let (mut all, mut buf) = (Vec::new(), [0; 4096]);
    loop {
        match node.recv(conn, &mut buf) {
            Ok(0) => return (all, Ok(0)),
            Ok(length) => all.extend_from_slice(&buf[..length]),
            Err(error) => return (all, Err(error)),
        }
    }
}

/// Stops at a packet that a kernel would drop for its checksum.
fn checked(packet: &[u8]) {
    let strict = ChecksumCapabilities::default();
    let body = if packet[0] >> 4 == 4 { 20 } else { 40 };
    let view = Inbound::parse(packet).unwrap();
    if view.segment.is_some() {
        let tcp = TcpPacket::new_checked(&packet[body..]).unwrap();
        TcpRepr::parse(&tcp, &view.remote.into(), &view.local.into(), &strict).unwrap();
    }
}

/// Reads to the end of the stream, letting the time pass.
fn read_to_end(pair: &mut Pair, at_b: bool, conn: ConnId) -> Vec<u8> {
    let mut all = Vec::new();
    for _ in 0..1_000 {
        let node = if at_b { &mut pair.b } else { &mut pair.a };
        let (bytes, result) = read_all(node, conn);
        all.extend(bytes);
        match result {
            Err(TcpError::WouldBlock) => pair.pass(Duration::from_millis(5)),
            end => {
                assert_eq!(end, Ok(0));
                return all;
            }
        }
    }
    panic!("the stream never ends");
}

/// Moves so much so fast that the sender's and the reader's rings are as large as they get.
fn widen(pair: &mut Pair, conn: ConnId, peer: ConnId) {
    for _ in 0..400 {
        while pair.a.send(conn, &[0; 65_536]).is_ok() {}
        pair.pass(Duration::from_millis(1));
        drop(read_all(&mut pair.b, peer));
    }
    pair.pass(Duration::from_millis(100));
    drop(read_all(&mut pair.b, peer));
    pair.pass(Duration::from_millis(100));
    let (reader, sender) = (pair.b.stats(), pair.a.stats());
    assert!(
        reader.buffer_bytes >= 256 << 10 && sender.buffer_bytes >= 64 << 10,
        "{reader:?} {sender:?}"
    );
}

fn pattern(length: usize, salt: u8) -> Vec<u8> {
    (0..length)
        .map(|at| u8::try_from((at * 31 + at / 251) % 256).unwrap() ^ salt)
        .collect()
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
