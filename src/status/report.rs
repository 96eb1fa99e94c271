//! What is told over the Unix socket: plain data, the same on both sides.
//!
//! Invariant: nothing in it is a secret or a recorded byte. Fields are only ever added. Filled by the wiring, shown by `text.rs`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::RecordingId;
use crate::recording::manifest::rfc3339;

/// Where a recorder stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The store is being opened: what a crash left is finished first.
    Starting,
    /// Uploads are taken, once the node is part of the tailnet.
    Running,
    /// New uploads are refused, some still run.
    Draining,
    /// No upload runs, and none will.
    Drained,
}

/// A picture of a recorder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The version of the program.
    pub version: String,
    /// Where it stands.
    pub phase: Phase,
    /// When it started, by its clock.
    #[serde(with = "rfc3339")]
    pub started_at: Timestamp,
    /// How long ago that was.
    pub uptime_seconds: u64,
    /// The node in the tailnet.
    pub node: NodeReport,
    /// The relation to the control server.
    pub control: ControlReport,
    /// What the tunnel and its TCP have counted.
    #[serde(default)]
    pub network: NetworkReport,
    /// Recordings that are open, the oldest first; at most 1,000 of them.
    pub recordings: Vec<OpenRecording>,
    /// How many are open, also those that are not listed.
    pub recordings_open: u64,
    /// What ingest has counted since the start, by name (docs/ingest.md).
    pub ingest: BTreeMap<String, u64>,
    /// The store.
    pub store: StoreReport,
    /// How many access rules are in force.
    pub access_rules: u64,
    /// Lines that were withheld from the log since the start, because they came too often.
    #[serde(default)]
    pub log_lines_withheld: u64,
    /// The limits in force, by name of their setting.
    pub limits: BTreeMap<String, String>,
}

/// The recorder's node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    /// Its name; empty before it has joined.
    pub name: String,
    /// Its StableID.
    pub stable_id: String,
    /// Its tailnet addresses.
    pub addresses: Vec<IpAddr>,
    /// The UDP addresses of the tunnel.
    pub tunnel: Vec<SocketAddr>,
    /// How many peers the netmap has.
    pub peers: u64,
}

/// The counters of the tunnel and its TCP since the start, by name (docs/operations.md).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkReport {
    /// What was dropped, refused or left unanswered, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Everything else.
    pub counted: BTreeMap<String, u64>,
}

/// The relation to the control server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlReport {
    /// Its URL.
    pub url: String,
    /// Whether the node is part of the tailnet: a netmap has arrived.
    pub joined: bool,
    /// What is wrong at the moment.
    pub trouble: Option<String>,
}

/// A recording that is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenRecording {
    /// Its id.
    pub id: RecordingId,
    /// The name of the node that uploads.
    pub node: String,
    /// The StableID of that node.
    pub stable_id: String,
    /// Who owns it; none for a tagged node.
    pub user: Option<String>,
    /// The endpoint that takes it.
    pub endpoint: String,
    /// When the upload opened.
    #[serde(with = "rfc3339")]
    pub since: Timestamp,
    /// Bytes that arrived.
    pub received_bytes: u64,
    /// Bytes that are durable.
    pub durable_bytes: u64,
    /// No more bytes are taken: it waits for its seal.
    pub ended: bool,
}

/// The store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreReport {
    /// Where it is.
    pub url: String,
    /// Why it takes no more; none while it works.
    pub halted: Option<String>,
    /// For how many milliseconds the commit in flight has been trying.
    pub commit_running_ms: Option<u64>,
    /// Where recovery stands: `running`, `done`, or `failed: ` and why the last pass did; none before the store is open.
    #[serde(default)]
    pub recovery: Option<String>,
    /// Counters since it was opened, by name.
    pub counters: BTreeMap<String, u64>,
}

/// Whether all is well.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// What is not, in words; empty when all is.
    pub reasons: Vec<String>,
}

impl Health {
    /// Whether sessions can be recorded now.
    #[must_use]
    pub fn healthy(&self) -> bool {
        self.reasons.is_empty()
    }
}
