//! Paths and tunnels of two nodes together: from two netmaps to a packet that arrived.

use super::*;
use crate::path::peer::FIRST_PING_INTERVAL;
use crate::wireguard::{DATAGRAM_BYTES_MAX, Encapsulated, Received, Tunnels};

/// A node below TCP: one datagram in, some out.
struct Node {
    side: Side,
    tunnels: Tunnels,
    peer: NodePublic,
    /// Handshake messages for which there was no path yet.
    pathless: usize,
    packets: Vec<Vec<u8>>,
}

impl Node {
    fn new(seed: u8, at: &str, peer: NodePublic) -> Self {
        Self {
            side: Side::new(seed, at),
            tunnels: Tunnels::new(&NodePrivate::from_bytes([seed; 32])),
            peer,
            pathless: 0,
            packets: Vec::new(),
        }
    }

    fn send_datagram(
        &mut self,
        now: Instant,
        datagram: &[u8],
        wire: &mut Vec<(SocketAddr, Vec<u8>)>,
    ) {
        match self.side.paths.route(now, &self.peer).direct {
            Some(to) => wire.push((to, datagram.to_vec())),
            None => {
                self.pathless += 1;
                self.side.paths.hold(now, &self.peer, datagram);
            }
        }
    }

    fn send_packet(&mut self, now: Instant, packet: &[u8]) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut wire = Vec::new();
        let mut dst = [0; DATAGRAM_BYTES_MAX];
        match self.tunnels.encapsulate(now, &self.peer, packet, &mut dst) {
            Encapsulated::Datagram(length) | Encapsulated::HandshakeStarted(length) => {
                self.send_datagram(now, &dst[..length], &mut wire);
            }
            Encapsulated::Queued | Encapsulated::Dropped => {}
        }
        wire.extend(self.side.sent());
        wire
    }

    fn handle(
        &mut self,
        now: Instant,
        src: SocketAddr,
        datagram: &[u8],
    ) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut wire = Vec::new();
        let mut dst = [0; DATAGRAM_BYTES_MAX];
        if disco::looks_like_disco(datagram) {
            self.side.paths.handle_datagram(now, src, datagram);
        } else {
            let peer = self.peer;
            let mut scratch = [0; 2048];
            let mut is_peer = |key: &NodePublic| *key == peer;
            match self
                .tunnels
                .handle_datagram(now, src.ip(), datagram, &mut is_peer, &mut scratch)
            {
                Received::Packet { packet, .. } => self.packets.push(packet.to_vec()),
                Received::Send { datagram, .. } => self.send_datagram(now, datagram, &mut wire),
                Received::Keepalive { .. } => {}
                Received::Cookie { .. } | Received::Nothing => panic!("nothing is to be lost"),
            }
            while let Some(datagram) = self.tunnels.drain(&peer, &mut dst) {
                let datagram = datagram.to_vec();
                self.send_datagram(now, &datagram, &mut wire);
            }
        }
        wire.extend(self.side.sent());
        wire
    }
}

#[test]
fn from_two_netmaps_a_path_a_session_and_a_packet_arise() {
    let now = start();
    let key = |seed| NodePrivate::from_bytes([seed; 32]).public();
    let mut a = Node::new(0x10, "192.0.2.1:41641", key(0x20));
    let mut b = Node::new(0x20, "192.0.2.2:41641", key(0x10));
    a.side.paths.set_peers(now, &[b.side.told(&[b.side.at])]);
    b.side.paths.set_peers(now, &[a.side.told(&[a.side.at])]);

    let mut packet = vec![7; 84];
    packet[..4].copy_from_slice(&[0x45, 0, 0, 84]);
    let mut to_b = a.send_packet(now, &packet);
    assert_eq!(a.pathless, 1, "the first initiation has no path to go");
    let mut rounds = 0;
    while !to_b.is_empty() {
        rounds += 1;
        assert!(rounds < 10, "two nodes must come to rest");
        let mut to_a = Vec::new();
        for (to, datagram) in to_b.drain(..) {
            assert_eq!(to, b.side.at);
            to_a.extend(b.handle(now, a.side.at, &datagram));
        }
        for (to, datagram) in to_a {
            assert_eq!(to, a.side.at);
            to_b.extend(a.handle(now, b.side.at, &datagram));
        }
    }
    assert_eq!(b.packets, [packet.clone()]);
    // The initiation waited for a's path, and went out before b had proven its own.
    assert_eq!((a.pathless, b.pathless), (1, 1));
    assert!(a.tunnels.has_session(&a.peer));
    assert!(matches!(
        a.side.events()[..],
        [PathEvent::Up {
            asked_by_peer: false,
            ..
        }]
    ));
    assert!(matches!(
        b.side.events()[..],
        [PathEvent::Up {
            asked_by_peer: true,
            ..
        }]
    ));

    // And back.
    for (to, datagram) in b.send_packet(now, &packet) {
        assert_eq!(to, a.side.at);
        a.handle(now, b.side.at, &datagram);
    }
    assert_eq!(a.packets, [packet]);
}

#[test]
fn a_peer_that_hears_of_us_a_moment_later_is_reached_a_moment_later() {
    let now = start();
    let mut a = Side::new(0x10, "192.0.2.1:41641");
    let mut b = Side::new(0x20, "192.0.2.2:41641");
    a.paths.set_peers(now, &[b.told(&[b.at])]);
    assert_eq!(a.paths.route(now, &b.node).direct, None);
    exchange(now, &mut a, &mut b);
    assert_eq!(b.paths.stats().unknown_sender, 1);
    b.paths.set_peers(now, &[a.told(&[a.at])]);
    // Nothing more is sent: the heartbeat looks for the path by itself.
    let at = a.paths.poll_timeout().unwrap();
    assert_eq!(at, now + FIRST_PING_INTERVAL);
    a.paths.handle_timeout(at);
    exchange(at, &mut a, &mut b);
    assert_eq!(a.paths.route(at, &b.node).direct, Some(b.at));
    assert_eq!(b.paths.route(at, &a.node).direct, Some(a.at));
    // From then on it beats as any other.
    assert_eq!(a.paths.poll_timeout(), Some(at + HEARTBEAT_INTERVAL));
}

#[test]
fn a_held_handshake_goes_out_with_the_first_pong_unless_it_is_old_or_no_handshake() {
    for (bytes, wait, goes_out) in [
        (148, 0, true),
        (148, 4999, true),
        (148, 5000, false),
        (149, 0, false),
    ] {
        let (mut a, mut b, now) = pair();
        let held = vec![1; bytes];
        a.paths.hold(now, &b.node, &held);
        let later = now + ms(wait);
        assert_eq!(a.paths.route(later, &b.node).direct, None);
        let (_, ping) = a.sent().remove(0);
        b.paths.handle_datagram(later, a.at, &ping);
        let (_, pong) = b.sent().remove(0);
        a.paths.handle_datagram(later, b.at, &pong);
        let sent = a.sent();
        assert_eq!(
            sent.contains(&(b.at, held.clone())),
            goes_out,
            "{bytes} bytes, {wait} ms"
        );
        // With a path known there is nothing to hold for.
        a.paths.hold(later, &b.node, &held[..100]);
        a.paths.route(later + PING_INTERVAL_MIN + TRUST, &b.node);
        assert!(
            a.sent()
                .iter()
                .all(|(_, datagram)| *datagram != held[..100])
        );
    }
}
