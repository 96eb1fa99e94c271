//! Look-up tables over the nodes: by key, by stable id, by address, by prefix, by name.
//!
//! Invariant: an address that a node calls its own belongs to that node alone; no prefix of another
//! peer covers it, so a subnet router can neither receive for it nor speak from it. Ours come first,
//! and Tailscale's service addresses belong to nobody. Called by `netmap`, which rebuilds the tables
//! when a node's key, addresses or usability changed.
//!
//! Source: tailscale.com `ipn/ipnlocal/node_backend.go`, `wgengine/wgcfg/nmcfg/nmcfg.go`.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::merge::State;
use super::rfc3339::Timestamp;
use super::{names, single_address};
use crate::key::NodePublic;
use crate::tailcfg::{Node, NodeId};

/// Answered by each node for itself and never sent to a peer (control's DNS and web services).
const SERVICE_ADDRESSES: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 100)),
    IpAddr::V6(Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0x53)),
];

/// Counts of peers that are not dealt with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SkippedPeers {
    /// Without a positive id.
    pub without_id: usize,
    /// Without a node key.
    pub zero_key: usize,
    /// With a key that is ours or a later peer's.
    pub repeated_key: usize,
    /// Key expired, by control's word or by the clock.
    pub expired: usize,
    /// WireGuard only: they speak neither disco nor DERP.
    pub wireguard_only: usize,
    /// They know us by another address.
    pub masqueraded: usize,
}

/// Ourselves or a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NodeRef {
    Own,
    Peer(NodeId),
}

/// To whom an address belongs, and by which key it is reached, if at all.
#[derive(Debug, Clone, Copy)]
struct Owner {
    node: Option<NodeRef>,
    key: Option<NodePublic>,
}

#[derive(Debug, Default)]
pub(super) struct Index {
    by_key: HashMap<NodePublic, NodeId>,
    by_stable_id: HashMap<String, NodeId>,
    by_name: HashMap<String, NodeRef>,
    owners: HashMap<IpAddr, Owner>,
    prefixes: PrefixTable,
    unsigned: Vec<IpNet>,
    skipped: SkippedPeers,
    next_expiry: Option<i64>,
}

impl Index {
    pub(super) fn build(state: &State, wall_time: Option<i64>) -> Self {
        let mut index = Self::default();
        index.choose_usable(state, wall_time);
        index.assign_owners(state);
        index.assign_prefixes(state);
        index.assign_names(state);
        for node in state
            .peers
            .values()
            .filter(|node| node.unsigned_peer_api_only)
        {
            index
                .unsigned
                .extend_from_slice(node.effective_allowed_ips());
        }
        index
    }

    pub(super) fn key_owner(&self, key: &NodePublic) -> Option<NodeId> {
        self.by_key.get(key).copied()
    }

    pub(super) fn by_stable_id(&self, stable_id: &str) -> Option<NodeId> {
        self.by_stable_id.get(stable_id).copied()
    }

    pub(super) fn by_name(&self, name: &str) -> Option<NodeRef> {
        self.by_name.get(name).copied()
    }

    pub(super) fn owner(&self, address: IpAddr) -> Option<NodeRef> {
        self.owners.get(&address)?.node
    }

    pub(super) fn route(&self, address: IpAddr) -> Option<NodePublic> {
        match self.owners.get(&address) {
            Some(owner) => owner.key,
            None => self.prefixes.longest_match(address),
        }
    }

    pub(super) fn unsigned(&self) -> &[IpNet] {
        &self.unsigned
    }

    pub(super) fn skipped(&self) -> SkippedPeers {
        self.skipped
    }

    pub(super) fn next_expiry(&self) -> Option<i64> {
        self.next_expiry
    }

    fn choose_usable(&mut self, state: &State, wall_time: Option<i64>) {
        let own_key = state.self_node.as_ref().map(|node| node.key);
        for node in state.peers.values() {
            self.by_stable_id.insert(node.stable_id.clone(), node.id);
            let expiry = Timestamp::read(node.key_expiry.as_deref());
            let skipped = &mut self.skipped;
            let count = if node.id <= 0 {
                &mut skipped.without_id
            } else if node.key.is_zero() {
                &mut skipped.zero_key
            } else if own_key == Some(node.key) {
                &mut skipped.repeated_key
            } else if node.expired || has_passed(expiry, wall_time) {
                &mut skipped.expired
            } else if node.is_wire_guard_only {
                &mut skipped.wireguard_only
            } else if !node.self_v4_masq.is_empty() || !node.self_v6_masq.is_empty() {
                &mut skipped.masqueraded
            } else {
                if let Timestamp::At(at) = expiry {
                    self.next_expiry = Some(self.next_expiry.map_or(at, |next| next.min(at)));
                }
                if self.by_key.insert(node.key, node.id).is_some() {
                    self.skipped.repeated_key += 1;
                }
                continue;
            };
            *count += 1;
        }
    }

