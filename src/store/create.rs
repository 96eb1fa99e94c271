//! One object created exactly once, or known why not: carries out the table of `fence.rs`.
//!
//! Invariant: the bytes are fixed at the first send and sent again, byte for byte, until the create is resolved; no
//! retry but ours. Called by the journal, the probe and the writer for every object that counts.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutResult};
use tokio::task::JoinHandle;

use super::error::StoreError;
use super::fence::{Found, Next, Resolution, Sent};
use super::local_disk::DiskSync;
use super::repeats::Repeats;
use super::state::Span;

/// How long one read of a small object may take before it counts as unanswered.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one create may take before it counts as unanswered: a little more, so that one that takes those 10 s is still heard, and its ack is
/// no later than two of them.
const CREATE_TIMEOUT: Duration = Duration::from_millis(10_050);
/// The pause before a failed create or read is tried again.
pub(super) const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// A hung disk holds a thread for each unanswered create: no more are sent beyond these.
const UNANSWERED_MAX: usize = 4;
/// How often in a row a name may be taken and yet read as absent: S3 says so of a create that it has not decided, but not for long.
const TAKEN_YET_ABSENT_MAX: u32 = 2;

/// What became of a create.
#[derive(Debug)]
pub(super) enum Created {
    /// Ours, and durable.
    Durable,
    /// Others' bytes stand there.
    Different(Bytes),
    /// An fsync failed: ours, but perhaps not on the disk.
    Poisoned(Option<std::io::Error>),
}

/// How often an unresolved create is tried again.
#[derive(Debug, Clone, Copy)]
pub(super) enum Patience {
    /// Until it is resolved: a journal number must be.
    Endless,
    /// So many failed steps.
    Tries(u32),
}

/// The backend, and the disk under it when it is local.
#[derive(Debug, Clone)]
pub(super) struct Objects {
    store: Arc<dyn ObjectStore>,
    disk: Option<Arc<dyn DiskSync>>,
    /// Where the objects are, if they are on a local disk: known to a reader too, which has no disk to write to.
    root: Option<PathBuf>,
    /// A write has failed: an fsync may have, and a directory may pass for clean that is not.
    troubled: Arc<AtomicBool>,
}

impl Objects {
    pub(super) fn new(store: Arc<dyn ObjectStore>, disk: Option<Arc<dyn DiskSync>>) -> Self {
        let troubled = Arc::default();
        let root = disk.as_ref().and_then(|disk| disk.root());
        let root = root.map(std::path::Path::to_path_buf);
        Self {
            store,
            disk,
            root,
            troubled,
        }
    }

    /// The same, with objects that are files below `root`.
    pub(super) fn read_below(store: Arc<dyn ObjectStore>, root: PathBuf) -> Self {
        Self {
            root: Some(root),
            ..Self::new(store, None)
        }
    }

    /// Whether what is absent for a reader is on the disk yet, as a directory or a link to nothing: no object can be made or put there.
    pub(super) async fn is_obstructed(&self, name: &Path) -> bool {
        let Some(root) = &self.root else {
            return false;
        };
        let found = tokio::fs::symlink_metadata(root.join(name.as_ref())).await;
        found.is_ok_and(|found| !found.is_file())
    }

    pub(super) fn store(&self) -> &dyn ObjectStore {
        &*self.store
    }

    /// Where the objects are on a local disk, if they are.
    pub(super) fn disk_root(&self) -> Option<PathBuf> {
        self.disk.as_ref()?.root().map(std::path::Path::to_path_buf)
    }

    /// A write has failed, in whatever way: from now on directories are written whole.
    pub(super) fn note_trouble(&self) {
        self.troubled.store(true, Ordering::Relaxed);
    }

    /// The disk below, if there is one.
    pub(super) fn disk(&self) -> Option<&dyn DiskSync> {
        self.disk.as_deref()
    }

    /// Fsyncs an object and every directory on the way to it, if there is a disk below: a create answers for the
    /// directories that it made itself, not for those that it found. Their maker may still be at its fsync, or have died before.
    ///
    /// # Errors
    /// [`StoreError::SyncFailed`]: the object may be lost.
    pub(super) async fn sync(&self, name: &Path) -> Result<(), StoreError> {
        let Some(disk) = &self.disk else {
            return Ok(());
        };
        let synced = if self.troubled.load(Ordering::Relaxed) {
            disk.sync_anew(name).await
        } else {
            disk.sync(name).await
        };
        self.synced(name, synced)
    }

    /// The same for an object that another made: of what failed there we know nothing, so the directories are written whole.
    ///
    /// # Errors
    /// [`StoreError::SyncFailed`]: the object may be lost.
    pub(super) async fn sync_anew(&self, name: &Path) -> Result<(), StoreError> {
        match &self.disk {
            Some(disk) => self.synced(name, disk.sync_anew(name).await),
            None => Ok(()),
        }
    }

