//! The one state machine of a tailnet node: owns control, netmap, filter, tunnels, paths and TCP.
//!
//! Invariant: it does no IO and reads no clock; what enters is bytes, commands and `now`, what leaves
//! is datagrams, control requests, events and the next deadline. No packet reaches TCP that did not
//! come through a tunnel of a netmap peer, from an address of that peer, past the packet filter.
//! Called by `io/driver.rs`, by simulations and by tests.
//!
//! Order of calls: any number of `handle_*` and TCP calls, then [`Node::flush`] once per batch, then
//! [`Node::take_transmits`], [`Node::poll_event`], [`Node::poll_control`] until empty, and
//! [`Node::poll_timeout`] to know when to call [`Node::handle_timeout`].

mod datagrams;
mod held;
mod inner;
mod named;
mod owed;
mod plane;
mod relayed;
mod status;
mod surroundings;
mod transmit;
mod tsmp;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};

use crate::control::{Control, ControlConfig, ControlEvent, ControlRequest, RequestId};
use crate::filter::{Filter, PacketView};
use crate::key::{DiscoPrivate, NodePrivate, NodePublic};
use crate::netcheck::{NetCheck, Sockets};
use crate::netmap::{Changed, Netmap};
use crate::path::PathEvent;
use crate::relay::Relays;
use crate::tailcfg::{DerpNode, MapResponse, NodeId};
use crate::tcpip::{ConnId, ConnectError, TcpConfig, TcpEvent, TcpIp};

pub use named::{Named, NamedStats};
use plane::{Exit, Plane};
pub use status::{DropCounts, NodeStats, NodeStatus, PeerStatus};
use surroundings::Surroundings;
pub use transmit::{Relayed, Transmit, TransmitBatch};

/// Largest inner IP packet, in bytes; both ends of every tunnel use it (transport.md §4.1).
pub const TUNNEL_MTU: usize = 1280;

/// Room for one ciphertext datagram: the MTU, WireGuard's 32 bytes, and the size of an initiation.
const DATAGRAM_ROOM: usize = TUNNEL_MTU + 32;

/// Room for decrypting: the largest UDP payload, so that no datagram is too long for it.
const SCRATCH_BYTES: usize = 65_536;

/// Events that may wait for the shell: one of each kind for each of 16,384 connections. One more is
/// dropped and counted, which happens only if nobody takes any.
const EVENTS_MAX: usize = 65_536;

/// News of paths is dropped earlier: it is for the log, while a TCP event that is lost hangs a stream.
const PATH_EVENTS_MAX: usize = 1_024;

/// Everything a node needs to know at birth. Plain data.
#[derive(Debug)]
pub struct NodeConfig {
    /// How to register.
    pub control: ControlConfig,
    /// The stored node key, if this node has registered before.
    pub node_key: Option<NodePrivate>,
    /// Limits and buffer sizes of TCP.
    pub tcp: TcpConfig,
}

/// What happened, for the shell to act upon.
#[derive(Debug)]
pub enum NodeEvent {
    /// The key was accepted by control: write it down before it is used again.
    NodeKey(NodePrivate),
    /// The first netmap arrived: the node has addresses.
    Up,
    /// The netmap changed; whoever watches should look again.
    NetmapChanged,
    /// Something happened to a connection or a listener.
    Tcp(TcpEvent),
    /// A direct path to a peer came up, moved or was lost.
    Path(PathEvent),
    /// Look up both families of a name, and call [`Node::handle_resolved`].
    Resolve {
        /// The name; never an address.
        host: String,
    },
    /// Time a GET of [`crate::netcheck::LATENCY_CHECK_PATH`] on a relay, and call [`Node::handle_relay_timed`].
    TimeRelay {
        /// Names the question.
        id: u64,
        /// The relay.
        node: Box<DerpNode>,
    },
    /// A person must visit this address.
    NeedsLogin {
        /// The address, as control gave it.
        url: String,
    },
    /// Control refused us; it is tried again with back-off.
    Refused {
        /// Control's own words, capped.
        reason: String,
    },
    /// Control cannot be reached, or the map stream ended; it is tried again with back-off.
    ControlDown {
        /// Why.
        reason: String,
    },
    /// Give a control request up without answering for it.
    CancelControl {
        /// The request.
        id: RequestId,
        /// Give up the connection under it too.
        reconnect: bool,
    },
}

/// A tailnet node without its IO. See the module's text for the order of calls.
pub struct Node {
    control: Control,
    netmap: Netmap,
    filter: Filter,
    addresses: Vec<IpAddr>,
    plane: Option<Plane>,
    relays: Relays,
    netcheck: NetCheck,
    surroundings: Surroundings,
    disco: DiscoPrivate,
    tcp: TcpIp,
    out: TransmitBatch,
    events: VecDeque<NodeEvent>,
    rng: ChaCha20Rng,
    scratch: Box<[u8]>,
    counts: DropCounts,
    datagrams_in: u64,
    was_up: bool,
}

