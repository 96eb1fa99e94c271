//! The SSH policy, in lowerCamel as on the wire. Data only; called by devnet and `tailtape dev`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{is_default, null_default};

/// Who may open which SSH session, and where it is recorded.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SshPolicy {
    /// The first matching rule decides.
    #[serde(default, deserialize_with = "null_default")]
    pub rules: Vec<SshRule>,
}

/// One rule of the policy.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SshRule {
    /// Whom the rule concerns.
    #[serde(default, deserialize_with = "null_default")]
    pub principals: Vec<SshPrincipal>,
    /// Requested user (or `*`) to local user; `=` means the same name, empty means no match.
    #[serde(default, deserialize_with = "null_default")]
    pub ssh_users: BTreeMap<String, String>,
    /// What happens on a match.
    #[serde(default, deserialize_with = "null_default")]
    pub action: SshAction,
}

/// One kind of person or node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SshPrincipal {
    /// A stable node id.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub node: String,
    /// A node's address.
    #[serde(
        rename = "nodeIP",
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub node_ip: String,
    /// A login name.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub user_login: String,
    /// Everybody.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub any: bool,
}

/// What a matching rule does.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SshAction {
    /// Shown to the person first.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub message: String,
    /// Refuse.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub reject: bool,
    /// Permit.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub accept: bool,
    /// Longest session in nanoseconds; 0 means no limit.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub session_duration: i64,
    /// Permit agent forwarding.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub allow_agent_forwarding: bool,
    /// Permit local port forwarding.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub allow_local_port_forwarding: bool,
    /// Recorders as `ip:port`, in the order in which they are tried. Empty: not recorded.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub recorders: Vec<String>,
    /// What to do when recording fails; absent: the session goes on unrecorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_recording_failure: Option<OnRecordingFailure>,
}

/// Non-empty messages mean fail-closed. The member names are PascalCase.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct OnRecordingFailure {
    /// Refuse the session with this text when no recorder can be reached.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub reject_session_with_message: String,
    /// End the session with this text when recording breaks later.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub terminate_session_with_message: String,
    /// Path at control that is told of it.
    #[serde(
        rename = "NotifyURL",
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    pub notify_url: String,
}
