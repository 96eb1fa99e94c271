//! What can go wrong with the store: the peer's fault never, the operator's or the backend's.
//!
//! Invariant: no variant carries recorded bytes. Called by every file of the room.

use std::error::Error as _;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::ids::{JournalNumber, RecordingId, StoreId};
use crate::recording::compression::CompressionError;
use crate::recording::frame::FrameError;
use crate::recording::journal_object::ObjectError;
use crate::recording::manifest::ManifestError;
use crate::tell;

/// Why the store did not do what was asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Not `file:///absolute/path` or `memory://`.
    #[error("{url:?} is not a store: use file:///absolute/path or memory://")]
    UnsupportedUrl {
        /// What was given.
        url: String,
    },
    /// The operating system gave no randomness.
    #[error("draw randomness: {0}")]
    DrawRandomness(rand_core::Error),
    /// The directory cannot keep the promises: it does not take hard links or fsync.
    #[error("{step} in {} (file system: {file_system}): it cannot hold a store", .path.display())]
    UnfitFileSystem {
        /// What was tried.
        step: &'static str,
        /// Where.
        path: PathBuf,
        /// What kind of file system it is.
        file_system: String,
        /// What it said.
        #[source]
        source: std::io::Error,
    },
    /// Two creates of one object both succeeded: the backend overwrites silently.
    #[error(
        "the backend does not honour create-if-absent: {winners} of 2 concurrent creates won, a later one {later}"
    )]
    CreateIsNotExclusive {
        /// How many of two concurrent creates succeeded; one should.
        winners: usize,
        /// What became of a third.
        later: &'static str,
    },
    /// A listing did not show an object that had just been created: recovery would overlook what a crash has left.
    #[error(
        "the backend's listing does not show {name}, which was just created: recovery cannot find what a crash leaves"
    )]
    ListIsStale {
        /// The object.
        name: String,
    },
    /// An object could not be read, written or removed.
    #[error("{step} {name}")]
    Object {
        /// What was tried.
        step: &'static str,
        /// The object.
        name: String,
        /// What the backend said.
        #[source]
        source: object_store::Error,
    },
    /// An object was not answered for in time.
    #[error("{step} {name}: no answer in time")]
    Unanswered {
        /// What was tried.
        step: &'static str,
        /// The object.
        name: String,
    },
    /// A create says that the name is taken, and a read that nothing stands there, again and again.
    #[error(
        "{name} cannot be made or read: on a disk, a directory or a link to nothing stands under its name; move it away"
    )]
    Obstructed {
        /// The object.
        name: String,
    },
    /// An fsync failed: what the disk holds is unknown, and asking again would not tell.
    #[error("fsync of {name} failed")]
    SyncFailed {
        /// The object.
        name: String,
        /// What the disk said, where it is known.
        #[source]
        source: Option<std::io::Error>,
    },
    /// The directory of the store was moved, removed, or unmounted while the recorder ran: what is written to its name goes elsewhere.
    #[error("{} is no longer the directory that was opened", path.display())]
    Replaced {
        /// Its name.
        path: PathBuf,
    },
    /// Another recorder wrote our next journal number: it took over, and we may write no more.
    #[error("another recorder wrote journal object {number} of this epoch: fenced")]
    Fenced {
        /// The number that was lost.
        number: JournalNumber,
    },
    /// An object that must be one of ours is something else.
    #[error("{name} is not what this store wrote there")]
    ForeignObject {
        /// The object.
        name: String,
    },
    /// The store holds what recorders have written, and not the id under which they did.
    #[error("store/id is gone, but {name} stands in the store: {}", restore(named.as_ref()))]
    StoreIdLost {
        /// What stands there.
        name: String,
        /// The id that it names.
        named: Option<StoreId>,
    },
    /// What stands under the name of the store's id is none, and the store holds what recorders have written.
    #[error("store/id holds no id, and {name} stands in the store: {}", restore(named.as_ref()))]
    StoreIdDamaged {
        /// What stands there.
        name: String,
        /// The id that it names.
        named: Option<StoreId>,
    },
    /// An opener or a manifest says that it is of another store than the one it stands in.
    #[error(
        "store/id says {present}, but {name} says {named}: one of them was changed, or comes from another store"
    )]
    StoreIdDiffers {
        /// The id that stands in the store.
        present: StoreId,
        /// The opener or the manifest.
        name: String,
        /// The id that it names.
        named: StoreId,
    },
    /// A journal object could not be made or read.
    #[error("journal object {name}")]
    Journal {
        /// The object.
        name: String,
        /// Why.
        #[source]
        source: ObjectError,
    },
    /// A frame of a recording could not be read back.
    #[error("read recording {recording} back from {name}")]
    ReadBack {
        /// The recording.
        recording: RecordingId,
        /// The journal object.
        name: String,
        /// Why.
        #[source]
        source: FrameError,
    },
    /// What was read back or stored is not what was received.
    #[error("recording {recording}: {what} differs from what was received")]
    Mismatch {
        /// The recording.
        recording: RecordingId,
        /// What differs.
        what: &'static str,
    },
    /// A manifest could not be made or read.
    #[error("manifest {name}")]
    Manifest {
        /// The object.
        name: String,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// No manifest of that recording.
    #[error("recording {recording} is not in the store")]
    NotFound {
        /// The recording.
        recording: RecordingId,
    },
    /// Stored bytes are not those that the manifest names.
    #[error("{name}: block {block} is not what the manifest says")]
    BlockMismatch {
        /// The segment.
        name: String,
        /// Which block, from 0.
        block: usize,
    },
    /// A segment that a manifest names is not there.
    #[error("{name} is lost: the manifest names it, and it is not in the store")]
    SegmentLost {
        /// The segment.
        name: String,
    },
    /// The authenticated identity is too large to be journalled.
    #[error("the uploader's identity has {bytes} bytes as JSON")]
    OpeningTooLarge {
        /// Its size.
        bytes: usize,
    },
    /// What was learned of the person's node is too large to be journalled.
    #[error("the note about the person's node has {bytes} bytes as JSON")]
    NoteTooLarge {
        /// Its size.
        bytes: usize,
    },
    /// A record has no JSON form.
    #[error("write {what} as JSON")]
    Json {
        /// Which.
        what: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// There is nothing of ours to read: no recorder ever opened a store there.
    #[error("{url} holds no store")]
    NoStore {
        /// What was given.
        url: String,
    },
    /// As many recordings are open as one recorder takes.
    #[error("{limit} recordings are open: no more are taken")]
    TooManyRecordings {
        /// The limit.
        limit: usize,
    },
    /// The recording failed before; what was durable stays.
    #[error("recording {recording} failed")]
    RecordingFailed {
        /// The recording.
        recording: RecordingId,
        /// Why.
        #[source]
        source: Arc<Self>,
    },
    /// No commit got through for as long as uploads are kept waiting.
    #[error(
        "the store took nothing for {} s: {cause}; new recordings are refused until it is back, which is tried each second",
        stalled_for.as_secs()
    )]
    Stalled {
        /// How long nothing got through when it was said.
        stalled_for: Duration,
        /// What is wrong, with its remedy where it is known. Peers are told, so nothing of the recorder's host is in it.
        cause: String,
        /// What the backend said last beyond that, if anything: it may name files of the host.
        #[source]
        said: Option<Arc<dyn std::error::Error + Send + Sync>>,
    },
    /// The disk under a `file://` store has less room than is kept free.
    #[error(
        "the disk has {free_bytes} bytes free, fewer than disk_free_min = {free_bytes_min}: new recordings are refused; free some room or lower disk_free_min"
    )]
    DiskNearlyFull {
        /// What was free when it was looked at.
        free_bytes: u64,
        /// The limit.
        free_bytes_min: u64,
    },
    /// The journal holds more than it may.
    #[error(
        "the journal holds {bytes} bytes, more than journal_bytes_max = {bytes_max}: new recordings are refused; end long recordings, see why seals fail, or raise journal_bytes_max"
    )]
    JournalFull {
        /// What its objects have.
        bytes: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// An event is larger than all events together may be.
    #[error("the event has {bytes} bytes, the limit is {bytes_max}")]
    EventTooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// An event was not known to be durable when its sender had to be answered.
    #[error("the event is not known to be stored")]
    EventNotStored {
        /// Why.
        #[source]
        source: Arc<Self>,
    },
    /// The object of a long event could not be made.
    #[error("the event is not known to be stored: {cause}")]
    EventObject {
        /// What is wrong, with its remedy where it is known. The sender is told, so nothing of the recorder's host is in it.
        cause: String,
        /// What the backend said last, in full: it may name files of the host.
        #[source]
        said: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// An event line in the journal is not one.
    #[error("an event in the journal is not one")]
    EventLine(#[source] serde_json::Error),
    /// A disk could not be asked how much room it has.
    #[error("ask the disk below {} for its free room", .path.display())]
    DiskFree {
        /// Where.
        path: PathBuf,
        /// What it said.
        #[source]
        source: std::io::Error,
    },
    /// The compressor could not be made.
    #[error("prepare the journal")]
    Compress(#[source] CompressionError),
    /// A task of the store ended without an answer: the runtime is shutting down.
    #[error("the store's task ended without an answer")]
    TaskLost,
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// What was left to do when the store was closed was not done in time.
    #[error("close the store: {cause}")]
    CloseTimedOut {
        /// What is wrong, with its remedy where it is known.
        cause: String,
        /// What the backend said last, in full.
        #[source]
        said: Arc<dyn std::error::Error + Send + Sync>,
    },
}

impl StoreError {
    /// The same once more, for the refusals that everyone gets: an error is not cloned otherwise.
    pub(super) fn repeated(&self) -> Self {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "only these are said to everyone; a store that ended for any other reason is closed"
        )]
        match self {
            Self::Fenced { number } => Self::Fenced { number: *number },
            Self::Stalled {
                stalled_for,
                cause,
                said,
            } => Self::Stalled {
                stalled_for: *stalled_for,
                cause: cause.clone(),
                said: said.clone(),
            },
            Self::DiskNearlyFull {
                free_bytes,
                free_bytes_min,
            } => Self::DiskNearlyFull {
                free_bytes: *free_bytes,
                free_bytes_min: *free_bytes_min,
            },
            Self::JournalFull { bytes, bytes_max } => Self::JournalFull {
                bytes: *bytes,
                bytes_max: *bytes_max,
            },
            _ => Self::Closed,
        }
    }

    /// What is wrong and what an operator can do about it, where it is known; else the error's own words. Nothing of the host is in it.
    pub(super) fn remedy(&self) -> String {
        self.known_remedy()
            .map_or_else(|| self.to_string(), str::to_owned)
    }

    /// What is wrong and what to do about it, where the operating system has said so.
    fn known_remedy(&self) -> Option<&'static str> {
        let known = match self.io_kind() {
            Some(ErrorKind::StorageFull) => "no space is left (ENOSPC): free some room",
            Some(ErrorKind::QuotaExceeded) => {
                "the quota is used up (EDQUOT): raise it or free some room"
            }
            Some(ErrorKind::PermissionDenied) => {
                "access is denied (EACCES): give the recorder's user the right to write there"
            }
            Some(ErrorKind::ReadOnlyFilesystem) => {
                "the file system is read-only (EROFS): mount it writable and see why it was not"
            }
            _ => return None,
        };
        Some(known)
    }

    /// What the error and its causes say beyond [`Self::remedy`], so that nothing stands twice where both are told; empty when that says all.
    pub(super) fn beyond_remedy(&self) -> String {
        let told = self.with_causes();
        let (own, innermost) = (self.to_string(), self.innermost());
        let rest = match self.known_remedy() {
            // The remedy has the system's words for the innermost cause in words of its own.
            Some(_) => told.strip_suffix(innermost.trim_end()),
            None => told.strip_prefix(own.trim_end()),
        };
        let joint = |sign: char| sign == ':' || sign.is_whitespace();
        rest.unwrap_or(&told).trim_matches(joint).to_owned()
    }

    /// The words of the last cause.
    fn innermost(&self) -> String {
        let mut last: &dyn std::error::Error = self;
        while let Some(source) = last.source() {
            last = source;
        }
        last.to_string()
    }

    /// The same, for who uploads: what failed, and what an operator can do about it. Nothing of the host is in it.
    #[must_use]
    pub fn for_peers(&self) -> String {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "only these have more, or less, to say than their words and their remedy"
        )]
        match self {
            Self::RecordingFailed { source, .. } => source.for_peers(),
            Self::Stalled { .. }
            | Self::DiskNearlyFull { .. }
            | Self::JournalFull { .. }
            | Self::Obstructed { .. } => self.to_string(),
            // Its words name a directory of the host.
            Self::Replaced { .. } => format!("the store is not where it was; {}", self.to_do()),
            _ => match self.known_remedy() {
                Some(known) => format!("{self}: {known}"),
                None => format!("{self}; {}", self.to_do()),
            },
        }
    }

    /// What kind of trouble the operating system named, anywhere below.
    fn io_kind(&self) -> Option<ErrorKind> {
        let mut source = self.source();
        while let Some(cause) = source {
            if let Some(io) = cause.downcast_ref::<std::io::Error>() {
                // A library may wrap one io::Error into another, and only the innermost has the system's kind.
                let inner = io
                    .get_ref()
                    .and_then(|inner| inner.downcast_ref::<std::io::Error>());
                return Some(inner.unwrap_or(io).kind());
            }
            source = cause.source();
        }
        None
    }

    /// What an operator can do about it.
    #[must_use]
    pub fn to_do(&self) -> &'static str {
        match self {
            Self::UnsupportedUrl { .. } => "give file:///absolute/path, a directory, or memory://",
            Self::DrawRandomness(_) => "see why the kernel gives no randomness",
            Self::UnfitFileSystem { .. }
            | Self::Object { .. }
            | Self::DiskFree { .. }
            | Self::EventObject { .. } => {
                "look at its room and its permissions, or give another directory with --store (for dev: --data)"
            }
            Self::CreateIsNotExclusive { .. } | Self::ListIsStale { .. } => {
                "use another backend: this one would lose recordings"
            }
            Self::Unanswered { .. } | Self::Stalled { .. } | Self::CloseTimedOut { .. } => {
                "see why the backend does not answer: its load, its network, its mount. What was acked is safe"
            }
            Self::Obstructed { .. } => {
                "look at what stands under the name, ask who put it there, and move it away; it is tried again by itself"
            }
            Self::SyncFailed { .. } => "suspect the disk: look at the kernel's log",
            Self::Replaced { .. } => {
                "bring the directory back to its place (mount it, move it), then start again: what was acked is in it"
            }
            Self::Fenced { .. } => {
                "another recorder took over; start again to record under a new epoch"
            }
            Self::ForeignObject { .. }
            | Self::Journal { .. }
            | Self::ReadBack { .. }
            | Self::Mismatch { .. }
            | Self::Manifest { .. }
            | Self::BlockMismatch { .. }
            | Self::EventLine(_) => {
                "what is stored was changed or is damaged: restore it from a copy, or use the version that wrote it"
            }
            Self::SegmentLost { .. } => "restore the object that is named from a copy of the store",
            Self::StoreIdLost { .. } | Self::StoreIdDamaged { .. } => {
                "restore store/id from a backup, or write to it the id that the error names, and a newline; while it has none nothing is written"
            }
            Self::StoreIdDiffers { .. } => {
                "restore store/id from a backup, or write to it the id that the named object has, and a newline; if that object came from another store, move its directory back there"
            }
            Self::NotFound { .. } => {
                "look for its id with `tailtape ls`; a recording is listed once it has ended"
            }
            Self::NoStore { .. } => "give --store the URL or directory that the recorder has",
            Self::TooManyRecordings { .. } => "raise recordings_max, or start another recorder",
            Self::DiskNearlyFull { .. } => "free some room or lower disk_free_min",
            Self::JournalFull { .. } => {
                "end long recordings, see why seals fail, or raise journal_bytes_max"
            }
            Self::RecordingFailed { source, .. } | Self::EventNotStored { source } => {
                source.to_do()
            }
            Self::OpeningTooLarge { .. }
            | Self::NoteTooLarge { .. }
            | Self::EventTooLarge { .. }
            | Self::Json { .. }
            | Self::Compress(_) => "report it, with the log: tailtape did not expect this",
            Self::TaskLost | Self::Closed => {
                "look at the recorder's log for why its store had ended"
            }
        }
    }

    /// The error, its causes, and what an operator can do about it, on one line.
    pub(super) fn for_operators(&self) -> String {
        let to_do = self.known_remedy().unwrap_or_else(|| self.to_do());
        format!("{}; {to_do}", self.with_causes())
    }

    /// The error and its causes on one line: for a log, which shows an error's own words alone.
    #[must_use]
    pub fn with_causes(&self) -> String {
        tell::with_causes(self)
    }
}

fn restore(named: Option<&StoreId>) -> String {
    match named {
        Some(id) => format!("restore store/id from a backup, or write to it {id} and a newline"),
        None => "restore store/id from a backup".to_owned(),
    }
}

#[cfg(test)]
mod tests;
