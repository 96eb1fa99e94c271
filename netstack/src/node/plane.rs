//! The data plane of one node key: tunnels, paths, and datagrams that wait for a path.
//!
//! Invariant: a datagram for a peer leaves only for an address that this peer has proven, or waits,
//! bounded, until there is one. A new node key gets a new plane. Called by `node`.
//!
//! We hear no relay yet. A peer that has no path sends its handshake nowhere, asks for a path, and
//! tries again only 5 s later, when its callers have given up; so whoever asks gets a handshake of ours, unless its own
//! comes first (`owed`).

use std::collections::BTreeSet;
use std::time::Instant;

use super::DATAGRAM_ROOM;
use super::held::Held;
use super::owed::{Debt, Owed};
use super::transmit::TransmitBatch;
use crate::key::{DiscoPrivate, NodePrivate, NodePublic};
use crate::netmap::Netmap;
use crate::path::{Paths, PeerPath};
use crate::wireguard::{Encapsulated, Tunnels, is_handshake};

#[derive(Debug)]
pub(super) struct Plane {
    pub(super) node: NodePublic,
    pub(super) tunnels: Tunnels,
    pub(super) paths: Paths,
    pub(super) held: Held,
    pub(super) owed: Owed,
    /// Peers that are to get a new session once they have a path: their disco key is another one, so
    /// they are another process and have lost the old one.
    restarted: BTreeSet<NodePublic>,
    scratch: Box<[u8]>,
}

impl Plane {
    pub(super) fn new(key: &NodePrivate, disco: DiscoPrivate, seed: [u8; 32]) -> Self {
        Self {
            node: key.public(),
            tunnels: Tunnels::new(key),
            paths: Paths::new(disco, key.public(), seed),
            held: Held::default(),
            owed: Owed::default(),
            restarted: BTreeSet::new(),
            scratch: vec![0; DATAGRAM_ROOM].into_boxed_slice(),
        }
    }

    /// Encrypts an IP packet for `peer` and sends it; begins a handshake where there is no session.
    pub(super) fn send_packet(
        &mut self,
        now: Instant,
        peer: &NodePublic,
        packet: &[u8],
        out: &mut TransmitBatch,
    ) {
        let Self {
            tunnels,
            paths,
            held,
            scratch,
            ..
        } = self;
        let length = |outcome| match outcome {
            Encapsulated::Datagram(len) | Encapsulated::HandshakeStarted(len) => Some(len),
            Encapsulated::Queued | Encapsulated::Dropped => None,
        };
        if let Some(addr) = paths.route(now, peer).direct {
            out.write(addr, DATAGRAM_ROOM, |room| {
                length(tunnels.encapsulate(now, peer, packet, room))
            });
        } else if let Some(len) = length(tunnels.encapsulate(now, peer, packet, scratch))
            && let Some(datagram) = scratch.get(..len)
        {
            held.push(now, peer, datagram);
        }
    }

    /// Sends a finished WireGuard datagram, or keeps it until a path is known.
    pub(super) fn send_datagram(
        &mut self,
        now: Instant,
        peer: &NodePublic,
        datagram: &[u8],
        out: &mut TransmitBatch,
    ) {
        match self.paths.route(now, peer).direct {
            Some(addr) => out.push(addr, datagram),
            None => self.held.push(now, peer, datagram),
        }
    }

    /// Sends the packets that waited for the session which has just come up.
    pub(super) fn drain(&mut self, now: Instant, peer: &NodePublic, out: &mut TransmitBatch) {
        while let Some(datagram) = self.tunnels.drain(peer, &mut self.scratch) {
            match self.paths.route(now, peer).direct {
                Some(addr) => out.push(addr, datagram),
                None => self.held.push(now, peer, datagram),
            }
        }
    }

    /// Lets WireGuard's timers run: rekeys, keepalives, handshake retries.
    pub(super) fn tick_tunnels(&mut self, now: Instant, out: &mut TransmitBatch) {
        let Self {
            tunnels,
            paths,
            held,
            ..
        } = self;
        tunnels.handle_timeout(
            now,
            &mut |peer, datagram| match paths.route(now, peer).direct {
                Some(addr) => out.push(addr, datagram),
                None => held.push(now, peer, datagram),
            },
        );
    }

    /// A path came up: what waited goes out. Without a handshake among it the peer is owed one, if it has
    /// asked for the path or has restarted.
    pub(super) fn path_is_up(
        &mut self,
        now: Instant,
        peer: &NodePublic,
        asked_by_peer: bool,
        out: &mut TransmitBatch,
    ) {
        let waiting = self.held.take(now, peer);
        let restarted = self.restarted.remove(peer);
        let shakes_hands = waiting.iter().any(|datagram| is_handshake(datagram));
        for datagram in waiting {
            self.send_datagram(now, peer, &datagram, out);
        }
        if !shakes_hands && (restarted || asked_by_peer) {
            self.owed.owe(now, peer, restarted);
        }
    }

    /// Begins the sessions that are due and that their peers have not begun themselves.
    pub(super) fn pay_sessions(&mut self, now: Instant, out: &mut TransmitBatch) {
        for debt in self.owed.take_due(now) {
            let Debt {
                peer,
                since,
                restarted,
            } = debt;
            let status = self.tunnels.status(&peer);
            let last = status.and_then(|status| status.last_handshake);
            if last.is_none_or(|last| last < since) {
                self.begin_session(now, &peer, restarted, out);
            }
        }
    }

    /// Begins a handshake, unless one is under way or there is a session; the latter counts for nothing
    /// when the peer has `restarted`.
    fn begin_session(
        &mut self,
        now: Instant,
        peer: &NodePublic,
        restarted: bool,
        out: &mut TransmitBatch,
    ) {
        let Self {
            tunnels,
            paths,
            scratch,
            ..
        } = self;
        let initiation = if restarted {
            tunnels.renew(now, peer, scratch)
        } else {
            tunnels.initiate(now, peer, scratch)
        };
        if let Some(datagram) = initiation
            && let Some(addr) = paths.route(now, peer).direct
        {
            out.push(addr, datagram);
        }
    }

    /// Follows the netmap: peers that left lose tunnel, path and what waited for them.
    pub(super) fn set_peers(&mut self, now: Instant, netmap: &Netmap) {
        let peers: Vec<PeerPath> = netmap
            .peers()
            .map(|peer| PeerPath {
                node: peer.key,
                disco: peer.disco_key,
                endpoints: peer.endpoints.clone(),
                home_derp: peer.home_derp,
            })
            .collect();
        for peer in &peers {
            let known = self.paths.disco_of(&peer.node);
            if known.is_some_and(|disco| disco != peer.disco)
                && self.tunnels.has_session(&peer.node)
            {
                self.restarted.insert(peer.node);
            }
        }
        self.paths.set_peers(now, &peers);
        let keep = |key: &NodePublic| netmap.peer(key).is_some();
        self.restarted.retain(keep);
        self.owed.retain(keep);
        self.tunnels.retain_peers(&keep);
        self.held.retain(keep);
    }
}
