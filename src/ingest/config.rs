//! Intervals and limits of ingest: plain data, complete.
//!
//! Invariant: everything that a peer can make grow has a limit here or a constant beside its use; docs/ingest.md lists them all. Made by the wiring.

use std::time::Duration;

use super::policy::UploadPolicy;
use super::upload::UploadConfig;

/// Intervals and limits of ingest.
#[derive(Debug, Clone)]
pub struct IngestConfig {
    /// From accept to the end of the first request head, and for each later one.
    pub header_read_timeout: Duration,
    /// Size of a request head. A stock client's is under 300 bytes.
    pub request_head_bytes_max: u32,
    /// How long a connection may stay without an upload after a request, such as a probe.
    pub idle_limit: Duration,
    /// How long a connection stays after its last upload; stock clients before 1.98.8 never close theirs.
    pub linger: Duration,
    /// From GOAWAY to closing the stream under it.
    pub close_limit: Duration,
    /// Between HTTP/2 PINGs.
    pub keep_alive_interval: Duration,
    /// How late the answer to a PING may be before the uploader counts as dead.
    pub keep_alive_timeout: Duration,
    /// How long running uploads may go on after the shutdown began.
    pub drain_limit: Duration,
    /// Intervals and limits of one upload.
    pub upload: UploadConfig,
    /// Who may upload.
    pub policy: UploadPolicy,
    /// Recordings at once, those that wait for their seal included.
    pub recordings_max: u64,
    /// Recordings at once of one node.
    pub recordings_per_node_max: u64,
    /// Bytes that had arrived of uploads that this recorder ended, and wait for the store behind its own buffer: of all uploads.
    pub arrived_bytes_max: u64,
    /// Connections at once.
    pub connections_max: u64,
    /// Connections at once of one peer.
    pub connections_per_peer_max: u64,
    /// Whether `/v2/event` is there.
    pub events: bool,
    /// Bytes of one event. They carry whole Kubernetes requests.
    pub event_body_bytes_max: u64,
    /// How long the body of an event may take; its sender has it ready.
    pub event_body_limit: Duration,
    /// How long an event may wait for the store. A client waits for ever, so it is told; above the store's stall limit.
    pub event_store_limit: Duration,
    /// Bytes of all events that are not yet stored.
    pub events_in_flight_bytes_max: u64,
    /// Bytes of one node's events that are not yet stored.
    pub events_in_flight_bytes_per_node_max: u64,
}

impl Default for IngestConfig {
    fn default() -> Self {
        Self {
            header_read_timeout: Duration::from_secs(10),
            request_head_bytes_max: 16 * 1024,
            idle_limit: Duration::from_secs(30),
            linger: Duration::from_secs(5),
            close_limit: Duration::from_secs(5),
            keep_alive_interval: Duration::from_secs(20),
            keep_alive_timeout: Duration::from_secs(20),
            drain_limit: Duration::from_secs(20),
            upload: UploadConfig::default(),
            policy: UploadPolicy::default(),
            recordings_max: 10_000,
            recordings_per_node_max: 1_000,
            arrived_bytes_max: 64 * 1024 * 1024,
            connections_max: 12_000,
            connections_per_peer_max: 1_200,
            events: true,
            event_body_bytes_max: 64 * 1024 * 1024,
            event_body_limit: Duration::from_secs(60),
            event_store_limit: Duration::from_secs(30),
            events_in_flight_bytes_max: 128 * 1024 * 1024,
            events_in_flight_bytes_per_node_max: 64 * 1024 * 1024,
        }
    }
}
