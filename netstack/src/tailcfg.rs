//! The control plane's JSON, as servers and clients really write it: data only, no behaviour.
//!
//! Invariant: decoding follows Go's leniency (control.md §0.1): unknown fields are ignored, `null`
//! means absent for every field, integer-keyed maps have string keys, ids are full 64-bit integers.
//! Called by `control`, `netmap`, `filter` and devnet.
//!
//! Source: tailscale.com `tailcfg/tailcfg.go`, `tailcfg/derpmap.go`.

mod derp;
mod filter;
mod map;
mod node;
mod register;
mod ssh;

pub use derp::{DerpMap, DerpNode, DerpRegion, HomeParams};
pub use filter::{CapGrant, FilterRule, NetPortRange, PortRange};
pub use map::{ControlDebug, DnsConfig, DnsRecord, KeepAlive, MapRequest, MapResponse, PeerChange};
pub use node::{Hostinfo, NetInfo, Node, NodeId, UserId, UserProfile};
pub use register::{KeyResponse, Login, RegisterAuth, RegisterRequest, RegisterResponse};
pub use ssh::{OnRecordingFailure, SshAction, SshPolicy, SshPrincipal, SshRule};

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

/// The capability version that we claim, also the Noise protocol version (control.md §4.3).
pub const CAPABILITY_VERSION: u16 = 130;

/// Values of one capability: raw JSON objects, kept as they came.
pub type CapValues = Vec<Box<serde_json::value::RawValue>>;

/// Capability name to values; `null` for the values reads as an empty list.
pub type CapMap = BTreeMap<String, NullDefault<CapValues>>;

/// A value for which Go writes `null` when it is empty: `null` reads as the default.
#[derive(Debug, Clone, Default, serde::Serialize)]
#[serde(transparent)]
pub struct NullDefault<T>(pub T);

impl<'de, T: Deserialize<'de> + Default> Deserialize<'de> for NullDefault<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(
            Option::<T>::deserialize(deserializer)?.unwrap_or_default(),
        ))
    }
}

impl<T> std::ops::Deref for NullDefault<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> From<T> for NullDefault<T> {
    fn from(value: T) -> Self {
        Self(value)
    }
}

/// For `#[serde(deserialize_with)]`: `null` reads as the default, as Go's decoder does.
pub(crate) fn null_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// Whether a value equals its default; for `skip_serializing_if` (Go's `omitempty`).
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests;