    fn synced(&self, name: &Path, synced: std::io::Result<()>) -> Result<(), StoreError> {
        synced
            .inspect_err(|_| self.note_trouble())
            .map_err(|source| StoreError::SyncFailed {
                name: name.to_string(),
                source: Some(source),
            })
    }

    /// Fails when what was written to the store's name went elsewhere: see [`DiskSync::still_there`].
    pub(super) async fn still_there(&self) -> Result<(), StoreError> {
        match &self.disk {
            Some(disk) => disk.still_there().await,
            None => Ok(()),
        }
    }

    /// Creates `name` with `bytes`. When this returns [`Created::Durable`], they are; a second call with the same
    /// bytes is harmless. `sends` counts the creates that were sent.
    ///
    /// # Errors
    /// [`StoreError::Object`] or [`StoreError::Unanswered`] when `patience` ran out: the object may or may not exist. [`StoreError::Replaced`]: it does
    /// not exist in this store.
    pub(super) async fn create(
        &self,
        name: &Path,
        bytes: &Bytes,
        patience: Patience,
        sends: &AtomicU64,
    ) -> Result<Created, StoreError> {
        self.create_telling(name, bytes, patience, sends, |_| {})
            .await
    }

    /// The same; each failed step is told to `trouble` before it is tried again.
    pub(super) async fn create_telling(
        &self,
        name: &Path,
        bytes: &Bytes,
        patience: Patience,
        sends: &AtomicU64,
        mut trouble: impl FnMut(&StoreError) + Send,
    ) -> Result<Created, StoreError> {
        let mut resolution = Resolution::new(self.disk.is_some());
        let mut tries_left = patience;
        let mut late = LateAnswers::default();
        let mut next = Next::SendAgain;
        let mut foreign = Bytes::new();
        let mut repeats = Repeats::default();
        let (mut exists, mut taken_yet_absent) = (false, 0_u32);
        let clock = || tokio::time::Instant::now().into_std();
        loop {
            next = match next {
                Next::SendAgain if late.are_too_many() => {
                    trouble(&late.error(name));
                    tries_left.spend(|| late.error(name))?;
                    tokio::time::sleep(RETRY_PAUSE).await;
                    Next::ReadBack
                }
                Next::SendAgain => {
                    sends.fetch_add(1, Ordering::Relaxed);
                    let (sent, error) = self.send(name, bytes, &mut late).await;
                    if let Some(error) = error {
                        self.note_trouble();
                        trouble(&error);
                        let told = error.with_causes();
                        tries_left.spend(|| error)?;
                        if let Some(so_far) = repeats.handle_trouble(clock()) {
                            tracing::warn!(%name, error = told, failing_seconds = so_far.as_secs(), "create failed; it will be tried again");
                        }
                        tokio::time::sleep(RETRY_PAUSE).await;
                    }
                    exists = sent == Sent::Exists;
                    resolution.handle_sent(sent)
                }
                Next::ReadBack => {
                    let (found, read) = self.read_back(name, bytes).await;
                    match read {
                        Ok(other) => foreign = other,
                        Err(error) => {
                            trouble(&error);
                            tries_left.spend(|| error)?;
                            tokio::time::sleep(RETRY_PAUSE).await;
                        }
                    }
                    // An absent object after "exists" is sent again at once, but not in a tight loop.
                    if found == Found::Absent {
                        taken_yet_absent = if exists {
                            taken_yet_absent.saturating_add(1)
                        } else {
                            0
                        };
                        tokio::task::yield_now().await;
                    }
                    if taken_yet_absent > TAKEN_YET_ABSENT_MAX {
                        let error = StoreError::Obstructed {
                            name: name.to_string(),
                        };
                        trouble(&error);
                        if let Some(so_far) = repeats.handle_trouble(clock()) {
                            tracing::warn!(%name, error = error.with_causes(), to_do = error.to_do(), failing_seconds = so_far.as_secs(), "an object's name is taken by something else; nothing is skipped, and it will be tried again");
                        }
                        tries_left.spend(|| error)?;
                        tokio::time::sleep(RETRY_PAUSE).await;
                    }
                    resolution.handle_found(found)
                }
                Next::SyncThenDurable => {
                    // If we stop here, the object may vanish with the power: nothing was counted yet.
                    if let Some(disk) = &self.disk
                        && let Err(source) = disk.sync_anew(name).await
                    {
                        return Ok(Created::Poisoned(Some(source)));
                    }
                    // A late answer may hide the failed fsync of an earlier try, which ours then would not see.
                    if late.any_failed() {
                        Next::Poisoned
                    } else {
                        Next::Durable
                    }
                }
                Next::Durable => {
                    // If we stop here: it is durable where it was written, which may be no place of this store.
                    self.still_there().await?;
                    if let Some(lasted) = repeats.lasted(clock()) {
                        tracing::info!(%name, failed_seconds = lasted.as_secs(), "create got through");
                    }
                    return Ok(Created::Durable);
                }
                Next::Fenced => return Ok(Created::Different(foreign)),
                Next::Poisoned => return Ok(Created::Poisoned(None)),
            };
        }
    }

