//! Who is at the other end of a connection, as the tailnet says: node, user, tags, grants.
//!
//! Invariant: every field comes from the netmap (WhoIs of the source address), never from what the
//! peer claims. The store keeps it beside those claims; access decides by it alone.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The authenticated identity of a peer (WhoIs of its tailnet address).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The node's StableID (`tailcfg.StableNodeID`): never reused, unlike names and addresses.
    pub stable_id: String,
    /// The node's MagicDNS name, without a trailing dot.
    pub node_name: String,
    /// Who owns the node; absent for a tagged node.
    pub user: Option<UserIdentity>,
    /// The node's tags (`tag:…`); empty for a node that a user owns.
    pub tags: Vec<String>,
    /// The tailnet address that the connection came from.
    pub address: IpAddr,
    /// Application capabilities granted to the peer: capability name to its JSON values (`tailcfg.PeerCapMap`).
    pub capabilities: BTreeMap<String, Vec<serde_json::Value>>,
}

/// The user that owns a node (`tailcfg.UserProfile`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserIdentity {
    /// The control server's number for the user; exceeds 2^53 in reality.
    pub id: i64,
    /// The login name, such as `alice@example.com`.
    pub login: String,
    /// The name to show.
    pub display_name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_survives_its_json_form_with_a_user_id_above_two_to_the_53() {
        let identity = Identity {
            stable_id: "nAbCdEfCNTRL".into(),
            node_name: "web.tail-scale.ts.net".into(),
            user: Some(UserIdentity {
                id: 30_585_448_562_688_899,
                login: "alice@example.com".into(),
                display_name: "Alice".into(),
            }),
            tags: vec!["tag:ssh".into()],
            address: "100.64.0.7".parse().unwrap(),
            capabilities: BTreeMap::from([(
                "example.com/cap/tailtape".into(),
                vec![serde_json::json!({"role": "auditor"})],
            )]),
        };
        let text = serde_json::to_string(&identity).unwrap();
        assert!(text.contains("\"id\":30585448562688899"));
        assert_eq!(serde_json::from_str::<Identity>(&text).unwrap(), identity);
    }
}
