//! The tailnet as control last told it: who is in it, who may reach us, who is at the other end.
//!
//! Invariant: a message is merged wholly or not at all, every table has a limit, and an address
//! belongs to one node: packets from it are taken, sent and named after that node only. What was
//! known stays known between two streams, until the first message of the new one replaces it.
//!
//! Order of calls: [`Netmap::begin_stream`] when a map stream opens, [`Netmap::apply`] for each of
//! its messages, [`Netmap::handle_wall_time`] now and then. Called by `control` and the node.
//!
//! Source: tailscale.com `control/controlclient/map.go`; control.md §4.5, §4.6, §5.

mod identity;
mod index;
mod merge;
mod names;
mod rfc3339;

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

pub use identity::Identity;
pub use index::SkippedPeers;

use crate::filter::{RuleSet, SkippedEntry};
use crate::key::NodePublic;
use crate::tailcfg::{
    DerpMap, DnsConfig, FilterRule, MapResponse, Node, SshPolicy, UserId, UserProfile,
};
use index::{Index, NodeRef};
use merge::State;

/// Most peers: five times the largest tailnets that Tailscale speaks of in public.
pub const PEERS_MAX: usize = 50_000;
/// Most prefixes of all peers together (addresses and allowed IPs): four for each of [`PEERS_MAX`].
pub const PREFIXES_MAX: usize = 200_000;
/// Most filter rules in all lists together; a SYN may be compared with every one.
pub const RULES_MAX: usize = 20_000;
/// Most sources and destinations in all filter rules together: ten for each of [`RULES_MAX`].
pub const RULE_ENTRIES_MAX: usize = 200_000;
/// Most named filter lists; servers send one or a few.
pub const FILTER_LISTS_MAX: usize = 1_000;
/// Most user profiles: two for each of [`PEERS_MAX`].
pub const USERS_MAX: usize = 100_000;
/// Most bytes that peers may take, roughly counted: 5 KiB for each of [`PEERS_MAX`].
pub const PEER_BYTES_MAX: usize = 256 << 20;
/// Most bytes of text that filter rules may take.
pub const RULE_BYTES_MAX: usize = 64 << 20;
/// Most bytes of text that user profiles may take.
pub const USER_BYTES_MAX: usize = 32 << 20;

/// A message of the map stream could not be merged; the netmap is as it was before it. The caller
/// treats the stream as broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetmapError {
    /// The first message of a stream that is no keep-alive does not say who we are.
    #[error("the map stream begins without our own node")]
    StreamWithoutSelf,
    /// Merging would exceed a limit.
    #[error("the netmap would hold {count} {what}, and may hold {max}")]
    OverLimit {
        /// What is too many, in the plural.
        what: &'static str,
        /// How many there would be.
        count: usize,
        /// How many there may be.
        max: usize,
    },
}

/// Which parts of the netmap changed, or may have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[must_use]
pub struct Changed {
    /// Our own node: addresses, name, expiry, authorisation.
    pub self_node: bool,
    /// The peers, or which of them are usable.
    pub peers: bool,
    /// [`Netmap::rule_set`]: the rules, our addresses, or what the rules may not admit.
    pub filter: bool,
    /// The DERP map.
    pub derp_map: bool,
    /// The SSH policy.
    pub ssh_policy: bool,
    /// User profiles.
    pub users: bool,
    /// DNS settings.
    pub dns: bool,
}

impl Changed {
    const ALL: Self = Self {
        self_node: true,
        peers: true,
        filter: true,
        derp_map: true,
        ssh_policy: true,
        users: true,
        dns: true,
    };

    /// Whether anything changed.
    pub fn any(self) -> bool {
        self != Self::default()
    }
}

/// The tailnet as last told. `Default` knows nothing, so it routes and permits nothing.
#[derive(Debug, Default)]
pub struct Netmap {
    state: State,
    index: Index,
    rules: Arc<RuleSet>,
    skipped_entries: Vec<SkippedEntry>,
    stream_told_self: bool,
    wall_time: Option<i64>,
}

impl Netmap {
    /// A map stream opens: its first message will replace all, which stays in force until then.
    pub fn begin_stream(&mut self) {
        self.stream_told_self = false;
    }

    /// Merges one message.
    ///
    /// # Errors
    /// [`NetmapError`]; then nothing of the message counts and the stream is to be given up.
    pub fn apply(&mut self, response: MapResponse) -> Result<Changed, NetmapError> {
        if response.keep_alive {
            return Ok(Changed::default());
        }
        let mut merged = if self.stream_told_self {
            self.state.merge(response, self.wall_time)?
        } else {
            if response.node.is_none() {
                return Err(NetmapError::StreamWithoutSelf);
            }
            let mut fresh = State::default();
            let mut merged = fresh.merge(response, self.wall_time)?;
            self.state = fresh;
            self.stream_told_self = true;
            merged.changed = Changed::ALL;
            merged.reindex = true;
            merged
        };
        if merged.reindex && self.reindex() {
            merged.changed.filter = true;
        }
        if merged.changed.filter {
            self.compile_rules();
        }
        Ok(merged.changed)
    }

    /// The server's wall clock in seconds since 1970 (ours, corrected by control's `ControlTime`):
    /// peers whose key expired drop out. Until it is first told, only control's `Expired` counts.
    pub fn handle_wall_time(&mut self, unix_seconds: i64) -> Changed {
        let before = self.wall_time.replace(unix_seconds);
        let stale = match before {
            None => true,
            Some(before) if unix_seconds < before => true,
            Some(_) => self.next_expiry().is_some_and(|at| at <= unix_seconds),
        };
        let mut changed = Changed::default();
        if stale {
            changed.filter = self.reindex();
            changed.peers = true;
            if changed.filter {
                self.compile_rules();
            }
        }
        changed
    }