/// Prints addresses and counters: buffers hold what peers said, the netmap who they are.
impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("control", &self.control)
            .field("addresses", &self.addresses)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl Node {
    /// A node that knows nothing but its configuration. `seed` must come from a secure source: nonces
    /// of disco messages and initial sequence numbers are drawn from it.
    pub fn new(config: NodeConfig, seed: [u8; 32], now: Instant) -> Self {
        let mut rng = ChaCha20Rng::from_seed(seed);
        let disco = DiscoPrivate::generate(&mut rng);
        let tcp = TcpIp::new(config.tcp, rng.next_u64(), now);
        let mut control_seed = [0_u8; 32];
        rng.fill_bytes(&mut control_seed);
        let mut relay_seed = [0_u8; 32];
        rng.fill_bytes(&mut relay_seed);
        let mut netcheck_seed = [0_u8; 32];
        rng.fill_bytes(&mut netcheck_seed);
        let sockets = Sockets {
            ipv4: false,
            ipv6: false,
            fixed_port: None,
        };
        let stored = config.node_key.clone();
        let control = Control::new(
            config.control,
            config.node_key,
            disco.public(),
            control_seed,
            now,
        );
        let mut node = Self {
            control,
            netmap: Netmap::default(),
            filter: Filter::drop_all(),
            addresses: Vec::new(),
            plane: None,
            relays: Relays::new(relay_seed),
            netcheck: NetCheck::new(netcheck_seed, sockets),
            surroundings: Surroundings::default(),
            disco,
            tcp,
            out: TransmitBatch::default(),
            events: VecDeque::new(),
            rng,
            scratch: vec![0; SCRATCH_BYTES].into_boxed_slice(),
            counts: DropCounts::default(),
            datagrams_in: 0,
            was_up: false,
        };
        if let Some(key) = stored {
            node.adopt_key(now, &key);
        }
        node
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.control.handle_timeout(now);
        self.relays.handle_timeout(now);
        self.netcheck.handle_timeout(now);
        if let Some(plane) = &mut self.plane {
            let mut exit = Exit::new(&mut self.relays, &mut self.out);
            plane.paths.handle_timeout(now);
            plane.tick_tunnels(now, &mut exit);
            plane.pay_sessions(now, &mut exit);
        }
    }

    /// The wall clock in seconds since 1970: peers whose key has expired drop out of the netmap.
    pub fn handle_wall_time(&mut self, now: Instant, unix_seconds: i64) {
        let due = self
            .netmap
            .next_expiry()
            .is_some_and(|at| at <= unix_seconds);
        let owners = if due {
            self.remote_owners()
        } else {
            Vec::new()
        };
        let changed = self.netmap.handle_wall_time(unix_seconds);
        if changed.any() {
            self.follow_netmap(now, changed, &owners);
        }
    }

    /// When the next key of a peer expires, in seconds since 1970: [`Node::handle_wall_time`] is due.
    pub fn next_expiry(&self) -> Option<i64> {
        self.netmap.next_expiry()
    }

    /// Ends a batch: polls the connections that were touched or are due, once each, and turns what
    /// they have to say into datagrams.
    pub fn flush(&mut self, now: Instant) {
        self.drain_control(now);
        self.drain_paths(now);
        let Self {
            tcp,
            plane,
            relays,
            netmap,
            filter,
            out,
            counts,
            ..
        } = self;
        // Packets come in runs to one peer: look its key up once per run.
        let mut last: Option<(IpAddr, NodePublic)> = None;
        let mut exit = Exit::new(relays, out);
        let mut sent = false;
        tcp.poll(now, &mut |packet| {
            let Some(plane) = plane.as_mut() else { return };
            let Ok(view) = PacketView::parse(packet) else {
                return;
            };
            let peer = match last {
                Some((addr, peer)) if addr == view.dst => peer,
                _ => {
                    let Some(peer) = netmap.route(view.dst) else {
                        counts.no_route += 1;
                        return;
                    };
                    last = Some((view.dst, peer));
                    peer
                }
            };
            filter.note_out(packet);
            plane.send_packet(now, &peer, packet, &mut exit);
            sent = true;
        });
        if sent {
            self.netcheck.note_active(now);
        }
        self.drain_paths(now);
        while let Some(event) = self.tcp.poll_event() {
            self.push_event(NodeEvent::Tcp(event));
        }
    }

    /// Whether a call since the last flush left something to be sent.
    pub fn needs_flush(&self) -> bool {
        self.tcp.needs_poll()
    }

    /// Exchanges the filled batch for an empty one.
    pub fn take_transmits(&mut self, empty: &mut TransmitBatch) {
        std::mem::swap(&mut self.out, empty);
    }

    /// What happened, oldest first.
    pub fn poll_event(&mut self) -> Option<NodeEvent> {
        self.events.pop_front()
    }

    /// The next moment at which [`Node::handle_timeout`] and [`Node::flush`] have work to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let plane = self.plane.as_ref();
        [
            self.control.poll_timeout(),
            self.tcp.poll_timeout(),
            self.relays.poll_timeout(),
            self.netcheck.poll_timeout(),
            plane.and_then(|plane| plane.paths.poll_timeout()),
            plane.and_then(|plane| plane.tunnels.poll_timeout()),
            plane.and_then(|plane| plane.owed.poll_timeout()),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// What control is to be asked next; the shell carries it out and calls the handle_control methods.
    pub fn poll_control(&mut self, now: Instant) -> Option<ControlRequest> {
        self.control.poll_request(now)
    }

    /// The control client, to give it answers. Call [`Node::flush`] afterwards.
    pub fn control(&mut self) -> &mut Control {
        &mut self.control
    }

    /// TCP, for streams and listeners.
    pub fn tcp(&mut self) -> &mut TcpIp {
        &mut self.tcp
    }

    /// Opens a connection to a peer's tailnet address; returns it and our end of it.
    ///
    /// # Errors
    /// [`ConnectError`]; `Unaddressable` when no peer has the address or we have none of its family.
    pub fn connect(
        &mut self,
        now: Instant,
        remote: SocketAddr,
    ) -> Result<(ConnId, SocketAddr), ConnectError> {
        let family = |addr: &&IpAddr| addr.is_ipv4() == remote.is_ipv4();
        let own = self.addresses.iter().find(family).copied();
        let nowhere =
            ConnectError::Unaddressable(own.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), remote);
        let own = own.ok_or(nowhere)?;
        self.netmap.route(remote.ip()).ok_or(nowhere)?;
        let conn = self.tcp.connect(now, own, remote, &mut self.rng)?;
        let (local, _) = self.tcp.address_pair(conn).ok_or(nowhere)?;
        Ok((conn, local))
    }

    /// The tailnet as last told.
    pub fn netmap(&self) -> &Netmap {
        &self.netmap
    }

    /// A picture of the node and its peers.
    pub fn status(&self) -> NodeStatus {
        let own = self.netmap.self_node();
        let peers = self.netmap.peers().map(|peer| {
            let path = self
                .plane
                .as_ref()
                .and_then(|plane| plane.paths.status(&peer.key));
            PeerStatus {
                key: peer.key,
                name: peer.name.trim_end_matches('.').to_owned(),
                addresses: peer.addresses.iter().map(ipnet::IpNet::addr).collect(),
                online: peer.online,
                direct: path.as_ref().and_then(|path| path.best),
                latency: path.as_ref().and_then(|path| path.latency),
                session: self
                    .plane
                    .as_ref()
                    .is_some_and(|p| p.tunnels.has_session(&peer.key)),
            }
        });
        NodeStatus {
            name: own
                .map(|node| node.name.trim_end_matches('.').to_owned())
                .unwrap_or_default(),
            stable_id: own.map(|node| node.stable_id.clone()).unwrap_or_default(),
            addresses: self.addresses.clone(),
            peers: peers.collect(),
        }
    }

    /// The node's counters. Those of tunnels and paths begin anew with a new node key.
    pub fn stats(&self) -> NodeStats {
        let plane = self.plane.as_ref();
        NodeStats {
            datagrams_in: self.datagrams_in,
            drops: self.counts,
            held_dropped: plane.map_or(0, |plane| plane.held.dropped()),
            tunnels: plane.map(|plane| plane.tunnels.stats()).unwrap_or_default(),
            paths: plane.map(|plane| plane.paths.stats()).unwrap_or_default(),
            relays: self.relays.stats(),
            tcp: self.tcp.stats(),
        }
    }

    fn drain_control(&mut self, now: Instant) {
        while let Some(event) = self.control.poll_event() {
            match event {
                ControlEvent::NodeKey(key) => {
                    self.adopt_key(now, &key);
                    self.push_event(NodeEvent::NodeKey(key));
                }
                ControlEvent::Map(map) => self.apply_map(now, *map),
                ControlEvent::StreamUp => {
                    self.netcheck.set_control_connected(true);
                    self.netmap.begin_stream();
                }
                ControlEvent::StreamDown { reason } | ControlEvent::RegisterFailed { reason } => {
                    self.netcheck.set_control_connected(false);
                    self.push_event(NodeEvent::ControlDown { reason });
                }
                ControlEvent::NeedsLogin { url } => self.push_event(NodeEvent::NeedsLogin { url }),
                ControlEvent::Refused { reason } => self.push_event(NodeEvent::Refused { reason }),
                ControlEvent::NodeRemoved => self.push_event(NodeEvent::Refused {
                    reason: "control has forgotten this node".to_owned(),
                }),
                ControlEvent::Cancel { id, reconnect } => {
                    self.push_event(NodeEvent::CancelControl { id, reconnect });
                }
                ControlEvent::Registered => {}
            }
        }
    }

    /// A new node key is a new WireGuard identity: tunnels and paths begin anew.
    fn adopt_key(&mut self, now: Instant, key: &NodePrivate) {
        if self
            .plane
            .as_ref()
            .is_some_and(|plane| plane.node.public() == key.public())
        {
            return;
        }
        let mut seed = [0_u8; 32];
        self.rng.fill_bytes(&mut seed);
        self.plane = Some(Plane::new(key, self.disco.clone(), seed));
        // A relay knows us by the node key.
        self.relays.handle_new_key(now);
        self.equip_plane(now);
    }

    fn apply_map(&mut self, now: Instant, map: MapResponse) {
        let owners = self.remote_owners();
        match self.netmap.apply(map) {
            Ok(changed) => self.follow_netmap(now, changed, &owners),
            // What was known stays in force: a map that breaks a limit must not disarm us.
            Err(error) => self.control.give_up_stream(now, error.to_string()),
        }
    }

    fn follow_netmap(&mut self, now: Instant, changed: Changed, owners: &[(IpAddr, NodeId)]) {
        if changed.self_node {
            self.addresses = self.netmap.addresses();
            self.tcp.set_addresses(&self.addresses);
        }
        if changed.filter || changed.self_node || changed.peers {
            self.filter.replace_rules(self.netmap.rule_set());
        }
        if changed.derp_map {
            self.follow_derp_map(now);
        }
        if (changed.peers || changed.self_node)
            && let Some(plane) = &mut self.plane
        {
            let netmap = &self.netmap;
            self.relays.retain_peers(|key| netmap.peer(key).is_some());
            plane.set_peers(now, netmap, self.relays.is_usable());
        }
        self.netcheck
            .set_wanted(self.plane.is_some() && self.netmap.peers().next().is_some());
        // WhoIs was asked when a connection began: it must not go on with someone else, or no one.
        for (remote, owner) in owners {
            if self.owner_of(*remote) != Some(*owner) {
                self.tcp.cut_off(*remote);
            }
        }
        if self.was_up {
            self.push_event(NodeEvent::NetmapChanged);
        } else if !self.addresses.is_empty() {
            self.was_up = true;
            self.push_event(NodeEvent::Up);
        }
    }

    /// The peers that connections lead to, with their addresses.
    fn remote_owners(&self) -> Vec<(IpAddr, NodeId)> {
        let with_owner = |remote| Some((remote, self.owner_of(remote)?));
        self.tcp.remotes().filter_map(with_owner).collect()
    }

    fn owner_of(&self, addr: IpAddr) -> Option<NodeId> {
        let key = self.netmap.route(addr)?;
        self.netmap.peer(&key).map(|peer| peer.id)
    }

    fn drain_paths(&mut self, now: Instant) {
        self.drain_netcheck(now);
        let Some(plane) = &mut self.plane else { return };
        let mut exit = Exit::new(&mut self.relays, &mut self.out);
        let mut told = Vec::new();
        while let Some(event) = plane.paths.poll_event() {
            if let PathEvent::Up {
                peer,
                asked_by_peer,
                ..
            } = &event
            {
                plane.path_is_up(now, peer, *asked_by_peer, &mut exit);
            }
            told.push(event);
        }
        while let Some(peer) = plane.paths.poll_revived() {
            plane.owed.owe(now, &peer, false);
        }
        while let Some((way, datagram)) = plane.paths.poll_transmit() {
            plane.send_by(now, way, &datagram, &mut exit);
        }
        for event in told {
            self.push_event(NodeEvent::Path(event));
        }
    }

    fn push_event(&mut self, event: NodeEvent) {
        let room = match event {
            NodeEvent::NodeKey(_) => usize::MAX,
            NodeEvent::Path(_) => PATH_EVENTS_MAX,
            NodeEvent::Up
            | NodeEvent::NetmapChanged
            | NodeEvent::Resolve { .. }
            | NodeEvent::TimeRelay { .. }
            | NodeEvent::Tcp(_)
            | NodeEvent::NeedsLogin { .. }
            | NodeEvent::Refused { .. }
            | NodeEvent::ControlDown { .. }
            | NodeEvent::CancelControl { .. } => EVENTS_MAX,
        };
        if self.events.len() >= room {
            self.counts.events += 1;
            return;
        }
        self.events.push_back(event);
    }
}

#[cfg(test)]
mod tests;
