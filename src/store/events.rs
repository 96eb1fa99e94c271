//! Events made durable, and rolled into one object per uploader and hour.
//!
//! Invariant: an event is acknowledged when its line is committed, and its frame is needed until the object that it was rolled
//! into was read back and a mark that names the object is committed. The order, and what is true if we stop at each
//! step, is written in [`record`] and [`roll_lines`]. Called by [`super::Store`], which records and rolls, and by
//! recovery, which rolls what a dead epoch left.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use jiff::Timestamp;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::create::{Created, Patience};
use super::error::StoreError;
use super::event::{self, Event, EventRecord, LineHead};
use super::state::{EventFrame, RollOrder, Then};
use super::{Shared, layout};
use crate::ids::{EventId, RecordingId};
use crate::recording::frame::{FRAME_PLAIN_BYTES_MAX, Frame, FrameError, FrameKind};
use crate::recording::seal::HexDigest;

/// Above this, reading a body through takes long enough to be worth a thread of its own.
const LINE_INLINE_BYTES_MAX: usize = 64 * 1024;
/// How often the create of an object is tried before its roll, or its event, is given up for now.
const CREATE_TRIES: u32 = 5;
/// What one object of events holds at most, but for one line that is longer.
const ROLL_BYTES: usize = 8 * 1024 * 1024;

/// Commits an event; when this returns its id, it is durable.
pub(super) async fn record(shared: &Arc<Shared>, event: Event) -> Result<EventId, StoreError> {
    shared.state().admit()?;
    let bytes_max = shared.config.events_in_flight_bytes_max;
    if event.body.len() > bytes_max {
        return Err(StoreError::EventTooLarge {
            bytes: event.body.len(),
            bytes_max,
        });
    }
    let mut health = shared.state().health();
    let storing = store(shared, event);
    tokio::select! {
        biased;
        stored = storing => stored,
        // The sender has no time-out of its own. What was taken may be committed all the same, when the store is back.
        ended = health.wait_for(|health| health.ends_running().is_some()) => {
            let why = ended.ok().and_then(|health| health.ends_running().map(Arc::clone));
            Err(not_stored(why.unwrap_or_else(|| Arc::new(StoreError::Closed))))
        }
    }
}

async fn store(shared: &Arc<Shared>, event: Event) -> Result<EventId, StoreError> {
    let held = room(shared, event.body.len()).await?;
    let received_ms = u64::try_from(event.received_at.as_millisecond()).unwrap_or_default();
    let id = shared.draw(|rng| EventId::random(received_ms, rng));
    let event = Arc::new(event);
    let line = line(id, Arc::clone(&event)).await?;
    let (bytes, then) = if line.len() <= FRAME_PLAIN_BYTES_MAX {
        let uploader = event.uploader.stable_id.as_str().into();
        (line, Then::Keep { uploader })
    } else {
        (store_long(shared, id, &event, line).await?, Then::Nothing)
    };
    // If we stop here: the event is not acknowledged. A long one has its object all the same; nothing names it.
    let (sender, committed) = oneshot::channel();
    shared.state().events.push(EventFrame {
        bytes,
        then,
        committed: Some(sender),
        _held: held,
    });
    shared.wake_committer.notify_one();
    // If we stop here: the frame is committed or not; the sender was not told.
    match committed.await {
        Ok(Ok(())) => Ok(id),
        Ok(Err(why)) => Err(not_stored(why)),
        Err(_) => Err(not_stored(Arc::new(StoreError::Closed))),
    }
}

/// Waits until so many bytes of events may be in flight.
async fn room(shared: &Shared, bytes: usize) -> Result<Option<OwnedSemaphorePermit>, StoreError> {
    let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
    let space = Arc::clone(&shared.event_space);
    let permit = space.acquire_many_owned(permits).await;
    permit.map(Some).map_err(|_| StoreError::Closed)
}

async fn line(id: EventId, event: Arc<Event>) -> Result<Bytes, StoreError> {
    if event.body.len() <= LINE_INLINE_BYTES_MAX {
        return event::line_of(id, &event);
    }
    tokio::task::spawn_blocking(move || event::line_of(id, &event))
        .await
        .map_err(|_| StoreError::TaskLost)?
}

/// A line that no frame can hold becomes an object first; the frame names it.
async fn store_long(
    shared: &Shared,
    id: EventId,
    event: &Event,
    line: Bytes,
) -> Result<Bytes, StoreError> {
    let name = layout::events(&event.uploader.stable_id, event.received_at, &id);
    let sends = AtomicU64::new(0);
    let patience = Patience::Tries(CREATE_TRIES);
    let created = shared.objects.create(&name, &line, patience, &sends);
    let created = tokio::time::timeout(shared.config.store_stall_limit, created).await;
    match created {
        Ok(created) => match created? {
            Created::Durable => shared.objects.sync(&name).await?,
            Created::Different(_) => return Err(foreign(&name)),
            Created::Poisoned(source) => {
                return Err(StoreError::SyncFailed {
                    name: name.to_string(),
                    source,
                });
            }
        },
        Err(_) => {
            return Err(StoreError::Unanswered {
                step: "create",
                name: name.to_string(),
            });
        }
    }
    let bytes = u64::try_from(line.len()).unwrap_or(u64::MAX);
    let digest = HexDigest(Sha256::digest(&line).into());
    event::long_line_of(id, event, name.as_ref(), bytes, digest)
}

