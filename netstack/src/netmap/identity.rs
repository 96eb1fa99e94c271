//! WhoIs: who is at the other end of a connection, and what control lets them do on us.
//!
//! Invariant: an address that no node owns has no identity, and unknown means denied. A tagged
//! node is its tags, never the user that control files it under. Called by the node for callers of
//! the `io` shell.
//!
//! Source: tailscale.com `ipn/ipnlocal/local.go` (`WhoIs`, `PeerCaps`); control.md §5.3.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{Netmap, single_addresses};
use crate::key::NodePublic;
use crate::tailcfg::{CapValues, Node, NodeId, UserProfile};

/// Who is at the other end.
#[derive(Debug, Clone, PartialEq)]
pub struct Identity {
    /// Control's id of the node.
    pub node_id: NodeId,
    /// The node's stable id.
    pub stable_id: String,
    /// The node's full name, without a trailing dot.
    pub name: String,
    /// The node key in force at the time of the question.
    pub key: NodePublic,
    /// The owner; `None` for a tagged node.
    pub user: Option<UserProfile>,
    /// The node's tags; non-empty: they are the identity.
    pub tags: Vec<String>,
    /// The node's own addresses, in control's order.
    pub addresses: Vec<IpAddr>,
    /// What the node may do on us: capability to values. A capability without values is meaningful.
    pub capabilities: BTreeMap<String, Vec<serde_json::Value>>,
}

impl Netmap {
    /// Who speaks from `remote` to our own address `local`. `None`: nobody that we know, so deny.
    ///
    /// The capabilities are judged from the node's *first* address to our first one of the same
    /// family, whichever addresses the connection has; upstream does the same, so that a policy
    /// means the same here and there.
    pub fn whois(&self, remote: IpAddr, local: IpAddr) -> Option<Identity> {
        let own = self.addresses();
        if !own.contains(&local.to_canonical()) {
            return None;
        }
        let node = self.owner(remote.to_canonical())?;
        self.identity_of(node, &own)
    }

    /// The peer or ourselves, by StableID. `None`: no such node is visible to us, or its owner is not.
    pub fn find(&self, stable_id: &str) -> Option<Identity> {
        let own = self.self_node().filter(|own| own.stable_id == stable_id);
        let node = own.or_else(|| self.peer_by_stable_id(stable_id))?;
        self.identity_of(node, &self.addresses())
    }

    fn identity_of(&self, node: &Node, own: &[IpAddr]) -> Option<Identity> {
        let user = if node.tags.is_empty() {
            Some(self.user(node.user)?.clone())
        } else {
            None
        };
        Some(Identity {
            node_id: node.id,
            stable_id: node.stable_id.clone(),
            name: node.name.strip_suffix('.').unwrap_or(&node.name).to_owned(),
            key: node.key,
            user,
            tags: node.tags.clone(),
            addresses: single_addresses(node),
            capabilities: self.capabilities_of(node, own),
        })
    }

    fn capabilities_of(
        &self,
        node: &Node,
        own: &[IpAddr],
    ) -> BTreeMap<String, Vec<serde_json::Value>> {
        let Some(src) = node.addresses.first().map(|prefix| prefix.addr()) else {
            return BTreeMap::new();
        };
        let same_family = |address: &&IpAddr| address.is_ipv4() == src.is_ipv4();
        let Some(dst) = own.iter().find(same_family) else {
            return BTreeMap::new();
        };
        if node.unsigned_peer_api_only {
            // Upstream leaves such a peer the ingress capability only, which means nothing to us.
            return BTreeMap::new();
        }
        self.rules
            .caps(src, *dst)
            .into_iter()
            .map(|(name, values)| (name, parse_values(&values)))
            .collect()
    }
}

/// A value that cannot be read grants nothing.
fn parse_values(values: &CapValues) -> Vec<serde_json::Value> {
    values
        .iter()
        .filter_map(|value| serde_json::from_str(value.get()).ok())
        .collect()
}
