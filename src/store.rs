//! What "durable" means here, and the store that keeps the word.
//!
//! Everything is objects written with create-if-absent; there is no other state that matters. An append returns
//! when the bytes are buffered; [`Durable`] moves only after the journal object that holds them was created and, on a
//! local disk, fsynced. A finished recording is sealed: segment first, then its manifest, whose create is the
//! commit point. Called by ingest (writing), the wiring (open, close) and whoever reads recordings back.

mod archive;
mod compaction;
mod counters;
mod create;
mod cut;
mod error;
mod event;
mod events;
mod fence;
mod handle;
mod health;
mod journal;
mod layout;
mod ledger;
mod local_disk;
mod opener;
mod pace;
mod probe;
mod reader;
mod recovery;
mod repeats;
mod segments;
mod state;
mod store_id;
mod trouble;
mod writer;

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use tokio::sync::{AcquireError, Notify, Semaphore, SemaphorePermit, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::ids::{EpochId, EventId, LogKey, RecorderId, RecordingId, StoreId};
pub use archive::StoreReader;
use create::{ANSWER_TIMEOUT, Objects};
pub use error::StoreError;
pub use event::Event;
pub use handle::{Durable, End, Opening, RecordingHandle, SealedRecording};
pub use health::StoreHealth;
use journal::Committer;
pub use ledger::CompactionLimits;
use local_disk::{DiskSync, LocalDisk};
use recovery::{RecorderLock, Recovery};
pub use recovery::{RecoveryState, RecoveryStats};
use state::State;
use trouble::{LastTrouble, Trouble};

/// How long [`Store::close`] waits for seals and the last commit: after the drain and the last seals; docs/operations.md adds them up.
const CLOSE_LIMIT: Duration = Duration::from_secs(25);

/// How many recordings are sealed at once: each holds one part of a segment in memory.
const SEALS_AT_ONCE_MAX: usize = 8;

/// How many recordings are cut at once: each holds one part of a segment in memory, and slows no ack.
const CUTS_AT_ONCE_MAX: usize = 2;

/// Where recordings are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreUrl {
    /// `file:///absolute/path`: a directory, made if absent.
    Local(PathBuf),
    /// `memory://`: gone with the process; for tests and demonstrations.
    Memory,
}

impl FromStr for StoreUrl {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        let unsupported = || StoreError::UnsupportedUrl {
            url: crate::tell::without_secrets(text),
        };
        let url = url::Url::parse(text).map_err(|_| unsupported())?;
        let bare = url.query().is_none() && url.fragment().is_none();
        match url.scheme() {
            "memory"
                if bare && url.host_str().is_none_or(str::is_empty) && url.path().len() <= 1 =>
            {
                Ok(Self::Memory)
            }
            "file" if bare => url
                .to_file_path()
                .map(Self::Local)
                .map_err(|()| unsupported()),
            _ => Err(unsupported()),
        }
    }
}

/// Settings of a store: plain data, complete.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Where.
    pub url: StoreUrl,
    /// Who writes: the public key of the recorder's log.
    pub log_key: LogKey,
    /// The least time between the starts of two commits; the first after idleness does not wait.
    pub commit_interval: Duration,
    /// As many pending bytes start a commit before its time.
    pub commit_bytes: usize,
    /// How many bytes of all uploads may wait for a commit.
    pub buffer_bytes_max: usize,
    /// How many bytes of one upload may wait for a commit.
    pub upload_buffer_bytes_max: usize,
    /// A segment ends with the first line behind so many stored bytes, or within a line that is too long to be read.
    pub segment_bytes: u64,
    /// Whether other recorders write to the same store: an idle one then commits an empty object every 20 s, so that they
    /// do not take it for dead. On a local disk its lock says so without.
    pub fleet: bool,
    /// A recorder that has committed nothing for so long looks whether it was fenced, and again each time that it has passed: one
    /// request each. What costs little on a disk is paid for elsewhere (ADR 0007).
    pub fence_look_interval: Duration,
    /// How many bytes of events may wait for a commit.
    pub events_in_flight_bytes_max: usize,
    /// After so long without a commit the store is stalled: uploads end as far as they came, new ones are refused.
    pub store_stall_limit: Duration,
    /// New recordings are refused while the disk below a `file://` store has less room; 0 = no limit.
    pub disk_free_bytes_min: u64,
    /// New recordings are refused while the journal holds as much.
    pub journal_bytes_max: u64,
    /// When and how much compaction copies.
    pub compaction: CompactionLimits,
}