/// Rolls what is due, until the store is gone.
pub(super) async fn run_roller(shared: Arc<Shared>) {
    loop {
        let woken = shared.wake_roller.notified();
        let now = tokio::time::Instant::now().into_std();
        let (orders, next) = {
            let mut state = shared.state();
            let orders = state.events.take_due(now);
            (orders, state.events.next_due(now))
        };
        let any = !orders.is_empty();
        for order in orders {
            let uploader = Arc::clone(&order.uploader);
            if let Err(error) = roll(&shared, order).await {
                tracing::warn!(
                    error = error.with_causes(),
                    "events could not be rolled yet; they stay in the journal"
                );
                let now = tokio::time::Instant::now().into_std();
                let mut state = shared.state();
                state.events.handle_roll_failed(&uploader, now);
                state.note_roll_failed();
            }
        }
        match next {
            // What failed is due again, and so may be what came meanwhile.
            _ if any => {}
            None => woken.await,
            Some(due) => {
                tokio::select! {
                    () = tokio::time::sleep_until(due.into()) => {}
                    () = woken => {}
                }
            }
        }
    }
}

/// Rolls every journalled event, and returns when the journal needs none of them.
pub(super) async fn drain(shared: &Shared) {
    loop {
        let settled = shared.events_settled.notified();
        {
            let mut state = shared.state();
            if state.events.is_drained() || state.has_ended() {
                return;
            }
            state.events.roll_all();
        }
        shared.wake_roller.notify_one();
        settled.await;
    }
}

async fn roll(shared: &Shared, order: RollOrder) -> Result<(), StoreError> {
    let mut lines = Vec::with_capacity(order.spans.len());
    for span in &order.spans {
        let frame = shared.objects.read_span(span).await?;
        let wrong = |source| StoreError::ReadBack {
            recording: RecordingId::from_bytes([0; RecordingId::BYTES]),
            name: span.object.name.to_string(),
            source,
        };
        let (frame, _) = Frame::decode(&frame).map_err(wrong)?;
        if frame.kind != FrameKind::Event {
            return Err(wrong(FrameError::Malformed("kind")));
        }
        let line = Bytes::from(frame.plain().map_err(wrong)?.into_owned());
        lines.push(NamedLine::read(line)?);
    }
    // If we stop here: nothing happened.
    let count = lines.len();
    let objects = roll_lines(shared, &order.uploader, lines, &mut BTreeSet::new()).await?;
    // If we stop here: the events stand in the object and in the journal, without a mark. Recovery rolls them again,
    // beginning with the same first event: it meets the object and keeps what is in it.
    shared.state().events.push(EventFrame {
        bytes: event::mark_of(&objects, count)?,
        then: Then::Release {
            uploader: order.uploader,
            count,
        },
        committed: None,
        _held: None,
    });
    shared.wake_committer.notify_one();
    // If we stop here: as above, or the mark is committed and recovery leaves the events alone.
    Ok(())
}

/// A line with what its name and its place among others depend on.
struct NamedLine {
    id: EventId,
    received: Timestamp,
    bytes: Bytes,
}

impl NamedLine {
    fn read(bytes: Bytes) -> Result<Self, StoreError> {
        match event::read_record(&bytes)? {
            EventRecord::Line(LineHead { id, received, .. }) => Ok(Self {
                id,
                received,
                bytes,
            }),
            EventRecord::Rolled(rolled) => Err(StoreError::ForeignObject {
                name: rolled.objects.concat(),
            }),
        }
    }
}

