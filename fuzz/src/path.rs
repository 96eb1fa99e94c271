//! Path selection between us and two peers, one of whom may lie: only what we pinged is ever used.
//!
//! Seeds: a path that is found, moves and is lost, as scripts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use netstack::disco::{DiscoBox, Message, TxId};
use netstack::key::{DiscoPrivate, NodePrivate, NodePublic};
use netstack::path::{PathEvent, Paths, PeerPath, Way};

use super::script::{Script, bend, epoch};

/// Datagrams that one call may make: a ping to each candidate of each peer, a pong, what was held.
const SENT_MAX: usize = 2 * 100 + 10;

struct Peer {
    node: NodePublic,
    disco: DiscoPrivate,
    seal: DiscoBox,
    /// Our pings to it, and where they went.
    pinged: BTreeMap<TxId, SocketAddr>,
    /// Where it has answered one.
    proven: BTreeSet<SocketAddr>,
    up: Option<SocketAddr>,
}

struct World {
    paths: Paths,
    now: Instant,
    peers: [Peer; 2],
}

/// The bytes are a script: who sends what from where, and how long we wait.
pub fn path(data: &[u8]) {
    let ours = DiscoPrivate::from_bytes([0x11; 32]);
    let node = NodePrivate::from_bytes([0x33; 32]).public();
    let peer = |seed: u8| {
        let disco = DiscoPrivate::from_bytes([seed; 32]);
        Peer {
            node: NodePrivate::from_bytes([seed; 32]).public(),
            seal: DiscoBox::new(&disco, &ours.public()),
            disco,
            pinged: BTreeMap::new(),
            proven: BTreeSet::new(),
            up: None,
        }
    };
    let peers = [peer(0x44), peer(0x55)];
    let paths = Paths::new(ours, node, [7; 32]);
    let mut world = World {
        paths,
        now: epoch(),
        peers,
    };
    let mut script = Script::new(data);
    while let Some(step) = script.step() {
        world.step(step, &mut script);
        world.settle();
    }
}

/// One of a few addresses, some of which cannot be used.
pub fn address(choice: u8) -> SocketAddr {
    let host = choice >> 3;
    match choice & 7 {
        0..=2 => SocketAddr::from(([192, 0, 2, host], 41641)),
        3 => SocketAddr::from(([192, 0, 2, 1], u16::from(host))),
        4 => SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, host.into()], 41641)),
        5 => SocketAddr::from((
            [0, 0, 0, 0, 0, 0xffff, 0xc000, 0x200 + u16::from(host)],
            41641,
        )),
        6 => SocketAddr::from(([224, 0, 0, host], 41641)),
        _ => SocketAddr::from(([0, 0, 0, 0], 41641)),
    }
}

impl World {
    fn step(&mut self, step: u8, script: &mut Script<'_>) {
        let (now, which) = (self.now, usize::from(step >> 7));
        let [one, other] = &mut self.peers;
        let peer = if which == 0 { one } else { other };
        match step & 7 {
            0 => {
                let src = address(script.byte());
                self.paths.handle_datagram(now, src, script.piece());
            }
            1 => {
                let (src, nonce) = (address(script.byte()), [script.byte(); 24]);
                let Ok(message) = Message::parse(script.piece()) else {
                    return;
                };
                let mut datagram = peer.seal.seal(nonce, &message, &peer.disco.public());
                let bent = step & 0x40 != 0 && bend(script, &mut datagram);
                if !bent && let Message::Pong { txid, .. } = &message {
                    peer.proven.extend(peer.pinged.get(txid));
                }
                self.paths.handle_datagram(now, src, &datagram);
            }
            2 => {
                let src = address(script.byte());
                let Some((txid, to)) = peer.pinged.pop_last() else {
                    return;
                };
                peer.proven.insert(to);
                let pong = Message::Pong { txid, src };
                let datagram = peer.seal.seal([9; 24], &pong, &peer.disco.public());
                self.paths.handle_datagram(now, src, &datagram);
            }
            3 => {
                let node = peer.node;
                let route = self.paths.route(now, &node);
                if let Some(to) = route.direct {
                    assert!(peer.proven.contains(&to), "{to} was never proven");
                }
            }
            4 => {
                self.now += Duration::from_millis(u64::from(script.u16()));
                self.paths.handle_timeout(self.now);
            }
            5 => {
                let mut told = Vec::new();
                for (at, peer) in self.peers.iter().enumerate() {
                    if step & (0x20 << at) != 0 {
                        let count = script.byte();
                        told.push(PeerPath {
                            node: peer.node,
                            disco: peer.disco.public(),
                            endpoints: (0..count).map(|_| address(script.byte())).collect(),
                            home_derp: u32::from(count),
                        });
                    }
                }
                self.paths.set_peers(now, &told);
                for peer in &mut self.peers {
                    if self.paths.status(&peer.node).is_none() {
                        peer.pinged.clear();
                        peer.proven.clear();
                    }
                }
            }
            6 => {
                let node = peer.node;
                self.paths.hold(now, &node, script.piece());
            }
            _ => self.step_relayed(step, script),
        }
    }