impl StoreConfig {
    /// The default settings (design: 1 s, 64 MiB in all, 1 MiB per upload, 25 s of stall, segments of 16 MiB).
    pub fn new(url: StoreUrl, log_key: LogKey) -> Self {
        Self {
            url,
            log_key,
            commit_interval: Duration::from_secs(1),
            commit_bytes: 4 * 1024 * 1024,
            buffer_bytes_max: 64 * 1024 * 1024,
            upload_buffer_bytes_max: 1024 * 1024,
            segment_bytes: 16 * 1024 * 1024,
            fleet: false,
            fence_look_interval: Duration::from_millis(500),
            events_in_flight_bytes_max: 128 * 1024 * 1024,
            store_stall_limit: Duration::from_secs(25),
            // What all uploads may have in the buffer: it can still be committed when the last recording was refused.
            disk_free_bytes_min: 64 * 1024 * 1024,
            // Ten thousand recordings of 1.6 MiB each before their seal.
            journal_bytes_max: 16 * 1024 * 1024 * 1024,
            compaction: CompactionLimits::STANDARD,
        }
    }

    /// The recorder's name in the store.
    pub fn recorder(&self) -> RecorderId {
        RecorderId::from_log_key(self.log_key.as_bytes())
    }
}

/// What the store has done since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Creates of journal objects that were sent, repeats included.
    pub journal_puts: u64,
    /// Journal objects that were committed, openers not counted.
    pub commits: u64,
    /// Their bytes.
    pub journal_bytes: u64,
    /// The plain bytes of recordings in them.
    pub plain_bytes: u64,
    /// Epochs opened: more than one means that a failed fsync poisoned the one before.
    pub epochs: u64,
    /// Recordings begun and not yet sealed.
    pub recordings_open: u64,
    /// Recordings sealed.
    pub sealed: u64,
    /// Seals that failed and were told to their uploads; their bytes stay in the journal, and they are tried again.
    pub seals_failed: u64,
    /// Cuts committed: segments of recordings that still ran.
    pub cuts: u64,
    /// What a crash had left, and what became of it.
    pub recovery: RecoveryStats,
    /// How long the commit in flight has been trying.
    pub commit_running_for: Option<Duration>,
    /// How often the store was found stalled.
    pub stalls: u64,
    /// New recordings and events refused, by reason.
    pub refused: Refusals,
    /// Journal objects that were not trimmed, openers not counted.
    pub journal_objects_kept: u64,
    /// Their bytes.
    pub journal_bytes_kept: u64,
    /// Those of them that open recordings and journalled events need. Compaction keeps
    /// `journal_bytes_kept` ≤ 2 × `journal_bytes_open` + one object.
    pub journal_bytes_open: u64,
    /// Commits that copied frames out of older objects.
    pub compactions: u64,
    /// The bytes of those copies, part of `journal_bytes`: never more than half of it.
    pub copied_bytes: u64,
    /// The most spans that the index of one recording has had.
    pub spans_most: u64,
    /// Events committed.
    pub events: u64,
    /// Events in the journal that were not rolled yet.
    pub events_journalled: u64,
    /// Events rolled into objects.
    pub events_rolled: u64,
    /// Rolls that failed and were put off.
    pub rolls_failed: u64,
    /// What the disk below had free when it was last looked at.
    pub disk_free_bytes: Option<u64>,
}

/// How often something new was refused, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Refusals {
    /// The store was stalled.
    pub stalled: u64,
    /// The disk had too little room.
    pub disk_nearly_full: u64,
    /// The journal held too much.
    pub journal_full: u64,
    /// As many recordings were open as one recorder takes.
    pub too_many: u64,
    /// The store was closing, closed or fenced.
    pub closed: u64,
}

/// An open store. Clones share it; when the last clone and the last handle are gone, its task stops.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
    committer: Arc<CommitterTask>,
}

