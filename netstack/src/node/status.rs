//! What a node can tell of itself: counters, and a picture of its peers. Plain data.
//!
//! Invariant: counters only grow. Filled by `node`, read by the shell, `status` and tests.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::key::NodePublic;
use crate::path::PathStats;
use crate::relay::RelayStats;
use crate::tcpip::TcpStats;
use crate::wireguard::TunnelStats;

/// Inner packets and datagrams that were dropped, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DropCounts {
    /// Datagrams that came before the first netmap.
    pub before_netmap: u64,
    /// Inner packets that are no IP packets.
    pub malformed: u64,
    /// Inner packets from an address that is not the peer's.
    pub source_not_allowed: u64,
    /// Inner packets that the packet filter refused.
    pub filtered: u64,
    /// Outgoing packets to an address that no peer has.
    pub no_route: u64,
    /// Events that found their queue full.
    pub events: u64,
}

/// Counters of a node.
#[derive(Debug, Clone, Default)]
pub struct NodeStats {
    /// Datagrams that came from the UDP sockets.
    pub datagrams_in: u64,
    /// Drops, by reason.
    pub drops: DropCounts,
    /// Datagrams given up while they waited for a path.
    pub held_dropped: u64,
    /// Counters of the tunnels: dropped datagrams by reason.
    pub tunnels: TunnelStats,
    /// Counters of disco: dropped datagrams by reason.
    pub paths: PathStats,
    /// Counters of the relays.
    pub relays: RelayStats,
    /// Counters of TCP.
    pub tcp: TcpStats,
}

/// A picture of a node.
#[derive(Debug, Clone, Default)]
pub struct NodeStatus {
    /// Name in the tailnet, without a trailing dot; empty before the first netmap.
    pub name: String,
    /// Stable id; empty before the first netmap.
    pub stable_id: String,
    /// Tailnet addresses.
    pub addresses: Vec<IpAddr>,
    /// Peers that may be reached.
    pub peers: Vec<PeerStatus>,
}

/// A picture of a peer.
#[derive(Debug, Clone)]
pub struct PeerStatus {
    /// Its key.
    pub key: NodePublic,
    /// Its name, without a trailing dot.
    pub name: String,
    /// Its tailnet addresses.
    pub addresses: Vec<IpAddr>,
    /// What control says of it.
    pub online: Option<bool>,
    /// The proven UDP address; `None`: no direct path.
    pub direct: Option<SocketAddr>,
    /// Round trip over the direct path.
    pub latency: Option<Duration>,
    /// Whether a WireGuard session stands.
    pub session: bool,
}
