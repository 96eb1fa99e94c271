//! The DERP map: relay regions and their nodes. Data only; called by `netmap` and devnet.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{is_default, null_default};

/// All relay regions that control told us of.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DerpMap {
    /// Multipliers for home choice; `None`: keep the earlier ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home_params: Option<HomeParams>,
    /// Region id to region. `None`: keep the earlier ones. A `null` region is to be dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regions: Option<BTreeMap<u32, Option<DerpRegion>>>,
    /// A hint to control-side code; a client that uses only the received map ignores it.
    #[serde(
        rename = "omitDefaultRegions",
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub omit_default_regions: bool,
}

/// How measured latencies are weighed when a home region is chosen.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HomeParams {
    /// Region id to multiplier; values ≤ 0 are ignored. `None`: keep the earlier ones.
    #[serde(default)]
    pub region_score: Option<BTreeMap<u32, f64>>,
}

/// One relay region.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DerpRegion {
    /// Positive; 900..=999 are for users' own regions.
    #[serde(rename = "RegionID", default, deserialize_with = "null_default")]
    pub region_id: u32,
    /// Short code, for people.
    #[serde(default, deserialize_with = "null_default")]
    pub region_code: String,
    /// Name, for people.
    #[serde(default, deserialize_with = "null_default")]
    pub region_name: String,
    /// Never choose as home.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub avoid: bool,
    /// Never measure and never choose as home; dial when a peer lives there.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub no_measure_no_home: bool,
    /// In the order in which they are to be tried.
    #[serde(default, deserialize_with = "null_default")]
    pub nodes: Vec<DerpNode>,
}

/// One relay server of a region.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DerpNode {
    /// Unique name, for people.
    #[serde(default, deserialize_with = "null_default")]
    pub name: String,
    /// The region that it belongs to.
    #[serde(rename = "RegionID", default, deserialize_with = "null_default")]
    pub region_id: u32,
    /// TLS server name, and DNS name when no address is given.
    #[serde(default, deserialize_with = "null_default")]
    pub host_name: String,
    /// Another certificate name, or `sha256-raw:<hex>` to pin a self-signed certificate.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub cert_name: String,
    /// Empty: resolve; an address: use it; anything else: no IPv4.
    #[serde(
        rename = "IPv4",
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub ipv4: String,
    /// Empty: resolve; an address: use it; anything else: no IPv6.
    #[serde(
        rename = "IPv6",
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub ipv6: String,
    /// 0: 3478; -1: no STUN.
    #[serde(
        rename = "STUNPort",
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub stun_port: i32,
    /// Has no DERP service.
    #[serde(
        rename = "STUNOnly",
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub stun_only: bool,
    /// 0: 443.
    #[serde(
        rename = "DERPPort",
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub derp_port: u16,
    /// Accept any certificate.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub insecure_for_tests: bool,
    /// Send STUN here instead; tests only.
    #[serde(
        rename = "STUNTestIP",
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub stun_test_ip: String,
    /// For captive-portal checks only.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub can_port80: bool,
}
