//! The merge rules of the map stream: what a message leaves as it was and what it replaces.
//!
//! Invariant: a message is staged first and committed only when it keeps every limit, so a refused
//! message changes nothing. Peer changes go in upstream's order: removed, changed, seen, online,
//! patched. Called by `netmap` for each message.
//!
//! Source: tailscale.com `control/controlclient/map.go`; control.md §4.5.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::rfc3339::{self, Timestamp};
use super::{
    Changed, FILTER_LISTS_MAX, NetmapError, PEER_BYTES_MAX, PEERS_MAX, PREFIXES_MAX,
    RULE_BYTES_MAX, RULE_ENTRIES_MAX, RULES_MAX, USER_BYTES_MAX, USERS_MAX,
};
use crate::tailcfg::{
    CapMap, DerpMap, DnsConfig, FilterRule, MapResponse, Node, NodeId, PeerChange, SshPolicy,
    UserId, UserProfile,
};

type FilterLists = BTreeMap<String, Vec<FilterRule>>;

/// All that control told us.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) self_node: Option<Node>,
    pub(super) peers: BTreeMap<NodeId, Node>,
    pub(super) filter_lists: FilterLists,
    pub(super) users: BTreeMap<UserId, UserProfile>,
    pub(super) derp_map: Option<DerpMap>,
    pub(super) ssh_policy: Option<SshPolicy>,
    pub(super) dns_config: Option<DnsConfig>,
    pub(super) domain: String,
    pub(super) health: Vec<String>,
    peer_size: Size,
    user_bytes: usize,
}

/// What a merge did.
#[derive(Debug)]
pub(super) struct Merged {
    pub(super) changed: Changed,
    /// Keys, addresses, names or usability may have changed.
    pub(super) reindex: bool,
}

impl State {
    /// Merges one message that is no keep-alive. `wall_time` is in seconds since 1970.
    pub(super) fn merge(
        &mut self,
        mut response: MapResponse,
        wall_time: Option<i64>,
    ) -> Result<Merged, NetmapError> {
        // Everything that may fail comes first; from the first commit on nothing does.
        let peers = self.stage_peers(&mut response, wall_time)?;
        let filter_lists = self.stage_filter(&mut response)?;
        let users = self.stage_users(&response.user_profiles)?;

        let mut changed = Changed {
            self_node: response.node.is_some(),
            peers: peers.replaces_all || !peers.touched.is_empty(),
            filter: filter_lists.is_some(),
            derp_map: response.derp_map.is_some(),
            ssh_policy: response.ssh_policy.is_some(),
            users: false,
            dns: response.dns_config.is_some(),
        };
        let mut reindex = self.commit_peers(peers);
        if let Some(mut node) = response.node {
            normalize(&mut node);
            self.self_node = Some(node);
            reindex = true;
        }
        if let Some(lists) = filter_lists {
            self.filter_lists = lists;
        }
        self.user_bytes = users;
        for profile in response.user_profiles {
            changed.users |= self.users.get(&profile.id) != Some(&profile);
            self.users.insert(profile.id, profile);
        }
        if let Some(map) = response.derp_map {
            self.merge_derp_map(map);
        }
        self.ssh_policy = response.ssh_policy.or(self.ssh_policy.take());
        self.dns_config = response.dns_config.or(self.dns_config.take());
        if !response.domain.is_empty() {
            self.domain = response.domain;
        }
        if let Some(health) = response.health {
            self.health = health;
        }
        Ok(Merged { changed, reindex })
    }

    fn stage_peers(
        &self,
        response: &mut MapResponse,
        wall_time: Option<i64>,
    ) -> Result<StagedPeers, NetmapError> {
        let mut staged = StagedPeers {
            replaces_all: !response.peers.is_empty(),
            ..StagedPeers::default()
        };
        if staged.replaces_all {
            response
                .peers
                .drain(..)
                .for_each(|node| staged.upsert(node));
        } else {
            for id in &response.peers_removed {
                if self.peers.contains_key(id) {
                    staged.touched.insert(*id, None);
                }
            }
            response
                .peers_changed
                .drain(..)
                .for_each(|node| staged.upsert(node));
            for (id, seen) in &response.peer_seen_change {
                if let Some(node) = staged.edit(self, *id) {
                    node.last_seen = wall_time.filter(|_| *seen).map(rfc3339::format);
                }
            }
            for (id, online) in &response.online_change {
                if let Some(node) = staged.edit(self, *id) {
                    node.online = Some(*online);
                }
            }
            for change in response.peers_changed_patch.drain(..) {
                if let Some(node) = staged.edit(self, change.node_id) {
                    patch(node, change);
                }
            }
        }
        staged.size = if staged.replaces_all {
            Size::default()
        } else {
            self.peer_size
        };
        for (id, after) in &staged.touched {
            if let Some(before) = self.peers.get(id).filter(|_| !staged.replaces_all) {
                staged.size.subtract(Size::of(before));
            }
            if let Some(after) = after {
                staged.size.add(Size::of(after));
            }
        }
        within("peers", staged.size.peers, PEERS_MAX)?;
        within("prefixes", staged.size.prefixes, PREFIXES_MAX)?;
        within("bytes of peers", staged.size.bytes, PEER_BYTES_MAX)?;
        Ok(staged)
    }

