//! `/key` and `/machine/register`: requests and responses. Data only; called by `control` and devnet.

use serde::{Deserialize, Serialize};

use super::{Hostinfo, UserId, is_default, null_default};
use crate::key::{MachinePublic, NodePublic};

/// Answer to `GET /key`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyResponse {
    /// Dead NaCl key of old servers; ignored.
    #[serde(default, deserialize_with = "null_default")]
    pub legacy_public_key: MachinePublic,
    /// The server's Noise key; zero means that the server is too old.
    #[serde(default, deserialize_with = "null_default")]
    pub public_key: MachinePublic,
}

/// Body of `POST /machine/register`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RegisterRequest {
    /// Capability version; 0 is rejected.
    #[serde(default, deserialize_with = "null_default")]
    pub version: u16,
    /// The node key to register.
    #[serde(default, deserialize_with = "null_default")]
    pub node_key: NodePublic,
    /// The key that it replaces; zero (omitted) unless rotating.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub old_node_key: NodePublic,
    /// The auth key, when one is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<RegisterAuth>,
    /// Zero or absent: the server's default. In the past: log out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expiry: Option<String>,
    /// The AuthURL that was given, when waiting for a person.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub followup: String,
    /// What we are.
    #[serde(default)]
    pub hostinfo: Option<Hostinfo>,
    /// Ask to be removed soon after going offline.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub ephemeral: bool,
}

/// The auth-key member of a register request. `Debug` hides the key.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct RegisterAuth {
    /// Opaque secret; never logged.
    #[serde(rename = "AuthKey", default, deserialize_with = "null_default")]
    pub auth_key: String,
}

impl std::fmt::Debug for RegisterAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RegisterAuth(..)")
    }
}

/// Answer to `POST /machine/register`; evaluated in the order of control.md §3.2.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RegisterResponse {
    /// The owner.
    #[serde(default, deserialize_with = "null_default")]
    pub user: Login,
    /// The login by which the owner is known.
    #[serde(default, deserialize_with = "null_default")]
    pub login: Login,
    /// The node key is expired: register with a new one.
    #[serde(default, deserialize_with = "null_default")]
    pub node_key_expired: bool,
    /// False: wait for an administrator's approval; not an error.
    #[serde(default, deserialize_with = "null_default")]
    pub machine_authorized: bool,
    /// Non-empty: a person must visit it.
    #[serde(rename = "AuthURL", default, deserialize_with = "null_default")]
    pub auth_url: String,
    /// Non-empty: registration was refused; nothing else counts.
    #[serde(default, deserialize_with = "null_default")]
    pub error: String,
}

/// A user or login in a register response.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Login {
    /// The user's id.
    #[serde(rename = "ID", default, deserialize_with = "null_default")]
    pub id: UserId,
    /// Identity provider, for people.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub provider: String,
    /// E-mail-like name.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub login_name: String,
    /// Name for people.
    #[serde(default, deserialize_with = "null_default")]
    pub display_name: String,
}
