//! The data plane of one node key: tunnels, paths, and datagrams that wait for a path.
//!
//! Invariant: a datagram for a peer leaves only for an address that this peer has proven, or through a relay, or waits,
//! bounded, until there is a way. A new node key gets a new plane. Called by `node`.
//!
//! Where no relay is heard, a peer that has no path sends its handshake nowhere, asks for a path, and
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
use crate::path::{Paths, PeerPath, Route, Way};
use crate::relay::Relays;
use crate::wireguard::{Encapsulated, Tunnels, is_handshake};

/// The ways out: the batch to be sent, and the relays that some of it goes through.
pub(super) struct Exit<'a> {
    relays: &'a mut Relays,
    pub(super) out: &'a mut TransmitBatch,
}

impl<'a> Exit<'a> {
    pub(super) fn new(relays: &'a mut Relays, out: &'a mut TransmitBatch) -> Self {
        Self { relays, out }
    }
}

/// Sends a datagram whichever way `peer` is reached now, or keeps it until there is one.
fn send(
    paths: &mut Paths,
    held: &mut Held,
    now: Instant,
    peer: &NodePublic,
    datagram: &[u8],
    exit: &mut Exit<'_>,
) {
    let route = paths.route(now, peer);
    send_along(route, paths, held, now, peer, datagram, exit);
}

/// Sends a datagram each way that `route` names, or keeps it if there is none.
fn send_along(
    route: Route,
    paths: &Paths,
    held: &mut Held,
    now: Instant,
    peer: &NodePublic,
    datagram: &[u8],
    exit: &mut Exit<'_>,
) {
    let mut sent = false;
    if let Some(addr) = route.direct {
        exit.out.push(addr, datagram);
        sent = true;
    }
    if route.relayed
        && exit.relays.is_usable()
        && let Some(conn) = exit.relays.route(now, peer, paths.home_of(peer))
    {
        exit.out.push_relayed(conn, *peer, datagram);
        sent = true;
    }
    if !sent {
        held.push(now, peer, datagram);
    }
}

#[derive(Debug)]
pub(super) struct Plane {
    pub(super) node: NodePrivate,
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
            node: key.clone(),
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
        exit: &mut Exit<'_>,
    ) {
        let length = |outcome| match outcome {
            Encapsulated::Datagram(len) | Encapsulated::HandshakeStarted(len) => Some(len),
            Encapsulated::Queued | Encapsulated::Dropped => None,
        };
        let route = self.paths.route(now, peer);
        let Self {
            tunnels, scratch, ..
        } = self;
        if let Some(addr) = route.direct
            && !route.relayed
        {
            exit.out.write(addr, DATAGRAM_ROOM, |room| {
                length(tunnels.encapsulate(now, peer, packet, room))
            });
        } else if let Some(len) = length(tunnels.encapsulate(now, peer, packet, scratch))
            && let Some(datagram) = scratch.get(..len)
        {
            send_along(
                route,
                &self.paths,
                &mut self.held,
                now,
                peer,
                datagram,
                exit,
            );
        }
    }

    /// Sends a finished WireGuard datagram, or keeps it until there is a way.
    pub(super) fn send_datagram(
        &mut self,
        now: Instant,
        peer: &NodePublic,
        datagram: &[u8],
        exit: &mut Exit<'_>,
    ) {
        send(&mut self.paths, &mut self.held, now, peer, datagram, exit);
    }

    /// Sends what the paths have to say.
    pub(super) fn send_by(&self, now: Instant, way: Way, datagram: &[u8], exit: &mut Exit<'_>) {
        match way {
            Way::Direct(addr) => exit.out.push(addr, datagram),
            Way::Relay { region, peer } => {
                let conn = match region {
                    Some(region) => exit.relays.answer_by(now, region),
                    None => exit.relays.route(now, &peer, self.paths.home_of(&peer)),
                };
                if let Some(conn) = conn {
                    exit.out.push_relayed(conn, peer, datagram);
                }
            }
        }
    }

    /// Sends the packets that waited for the session which has just come up.
    pub(super) fn drain(&mut self, now: Instant, peer: &NodePublic, exit: &mut Exit<'_>) {
        while let Some(datagram) = self.tunnels.drain(peer, &mut self.scratch) {
            send(&mut self.paths, &mut self.held, now, peer, datagram, exit);
        }
    }

    /// Lets WireGuard's timers run: rekeys, keepalives, handshake retries.
    pub(super) fn tick_tunnels(&mut self, now: Instant, exit: &mut Exit<'_>) {
        let Self {
            tunnels,
            paths,
            held,
            ..
        } = self;
        tunnels.handle_timeout(now, &mut |peer, datagram| {
            send(paths, held, now, peer, datagram, exit);
        });
    }

    /// A path came up: what waited goes out. Without a handshake among it the peer is owed one, if it has
    /// asked for the path or has restarted.
    pub(super) fn path_is_up(
        &mut self,
        now: Instant,
        peer: &NodePublic,
        asked_by_peer: bool,
        exit: &mut Exit<'_>,
    ) {
        let waiting = self.held.take(now, peer);
        let restarted = self.restarted.remove(peer);
        let shakes_hands = waiting.iter().any(|datagram| is_handshake(datagram));
        for datagram in waiting {
            self.send_datagram(now, peer, &datagram, exit);
        }
        if !shakes_hands && (restarted || asked_by_peer) {
            self.owed.owe(now, peer, restarted);
        }
    }

    /// Begins the sessions that are due and that their peers have not begun themselves.
    pub(super) fn pay_sessions(&mut self, now: Instant, exit: &mut Exit<'_>) {
        for debt in self.owed.take_due(now) {
            let Debt {
                peer,
                since,
                restarted,
            } = debt;
            let status = self.tunnels.status(&peer);
            let last = status.and_then(|status| status.last_handshake);
            if last.is_none_or(|last| last < since) {
                self.begin_session(now, &peer, restarted, exit);
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
        exit: &mut Exit<'_>,
    ) {
        let Self {
            tunnels, scratch, ..
        } = self;
        let initiation = if restarted {
            tunnels.renew(now, peer, scratch)
        } else {
            tunnels.initiate(now, peer, scratch)
        };
        if let Some(datagram) = initiation {
            send(&mut self.paths, &mut self.held, now, peer, datagram, exit);
        }
    }

    /// Follows the netmap: peers that left lose tunnel, path and what waited for them.
    pub(super) fn set_peers(&mut self, now: Instant, netmap: &Netmap, has_relay: bool) {
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
        if has_relay {
            // A relay reaches the new process at once.
            for peer in std::mem::take(&mut self.restarted) {
                self.owed.owe(now, &peer, true);
            }
        }
        let keep = |key: &NodePublic| netmap.peer(key).is_some();
        self.restarted.retain(keep);
        self.owed.retain(keep);
        self.tunnels.retain_peers(&keep);
        self.held.retain(keep);
    }
}