    /// True if the look-up tables have to be rebuilt.
    fn commit_peers(&mut self, staged: StagedPeers) -> bool {
        let mut reindex = staged.replaces_all;
        if staged.replaces_all {
            self.peers.clear();
        }
        self.peer_size = staged.size;
        for (id, after) in staged.touched {
            match after {
                Some(node) => {
                    let before = self.peers.get(&id);
                    reindex |= before.is_none_or(|before| !is_indexed_alike(before, &node));
                    self.peers.insert(id, node);
                }
                None => reindex |= self.peers.remove(&id).is_some(),
            }
        }
        reindex
    }

    /// The new lists, if the message has any.
    fn stage_filter(&self, response: &mut MapResponse) -> Result<Option<FilterLists>, NetmapError> {
        let (base, named) = (
            response.packet_filter.take(),
            response.packet_filters.take(),
        );
        if base.is_none() && named.is_none() {
            return Ok(None);
        }
        let mut lists = self.filter_lists.clone();
        if let Some(rules) = base {
            lists.insert("base".to_owned(), rules);
        }
        let mut named = named.unwrap_or_default();
        // A `*` that carries rules means nothing; to ignore it opens nothing.
        if matches!(named.remove("*"), Some(None)) {
            lists.clear();
        }
        for (name, rules) in named {
            match rules {
                Some(rules) => lists.insert(name, rules),
                None => lists.remove(&name),
            };
        }
        let rules = || lists.values().flatten();
        within("filter lists", lists.len(), FILTER_LISTS_MAX)?;
        within("filter rules", rules().count(), RULES_MAX)?;
        within(
            "filter entries",
            rules().map(rule_entries).sum(),
            RULE_ENTRIES_MAX,
        )?;
        let names: usize = lists.keys().map(String::len).sum();
        within(
            "bytes of filter",
            names + rules().map(rule_bytes).sum::<usize>(),
            RULE_BYTES_MAX,
        )?;
        Ok(Some(lists))
    }

    /// The bytes that all profiles will take.
    fn stage_users(&self, profiles: &[UserProfile]) -> Result<usize, NetmapError> {
        let incoming: BTreeMap<UserId, &UserProfile> = profiles
            .iter()
            .map(|profile| (profile.id, profile))
            .collect();
        let (mut count, mut bytes) = (self.users.len(), self.user_bytes);
        for (id, profile) in incoming {
            match self.users.get(&id) {
                Some(before) => bytes = bytes.saturating_sub(user_bytes(before)),
                None => count += 1,
            }
            bytes += user_bytes(profile);
        }
        within("users", count, USERS_MAX)?;
        within("bytes of users", bytes, USER_BYTES_MAX)?;
        Ok(bytes)
    }

    fn merge_derp_map(&mut self, mut map: DerpMap) {
        let before = self.derp_map.take().unwrap_or_default();
        match &mut map.regions {
            Some(regions) => regions.retain(|_, region| region.is_some()),
            None => {
                map.regions = before.regions;
                map.omit_default_regions = before.omit_default_regions;
            }
        }
        match &mut map.home_params {
            None => map.home_params = before.home_params,
            Some(params) if params.region_score.is_none() => {
                params.region_score = before.home_params.and_then(|params| params.region_score);
            }
            Some(_) => {}
        }
        self.derp_map = Some(map);
    }
}

/// Peers as a message leaves them; `None` stands for one that goes.
#[derive(Debug, Default)]
struct StagedPeers {
    replaces_all: bool,
    touched: BTreeMap<NodeId, Option<Node>>,
    size: Size,
}

impl StagedPeers {
    fn upsert(&mut self, mut node: Node) {
        normalize(&mut node);
        self.touched.insert(node.id, Some(node));
    }

    /// The peer as staged so far; `None` if there is none.
    fn edit(&mut self, state: &State, id: NodeId) -> Option<&mut Node> {
        match self.touched.entry(id) {
            Entry::Occupied(staged) => staged.into_mut().as_mut(),
            Entry::Vacant(vacant) => vacant.insert(Some(state.peers.get(&id)?.clone())).as_mut(),
        }
    }
}

/// What peers take.
#[derive(Debug, Clone, Copy, Default)]
struct Size {
    peers: usize,
    prefixes: usize,
    bytes: usize,
}