/// Makes the lines of one uploader durable in objects of at most 8 MiB (or one line), each named by its first line. Where
/// such an object exists, what it holds stays there and is added to `met`, and the rest goes on under its own first. Returns
/// their names.
async fn roll_lines(
    shared: &Shared,
    uploader: &str,
    lines: Vec<NamedLine>,
    met: &mut BTreeSet<EventId>,
) -> Result<Vec<Path>, StoreError> {
    let mut rest = lines;
    let mut names = Vec::new();
    while let Some(first) = rest.first() {
        let name = layout::events(uploader, first.received, &first.id);
        let mut bytes = Vec::new();
        let mut taken = 0_usize;
        for line in &rest {
            if taken > 0 && bytes.len().saturating_add(line.bytes.len()) > ROLL_BYTES {
                break;
            }
            bytes.extend_from_slice(&line.bytes);
            taken = taken.saturating_add(1);
        }
        let bytes = Bytes::from(bytes);
        let sends = AtomicU64::new(0);
        let patience = Patience::Tries(CREATE_TRIES);
        match shared
            .objects
            .create(&name, &bytes, patience, &sends)
            .await?
        {
            Created::Durable => {
                // If we stop here: the object is durable, perhaps without the directories above it; the journal has its events.
                shared.objects.sync(&name).await?;
                if shared.objects.read(&name).await?.as_ref() != Some(&bytes) {
                    return Err(foreign(&name));
                }
                rest.drain(..taken);
            }
            Created::Different(present) => {
                // An earlier roll, of this process or of one that died, made it of some of these events.
                let there = ids_in(&present).ok_or_else(|| foreign(&name))?;
                if !there.contains(&first.id) {
                    return Err(foreign(&name));
                }
                // Its maker may have died between the link and the fsync of the directory.
                shared.objects.sync(&name).await?;
                rest.retain(|line| !there.contains(&line.id));
                met.extend(there);
            }
            Created::Poisoned(source) => {
                // Nothing says that it is on the disk, and a second fsync would not tell. The journal has the events, so
                // it goes, and the next roll writes it anew.
                if let Err(error) = shared.objects.store().delete(&name).await {
                    tracing::warn!(%name, %error, "a doubtful object of events stays");
                }
                return Err(StoreError::SyncFailed {
                    name: name.to_string(),
                    source,
                });
            }
        }
        names.push(name);
    }
    Ok(names)
}

/// What came of the events of dead epochs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct RecoveredEvents {
    /// Events that stood in the journal and in no object.
    pub(super) rolled: u64,
    /// Events that an object held already.
    pub(super) found: u64,
}

/// Rolls what dead epochs left: `epochs` are the plain bytes of all frames of kind `event` of each, oldest epoch first, in the order
/// of the journal, marks among them. May be called again with the same frames, also by two at once: no event is stored twice.
///
/// All dead epochs of one recorder go into one call: a mark, and an object that has none yet, may be of a later epoch than the
/// first of the events that it is about. Each epoch is rolled into objects of its own, and the newest is to be closed first:
/// whoever comes when only older ones are left then meets, under the first event of each, the object that holds it.
///
/// # Errors
/// Any [`StoreError`] of a create or a read: the frames are still needed. [`StoreError::EventLine`] when one of them is no
/// event, after all others were rolled.
pub(super) async fn roll_recovered(
    shared: &Shared,
    epochs: Vec<Vec<Bytes>>,
) -> Result<RecoveredEvents, StoreError> {
    let mut marked = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut wrong = None;
    let mut lines_of_epochs = Vec::new();
    for frames in epochs {
        let mut lines = BTreeMap::<String, Vec<NamedLine>>::new();
        for frame in frames {
            match event::read_record(&frame) {
                Ok(EventRecord::Rolled(rolled)) => marked.extend(rolled.objects),
                // Its line is an object already, which was durable before the frame was sent.
                Ok(EventRecord::Line(head)) if head.object.is_some() => {}
                Ok(EventRecord::Line(head)) => {
                    if seen.insert(head.id) {
                        let named = NamedLine {
                            id: head.id,
                            received: head.received,
                            bytes: frame,
                        };
                        lines
                            .entry(head.uploader.stable_id)
                            .or_default()
                            .push(named);
                    }
                }
                Err(error) => wrong = Some(error),
            }
        }
        lines_of_epochs.push(lines);
    }
    // If we stop here: nothing happened.
    let mut done = BTreeSet::new();
    for name in marked {
        let name = Path::from(name);
        // What a mark names was durable before it; gone since, its events are rolled anew rather than lost.
        if let Some(object) = shared.objects.read(&name).await? {
            done.extend(ids_in(&object).ok_or_else(|| foreign(&name))?);
        }
    }
    let mut recovered = RecoveredEvents::default();
    for (uploader, mut lines) in lines_of_epochs.into_iter().flatten() {
        let all = lines.len();
        lines.retain(|line| !done.contains(&line.id));
        let rolled = lines.len();
        // If we stop here, or within: the events stand in the dead journal still; the next recovery meets the objects.
        roll_lines(shared, &uploader, lines, &mut done).await?;
        let number = |count: usize| u64::try_from(count).unwrap_or_default();
        recovered.rolled = recovered.rolled.saturating_add(number(rolled));
        recovered.found = recovered
            .found
            .saturating_add(number(all.saturating_sub(rolled)));
    }
    // If we stop here: everything is in objects; the dead journals may be trimmed.
    wrong.map_or(Ok(recovered), Err)
}

/// The ids of the lines in an object of events; `None` when it is something else.
fn ids_in(object: &[u8]) -> Option<BTreeSet<EventId>> {
    let lines = object.strip_suffix(b"\n")?.split(|byte| *byte == b'\n');
    lines
        .map(|line| match event::read_record(line) {
            Ok(EventRecord::Line(head)) => Some(head.id),
            Ok(EventRecord::Rolled(_)) | Err(_) => None,
        })
        .collect()
}

fn foreign(name: &Path) -> StoreError {
    StoreError::ForeignObject {
        name: name.to_string(),
    }
}

fn not_stored(source: Arc<StoreError>) -> StoreError {
    StoreError::EventNotStored { source }
}
