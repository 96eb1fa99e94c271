//! The TCP room with a listener and one open connection: packets as they are, and segments that
//! reach the connection.
//!
//! Seeds: packets of a real connection; segments as scripts.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use netstack::filter::PacketView;
use netstack::tcpip::{ConnId, TcpConfig, TcpIp};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;

use super::script::{Script, epoch, whatever};
use super::segment::{self, Place};

const PORT: u16 = 80;
/// Packets that one poll may make: those that a full send buffer holds, and some answers.
const SENT_MAX: usize = 64;

fn config() -> TcpConfig {
    TcpConfig {
        buffer_budget_bytes: 1 << 20,
        connections_max: 12,
        connections_per_peer_max: 10,
        half_open_max: 6,
        half_open_per_peer_max: 4,
        receive_buffer_bytes: 16 << 10,
        send_buffer_bytes: 8 << 10,
        ..TcpConfig::default()
    }
}

/// Host `host` of the tailnet.
pub fn address(v6: bool, host: u8) -> IpAddr {
    if v6 {
        IpAddr::from([0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, u16::from(host)])
    } else {
        IpAddr::from([100, 64, 0, host])
    }
}

struct World {
    now: Instant,
    us: TcpIp,
    /// Our end of the open connection; those that were accepted later.
    conns: Vec<ConnId>,
    peer: SocketAddr,
    /// Where the peer's next segment belongs.
    place: Place,
}

impl World {
    /// We listen, and a real peer has connected.
    fn connected(v6: bool) -> Self {
        let now = epoch();
        let node = |host| {
            let mut node = TcpIp::new(config(), u64::from(host), now);
            node.set_addresses(&[address(false, host), address(true, host)]);
            node
        };
        let (mut us, mut peer) = (node(2), node(1));
        us.listen(PORT, 4).expect("no one listens yet");
        let mut rng = ChaCha20Rng::from_seed([1; 32]);
        let remote = SocketAddr::new(address(v6, 2), PORT);
        let dialled = peer.connect(now, address(v6, 1), remote, &mut rng);
        let dialled = dialled.expect("nothing is in the way");
        let mut place = Place::default();
        for _ in 0..4 {
            peer.poll(now, &mut |packet| us.handle_packet(now, packet));
            us.poll(now, &mut |packet| {
                place = segment::answer_to(packet).unwrap_or(place);
                peer.handle_packet(now, packet);
            });
        }
        let (local, _) = peer.address_pair(dialled).expect("just made");
        let accepted = us.accept(PORT).expect("the handshake is done");
        Self {
            now,
            us,
            conns: vec![accepted.conn],
            peer: local,
            place,
        }
    }

    fn handle(&mut self, packet: &[u8]) {
        let before = self.us.stats().packets_in;
        self.us.handle_packet(self.now, packet);
        assert_eq!(self.us.stats().packets_in, before + 1);
    }

    /// Polls, reads, and looks at everything that leaves and at every limit.
    fn settle(&mut self) {
        let (mut sent, mut place) = (0, self.place);
        for round in 0.. {
            assert!(round < 64, "there is always something left to do");
            self.us.poll(self.now, &mut |packet| {
                sent += 1;
                let view = PacketView::parse(packet).expect("what we send is a packet");
                assert!(view.ip_bytes == packet.len() && packet.len() <= 1280);
                assert!([address(false, 2), address(true, 2)].contains(&view.src));
                if view.dst == self.peer.ip() {
                    place = segment::answer_to(packet).unwrap_or(place);
                }
            });
            if !self.us.needs_poll() {
                break;
            }
        }
        self.place = place;
        assert!(sent <= SENT_MAX, "{sent} packets at once");
        let mut events = 0;
        while self.us.poll_event().is_some() {
            events += 1;
        }
        assert!(events <= 64, "{events} events at once");
        let (stats, limits) = (self.us.stats(), config());
        assert!(stats.connections <= limits.connections_max);
        assert!(stats.half_open <= limits.half_open_max);
        assert!(stats.buffer_bytes <= limits.buffer_budget_bytes);
        assert!(
            self.us.poll_timeout().is_none_or(|at| at > self.now),
            "a deadline that has passed stays due"
        );
    }

    fn pass(&mut self, millis: u16) {
        let end = self.now + Duration::from_millis(u64::from(millis));
        let next = self.us.poll_timeout().filter(|at| *at < end);
        self.now = next.unwrap_or(end);
    }
}

/// One byte for the family; then packets, each behind its length, to a node in the middle of a
/// connection.
pub fn tcpip_packet(data: &[u8]) {
    let mut script = Script::new(data);
    let mut world = World::connected(script.byte() & 1 != 0);
    while let Some(step) = script.step() {
        world.handle(script.piece());
        if step & 1 == 0 {
            world.settle();
        }
        if step & 2 != 0 {
            world.pass(script.u16());
        }
    }
    world.settle();
}

/// A script of what the peer sends, and of what we do: every segment has the right lengths.
pub fn tcpip_segment(data: &[u8]) {
    let mut script = Script::new(data);
    let v6 = script.byte() & 1 != 0;
    let mut world = World::connected(v6);
    let mut rng = ChaCha20Rng::from_seed([2; 32]);
    while let Some(step) = script.step() {
        let which = script.byte();
        let chosen = usize::from(which) % world.conns.len().max(1);
        let conn = world.conns.get(chosen).copied();
        match (step & 7, conn) {
            (0 | 1, _) => {
                // The open connection, another port of its peer, another peer, a closed port.
                let (src, src_port, dst_port) = match which & 3 {
                    0 => (world.peer.ip(), world.peer.port(), PORT),
                    1 => (world.peer.ip(), u16::from(which) << 4, PORT),
                    2 => (address(v6, which), 4000, PORT),
                    _ => (world.peer.ip(), world.peer.port(), u16::from(which)),
                };
                let ends = (src, address(v6, 2));
                let packet = segment::tcp(&mut script, ends, (src_port, dst_port), world.place);
                world.handle(&packet);
            }
            (2, _) => {
                let ends = (address(v6, which), address(v6, 2));
                let packet = segment::ip(ends.0, ends.1, script.byte(), script.piece());
                world.handle(&packet);
            }
            (3, Some(conn)) => whatever(world.us.send(conn, script.piece())),
            (4, Some(conn)) => {
                let mut buf = vec![0; usize::from(script.u16())];
                let read = world.us.recv(conn, &mut buf);
                assert!(read.is_err() || read.is_ok_and(|count| count <= buf.len()));
            }
            (5, Some(conn)) => match which >> 6 {
                0 => whatever(world.us.shutdown(conn)),
                1 => world.us.abort(conn),
                2 => whatever(world.us.flush(conn)),
                _ => {
                    world.us.release(conn);
                    world.conns.remove(chosen);
                }
            },
            (6, _) => {
                let accepted = world.us.accept(PORT);
                world.conns.extend(accepted.map(|accepted| accepted.conn));
                if which & 0x80 != 0 {
                    let remote = SocketAddr::new(world.peer.ip(), u16::from(which));
                    let local = address(v6, 2);
                    let dialled = world.us.connect(world.now, local, remote, &mut rng);
                    world.conns.extend(dialled);
                }
            }
            _ => world.pass(script.u16()),
        }
        if step & 8 == 0 {
            world.settle();
        }
    }
    world.settle();
}