impl Size {
    fn of(node: &Node) -> Self {
        let prefixes = node.addresses.len() + node.allowed_ips.as_ref().map_or(0, Vec::len);
        let text = |items: &[String]| items.iter().map(|item| item.len() + 24).sum::<usize>();
        let host = node.hostinfo.as_ref().map_or(0, |host| {
            let net = host
                .net_info
                .as_ref()
                .map_or(0, |net| net.derp_latency.len() * 64);
            let fixed = host.ipn_version.len()
                + host.os.len()
                + host.hostname.len()
                + host.app.len()
                + host.go_arch.len();
            fixed + net + text(&host.request_tags) + text(&host.ssh_host_keys)
        });
        let times = [&node.key_expiry, &node.created, &node.last_seen];
        let bytes = size_of::<Node>()
            + node.name.len()
            + node.stable_id.len()
            + node.self_v4_masq.len()
            + node.self_v6_masq.len()
            + node.legacy_derp.len()
            + times.into_iter().flatten().map(String::len).sum::<usize>()
            + prefixes * 18
            + node.endpoints.len() * 32
            + text(&node.tags)
            + text(&node.capabilities)
            + cap_bytes(&node.cap_map)
            + host;
        Self {
            peers: 1,
            prefixes,
            bytes,
        }
    }

    fn add(&mut self, other: Self) {
        self.peers += other.peers;
        self.prefixes += other.prefixes;
        self.bytes += other.bytes;
    }

    fn subtract(&mut self, other: Self) {
        self.peers = self.peers.saturating_sub(other.peers);
        self.prefixes = self.prefixes.saturating_sub(other.prefixes);
        self.bytes = self.bytes.saturating_sub(other.bytes);
    }
}

fn within(what: &'static str, count: usize, max: usize) -> Result<(), NetmapError> {
    if count > max {
        return Err(NetmapError::OverLimit { what, count, max });
    }
    Ok(())
}

fn rule_entries(rule: &FilterRule) -> usize {
    let grants: usize = rule.cap_grant.iter().map(|grant| grant.dsts.len()).sum();
    rule.src_ips.len() + rule.dst_ports.len() + grants
}

fn rule_bytes(rule: &FilterRule) -> usize {
    let text = |items: &[String]| items.iter().map(|item| item.len() + 24).sum::<usize>();
    let ports: usize = rule.dst_ports.iter().map(|dst| dst.ip.len() + 48).sum();
    let grants: usize = rule
        .cap_grant
        .iter()
        .map(|grant| 72 + text(&grant.dsts) + text(&grant.caps) + cap_bytes(&grant.cap_map))
        .sum();
    let numbers = (rule.src_bits.len() + rule.ip_proto.len()) * 8;
    size_of::<FilterRule>() + text(&rule.src_ips) + numbers + ports + grants
}

fn cap_bytes(caps: &CapMap) -> usize {
    caps.iter()
        .map(|(name, values)| {
            name.len()
                + 48
                + values
                    .iter()
                    .map(|value| value.get().len() + 16)
                    .sum::<usize>()
        })
        .sum()
}

fn user_bytes(profile: &UserProfile) -> usize {
    size_of::<UserProfile>() + profile.login_name.len() + profile.display_name.len()
}

/// Folds the old forms of a node's members into the new ones.
fn normalize(node: &mut Node) {
    if node.home_derp == 0 {
        node.home_derp = node
            .legacy_derp
            .strip_prefix("127.3.3.40:")
            .and_then(|region| region.parse().ok())
            .unwrap_or_default();
    }
    for name in &node.capabilities {
        node.cap_map.entry(name.clone()).or_default();
    }
}

fn patch(node: &mut Node, change: PeerChange) {
    if change.derp_region != 0 {
        node.home_derp = change.derp_region;
    }
    if change.cap != 0 {
        node.cap = change.cap;
    }
    if let Some(cap_map) = change.cap_map {
        node.cap_map = cap_map.0;
    }
    if let Some(endpoints) = change.endpoints {
        node.endpoints = endpoints;
    }
    if let Some(key) = change.key {
        node.key = key;
    }
    if let Some(disco_key) = change.disco_key {
        node.disco_key = disco_key;
    }
    node.online = change.online.or(node.online);
    node.last_seen = change.last_seen.or(node.last_seen.take());
    node.key_expiry = change.key_expiry.or(node.key_expiry.take());
}

/// Whether two versions of a node look the same to the index.
fn is_indexed_alike(before: &Node, after: &Node) -> bool {
    let expiry = |node: &Node| Timestamp::read(node.key_expiry.as_deref());
    before.key == after.key
        && before.addresses == after.addresses
        && before.allowed_ips == after.allowed_ips
        && before.name == after.name
        && before.stable_id == after.stable_id
        && before.expired == after.expired
        && before.unsigned_peer_api_only == after.unsigned_peer_api_only
        && before.is_wire_guard_only == after.is_wire_guard_only
        && before.self_v4_masq == after.self_v4_masq
        && before.self_v6_masq == after.self_v6_masq
        && expiry(before) == expiry(after)
}
