//! From a request that is permitted to a recording that runs: the limits, the store's consent, the task.
//!
//! Invariant: nothing of the body is asked for before the recording has begun, so that a refusal is all that the uploader sees. Called by the
//! [`routes`](super::routes) for both endpoints.

use std::sync::Arc;

use http::{StatusCode, Version};
use hyper::body::Incoming;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use super::claim::Directory;
use super::config::IngestConfig;
use super::connection::{BodyEnd, Connection, Running};
use super::response::{Refusal, refusal};
use super::session::{Parts, Reply, Session};
use super::shares::{Exceeded, Share};
use super::sink::{RecordingSink, RecordingWriter};
use super::stats::Counters;
use super::upload::{Upload, UploadConfig};
use super::uploads::Slot;
use crate::store::{Opening, StoreHealth};

/// A recording that has begun and still needs its body.
pub(super) struct Begun<W> {
    writer: W,
    slot: Slot,
    arrived: Share,
    running: Running,
    body_end: BodyEnd,
    health: watch::Receiver<StoreHealth>,
    config: IngestConfig,
    directory: Option<Directory>,
    counters: Arc<Counters>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

/// Begins a recording for what `endpoint` takes.
///
/// # Errors
/// The refusal to send.
pub(super) fn begin<S: RecordingSink>(
    shared: &Connection<S>,
    endpoint: &'static str,
    version: Version,
) -> Result<Begun<S::Writer>, Refusal> {
    let ingest = &shared.ingest;
    let unavailable = |reason: &str| refusal(StatusCode::SERVICE_UNAVAILABLE, reason);
    let share = ingest.uploads.admit(&shared.identity).map_err(|exceeded| {
        let (counter, reason) = match exceeded {
            Exceeded::All => (
                &ingest.counters.refused_recordings,
                "recordings_max: as many recordings are open as this recorder takes",
            ),
            Exceeded::Each => (
                &ingest.counters.refused_recordings_per_node,
                "recordings_per_node_max: as many recordings are open as one node may have",
            ),
        };
        counter.increase();
        tracing::warn!(reason, "upload refused");
        unavailable(reason)
    })?;
    let since = jiff::Timestamp::now();
    let opening = Opening {
        uploader: shared.identity.clone(),
        endpoint,
        received_at: since,
    };
    let writer = ingest.sink.begin(opening).map_err(|error| {
        ingest.counters.refused_store.increase();
        tracing::warn!(error = error.with_causes(), "upload refused");
        unavailable(&error.to_string())
    })?;
    let uploader = shared.identity.clone();
    let arrived = ingest.arrived.nothing(&uploader.stable_id);
    Ok(Begun {
        arrived,
        slot: ingest
            .uploads
            .enter(share, writer.id(), uploader, endpoint, since),
        running: shared.running(),
        body_end: shared.body_end(version),
        health: ingest.sink.health(),
        config: ingest.config.clone(),
        directory: ingest.directory.clone(),
        counters: Arc::clone(&ingest.counters),
        shutdown: shared.shutdown.clone(),
        tasks: ingest.tasks.clone(),
        writer,
    })
}

impl<W: RecordingWriter> Begun<W> {
    pub(super) fn config(&self) -> UploadConfig {
        self.config.upload
    }

    /// Starts the upload's task, which outlives the connection if the store still seals.
    pub(super) fn spawn(self, upload: Upload, reply: Reply, body: Incoming) {
        let (shutdown, drain_limit) = (self.shutdown, self.config.drain_limit);
        let session = Session::new(Parts {
            upload,
            reply,
            durable: self.writer.durable(),
            health: self.health,
            slot: self.slot,
            arrived: self.arrived,
            running: self.running,
            counters: self.counters,
            directory: self.directory,
            drained: Box::pin(async move {
                shutdown.cancelled().await;
                tokio::time::sleep(drain_limit).await;
            }),
            body_end: self.body_end,
        });
        let span = tracing::info_span!("upload", recording = %self.writer.id());
        self.tasks
            .spawn(session.run(body, self.writer).instrument(span));
    }
}