    /// When the next peer's key expires, in seconds since 1970; call [`Netmap::handle_wall_time`] then.
    pub fn next_expiry(&self) -> Option<i64> {
        self.index.next_expiry()
    }

    /// Ourselves.
    pub fn self_node(&self) -> Option<&Node> {
        self.state.self_node.as_ref()
    }

    /// Our own addresses, in control's order.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.self_node().map(single_addresses).unwrap_or_default()
    }

    /// The peers that we can deal with, by id; [`Netmap::skipped_peers`] counts the others.
    pub fn peers(&self) -> impl Iterator<Item = &Node> {
        self.state
            .peers
            .values()
            .filter(|node| self.index.key_owner(&node.key) == Some(node.id))
    }

    /// How many peers are not dealt with, and why.
    pub fn skipped_peers(&self) -> SkippedPeers {
        self.index.skipped()
    }

    /// The usable peer with this key.
    pub fn peer(&self, key: &NodePublic) -> Option<&Node> {
        self.state.peers.get(&self.index.key_owner(key)?)
    }

    /// The peer with this stable id, usable or not.
    pub fn peer_by_stable_id(&self, stable_id: &str) -> Option<&Node> {
        self.state.peers.get(&self.index.by_stable_id(stable_id)?)
    }

    /// The peer to which packets for `address` go: the owner of the address, or else the peer with
    /// the longest matching prefix. Default routes do not count: we have no exit node.
    pub fn route(&self, address: IpAddr) -> Option<NodePublic> {
        self.index.route(address)
    }

    /// Whether a packet from the peer `key` may carry the source address `source`: only if packets
    /// for that address would go to this peer.
    pub fn source_allowed(&self, key: &NodePublic, source: IpAddr) -> bool {
        self.route(source).is_some_and(|owner| owner == *key)
    }

    /// Whether `source` is the own address of a peer that has the node attribute `cap`; for `cap:`
    /// sources of filter rules.
    pub fn source_has_cap(&self, source: IpAddr, cap: &str) -> bool {
        self.route(source).is_some()
            && self
                .owner(source)
                .is_some_and(|node| !node.unsigned_peer_api_only && node.cap_map.contains_key(cap))
    }

    /// The rules that control sent, all lists joined. None before control sent any.
    pub fn filter_rules(&self) -> impl Iterator<Item = &FilterRule> {
        self.state.filter_lists.values().flatten()
    }

    /// The same rules, compiled for our addresses: for the filter, whenever [`Changed::filter`].
    pub fn rule_set(&self) -> Arc<RuleSet> {
        Arc::clone(&self.rules)
    }

    /// Entries of the rules that could not be read, for the log.
    pub fn skipped_entries(&self) -> &[SkippedEntry] {
        &self.skipped_entries
    }

    /// The allowed IPs of peers that tailnet lock has not signed; no rule may admit them.
    pub fn unsigned_prefixes(&self) -> &[IpNet] {
        self.index.unsigned()
    }

    /// The DERP map; its regions are never `null` any more.
    pub fn derp_map(&self) -> Option<&DerpMap> {
        self.state.derp_map.as_ref()
    }

    /// The SSH policy.
    pub fn ssh_policy(&self) -> Option<&SshPolicy> {
        self.state.ssh_policy.as_ref()
    }

    /// DNS settings.
    pub fn dns_config(&self) -> Option<&DnsConfig> {
        self.state.dns_config.as_ref()
    }

    /// The tailnet's name; empty if unknown.
    pub fn domain(&self) -> &str {
        &self.state.domain
    }

    /// What control thinks is wrong with us, for people.
    pub fn health(&self) -> &[String] {
        &self.state.health
    }

    /// A user's profile.
    pub fn user(&self, id: UserId) -> Option<&UserProfile> {
        self.state.users.get(&id)
    }

    /// The node, ourselves included, of which `address` is an own address.
    fn owner(&self, address: IpAddr) -> Option<&Node> {
        self.node(self.index.owner(address)?)
    }

    fn node(&self, node: NodeRef) -> Option<&Node> {
        match node {
            NodeRef::Own => self.self_node(),
            NodeRef::Peer(id) => self.state.peers.get(&id),
        }
    }

    /// Rebuilds the look-up tables; true if the rules have to be compiled again.
    fn reindex(&mut self) -> bool {
        let index = Index::build(&self.state, self.wall_time);
        let recompile = index.unsigned() != self.index.unsigned()
            || self.rules.own_addresses() != self.addresses();
        self.index = index;
        recompile
    }

    fn compile_rules(&mut self) {
        let (rules, skipped) = RuleSet::compile(
            self.state.filter_lists.values().flatten(),
            &self.addresses(),
            self.index.unsigned(),
        );
        self.rules = Arc::new(rules);
        self.skipped_entries = skipped;
    }
}

/// A node's own addresses: those of its prefixes that hold one address.
fn single_addresses(node: &Node) -> Vec<IpAddr> {
    node.addresses.iter().filter_map(single_address).collect()
}

fn single_address(prefix: &IpNet) -> Option<IpAddr> {
    (prefix.prefix_len() == prefix.max_prefix_len()).then(|| prefix.addr())
}

#[cfg(test)]
mod tests;