    fn usable<'a>(&self, state: &'a State) -> Vec<&'a Node> {
        let chosen = |node: &&Node| self.by_key.get(&node.key) == Some(&node.id);
        state.peers.values().filter(chosen).collect()
    }

    fn assign_owners(&mut self, state: &State) {
        // Later writers win: first the peers that we skip, then the others, then ourselves.
        let usable = self.usable(state);
        for node in state.peers.values().chain(usable.iter().copied()) {
            let owner = Owner {
                node: Some(NodeRef::Peer(node.id)),
                key: None,
            };
            for address in node.addresses.iter().filter_map(single_address) {
                self.owners.insert(address, owner);
            }
        }
        let own = Owner {
            node: Some(NodeRef::Own),
            key: None,
        };
        if let Some(node) = &state.self_node {
            for address in node.addresses.iter().filter_map(single_address) {
                self.owners.insert(address, own);
            }
        }
        let nobody = Owner {
            node: None,
            key: None,
        };
        for address in SERVICE_ADDRESSES {
            self.owners.insert(address, nobody);
        }
    }

    /// An owner is reached only if its address is also among its allowed IPs.
    fn assign_prefixes(&mut self, state: &State) {
        for node in self.usable(state) {
            for prefix in node.effective_allowed_ips() {
                let owner =
                    single_address(prefix).and_then(|address| self.owners.get_mut(&address));
                match owner {
                    Some(owner) if owner.node == Some(NodeRef::Peer(node.id)) => {
                        owner.key = Some(node.key);
                    }
                    Some(_) => {}
                    None => self.prefixes.insert(prefix, node.key),
                }
            }
        }
        self.prefixes.finish();
    }

    fn assign_names(&mut self, state: &State) {
        for node in self.usable(state) {
            self.by_name
                .insert(names::canonical(&node.name), NodeRef::Peer(node.id));
        }
        if let Some(node) = &state.self_node {
            self.by_name
                .insert(names::canonical(&node.name), NodeRef::Own);
        }
        self.by_name.remove("");
    }
}

/// An expiry that we cannot read has passed: whoever wrote it meant to limit the key.
fn has_passed(expiry: Timestamp, wall_time: Option<i64>) -> bool {
    match expiry {
        Timestamp::Never => false,
        Timestamp::At(at) => wall_time.is_some_and(|now| at <= now),
        Timestamp::Unreadable => true,
    }
}

/// Longest-prefix match: one hash table for each prefix length in use, longest first. A look-up
/// costs one probe per length, 128 at most, and only addresses that no node owns come here.
#[derive(Debug, Default)]
struct PrefixTable {
    by_length: Vec<PrefixesOfLength>,
    positions: HashMap<(bool, u8), usize>,
}

#[derive(Debug)]
struct PrefixesOfLength {
    is_v4: bool,
    length: u8,
    networks: HashMap<IpAddr, NodePublic>,
}

impl PrefixTable {
    fn insert(&mut self, prefix: &IpNet, key: NodePublic) {
        let (is_v4, length) = (prefix.addr().is_ipv4(), prefix.prefix_len());
        if length == 0 {
            return;
        }
        let position = *self.positions.entry((is_v4, length)).or_insert_with(|| {
            self.by_length.push(PrefixesOfLength {
                is_v4,
                length,
                networks: HashMap::new(),
            });
            self.by_length.len() - 1
        });
        if let Some(of_length) = self.by_length.get_mut(position) {
            of_length.networks.insert(prefix.network(), key);
        }
    }

    /// Sorts; no insertion may follow.
    fn finish(&mut self) {
        self.positions.clear();
        self.by_length
            .sort_unstable_by_key(|of_length| std::cmp::Reverse(of_length.length));
    }

    fn longest_match(&self, address: IpAddr) -> Option<NodePublic> {
        self.by_length
            .iter()
            .filter(|of_length| of_length.is_v4 == address.is_ipv4())
            .find_map(|of_length| {
                let prefix = IpNet::new(address, of_length.length).ok()?;
                of_length.networks.get(&prefix.network()).copied()
            })
    }
}
