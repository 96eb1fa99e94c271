//! The best way to each peer now (Tailscale's magicsock): which UDP address is proven to reach it.
//!
//! Invariants: only a pong to a ping of our own proves a path, and it proves the address that we
//! pinged; where a datagram came from decides nothing. Every ping is answered to its very source,
//! within a budget. What a peer can make us keep or send is bounded. Called by `node`.
//!
//! Order of calls: `set_peers` on each netmap; `handle_datagram` for each disco datagram; `route`
//! for each WireGuard datagram to be sent; `handle_timeout` at `poll_timeout`; after each of them
//! `take_wants_endpoints`, `poll_transmit`, `poll_event` and `poll_revived` until `None`. All state is per peer; [`PathEvent`]s of one
//! peer alternate: up, perhaps moved, down.
//!
//! A relay always works and proves nothing: `route` says whether a datagram is to go over it too, the caller knows which.
//!
//! Source: tailscale.com `wgengine/magicsock/{magicsock.go,endpoint.go}`.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::time::{Duration, Instant};

use crate::disco::{self, DiscoBox, DiscoError, Message, TxId};
use crate::key::{DiscoPrivate, DiscoPublic, NodePublic};
use outbox::{Outbox, Wire};
use peer::Peer;

mod choice;
mod outbox;
mod peer;
mod relayed;
#[cfg(test)]
mod tests;

/// Pongs to one disco key in one second. Honest peers ping each of a handful of our addresses
/// every few seconds; the reference has no limit.
const PONGS_PER_SECOND: u32 = 50;

/// The second of [`PONGS_PER_SECOND`].
const PONG_PERIOD: Duration = Duration::from_secs(1);

/// One peer, as the netmap tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerPath {
    /// Who it is.
    pub node: NodePublic,
    /// What seals its disco messages. A peer without one (all zero) has no paths.
    pub disco: DiscoPublic,
    /// Where it believes to be reachable.
    pub endpoints: Vec<SocketAddr>,
    /// The DERP region where it listens; 0 for none.
    pub home_derp: u32,
}

/// A change of the best path to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathEvent {
    /// There is a path where there was none.
    Up {
        /// To whom.
        peer: NodePublic,
        /// Where to send.
        addr: SocketAddr,
        /// Round trip of the ping that proved it.
        latency: Duration,
        /// Its ping made us probe: the peer has, or wants, something to say to us.
        asked_by_peer: bool,
    },
    /// Another address is better now, or is proven while the old one no longer was.
    Moved {
        /// To whom.
        peer: NodePublic,
        /// Where to send from now on.
        addr: SocketAddr,
        /// Round trip of the ping that proved it.
        latency: Duration,
    },
    /// The path was lost, or the peer left.
    Down {
        /// To whom.
        peer: NodePublic,
    },
}

/// What is known of the way to one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathStatus {
    /// Where datagrams for it are sent.
    pub best: Option<SocketAddr>,
    /// Round trip to `best`, as last measured.
    pub latency: Option<Duration>,
    /// Until when `best` needs no proof.
    pub trusted_until: Option<Instant>,
    /// Addresses under consideration.
    pub candidates: usize,
    /// The DERP region where the peer listens; 0 for none.
    pub home_derp: u32,
}

/// Which way a datagram goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// Over UDP to this address. IPv4 addresses are never IPv4-mapped.
    Direct(SocketAddr),
    /// Through a relay.
    Relay {
        /// By which region: that of the ping which is answered; `None` for whichever reaches the peer.
        region: Option<u32>,
        /// To whom.
        peer: NodePublic,
    },
}

/// Where WireGuard datagrams for a peer go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Route {
    /// The best address: trusted or, for a few seconds more, no longer trusted and not yet lost.
    pub direct: Option<SocketAddr>,
    /// No address is trusted: a copy is to go through a relay, if there is one.
    pub relayed: bool,
}

/// Counters since the start; each ignored datagram is in exactly one of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PathStats {
    /// Pings that opened.
    pub pings_received: u64,
    /// Pongs that proved an address.
    pub pongs_received: u64,
    /// Handed to `poll_transmit`: pings.
    pub pings_sent: u64,
    /// Handed to `poll_transmit`: pongs.
    pub pongs_sent: u64,
    /// Does not begin as a disco datagram.
    pub not_disco: u64,
    /// Sealed by a key that is no peer's.
    pub unknown_sender: u64,
    /// The box does not open.
    pub unopened: u64,
    /// Opened, but cut short, or longer than any disco datagram.
    pub malformed: u64,
    /// A ping that came twice from one address.
    pub duplicate_pings: u64,
    /// Pings without pong, because the budget was spent.
    pub pongs_withheld: u64,
    /// Pongs to no ping of ours, or to one already given up.
    pub unknown_txid: u64,
    /// Call-me-maybes over UDP, where they are not valid.
    pub call_me_maybe_over_udp: u64,
    /// Call-me-maybes over a relay that were followed.
    pub calls_received: u64,
    /// The same that came too soon after another of the peer.
    pub calls_withheld: u64,
    /// Handed to `poll_transmit`: call-me-maybes.
    pub calls_sent: u64,
    /// Pongs over a relay, which prove nothing.
    pub pongs_over_relay: u64,
    /// Kinds that we do not speak.
    pub unknown_kind: u64,
    /// Datagrams to send that found the queue full.
    pub queue_full: u64,
}