/// What the store's parts share. Locks are held for bookkeeping only, never across an await.
pub(crate) struct Shared {
    config: StoreConfig,
    store_id: StoreId,
    objects: Objects,
    state: Mutex<State>,
    wake_committer: Notify,
    wake_roller: Notify,
    /// Told after each commit.
    events_settled: Notify,
    space: Arc<Semaphore>,
    event_space: Arc<Semaphore>,
    /// What the backend said to the last commit that did not get through at once.
    trouble: LastTrouble,
    /// What it said to the last roll of events, if that failed.
    roll_trouble: LastTrouble,
    journal_puts: AtomicU64,
    rng: Mutex<ChaCha20Rng>,
    wall_clock: fn() -> Timestamp,
    seals: Semaphore,
    cuts: Semaphore,
    cuts_made: AtomicU64,
    tasks: TaskTracker,
    /// Cancelled when the store closes: ends what need not come to its end.
    stop: CancellationToken,
    recovery: watch::Sender<recovery::Status>,
    /// The epochs of this process, the newest last.
    own_epochs: Mutex<Vec<EpochId>>,
    lock: Mutex<Option<RecorderLock>>,
    runtime: tokio::runtime::Handle,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere must not stop the commits of everyone; the state is changed in whole steps.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for `bytes` of `buffer`; a full one is emptied by a commit that does not wait for its time.
    async fn room<'a>(
        &self,
        buffer: &'a Semaphore,
        bytes: u32,
    ) -> Result<SemaphorePermit<'a>, AcquireError> {
        if let Ok(permit) = buffer.try_acquire_many(bytes) {
            return Ok(permit);
        }
        self.state().make_room();
        self.wake_committer.notify_one();
        buffer.acquire_many(bytes).await
    }

    fn note_own_epoch(&self, epoch: EpochId) {
        self.own_epochs().push(epoch);
    }

    fn forget_own_epoch(&self, epoch: EpochId) {
        self.own_epochs().retain(|own| *own != epoch);
    }

    fn is_own_epoch(&self, epoch: &EpochId) -> bool {
        self.own_epochs().contains(epoch)
    }

    fn newest_own_epoch(&self) -> Option<EpochId> {
        self.own_epochs().last().copied()
    }

    fn own_epochs(&self) -> MutexGuard<'_, Vec<EpochId>> {
        self.own_epochs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn keep_lock(&self, lock: RecorderLock) {
        *self.lock.lock().unwrap_or_else(PoisonError::into_inner) = Some(lock);
    }

    fn count_cut(&self) {
        self.cuts_made.fetch_add(1, Ordering::Relaxed);
    }

    fn release_lock(&self) {
        *self.lock.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// A step of a commit failed and is tried again.
    fn note_trouble(&self, error: &StoreError) {
        self.trouble.note(error);
    }

    fn last_trouble(&self) -> Trouble {
        self.trouble.get().unwrap_or_else(|| Trouble {
            cause: "a commit is not answered".into(),
            said: "the backend has not said why".into(),
        })
    }

    /// What keeps the store from its end: a commit that is under way, else events that cannot be rolled.
    fn closing_trouble(&self) -> Trouble {
        let (commits, rolls) = {
            let state = self.state();
            let commits = state.unproven_since().is_some();
            (commits, !state.events.is_drained())
        };
        let of_commit = self.trouble.get().filter(|_| commits);
        of_commit
            .or_else(|| self.roll_trouble.get().filter(|_| rolls))
            .unwrap_or_else(Trouble::unanswered)
    }

    fn has_disk_limit(&self) -> bool {
        self.config.disk_free_bytes_min > 0 && self.objects.disk().is_some()
    }

    /// Asks the disk for its room. One that does not answer says nothing: the commits tell of it.
    async fn look_at_disk(&self) {
        let Some(disk) = self.objects.disk().filter(|_| self.has_disk_limit()) else {
            return;
        };
        match tokio::time::timeout(ANSWER_TIMEOUT, disk.free_bytes()).await {
            Ok(Ok(free_bytes)) => {
                let free_bytes_min = self.config.disk_free_bytes_min;
                self.state().handle_free(free_bytes, free_bytes_min);
            }
            Ok(Err(error)) => {
                tracing::warn!(error = error.with_causes(), "the disk's room is not known");
            }
            Err(_) => tracing::warn!("the disk did not say in time how much room it has"),
        }
    }

    fn draw<T>(&self, draw: impl FnOnce(&mut ChaCha20Rng) -> T) -> T {
        draw(&mut self.rng.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Stops the committer, the roller, recovery and seals that are tried again, when nobody is left who could give them work.
struct CommitterTask {
    committer: tokio::sync::Mutex<Option<tokio::task::JoinHandle<()>>>,
    roller: tokio::task::AbortHandle,
    stop: CancellationToken,
}

impl Drop for CommitterTask {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(task) = self.committer.get_mut() {
            task.abort();
        }
        self.roller.abort();
    }
}

impl Store {
    /// Opens the store: proves the backend, reads or makes its id, claims a new epoch, starts the committer.
    ///
    /// Must be called on a tokio runtime, which the store's tasks then use.
    ///
    /// # Errors
    /// [`StoreError`] when the backend cannot keep the promises (file system or create-if-absent), or is out of reach.
    pub async fn open(config: StoreConfig) -> Result<Self, StoreError> {
        let rng = ChaCha20Rng::from_rng(rand_core::OsRng).map_err(StoreError::DrawRandomness)?;
        let (objects, disk): (Arc<dyn ObjectStore>, Option<Arc<dyn DiskSync>>) = match &config.url {
            StoreUrl::Memory => (Arc::new(InMemory::new()), None),
            StoreUrl::Local(root) => {
                let disk = LocalDisk::prepare(root.clone(), config.recorder()).await?;
                (disk.objects(), Some(Arc::new(disk)))
            }
        };
        Self::open_with(config, objects, disk, rng, Timestamp::now).await
    }

    /// The same with the world passed in: the backend, its disk if it has one, randomness and the wall clock.
    pub(crate) async fn open_with(
        config: StoreConfig,
        objects: Arc<dyn ObjectStore>,
        disk: Option<Arc<dyn DiskSync>>,
        mut rng: ChaCha20Rng,
        wall_clock: fn() -> Timestamp,
    ) -> Result<Self, StoreError> {
        let objects = Objects::new(objects, disk);
        probe::prove_create_is_exclusive(&objects, &mut rng).await?;
        let store_id = store_id::read_or_make(&objects, &mut rng).await?;
        let shared = Arc::new(Shared {
            space: Arc::new(Semaphore::new(
                config.buffer_bytes_max.min(Semaphore::MAX_PERMITS),
            )),
            event_space: Arc::new(Semaphore::new(
                config
                    .events_in_flight_bytes_max
                    .min(Semaphore::MAX_PERMITS),
            )),
            state: Mutex::new(State::new(config.compaction)),
            config,
            store_id,
            objects,
            wake_committer: Notify::new(),
            wake_roller: Notify::new(),
            events_settled: Notify::new(),
            trouble: LastTrouble::default(),
            roll_trouble: LastTrouble::default(),
            journal_puts: AtomicU64::new(0),
            rng: Mutex::new(rng),
            wall_clock,
            seals: Semaphore::new(SEALS_AT_ONCE_MAX),
            cuts: Semaphore::new(CUTS_AT_ONCE_MAX),
            cuts_made: AtomicU64::new(0),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            recovery: recovery::status(),
            own_epochs: Mutex::default(),
            lock: Mutex::default(),
            runtime: tokio::runtime::Handle::current(),
        });
        // Before the claim, so that nobody takes a claimed epoch for one whose recorder is gone.
        recovery::hold_lock(&shared).await;
        let committer = Committer::claim_epoch(Arc::clone(&shared)).await?;
        shared.look_at_disk().await;
        let task = shared.runtime.spawn(committer.run());
        let roller = shared
            .runtime
            .spawn(events::run_roller(Arc::clone(&shared)));
        let stop = shared.stop.clone();
        let committer = Arc::new(CommitterTask {
            committer: tokio::sync::Mutex::new(Some(task)),
            roller: roller.abort_handle(),
            stop: stop.clone(),
        });
        // Uploads do not wait for recovery; they go into the new epoch.
        let recovering = Recovery::new(Arc::clone(&shared)).run_until(stop);
        // A close waits until it has let go: what it is told by a runtime that ends would look like trouble with the backend.
        shared.tasks.spawn_on(recovering, &shared.runtime);
        Ok(Self { shared, committer })
    }

    /// Begins a recording: draws its id. Nothing is stored before its first bytes, or its end.
    ///
    /// # Errors
    /// [`StoreError::Closed`], [`StoreError::Fenced`], [`StoreError::Stalled`]; [`StoreError::DiskNearlyFull`],
    /// [`StoreError::JournalFull`], [`StoreError::TooManyRecordings`] and [`StoreError::OpeningTooLarge`] are limits.
    pub fn begin(&self, opening: Opening) -> Result<RecordingHandle, StoreError> {
        let id = self.shared.draw(RecordingId::random);
        RecordingHandle::begin(self.clone(), id, opening)
    }

    /// Commits an event, at once if no commit is in flight; when this returns its id, the event is durable. Waits while
    /// as many bytes of events are in flight as may be, but never longer than the store takes to be found stalled.
    ///
    /// # Errors
    /// The refusals of [`Store::begin`]; [`StoreError::EventTooLarge`]; [`StoreError::EventNotStored`] when the store
    /// stalled or ended meanwhile: the event may be stored all the same.
    pub async fn record_event(&self, event: Event) -> Result<EventId, StoreError> {
        events::record(&self.shared, event).await
    }

    /// Whether new recordings are taken, and whether running ones are to end. Changes are seen by all receivers.
    pub fn health(&self) -> watch::Receiver<StoreHealth> {
        self.shared.state().health()
    }

    /// The store's own id, in every opener and manifest.
    pub fn id(&self) -> StoreId {
        self.shared.store_id
    }

    /// Refuses new recordings, waits for the seals under way, rolls the events, commits what is pending and stops. At most 25 s.
    ///
    /// Recordings that are still open are told so through [`Durable::failed`]; what was acked of them stays.
    ///
    /// # Errors
    /// [`StoreError::CloseTimedOut`] when what was left to do was not done in time, with why; [`StoreError::Fenced`] if it is so.
    pub async fn close(&self) -> Result<(), StoreError> {
        self.shared.state().refuse_new();
        // Recovery can stop anywhere; the next start goes on with it.
        self.shared.stop.cancel();
        self.shared.tasks.close();
        let drained = tokio::time::timeout(CLOSE_LIMIT, async {
            self.shared.tasks.wait().await;
            events::drain(&self.shared).await;
            self.shared.state().finish_commits();
            self.shared.wake_committer.notify_one();
            let mut committer = self.committer.committer.lock().await;
            if let Some(task) = committer.as_mut() {
                // The task has no result of its own; why it stopped is in the state.
                drop(task.await);
            }
            *committer = None;
            drop(committer);
            self.shared.tasks.wait().await;
        });
        // Asked before the halt, which leaves nothing to do.
        let in_vain = drained
            .await
            .is_err()
            .then(|| self.shared.closing_trouble());
        let stopped_by = self
            .shared
            .state()
            .halt(StoreError::Closed, &self.shared.space);
        self.committer
            .committer
            .lock()
            .await
            .take()
            .inspect(tokio::task::JoinHandle::abort);
        self.shared.release_lock();
        self.committer.roller.abort();
        match (&*stopped_by, in_vain) {
            (StoreError::Fenced { number }, _) => Err(StoreError::Fenced { number: *number }),
            (_, None) => Ok(()),
            (_, Some(trouble)) => Err(trouble.closing()),
        }
    }

    /// Why no commit will follow; `None` while the store works. [`StoreError::Fenced`]: another recorder took over.
    pub fn halted(&self) -> Option<Arc<StoreError>> {
        self.shared.state().halted()
    }

    /// What was done so far.
    pub fn stats(&self) -> StoreStats {
        let mut stats = self
            .shared
            .state()
            .stats(tokio::time::Instant::now().into_std());
        stats.journal_puts = self.shared.journal_puts.load(Ordering::Relaxed);
        stats.cuts = self.shared.cuts_made.load(Ordering::Relaxed);
        stats.recovery = self.shared.recovery.borrow().stats;
        stats
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("url", &self.shared.config.url)
            .field("id", &self.shared.store_id)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
