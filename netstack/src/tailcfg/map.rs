//! `/machine/map`: requests, responses and deltas. Data only; called by `control`, `netmap`, devnet.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{
    CapMap, DerpMap, FilterRule, Hostinfo, Node, NodeId, NullDefault, SshPolicy, UserProfile,
    is_default, null_default,
};
use crate::key::{DiscoPublic, NodePublic};

/// Body of `POST /machine/map`; the kinds are in control.md §4.1.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct MapRequest {
    /// Capability version.
    #[serde(default, deserialize_with = "null_default")]
    pub version: u16,
    /// `zstd`, or empty for plain JSON frames.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub compress: String,
    /// Whether keep-alive messages are wanted.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub keep_alive: bool,
    /// Our node key.
    #[serde(default, deserialize_with = "null_default")]
    pub node_key: NodePublic,
    /// Our disco key.
    #[serde(default, deserialize_with = "null_default")]
    pub disco_key: DiscoPublic,
    /// Whether this is the long poll.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub stream: bool,
    /// What we are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostinfo: Option<Hostinfo>,
    /// Our UDP endpoints, best first.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub endpoints: Vec<SocketAddr>,
    /// Parallel to `endpoints`: 0 unknown, 1 local, 2 STUN, 3 port-mapped, 4 STUN with local port, 5 configured.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub endpoint_types: Vec<u8>,
    /// Whether peers are to be left out of the answer.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub omit_peers: bool,
}

/// Marker for the body of a keep-alive message, `{"KeepAlive":true}`.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct KeepAlive {
    /// Always true.
    pub keep_alive: bool,
}

/// One message of the map stream; merge rules in control.md §4.5. Absent means unchanged.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct MapResponse {
    /// If true nothing else in the message counts.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub keep_alive: bool,
    /// Ourselves, whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Node>,
    /// Replaces, with the exceptions noted at [`DerpMap`].
    #[serde(rename = "DERPMap", default, skip_serializing_if = "Option::is_none")]
    pub derp_map: Option<DerpMap>,
    /// Complete list of peers if non-empty; empty means absent.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub peers: Vec<Node>,
    /// Upserts.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub peers_changed: Vec<Node>,
    /// Removals.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub peers_removed: Vec<NodeId>,
    /// Small changes; unknown ids are ignored.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub peers_changed_patch: Vec<PeerChange>,
    /// True: seen now; false: unknown.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub peer_seen_change: BTreeMap<NodeId, bool>,
    /// Online or not.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub online_change: BTreeMap<NodeId, bool>,
    /// Replaces if present.
    #[serde(rename = "DNSConfig", default, skip_serializing_if = "Option::is_none")]
    pub dns_config: Option<DnsConfig>,
    /// The tailnet's name.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub domain: String,
    /// Sets the filter list named `base`; an empty list blocks everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packet_filter: Option<Vec<FilterRule>>,
    /// Named filter lists; `null` deletes one, `*` with `null` clears all first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packet_filters: Option<BTreeMap<String, Option<Vec<FilterRule>>>>,
    /// Merged by id.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub user_profiles: Vec<UserProfile>,
    /// Replaces if present.
    #[serde(rename = "SSHPolicy", default, skip_serializing_if = "Option::is_none")]
    pub ssh_policy: Option<SshPolicy>,
    /// The server's clock, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_time: Option<String>,
    /// Health problems, for people; an empty list clears them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Vec<String>>,
    /// Requests about debugging; only the sleep is honoured, capped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub debug: Option<ControlDebug>,
}

/// `MapResponse.Debug`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ControlDebug {
    /// Seconds for which nothing is to be read; we cap it.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub sleep_seconds: f64,
    /// Whether clients must not send logs anywhere.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub disable_log_tail: bool,
}

/// A partial change of a peer.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PeerChange {
    /// The peer.
    #[serde(rename = "NodeID", default, deserialize_with = "null_default")]
    pub node_id: NodeId,
    /// Non-zero: its new home region.
    #[serde(
        rename = "DERPRegion",
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub derp_region: u32,
    /// Non-zero: its new capability version.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub cap: u32,
    /// Replacement of its node attributes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cap_map: Option<NullDefault<CapMap>>,
    /// Replacement of its endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<Vec<SocketAddr>>,
    /// Its new node key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<NodePublic>,
    /// Its new disco key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disco_key: Option<DiscoPublic>,
    /// Online or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub online: Option<bool>,
    /// When control last saw it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<String>,
    /// Its new key expiry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_expiry: Option<String>,
}

/// DNS settings; we use the certificate domains and, for names, `Proxied` and the extra records.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DnsConfig {
    /// MagicDNS is on.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub proxied: bool,
    /// Search domains.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub domains: Vec<String>,
    /// Names for which certificates may be asked.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub cert_domains: Vec<String>,
    /// Records beside the nodes' names.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub extra_records: Vec<DnsRecord>,
}

/// One extra DNS record.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DnsRecord {
    /// Name without a trailing dot.
    #[serde(default, deserialize_with = "null_default")]
    pub name: String,
    /// `A`, `AAAA` or empty.
    #[serde(
        rename = "Type",
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub kind: String,
    /// The address.
    #[serde(default, deserialize_with = "null_default")]
    pub value: String,
}