/// The paths to all peers. See the file's head for the order of calls.
pub struct Paths {
    private: DiscoPrivate,
    peers: HashMap<NodePublic, Peer>,
    groups: HashMap<DiscoPublic, Group>,
    /// When which peer's `handle_timeout` is due: each peer is in it once or not at all.
    deadlines: BTreeSet<(Instant, NodePublic)>,
    /// Peers whose best address may differ from `announced`.
    changed: BTreeSet<NodePublic>,
    /// What the last event said of each peer that is up.
    announced: HashMap<NodePublic, SocketAddr>,
    /// For [`Paths::poll_revived`].
    revived: BTreeSet<NodePublic>,
    outbox: Outbox,
    stats: PathStats,
}

/// The nodes behind one disco key: one, unless several run in one process.
struct Group {
    nodes: BTreeSet<NodePublic>,
    /// Computed at first use: a large netmap has many peers that never speak to us.
    key: Option<DiscoBox>,
    pongs_since: Instant,
    pongs: u32,
}

/// Prints how many, and no keys.
impl fmt::Debug for Paths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Paths")
            .field("peers", &self.peers.len())
            .field("up", &self.announced.len())
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl Paths {
    /// No peers yet. `node` is our own key, which goes into our pings; `seed` feeds the generator
    /// of transaction ids and nonces, and must be fresh for each `disco` key.
    pub fn new(disco: DiscoPrivate, node: NodePublic, seed: [u8; 32]) -> Self {
        Self {
            outbox: Outbox::new(disco.public(), node, seed),
            private: disco,
            peers: HashMap::new(),
            groups: HashMap::new(),
            deadlines: BTreeSet::new(),
            changed: BTreeSet::new(),
            announced: HashMap::new(),
            revived: BTreeSet::new(),
            stats: PathStats::default(),
        }
    }

    /// Our own disco key, for control to publish.
    pub fn disco_public(&self) -> DiscoPublic {
        self.outbox.sender()
    }

    /// The peers of the netmap, all of them. Those not named are forgotten; what is known of the
    /// others stays, except that a new disco key (the peer restarted) unproves its paths.
    pub fn set_peers(&mut self, now: Instant, peers: &[PeerPath]) {
        let mut gone: BTreeSet<NodePublic> = self.peers.keys().copied().collect();
        for told in peers.iter().filter(|told| !told.disco.is_zero()) {
            gone.remove(&told.node);
            self.upsert(now, told);
        }
        for node in gone {
            self.remove(&node);
        }
    }

    fn upsert(&mut self, now: Instant, told: &PeerPath) {
        let old = self.peers.get(&told.node).map(Peer::disco);
        if let Some(old) = old.filter(|old| *old != told.disco) {
            self.leave_group(&told.node, &old);
        }
        self.groups
            .entry(told.disco)
            .or_insert_with(|| Group::new(now))
            .nodes
            .insert(told.node);
        self.peers
            .entry(told.node)
            .or_insert_with(|| Peer::new(told.node, told.disco));
        self.drive(&told.node, |peer, _| {
            peer.set_disco(told.disco);
            peer.set_home_derp(told.home_derp);
            peer.set_endpoints(now, told.endpoints.iter().copied().map(canonical));
        });
    }

    fn remove(&mut self, node: &NodePublic) {
        if let Some(peer) = self.peers.remove(node) {
            if let Some(at) = peer.armed {
                self.deadlines.remove(&(at, *node));
            }
            self.leave_group(node, &peer.disco());
            self.changed.insert(*node);
            self.revived.remove(node);
            self.outbox.calls().forget(node);
        }
    }

    fn leave_group(&mut self, node: &NodePublic, disco: &DiscoPublic) {
        if let Some(group) = self.groups.get_mut(disco) {
            group.nodes.remove(node);
            if group.nodes.is_empty() {
                self.groups.remove(disco);
            }
        }
    }

    /// Takes a datagram that came over UDP from `src` and looks like disco. It is never an error:
    /// what cannot be used is counted.
    pub fn handle_datagram(&mut self, now: Instant, src: SocketAddr, datagram: &[u8]) {
        let src = canonical(src);
        let Some(sender) = disco::sender(datagram) else {
            self.stats.not_disco += 1;
            return;
        };
        let Some(group) = self.groups.get_mut(&sender) else {
            self.stats.unknown_sender += 1;
            return;
        };
        match group.key(&self.private, &sender).open(datagram) {
            Ok(Message::Ping { txid, node }) => self.handle_ping(now, src, &sender, txid, node),
            Ok(Message::Pong { txid, .. }) => self.handle_pong(now, &sender, &txid),
            Ok(Message::CallMeMaybe { .. }) => self.stats.call_me_maybe_over_udp += 1,
            Ok(Message::Unknown { .. }) => self.stats.unknown_kind += 1,
            Err(DiscoError::Open) => self.stats.unopened += 1,
            Err(
                DiscoError::NotDisco { .. } | DiscoError::TooLong { .. } | DiscoError::Short { .. },
            ) => self.stats.malformed += 1,
        }
    }

    fn handle_ping(
        &mut self,
        now: Instant,
        src: SocketAddr,
        sender: &DiscoPublic,
        txid: TxId,
        named: Option<NodePublic>,
    ) {
        self.stats.pings_received += 1;
        let Some(group) = self.groups.get_mut(sender) else {
            return;
        };
        // Which of several nodes behind one key it is matters for our own ping only: every one of
        // them may be reachable at this address, and the pong goes out regardless.
        let identified = named.filter(|node| group.nodes.contains(node)).or_else(|| {
            group
                .nodes
                .first()
                .copied()
                .filter(|_| group.nodes.len() == 1)
        });
        let mut duplicate = false;
        for node in &group.nodes {
            if let Some(peer) = self.peers.get_mut(node) {
                duplicate |= peer.note_ping_from(now, src, txid);
            }
        }
        if duplicate {
            self.stats.duplicate_pings += 1;
            return;
        }
        if group.take_pong(now) {
            let pong = Message::Pong { txid, src };
            let key = group.key(&self.private, sender);
            if self.outbox.send(key, Way::Direct(src), &pong).is_some() {
                self.stats.pongs_sent += 1;
            }
        } else {
            self.stats.pongs_withheld += 1;
        }
        if let Some(node) = identified {
            self.drive(&node, |peer, wire| peer.probe_asked(now, src, wire));
        }
    }

    fn handle_pong(&mut self, now: Instant, sender: &DiscoPublic, txid: &TxId) {
        let pinged = self.groups.get(sender).and_then(|group| {
            let pinged =
                |node: &&NodePublic| self.peers.get(*node).is_some_and(|peer| peer.awaits(txid));
            group.nodes.iter().find(pinged).copied()
        });
        let proven = pinged
            .and_then(|node| self.drive(&node, |peer, wire| peer.handle_pong(now, txid, wire)))
            .unwrap_or(false);
        if let Some(node) = pinged
            && self.peers.get_mut(&node).is_some_and(Peer::take_revived)
        {
            self.revived.insert(node);
        }
        *if proven {
            &mut self.stats.pongs_received
        } else {
            &mut self.stats.unknown_txid
        } += 1;
    }

    /// Where to send a WireGuard datagram for `peer`; nowhere, if it is none. Notes that the peer is
    /// in use, which keeps its path warm, and starts to look for one if needed.
    pub fn route(&mut self, now: Instant, peer: &NodePublic) -> Route {
        let trusted = self
            .peers
            .get_mut(peer)
            .and_then(|peer| peer.route_trusted(now));
        if trusted.is_some() {
            return Route {
                direct: trusted,
                relayed: false,
            };
        }
        self.drive(peer, |peer, wire| peer.route_untrusted(now, wire))
            .unwrap_or_default()
    }

    /// Keeps one WireGuard handshake message for `peer`, for which [`Paths::route`] had no answer:
    /// it goes out when a path is proven within five seconds. Two nodes prove their paths one
    /// after the other, so the first handshake message often comes between. Another replaces it.
    pub fn hold(&mut self, now: Instant, peer: &NodePublic, datagram: &[u8]) {
        if let Some(peer) = self.peers.get_mut(peer) {
            peer.hold(now, datagram);
        }
    }

    /// The next datagram to send, and which way: disco, or a handshake that was held.
    pub fn poll_transmit(&mut self) -> Option<(Way, Vec<u8>)> {
        self.outbox.poll_transmit()
    }

    /// The next change of a path. Changes that cancel out between two calls are never told.
    pub fn poll_event(&mut self) -> Option<PathEvent> {
        while let Some(peer) = self.changed.pop_first() {
            let best = self.peers.get(&peer).and_then(Peer::best);
            let told = self.announced.get(&peer).copied();
            match (told, best) {
                (None, Some(best)) => {
                    self.announced.insert(peer, best.addr);
                    return Some(PathEvent::Up {
                        peer,
                        addr: best.addr,
                        latency: best.latency,
                        asked_by_peer: best.asked_by_peer,
                    });
                }
                (Some(told), Some(best)) if told != best.addr => {
                    self.announced.insert(peer, best.addr);
                    return Some(PathEvent::Moved {
                        peer,
                        addr: best.addr,
                        latency: best.latency,
                    });
                }
                (Some(_), None) => {
                    self.announced.remove(&peer);
                    return Some(PathEvent::Down { peer });
                }
                (None, None) | (Some(_), Some(_)) => {}
            }
        }
        None
    }

    /// A peer that has asked for us after a silence, and whose path is still, or again, proven. It
    /// may have forgotten its own path meanwhile, and lost what it sent before it asked.
    pub fn poll_revived(&mut self) -> Option<NodePublic> {
        self.revived.pop_first()
    }

    /// The disco key by which a peer is known; `None` if it is no peer.
    pub fn disco_of(&self, peer: &NodePublic) -> Option<DiscoPublic> {
        self.peers.get(peer).map(Peer::disco)
    }

    /// The DERP region where `peer` listens; 0 for none.
    pub fn home_of(&self, peer: &NodePublic) -> u32 {
        self.peers.get(peer).map_or(0, Peer::home_derp)
    }

    /// When [`Paths::handle_timeout`] is next due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Sends heartbeats that are due and gives up pings that were not answered.
    pub fn handle_timeout(&mut self, now: Instant) {
        let due: Vec<NodePublic> = self
            .deadlines
            .iter()
            .take_while(|(at, _)| *at <= now)
            .map(|(_, node)| *node)
            .collect();
        for node in due {
            self.drive(&node, |peer, wire| peer.handle_timeout(now, wire));
        }
    }

    /// What is known of the way to `peer`; `None` if it is no peer.
    pub fn status(&self, peer: &NodePublic) -> Option<PathStatus> {
        self.peers.get(peer).map(Peer::status)
    }

    /// Counters since the start.
    pub fn stats(&self) -> PathStats {
        PathStats {
            pings_sent: self.outbox.pings_sent(),
            calls_sent: self.outbox.calls_sent(),
            queue_full: self.outbox.queue_full(),
            ..self.stats
        }
    }

    /// Lets one peer act, then sees to its deadline and to the event that it may owe.
    fn drive<R>(
        &mut self,
        node: &NodePublic,
        act: impl FnOnce(&mut Peer, &mut Wire<'_>) -> R,
    ) -> Option<R> {
        let peer = self.peers.get_mut(node)?;
        let mut wire = Wire {
            outbox: &mut self.outbox,
            private: &self.private,
            groups: &mut self.groups,
        };
        let before = peer.best().map(|best| best.addr);
        let result = act(peer, &mut wire);
        if peer.best().map(|best| best.addr) != before {
            self.changed.insert(*node);
        }
        let deadline = peer.poll_timeout();
        if deadline != peer.armed {
            if let Some(at) = peer.armed {
                self.deadlines.remove(&(at, *node));
            }
            if let Some(at) = deadline {
                self.deadlines.insert((at, *node));
            }
            peer.armed = deadline;
        }
        Some(result)
    }
}

impl Group {
    fn new(now: Instant) -> Self {
        Self {
            nodes: BTreeSet::new(),
            key: None,
            pongs_since: now,
            pongs: 0,
        }
    }

    fn key(&mut self, private: &DiscoPrivate, peer: &DiscoPublic) -> &DiscoBox {
        self.key.get_or_insert_with(|| DiscoBox::new(private, peer))
    }

    /// Whether the budget has a pong left.
    fn take_pong(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.pongs_since) >= PONG_PERIOD {
            self.pongs_since = now;
            self.pongs = 0;
        }
        self.pongs += 1;
        self.pongs <= PONGS_PER_SECOND
    }
}

/// One spelling per address: IPv4 is never IPv4-mapped, and a flow label tells no two apart.
fn canonical(addr: SocketAddr) -> SocketAddr {
    match (addr, addr.ip().to_canonical()) {
        (SocketAddr::V6(v6), IpAddr::V6(ip)) => {
            SocketAddr::V6(SocketAddrV6::new(ip, v6.port(), 0, v6.scope_id()))
        }
        (_, ip) => SocketAddr::new(ip, addr.port()),
    }
}
