//! Which recordings are open: a wrapper around any sink.
//!
//! Invariant: a recording is on the roster from its begin until its writer is done or dropped; the wrapper never delays or fails an upload. The run
//! of `serve` wraps the store in it and shows it over the Unix socket.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::watch;

use crate::ids::RecordingId;
use crate::ingest::{RecordingSink, RecordingWriter};
use crate::status::{OpenRecording, UploadCounts};
use crate::store::{Durable, End, Opening, SealedRecording, StoreError};

/// What is open now, and what was. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Roster(Arc<Mutex<Book>>);

#[derive(Debug, Default)]
struct Book {
    open: BTreeMap<RecordingId, Line>,
    counts: UploadCounts,
}

#[derive(Debug)]
struct Line {
    stable_id: String,
    node: String,
    user: Option<String>,
    endpoint: &'static str,
    since: Timestamp,
    received_bytes: Arc<AtomicU64>,
    durable: watch::Receiver<Durable>,
}

/// A sink whose recordings are on a roster.
#[derive(Debug, Clone)]
pub(super) struct Listing<S> {
    inner: S,
    roster: Roster,
}

/// A writer of [`Listing`].
#[derive(Debug)]
pub(super) struct ListedWriter<W> {
    inner: W,
    received_bytes: Arc<AtomicU64>,
    place: Place,
}

/// A line on the roster; it goes when this does.
#[derive(Debug)]
struct Place {
    id: RecordingId,
    roster: Roster,
    sealed: bool,
}

impl Roster {
    /// A sink that passes everything on to `inner`.
    pub(super) fn listing<S>(&self, inner: S) -> Listing<S> {
        Listing {
            inner,
            roster: self.clone(),
        }
    }

    /// How many recordings are open.
    pub(super) fn open_count(&self) -> usize {
        self.book().open.len()
    }

    /// Uploads since the start.
    pub(super) fn counts(&self) -> UploadCounts {
        self.book().counts
    }

    /// The oldest recordings that are open, at most `max`.
    pub(super) fn oldest(&self, max: usize) -> Vec<OpenRecording> {
        let book = self.book();
        let mut lines: Vec<_> = book.open.iter().collect();
        lines.sort_by_key(|(_, line)| line.since);
        let shown = lines.into_iter().take(max).map(|(id, line)| OpenRecording {
            id: *id,
            node: line.node.clone(),
            stable_id: line.stable_id.clone(),
            user: line.user.clone(),
            endpoint: line.endpoint.to_owned(),
            since: line.since,
            received_bytes: line.received_bytes.load(Ordering::Relaxed),
            durable_bytes: line.durable.borrow().offset.0,
        });
        shown.collect()
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // The book is changed in whole steps, so a panic elsewhere leaves it true.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: RecordingSink> RecordingSink for Listing<S> {
    type Writer = ListedWriter<S::Writer>;

    fn begin(&self, opening: Opening) -> Result<Self::Writer, StoreError> {
        let uploader = &opening.uploader;
        let user = uploader.user.as_ref().map(|user| user.login.clone());
        let (stable_id, node) = (uploader.stable_id.clone(), uploader.node_name.clone());
        let (endpoint, since) = (opening.endpoint, opening.received_at);
        let begun = self.inner.begin(opening);
        let mut book = self.roster.book();
        let inner = match begun {
            Ok(inner) => inner,
            Err(error) => {
                book.counts.refused = book.counts.refused.saturating_add(1);
                return Err(error);
            }
        };
        book.counts.begun = book.counts.begun.saturating_add(1);
        let received_bytes = Arc::new(AtomicU64::new(0));
        let line = Line {
            stable_id,
            node,
            user,
            endpoint,
            since,
            received_bytes: Arc::clone(&received_bytes),
            durable: inner.durable(),
        };
        book.open.insert(inner.id(), line);
        let place = Place {
            id: inner.id(),
            roster: self.roster.clone(),
            sealed: false,
        };
        Ok(ListedWriter {
            inner,
            received_bytes,
            place,
        })
    }
}

impl<W: RecordingWriter> RecordingWriter for ListedWriter<W> {
    fn id(&self) -> RecordingId {
        self.inner.id()
    }

    async fn append(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        let count = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.received_bytes.fetch_add(count, Ordering::Relaxed);
        self.inner.append(bytes).await
    }

    fn durable(&self) -> watch::Receiver<Durable> {
        self.inner.durable()
    }

    async fn finish(self, end: End) -> Result<SealedRecording, StoreError> {
        let Self {
            inner, mut place, ..
        } = self;
        let sealed = inner.finish(end).await;
        place.sealed = sealed.is_ok();
        drop(place);
        sealed
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut book = self.roster.book();
        book.open.remove(&self.id);
        let counts = &mut book.counts;
        let count = match self.sealed {
            true => &mut counts.sealed,
            false => &mut counts.not_sealed,
        };
        *count = count.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::access::{Identity, UserIdentity};
    use crate::ids::LogKey;
    use crate::store::{ContentFacts, Store, StoreConfig, StoreUrl};

    fn opening(since: &str) -> Opening {
        Opening {
            uploader: Identity {
                stable_id: "nWeb".into(),
                node_name: "web.tail.test".into(),
                user: Some(UserIdentity {
                    id: 7,
                    login: "alice@example.com".into(),
                    display_name: "Alice".into(),
                }),
                tags: Vec::new(),
                address: "100.64.0.7".parse().unwrap(),
                capabilities: BTreeMap::new(),
            },
            endpoint: "/v2/record",
            received_at: since.parse().unwrap(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_recording_is_on_the_roster_from_its_begin_until_its_writer_is_done() {
        let key = LogKey::from_bytes([7; LogKey::BYTES]);
        let store = Store::open(StoreConfig::new(StoreUrl::Memory, key))
            .await
            .unwrap();
        let roster = Roster::default();
        let sink = roster.listing(store.clone());
        let mut first = sink.begin(opening("2026-11-20T10:00:00Z")).unwrap();
        let second = sink.begin(opening("2026-11-20T09:00:00Z")).unwrap();
        first
            .append(Bytes::from_static(b"12 bytes in "))
            .await
            .unwrap();
        let mut durable = first.durable();
        durable
            .wait_for(|durable| durable.offset.0 == 12)
            .await
            .unwrap();

        let open = roster.oldest(10);
        assert_eq!(open.len(), 2);
        assert_eq!((open[0].id, open[1].id), (second.id(), first.id()));
        assert_eq!((open[1].received_bytes, open[1].durable_bytes), (12, 12));
        assert_eq!(open[1].user.as_deref(), Some("alice@example.com"));
        assert_eq!(roster.oldest(1).len(), 1);

        let end = End {
            clean: true,
            reason: String::new(),
            ended_at: "2026-11-20T11:00:00Z".parse().unwrap(),
            facts: ContentFacts::default(),
        };
        first.finish(end).await.unwrap();
        drop(second);
        assert_eq!(roster.open_count(), 0);
        store.close().await.unwrap();
        assert!(sink.begin(opening("2026-11-20T12:00:00Z")).is_err());
        let expected = UploadCounts {
            begun: 2,
            refused: 1,
            sealed: 1,
            not_sealed: 1,
        };
        assert_eq!(roster.counts(), expected);
    }
}
