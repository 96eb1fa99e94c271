//! A store for tests: keeps recordings in memory and makes them durable, or not, as the test says.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use rand_core::SeedableRng;
use tokio::sync::watch;

use crate::ids::{EventId, RecordingId, StreamOffset};
use crate::ingest::{RecordingSink, RecordingWriter, SourceNode};
use crate::store::{Durable, End, Event, Opening, SealedRecording, StoreError, StoreHealth};

/// What the store does on its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Mood {
    /// Everything is durable at once.
    #[default]
    Prompt,
    /// Takes bytes; durable only when told, seals only when prompt again.
    Patient,
    /// Takes no byte; nothing resolves.
    Stalled,
    /// As prompt, but keeps no byte.
    Discarding,
    /// Refuses to begin.
    Refusing,
    /// Panics in `begin`.
    PanicsAtBegin,
    /// Panics in `append`.
    PanicsAtAppend,
}

#[derive(Debug)]
pub(super) struct Recorded {
    pub(super) opening: Opening,
    pub(super) bytes: Vec<u8>,
    pub(super) received: u64,
    pub(super) notes: Vec<SourceNode>,
    pub(super) largest_append: usize,
    pub(super) end: Option<End>,
    durable: watch::Sender<Durable>,
}

#[derive(Debug, Clone)]
pub(super) struct MemorySink {
    recordings: Arc<Mutex<Vec<Recorded>>>,
    events: Arc<Mutex<Vec<Event>>>,
    health: watch::Sender<StoreHealth>,
    mood: watch::Sender<Mood>,
    version: watch::Sender<u64>,
}

impl MemorySink {
    pub(super) fn new(mood: Mood) -> Self {
        Self {
            recordings: Arc::default(),
            events: Arc::default(),
            health: watch::Sender::default(),
            mood: watch::Sender::new(mood),
            version: watch::Sender::new(0),
        }
    }

    pub(super) fn become_(&self, mood: Mood) {
        self.mood.send_replace(mood);
    }

    /// Makes the first `bytes` of a recording durable.
    pub(super) fn commit(&self, index: usize, bytes: u64) {
        self.with(index, |recorded| {
            recorded
                .durable
                .send_modify(|durable| durable.offset = StreamOffset(bytes));
        });
    }

    /// Gives a recording up.
    pub(super) fn fail(&self, index: usize, reason: &str) {
        let error = Arc::new(broken(reason));
        self.with(index, |recorded| {
            recorded
                .durable
                .send_modify(|durable| durable.failed = Some(error));
        });
    }

    /// Says that nothing gets through.
    pub(super) fn stall(&self, reason: &str) {
        let health = StoreHealth::Stalled(Arc::new(broken(reason)));
        self.health.send_replace(health);
    }

    pub(super) fn say(&self, health: StoreHealth) {
        self.health.send_replace(health);
    }

    pub(super) fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap().clone()
    }

    pub(super) fn count(&self) -> usize {
        self.recordings.lock().unwrap().len()
    }

    pub(super) fn with<T>(&self, index: usize, look: impl FnOnce(&mut Recorded) -> T) -> T {
        let result = look(&mut self.recordings.lock().unwrap()[index]);
        self.version.send_modify(|version| *version += 1);
        result
    }

    pub(super) async fn until_received(&self, index: usize, bytes: usize) {
        self.until(|recordings| {
            let recorded = recordings.get(index)?;
            (recorded.bytes.len() >= bytes).then_some(())
        })
        .await;
    }

    pub(super) async fn until_ended(&self, index: usize) -> End {
        self.until(|recordings| recordings.get(index)?.end.clone())
            .await
    }

    /// Waits in virtual time, so that what never happens is a failure and not a hang.
    async fn until<T>(&self, look: impl Fn(&[Recorded]) -> Option<T>) -> T {
        let mut version = self.version.subscribe();
        let found = async {
            loop {
                let found = look(&self.recordings.lock().unwrap());
                if let Some(found) = found {
                    return found;
                }
                version.changed().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(3600), found)
            .await
            .unwrap()
    }
}

/// A store's error: `write <what>: no answer in time`.
pub(super) fn broken(what: &str) -> StoreError {
    StoreError::Unanswered {
        step: "write",
        name: what.to_owned(),
    }
}

impl RecordingSink for MemorySink {
    type Writer = MemoryWriter;

    fn begin(&self, opening: Opening) -> Result<MemoryWriter, StoreError> {
        let mood = *self.mood.borrow();
        assert!(mood != Mood::PanicsAtBegin, "asked to panic");
        if mood == Mood::Refusing {
            return Err(broken("disk full\n"));
        }
        let mut recordings = self.recordings.lock().unwrap();
        recordings.push(Recorded {
            opening,
            bytes: Vec::new(),
            received: 0,
            notes: Vec::new(),
            largest_append: 0,
            end: None,
            durable: watch::Sender::default(),
        });
        Ok(MemoryWriter {
            sink: self.clone(),
            index: recordings.len() - 1,
            mood: self.mood.subscribe(),
        })
    }

    fn health(&self) -> watch::Receiver<StoreHealth> {
        self.health.subscribe()
    }

    async fn record_event(&self, event: Event) -> Result<EventId, StoreError> {
        let mood = *self
            .mood
            .subscribe()
            .wait_for(|mood| *mood != Mood::Patient && *mood != Mood::Stalled)
            .await
            .unwrap();
        assert!(mood != Mood::PanicsAtBegin, "asked to panic");
        if mood == Mood::Refusing {
            return Err(broken("disk full\n"));
        }
        let mut events = self.events.lock().unwrap();
        events.push(event);
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(events.len() as u64);
        Ok(EventId::random(0, &mut rng))
    }
}

#[derive(Debug)]
pub(super) struct MemoryWriter {
    sink: MemorySink,
    index: usize,
    mood: watch::Receiver<Mood>,
}

impl RecordingWriter for MemoryWriter {
    fn id(&self) -> RecordingId {
        RecordingId::from_bytes([u8::try_from(self.index).unwrap(); RecordingId::BYTES])
    }

    async fn append(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        let mood = *self
            .mood
            .wait_for(|mood| *mood != Mood::Stalled)
            .await
            .unwrap();
        assert!(mood != Mood::PanicsAtAppend, "asked to panic");
        let length = self.sink.with(self.index, |recorded| {
            if mood != Mood::Discarding {
                recorded.bytes.extend_from_slice(&bytes);
            }
            recorded.largest_append = recorded.largest_append.max(bytes.len());
            recorded.received += bytes.len() as u64;
            recorded.received
        });
        if matches!(mood, Mood::Prompt | Mood::Discarding) {
            self.sink.commit(self.index, length);
        }
        Ok(())
    }

    fn note(&mut self, note: SourceNode) {
        self.sink
            .with(self.index, |recorded| recorded.notes.push(note));
    }

    fn durable(&self) -> watch::Receiver<Durable> {
        self.sink
            .with(self.index, |recorded| recorded.durable.subscribe())
    }

    async fn finish(mut self, end: End) -> Result<SealedRecording, StoreError> {
        self.mood
            .wait_for(|mood| *mood != Mood::Patient && *mood != Mood::Stalled)
            .await
            .unwrap();
        let bytes = self.sink.with(self.index, |recorded| {
            recorded.end = Some(end);
            recorded.received
        });
        Ok(SealedRecording {
            id: self.id(),
            manifest_name: "test.json".to_owned(),
            segment_names: Vec::new(),
            bytes,
            sha256: [0; 32],
        })
    }
}
