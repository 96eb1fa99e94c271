//! Nodes, users and what a node says of its host. Data only; called by `netmap`, `control`, devnet.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{CapMap, is_default, null_default};
use crate::key::{DiscoPublic, MachinePublic, NodePublic};

/// A node's id: signed 64-bit, some beyond 2^53; never through a float.
pub type NodeId = i64;

/// A user's id.
pub type UserId = i64;

/// A node of the tailnet, ourselves included. Source: `tailcfg.Node`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Node {
    /// Unique, positive; the key of deltas.
    #[serde(rename = "ID", default, deserialize_with = "null_default")]
    pub id: NodeId,
    /// Opaque and stable; Headscale writes the decimal id.
    #[serde(rename = "StableID", default, deserialize_with = "null_default")]
    pub stable_id: String,
    /// Fully qualified name with a trailing dot.
    #[serde(default, deserialize_with = "null_default")]
    pub name: String,
    /// Owner; a placeholder for tagged nodes.
    #[serde(default, deserialize_with = "null_default")]
    pub user: UserId,
    /// WireGuard key; a peer with a zero key is skipped.
    #[serde(default, deserialize_with = "null_default")]
    pub key: NodePublic,
    /// RFC 3339; absent or Go's zero time: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_expiry: Option<String>,
    /// The machine key, informational.
    #[serde(default, deserialize_with = "null_default")]
    pub machine: MachinePublic,
    /// Zero: unreachable by direct paths.
    #[serde(default, deserialize_with = "null_default")]
    pub disco_key: DiscoPublic,
    /// The node's own prefixes (/32 and /128).
    #[serde(default, deserialize_with = "null_default")]
    pub addresses: Vec<IpNet>,
    /// WireGuard's allowed IPs. Absent: the same as `addresses`; an empty list means none.
    #[serde(rename = "AllowedIPs", default)]
    pub allowed_ips: Option<Vec<IpNet>>,
    /// UDP candidates. An unparsable one fails the document, as in Go.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub endpoints: Vec<SocketAddr>,
    /// Home DERP region; wins over the legacy text.
    #[serde(rename = "HomeDERP", default, deserialize_with = "null_default")]
    pub home_derp: u32,
    /// Legacy `127.3.3.40:<region>`.
    #[serde(
        rename = "DERP",
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub legacy_derp: String,
    /// Parts of the node's Hostinfo.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostinfo: Option<Hostinfo>,
    /// RFC 3339 creation time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// Capability version; Headscale writes the viewer's: never branch on it.
    #[serde(default, deserialize_with = "null_default")]
    pub cap: u32,
    /// ACL tags; non-empty: the tags are the identity, not the user.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub tags: Vec<String>,
    /// `None`: unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub online: Option<bool>,
    /// RFC 3339 time at which control last saw it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<String>,
    /// False on ourselves: an administrator has to approve us.
    #[serde(default, deserialize_with = "null_default")]
    pub machine_authorized: bool,
    /// Old list form of `cap_map`.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub capabilities: Vec<String>,
    /// Node attributes.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub cap_map: CapMap,
    /// The key has expired: no traffic in either direction.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub expired: bool,
    /// Not covered by tailnet lock: no network access.
    #[serde(
        rename = "UnsignedPeerAPIOnly",
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub unsigned_peer_api_only: bool,
    /// May not initiate connections to us.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub is_jailed: bool,
    /// Speaks neither disco nor DERP; ignored by us.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub is_wire_guard_only: bool,
    /// The peer knows us by another address; such peers are skipped with a warning.
    #[serde(
        rename = "SelfNodeV4MasqAddrForThisPeer",
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub self_v4_masq: String,
    /// See [`Node::self_v4_masq`].
    #[serde(
        rename = "SelfNodeV6MasqAddrForThisPeer",
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub self_v6_masq: String,
}

impl Node {
    /// The prefixes that the peer may use as source addresses (control.md §4.6).
    pub fn effective_allowed_ips(&self) -> &[IpNet] {
        match &self.allowed_ips {
            Some(prefixes) if !self.unsigned_peer_api_only => prefixes,
            _ => &self.addresses,
        }
    }
}

/// A person, as WhoIs names them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct UserProfile {
    /// The user's id.
    #[serde(rename = "ID", default, deserialize_with = "null_default")]
    pub id: UserId,
    /// E-mail-like name.
    #[serde(default, deserialize_with = "null_default")]
    pub login_name: String,
    /// Name for people.
    #[serde(default, deserialize_with = "null_default")]
    pub display_name: String,
}

/// What a node tells of its host; the few members that we send or read.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Hostinfo {
    /// Version of the client software.
    #[serde(
        rename = "IPNVersion",
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub ipn_version: String,
    /// GOOS spelling.
    #[serde(
        rename = "OS",
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub os: String,
    /// Wanted name; becomes the MagicDNS label.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub hostname: String,
    /// Short product id.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub app: String,
    /// GOARCH spelling.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub go_arch: String,
    /// Without a TUN device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub userspace: Option<bool>,
    /// Tags asked for; must be the same in every request (control.md §3.3).
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub request_tags: Vec<String>,
    /// SSH host keys in authorized_keys form; non-empty: runs Tailscale SSH.
    #[serde(
        rename = "sshHostKeys",
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub ssh_host_keys: Vec<String>,
    /// What the node knows of its network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_info: Option<NetInfo>,
}

/// What a node knows of its network.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NetInfo {
    /// Home DERP region; 0: unknown. Needed for others to reach us.
    #[serde(
        rename = "PreferredDERP",
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub preferred_derp: u32,
    /// Whether UDP works at all.
    #[serde(
        rename = "WorkingUDP",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub working_udp: Option<bool>,
    /// Whether IPv6 reaches the Internet.
    #[serde(
        rename = "WorkingIPv6",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub working_ipv6: Option<bool>,
    /// Hard NAT: the mapping depends on the destination.
    #[serde(
        rename = "MappingVariesByDestIP",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub mapping_varies_by_dest_ip: Option<bool>,
    /// `<region>-v4|-v6` to seconds.
    #[serde(
        rename = "DERPLatency",
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub derp_latency: BTreeMap<String, f64>,
}