    /// Reads a whole small object; `None` when it is absent.
    pub(super) async fn read(&self, name: &Path) -> Result<Option<Bytes>, StoreError> {
        let read = async { self.store.get(name).await?.bytes().await };
        match tokio::time::timeout(ANSWER_TIMEOUT, read).await {
            Ok(Ok(bytes)) => Ok(Some(bytes)),
            Ok(Err(object_store::Error::NotFound { .. })) => Ok(None),
            Ok(Err(source)) => Err(StoreError::Object {
                step: "read",
                name: name.to_string(),
                source,
            }),
            Err(_) => Err(StoreError::Unanswered {
                step: "read",
                name: name.to_string(),
            }),
        }
    }

    /// Reads the frames that stand at a span.
    pub(super) async fn read_span(&self, span: &Span) -> Result<Bytes, StoreError> {
        let name = &span.object.name;
        let range = u64::from(span.bytes.start)..u64::from(span.bytes.end);
        match tokio::time::timeout(ANSWER_TIMEOUT, self.store.get_range(name, range)).await {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(source)) => Err(StoreError::Object {
                step: "read",
                name: name.to_string(),
                source,
            }),
            Err(_) => Err(StoreError::Unanswered {
                step: "read",
                name: name.to_string(),
            }),
        }
    }

    async fn send(
        &self,
        name: &Path,
        bytes: &Bytes,
        late: &mut LateAnswers,
    ) -> (Sent, Option<StoreError>) {
        let store = Arc::clone(&self.store);
        let (to, payload) = (name.clone(), bytes.clone());
        let options = PutOptions {
            mode: PutMode::Create,
            ..PutOptions::default()
        };
        let put = async move { store.put_opts(&to, payload.into(), options).await };
        let answer = if self.disk.is_some() {
            // A disk cannot be told to stop: keep the answer for when it comes.
            let mut task = tokio::spawn(put);
            match tokio::time::timeout(CREATE_TIMEOUT, &mut task).await {
                Ok(Ok(answer)) => Some(answer),
                Ok(Err(source)) => Some(Err(object_store::Error::JoinError { source })),
                Err(_) => {
                    late.0.push(task);
                    None
                }
            }
        } else {
            tokio::time::timeout(CREATE_TIMEOUT, put).await.ok()
        };
        match answer {
            Some(Ok(_)) => (Sent::Created, None),
            Some(Err(
                object_store::Error::AlreadyExists { .. }
                | object_store::Error::Precondition { .. },
            )) => (Sent::Exists, None),
            Some(Err(source)) => {
                let name = name.to_string();
                (
                    Sent::Failed,
                    Some(StoreError::Object {
                        step: "create",
                        name,
                        source,
                    }),
                )
            }
            None => (
                Sent::Unanswered,
                Some(StoreError::Unanswered {
                    step: "create",
                    name: name.to_string(),
                }),
            ),
        }
    }

    async fn read_back(&self, name: &Path, ours: &Bytes) -> (Found, Result<Bytes, StoreError>) {
        match self.read(name).await {
            Ok(Some(found)) if found == *ours => (Found::Same, Ok(found)),
            Ok(Some(found)) => (Found::Different, Ok(found)),
            Ok(None) => (Found::Absent, Ok(Bytes::new())),
            Err(error) => (Found::Unreadable, Err(error)),
        }
    }
}

impl Patience {
    fn spend(&mut self, error: impl FnOnce() -> StoreError) -> Result<(), StoreError> {
        match self {
            Self::Endless => Ok(()),
            Self::Tries(0 | 1) => Err(error()),
            Self::Tries(left) => {
                *left = left.saturating_sub(1);
                Ok(())
            }
        }
    }
}

/// Creates on a local disk that were not answered in time and go on in their threads.
#[derive(Default)]
struct LateAnswers(Vec<JoinHandle<object_store::Result<PutResult>>>);

impl LateAnswers {
    fn are_too_many(&self) -> bool {
        self.0.iter().filter(|task| !task.is_finished()).count() >= UNANSWERED_MAX
    }

    fn any_failed(&mut self) -> bool {
        let answered = self.0.iter_mut().filter_map(FutureExt::now_or_never);
        answered
            .filter(|answer| {
                !matches!(
                    answer,
                    Ok(Ok(_) | Err(object_store::Error::AlreadyExists { .. }))
                )
            })
            .count()
            > 0
    }

    fn error(&self, name: &Path) -> StoreError {
        StoreError::Unanswered {
            step: "create",
            name: name.to_string(),
        }
    }
}
