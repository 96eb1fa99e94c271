//! What an idle connection costs the stack: a thousand sessions that have sent some hundred kilobytes, a little at a time, for hours.
//!
//! A process of its own, because it reads its resident set from the kernel: nothing else runs here. Peers are scripted and hold three
//! numbers each, so what grows is the stack's. Time is virtual. Run by `cargo test`.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a test program: to panic is to fail, it prints what it measured, and it needs some Instant to count from"
)]

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use netstack::tcpip::{ConnId, TcpConfig, TcpIp};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
};

const US: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 2);
const PEER: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);
const PORT: u16 = 80;
const SESSIONS: u16 = 1_000;
/// What one idle connection may cost the stack.
const CONNECTION_BYTES_MAX: usize = 24 << 10;
/// Its rings: 16 KiB to receive, 4 KiB to send.
const RINGS_BYTES: usize = 20 << 10;
/// Ack frames come every five seconds.
const STEP: Duration = Duration::from_secs(5);
/// A few lines of a terminal in one segment.
const LINES: [u8; 1_100] = [b'x'; 1_100];
/// So many bytes pass through every ring that the largest has wrapped.
const STEPS: usize = 250;
/// An HTTP/2 frame with an ack in it, and a PING.
const ACK_FRAME: [u8; 40] = [b'a'; 40];

/// The peer's side of one connection.
#[derive(Clone, Copy)]
struct Peer {
    port: u16,
    sent: u32,
    received: u32,
}

impl Peer {
    fn segment(&mut self, control: TcpControl, payload: &[u8]) -> Vec<u8> {
        let opens = control == TcpControl::Syn;
        let tcp = TcpRepr {
            src_port: self.port,
            dst_port: PORT,
            control,
            seq_number: TcpSeqNumber(self.sent.cast_signed()),
            ack_number: (!opens).then_some(TcpSeqNumber(self.received.cast_signed())),
            window_len: 64_000,
            window_scale: opens.then_some(7),
            max_seg_size: opens.then_some(1_240),
            sack_permitted: opens,
            sack_ranges: [None; 3],
            timestamp: None,
            payload,
        };
        let ip = Ipv4Repr {
            src_addr: PEER,
            dst_addr: US,
            next_header: IpProtocol::Tcp,
            payload_len: tcp.buffer_len(),
            hop_limit: 64,
        };
        let mut packet = vec![0; 20 + tcp.buffer_len()];
        ip.emit(
            &mut Ipv4Packet::new_unchecked(&mut packet),
            &ChecksumCapabilities::default(),
        );
        tcp.emit(
            &mut TcpPacket::new_unchecked(&mut packet[20..]),
            &IpAddress::Ipv4(PEER),
            &IpAddress::Ipv4(US),
            &ChecksumCapabilities::default(),
        );
        let length = u32::try_from(payload.len()).unwrap() + u32::from(opens);
        self.sent = self.sent.wrapping_add(length);
        packet
    }

    /// Takes in a packet of the stack's.
    fn hear(&mut self, tcp: &TcpPacket<&[u8]>) {
        let length = u32::try_from(tcp.segment_len()).unwrap();
        self.received = tcp.seq_number().0.cast_unsigned().wrapping_add(length);
    }
}

struct World {
    now: Instant,
    stack: TcpIp,
    peers: Vec<Peer>,
    conns: Vec<ConnId>,
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        let mut stack = TcpIp::new(TcpConfig::default(), 1, now);
        stack.set_addresses(&[IpAddr::V4(US)]);
        stack.listen(PORT, 64).unwrap();
        Self {
            now,
            stack,
            peers: Vec::new(),
            conns: Vec::new(),
        }
    }

    /// Polls, lets the peers hear what was sent, and acknowledges data.
    fn exchange(&mut self) {
        let mut heard = Vec::new();
        self.stack.poll(self.now, &mut |packet| {
            let tcp = TcpPacket::new_checked(&packet[20..]).unwrap();
            let at = usize::from(tcp.dst_port() - 10_000);
            self.peers[at].hear(&tcp);
            if tcp.segment_len() > 0 {
                heard.push(at);
            }
        });
        for at in heard {
            let ack = self.peers[at].segment(TcpControl::None, &[]);
            self.stack.handle_packet(self.now, &ack);
        }
        while self.stack.poll_event().is_some() {}
    }

    fn settle(&mut self) {
        self.exchange();
        while let Some(at) = self.stack.poll_timeout().filter(|&at| at < self.now + STEP) {
            self.now = self.now.max(at);
            self.exchange();
        }
    }

    fn open(&mut self) {
        let port = 10_000 + u16::try_from(self.peers.len()).unwrap();
        let mut peer = Peer {
            port,
            sent: u32::from(port) << 16,
            received: 0,
        };
        let syn = peer.segment(TcpControl::Syn, &[]);
        self.peers.push(peer);
        self.stack.handle_packet(self.now, &syn);
        self.settle();
        self.conns.push(self.stack.accept(PORT).unwrap().conn);
    }

    /// Every session sends a few lines, is read, and hears an ack frame.
    fn step(&mut self, lines: &[u8]) {
        let mut buf = [0; 4_096];
        for at in 0..self.conns.len() {
            let packet = self.peers[at].segment(TcpControl::Psh, lines);
            self.stack.handle_packet(self.now, &packet);
            self.exchange();
            let read = self.stack.recv(self.conns[at], &mut buf).unwrap();
            assert_eq!(read, lines.len());
            assert_eq!(
                self.stack.send(self.conns[at], &ACK_FRAME).unwrap(),
                ACK_FRAME.len()
            );
            self.exchange();
        }
        self.settle();
        self.now += STEP;
    }
}

/// Resident memory of this process, in bytes.
fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let kib: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

#[test]
fn a_thousand_sessions_that_idle_for_hours_stay_small() {
    let mut world = World::new();
    for _ in 0..10 {
        world.open();
    }
    world.step(&LINES);
    let before = resident_bytes();
    for _ in 10..SESSIONS {
        world.open();
    }
    world.step(&LINES);
    let opened = resident_bytes();
    for _ in 1..STEPS {
        world.step(&LINES);
    }
    let after = resident_bytes();
    let each = |bytes: usize| (bytes - before) / usize::from(SESSIONS - 10);
    println!(
        "resident bytes of a connection: {} at accept, {} after {} KiB; stats {:?}",
        each(opened),
        each(after),
        STEPS * LINES.len() / 1024,
        world.stack.stats(),
    );
    assert!(each(after) <= CONNECTION_BYTES_MAX);
    let idle = world.stack.stats();
    assert_eq!(idle.buffer_bytes, usize::from(SESSIONS) * RINGS_BYTES);
    // Acks ride on ack frames: nothing was ever due between packets, and nothing is for the next hour.
    assert_eq!(idle.timer_polls, 0);
    world.now += Duration::from_secs(3_600);
    world.exchange();
    assert_eq!(world.stack.stats(), idle);
}
