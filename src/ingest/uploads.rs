//! The uploads of all connections: how many, whose, how far, and how an operator ends one.
//!
//! Invariant: a slot is held from before the recording begins until the store has sealed it or given it up, so the limits bound what waits for a stalled
//! store too. [`Ingest`](super::Ingest) shares one among its connections; each upload's [`session`](super::session) keeps its slot up to date.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::watch;

use super::shares::{Exceeded, Share, Shares};
use crate::access::Identity;
use crate::ids::RecordingId;

/// One upload, as status shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadStatus {
    /// The recording that it becomes.
    pub id: RecordingId,
    /// Who uploads.
    pub uploader: Identity,
    /// The endpoint that takes it, such as `/v2/record`.
    pub endpoint: &'static str,
    /// When it began, by the recorder's clock.
    pub since: Timestamp,
    /// Bytes that arrived.
    pub received_bytes: u64,
    /// Bytes that are durable.
    pub durable_bytes: u64,
    /// No more bytes are taken: it waits for its seal.
    pub ended: bool,
}

/// All uploads of one recorder. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Uploads {
    shares: Shares,
    open: Arc<Mutex<BTreeMap<RecordingId, Arc<Entry>>>>,
}

#[derive(Debug)]
struct Entry {
    uploader: Identity,
    endpoint: &'static str,
    since: Timestamp,
    received_bytes: AtomicU64,
    durable_bytes: AtomicU64,
    ended: AtomicBool,
    /// Set once, by an operator: why it ends.
    terminated: watch::Sender<Option<String>>,
}

/// The place of one upload. Dropping it makes room for another.
#[derive(Debug)]
pub(super) struct Slot {
    uploads: Uploads,
    id: RecordingId,
    entry: Arc<Entry>,
    _share: Share,
}

impl Uploads {
    pub(super) fn new(recordings_max: u64, recordings_per_node_max: u64) -> Self {
        Self {
            shares: Shares::new(recordings_max, recordings_per_node_max),
            open: Arc::default(),
        }
    }

    /// Room for one more upload of `uploader`, to be taken before its recording begins.
    pub(super) fn admit(&self, uploader: &Identity) -> Result<Share, Exceeded> {
        self.shares.take(&uploader.stable_id, 1)
    }

    /// Enters an upload whose recording has begun.
    pub(super) fn enter(
        &self,
        share: Share,
        id: RecordingId,
        uploader: Identity,
        endpoint: &'static str,
        since: Timestamp,
    ) -> Slot {
        let entry = Arc::new(Entry {
            uploader,
            endpoint,
            since,
            received_bytes: AtomicU64::new(0),
            durable_bytes: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            terminated: watch::Sender::new(None),
        });
        self.lock().insert(id, Arc::clone(&entry));
        Slot {
            uploads: self.clone(),
            id,
            entry,
            _share: share,
        }
    }

    /// All uploads, by id.
    pub(super) fn list(&self) -> Vec<UploadStatus> {
        let open = self.lock();
        open.iter()
            .map(|(id, entry)| UploadStatus {
                id: *id,
                uploader: entry.uploader.clone(),
                endpoint: entry.endpoint,
                since: entry.since,
                received_bytes: entry.received_bytes.load(Ordering::Relaxed),
                durable_bytes: entry.durable_bytes.load(Ordering::Relaxed),
                ended: entry.ended.load(Ordering::Relaxed),
            })
            .collect()
    }

    /// How many still take bytes, and how many wait for their seal.
    pub(super) fn count(&self) -> (usize, usize) {
        let open = self.lock();
        let ended = |entry: &&Arc<Entry>| entry.ended.load(Ordering::Relaxed);
        let ended = open.values().filter(ended).count();
        (open.len().saturating_sub(ended), ended)
    }

    /// Tells an upload to end. False if there is none of that id that still takes bytes.
    pub(super) fn terminate(&self, id: RecordingId, reason: &str) -> bool {
        let entry = self.lock().get(&id).cloned();
        let running = entry.filter(|entry| !entry.ended.load(Ordering::Relaxed));
        running.is_some_and(|entry| {
            // The first reason stands: it is what the uploader is told.
            entry.terminated.send_if_modified(|order| {
                let first = order.is_none();
                if first {
                    *order = Some(reason.to_owned());
                }
                first
            });
            true
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<RecordingId, Arc<Entry>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    pub(super) fn received(&self, bytes: u64) {
        self.entry.received_bytes.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn durable(&self, bytes: u64) {
        self.entry.durable_bytes.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn ended(&self) {
        self.entry.ended.store(true, Ordering::Relaxed);
    }

    /// Says why the upload is to end, once it is.
    pub(super) fn termination(&self) -> watch::Receiver<Option<String>> {
        let mut order = self.entry.terminated.subscribe();
        // An order that came before this receiver counts too.
        order.mark_changed();
        order
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.uploads.lock().remove(&self.id);
    }
}
