//! Taking recordings and events: one listener for HTTP/1.1 and HTTP/2 (h2c prior knowledge).
//!
//! ```text
//! connection ─► routes ─► record_v1, record_v2 ─► session ─► upload (the machine) ─► sink
//!                    └──► event_v2 ────────────────────────────────────────────────► sink
//! ```
//!
//! Invariants: a refusal has no body; time-outs apply to request heads, events and idle connections, never to the body of a recording; nothing a peer sends is
//! held without a limit. Called by the wiring with an accepted stream and the identity that the tailnet gave it; looks down at the store through
//! [`RecordingSink`].

pub mod ack;
mod arrived;
mod begin;
mod claim;
mod config;
mod connection;
mod connection_limits;
mod event_v2;
mod frame_watch;
mod linger;
mod policy;
mod record_v1;
mod record_v2;
mod refused_heads;
mod response;
mod routes;
mod session;
mod shares;
pub mod sink;
mod stats;
pub mod upload;
mod uploads;

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::Identity;
use crate::ids::RecordingId;
use ack::Beat;
pub use claim::{Directory, NodeFacts};
pub use config::IngestConfig;
pub use connection_limits::{ConnectionGuard, ConnectionLimits, ConnectionRefused};
pub use policy::UploadPolicy;
use shares::Shares;
pub use sink::{RecordingSink, RecordingWriter, SourceNode};
use stats::Counters;
pub use stats::IngestStats;
pub use uploads::UploadStatus;
use uploads::Uploads;

/// Between the instants at which idle uploads send their acks: a hundred of ten thousand then share a wake-up and a few calls to send, which take
/// some 2 ms. An ack of an upload that is busy waits no longer than that behind them.
const IDLE_BEAT_INTERVAL: Duration = Duration::from_millis(50);

/// What takes recordings and events, for all connections of one recorder. Clones share limits, counters and uploads.
pub struct Ingest<S> {
    shared: Arc<Shared<S>>,
}

/// What all connections share.
struct Shared<S> {
    sink: S,
    config: IngestConfig,
    directory: Option<Directory>,
    counters: Arc<Counters>,
    uploads: Uploads,
    /// Bytes of events that are not yet stored.
    events: Shares,
    /// Bytes of ended uploads that the store has not taken yet.
    arrived: Shares,
    connections: ConnectionLimits,
    /// Uploads, until the store has sealed them or given them up.
    tasks: TaskTracker,
}

impl<S: RecordingSink> Ingest<S> {
    /// Ingest into `sink`. Nothing happens before a connection is served.
    pub fn new(sink: S, config: IngestConfig) -> Self {
        Self::begin(sink, config, None)
    }

    /// The same, and what a header claims of the person's node is compared with what `directory` says of it.
    pub fn with_directory(sink: S, config: IngestConfig, directory: Directory) -> Self {
        Self::begin(sink, config, Some(directory))
    }

    fn begin(sink: S, mut config: IngestConfig, directory: Option<Directory>) -> Self {
        let beat = || Beat::new(session::now(), IDLE_BEAT_INTERVAL);
        config.upload.idle_beat.get_or_insert_with(beat);
        let counters = Arc::new(Counters::default());
        Self {
            shared: Arc::new(Shared {
                uploads: Uploads::new(config.recordings_max, config.recordings_per_node_max),
                events: Shares::new(
                    config.events_in_flight_bytes_max,
                    config.events_in_flight_bytes_per_node_max,
                ),
                arrived: Shares::new(config.arrived_bytes_max, config.arrived_bytes_max),
                connections: ConnectionLimits::new(
                    config.connections_max,
                    config.connections_per_peer_max,
                    Arc::clone(&counters),
                ),
                tasks: TaskTracker::new(),
                counters,
                sink,
                config,
                directory,
            }),
        }
    }

    /// Serves one accepted stream of `identity` until it is closed. Its recordings may still be sealing then: see [`finished`](Self::finished).
    ///
    /// After `shutdown`, new uploads are refused with 503; running ones go on for at most `drain_limit`, then are sealed and told.
    /// Dropping the future closes the stream; its uploads are then sealed as incomplete in the background.
    pub async fn serve_connection<IO>(
        &self,
        io: IO,
        identity: Identity,
        shutdown: CancellationToken,
    ) where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.shared.counters.connections.increase();
        connection::drive(io, identity, Arc::clone(&self.shared), shutdown).await;
    }

    /// Its settings.
    #[must_use]
    pub fn config(&self) -> &IngestConfig {
        &self.shared.config
    }

    /// Who may connect; to be asked by the acceptor for each connection, which it serves while it holds the guard.
    #[must_use]
    pub fn connections(&self) -> &ConnectionLimits {
        &self.shared.connections
    }

    /// All uploads that the store has not sealed yet, by id.
    #[must_use]
    pub fn uploads(&self) -> Vec<UploadStatus> {
        self.shared.uploads.list()
    }

    /// Uploads that still take bytes: what a drain waits for.
    #[must_use]
    pub fn running(&self) -> usize {
        self.shared.uploads.count().0
    }

    /// Uploads that have ended and wait for their seal.
    #[must_use]
    pub fn sealing(&self) -> usize {
        self.shared.uploads.count().1
    }

    /// Bytes of events that are not yet stored; a small one counts as 4 KiB.
    #[must_use]
    pub fn event_bytes_in_flight(&self) -> u64 {
        self.shared.events.taken()
    }

    /// What was counted so far.
    #[must_use]
    pub fn stats(&self) -> IngestStats {
        self.shared.counters.snapshot()
    }

    /// Ends an upload for an operator: its uploader is told `reason` in an error frame (over HTTP/1.1 the connection is closed), which makes an enforcing
    /// node end the session; what came is sealed with the flag `terminated`. False if no upload of that id still takes bytes.
    pub fn terminate(&self, id: RecordingId, reason: &str) -> bool {
        self.shared.uploads.terminate(id, reason)
    }

    /// Completes when no upload is running or sealing. New ones can begin meanwhile, unless their connections were shut down.
    pub async fn finished(&self) {
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}

impl<S> Clone for Ingest<S> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<S> std::fmt::Debug for Ingest<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ingest")
            .field("uploads", &self.shared.uploads.count())
            .finish_non_exhaustive()
    }
}

/// Serves one connection with an [`Ingest`] of its own, until it is closed and every recording that began on it is finished.
pub async fn serve_connection<S, IO>(
    io: IO,
    identity: Identity,
    sink: S,
    config: IngestConfig,
    shutdown: CancellationToken,
) where
    S: RecordingSink,
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let ingest = Ingest::new(sink, config);
    ingest.serve_connection(io, identity, shutdown).await;
    ingest.finished().await;
}

#[cfg(test)]
mod tests;