    /// What comes over a relay proves nothing, whatever it is.
    fn step_relayed(&mut self, step: u8, script: &mut Script<'_>) {
        let (now, which) = (self.now, usize::from(step >> 7));
        let [one, other] = &self.peers;
        let peer = if which == 0 { one } else { other };
        match (step >> 3) & 7 {
            0 => self.paths.set_has_relay(script.byte() & 1 == 1),
            1 => {
                let count = script.byte();
                let endpoints = (0..count).map(|_| address(script.byte())).collect();
                self.paths.set_own_endpoints(now, endpoints);
                assert!(!self.paths.take_wants_endpoints());
            }
            2 => self.paths.handle_unreachable(address(script.byte())),
            3 => self.paths.handle_network_change(now),
            4 => {
                let (from, region) = (peer.node, u32::from(script.u16()));
                let datagram = script.piece();
                self.paths.handle_relayed(now, region, &from, datagram);
            }
            _ => {
                let (region, nonce) = (u32::from(script.u16()), [script.byte(); 24]);
                let Ok(message) = Message::parse(script.piece()) else {
                    return;
                };
                let mut datagram = peer.seal.seal(nonce, &message, &peer.disco.public());
                if step & 0x40 != 0 {
                    bend(script, &mut datagram);
                }
                let from = peer.node;
                self.paths.handle_relayed(now, region, &from, &datagram);
            }
        }
    }

    fn settle(&mut self) {
        let sent: Vec<_> = std::iter::from_fn(|| self.paths.poll_transmit()).collect();
        assert!(sent.len() <= SENT_MAX, "{} datagrams at once", sent.len());
        for (way, datagram) in sent {
            let Way::Direct(to) = way else { continue };
            assert_eq!(to.ip(), to.ip().to_canonical());
            for peer in &mut self.peers {
                if let Ok(Message::Ping { txid, .. }) = peer.seal.open(&datagram) {
                    assert!(to.port() != 0 && !to.ip().is_multicast() && !to.ip().is_unspecified());
                    peer.pinged.insert(txid, to);
                }
            }
        }
        while let Some(event) = self.paths.poll_event() {
            let (node, addr, must_be_up) = match event {
                PathEvent::Up { peer, addr, .. } => (peer, Some(addr), false),
                PathEvent::Moved { peer, addr, .. } => (peer, Some(addr), true),
                PathEvent::Down { peer } => (peer, None, true),
            };
            let peer = self.peers.iter_mut().find(|peer| peer.node == node);
            let peer = peer.expect("events are about the two peers");
            assert_eq!(peer.up.is_some(), must_be_up, "{event:?}");
            assert_ne!(peer.up, addr, "{event:?}");
            assert!(addr.is_none_or(|addr| peer.proven.contains(&addr)));
            peer.up = addr;
        }
        for peer in &self.peers {
            let status = self.paths.status(&peer.node);
            assert_eq!(status.and_then(|status| status.best), peer.up);
            assert!(status.is_none_or(|status| status.candidates <= 100));
        }
        // What is overdue is done by one call.
        if self.paths.poll_timeout().is_some_and(|at| at <= self.now) {
            self.paths.handle_timeout(self.now);
            assert!(self.paths.poll_timeout().is_none_or(|at| at > self.now));
            self.settle();
        }
    }
}
