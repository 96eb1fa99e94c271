//! What ingest asks of a store, as a trait: begin a recording, append, learn what is durable, finish.
//!
//! Invariant: an offset seen through [`RecordingWriter::durable`] survives the loss of this process. The uploads of
//! [`record_v2`](super::record_v2) call it; the store implements it, tests use a double.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

/// Where recordings go. Clones share one store.
pub trait RecordingSink: Clone + Send + Sync + 'static {
    /// Writes one recording.
    type Writer: RecordingWriter;

    /// Opens a recording; quick, since the response head waits for it.
    ///
    /// # Errors
    /// When the store takes no new recordings: the uploader is refused and goes to the next recorder.
    fn begin(&self, opening: Opening) -> Result<Self::Writer, SinkError>;
}

/// One recording being written. Dropped without [`finish`](Self::finish) it is closed as incomplete.
pub trait RecordingWriter: Send + 'static {
    /// The recording's id, for logs.
    fn id(&self) -> String;

    /// Takes the next bytes; waits while this upload's share of the buffer is full. Dropping the future is safe: then either all
    /// of `bytes` were taken or none.
    fn append(&mut self, bytes: Bytes) -> impl Future<Output = Result<(), SinkError>> + Send;

    /// How much is durable, as it moves, and whether the store failed for good.
    fn durable(&self) -> watch::Receiver<Durable>;

    /// Seals the recording; everything appended is durable when this returns.
    fn finish(self, end: End) -> impl Future<Output = Result<Sealed, SinkError>> + Send;
}

/// What is known when an upload begins.
#[derive(Debug, Clone)]
pub struct Opening {
    /// The authenticated uploader.
    pub uploader: Identity,
    /// The path it posted to.
    pub endpoint: &'static str,
    /// Arrival of the request, wall clock of this recorder.
    pub received_at: jiff::Timestamp,
}

/// How far a recording is durable.
#[derive(Debug, Clone, Default)]
pub struct Durable {
    /// Everything below is durable.
    pub offset: StreamOffset,
    /// The store gave this recording up: nothing more becomes durable.
    pub failed: Option<Arc<SinkError>>,
}

/// How an upload ended, and what its content was.
#[derive(Debug, Clone)]
pub struct End {
    /// The request body ended with END_STREAM or its last chunk.
    pub clean: bool,
    /// Why it ended otherwise; empty when clean.
    pub reason: String,
    /// The end, wall clock of this recorder.
    pub ended_at: jiff::Timestamp,
    /// What the bytes said.
    pub facts: ContentFacts,
}

/// What the bytes of a recording said, as far as they were understood.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ContentFacts {
    /// Lines that are events.
    pub event_count: u64,
    /// The header as the uploader sent it.
    pub header: Option<serde_json::Value>,
    /// `not_asciicast`, `line_too_long`, `truncated_line`.
    pub flags: Vec<String>,
}

/// What was sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sealed {
    /// Length of the stored stream.
    pub bytes: u64,
}

/// A store's refusal or failure, in words for the uploader and the log.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct SinkError(pub String);

/// Number of bytes from the start of an uploaded stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamOffset(pub u64);

/// Who is at the other end, as the tailnet authenticated it.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Stable node id.
    pub stable_id: String,
    /// MagicDNS name.
    pub node_name: String,
    /// Owner, if the node is not tagged.
    pub user: Option<UserIdentity>,
    /// Tags of the node.
    pub tags: Vec<String>,
    /// Tailnet address that it came from.
    pub address: IpAddr,
    /// Capabilities that the policy grants it towards this node.
    pub capabilities: BTreeMap<String, Vec<serde_json::Value>>,
}

/// The person who owns a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserIdentity {
    /// User id.
    pub id: i64,
    /// Login name.
    pub login: String,
    /// Name for display.
    pub display_name: String,
}
