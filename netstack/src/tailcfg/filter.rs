//! Packet filter rules as control sends them. Data only; called by `filter`, `netmap` and devnet.

use serde::{Deserialize, Serialize};

use super::{CapMap, is_default, null_default};

/// One rule. Rules only ever accept; no rule means drop. Source: `tailcfg.FilterRule`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct FilterRule {
    /// Address, CIDR, `lo-hi`, `*` or `cap:<name>`.
    #[serde(rename = "SrcIPs", default, deserialize_with = "null_default")]
    pub src_ips: Vec<String>,
    /// Pre-2020 prefix lengths: their presence makes the whole set unusable (fail closed).
    #[serde(
        rename = "SrcBits",
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub src_bits: Vec<i64>,
    /// Where packets may go. Exclusive with `cap_grant`.
    #[serde(
        rename = "DstPorts",
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub dst_ports: Vec<NetPortRange>,
    /// Empty: TCP, UDP, ICMPv4 and ICMPv6. Values outside 0..=255 are ignored.
    #[serde(
        rename = "IPProto",
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub ip_proto: Vec<i64>,
    /// Application capabilities that the sources have on the destinations.
    #[serde(
        rename = "CapGrant",
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub cap_grant: Vec<CapGrant>,
}

/// A destination: addresses and a port range.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NetPortRange {
    /// Address, CIDR, `lo-hi` or `*`.
    #[serde(rename = "IP", default, deserialize_with = "null_default")]
    pub ip: String,
    /// Pre-2020 prefix length; see [`FilterRule::src_bits`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits: Option<i64>,
    /// Inclusive range of ports.
    #[serde(default, deserialize_with = "null_default")]
    pub ports: PortRange,
}

/// An inclusive range of ports; 0..=65535 means all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PortRange {
    /// First port of the range.
    #[serde(default, deserialize_with = "null_default")]
    pub first: u16,
    /// Last port of the range.
    #[serde(default, deserialize_with = "null_default")]
    pub last: u16,
}

/// Capabilities granted on destinations.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct CapGrant {
    /// Prefixes of the nodes on which the capability holds.
    #[serde(rename = "Dsts", default, deserialize_with = "null_default")]
    pub dsts: Vec<String>,
    /// Deprecated list of names without values.
    #[serde(
        rename = "Caps",
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub caps: Vec<String>,
    /// Name to values.
    #[serde(rename = "CapMap", default, deserialize_with = "null_default")]
    pub cap_map: CapMap,
}
