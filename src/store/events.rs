//! Events made durable, and rolled into one object per uploader and hour.
//!
//! Invariant: an event is acknowledged when its line is committed, and its frame is needed until the object that it was rolled
//! into was read back and a mark that names the object is committed. The order, and what is true if we stop at each
//! step, is written in [`record`] and [`rolling::roll_lines`]. Called by [`super::Store`], which records and rolls, and by
//! recovery, which rolls what a dead epoch left.

mod loss;
mod recovered;
mod rolling;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::create::{Created, Patience};
use super::error::StoreError;
use super::event::{self, Event};
use super::state::{EventFrame, RollOrder, Then};
use super::trouble::{LastTrouble, Trouble};
use super::{Shared, layout};
use crate::ids::EventId;
use crate::recording::frame::FRAME_PLAIN_BYTES_MAX;
use crate::recording::seal::HexDigest;
pub(super) use loss::declare_lost_objects;
#[cfg(test)]
pub(super) use recovered::RecoveredEvents;
pub(super) use recovered::{EventIndex, roll_recovered};
use rolling::{NamedLine, foreign, roll_lines};

/// Above this, reading a body through takes long enough to be worth a thread of its own.
const LINE_INLINE_BYTES_MAX: usize = 64 * 1024;
/// How often the create of an object is tried before its roll, or its event, is given up for now.
const CREATE_TRIES: u32 = 5;

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
    // Whoever waits no longer still knows what was said before.
    let last = LastTrouble::default();
    let note = |trouble: &StoreError| last.note(trouble);
    let created = shared
        .objects
        .create_telling(&name, &line, patience, &sends, note);
    let created = tokio::time::timeout(shared.config.store_stall_limit, created).await;
    match created {
        Ok(Ok(Created::Durable)) => shared.objects.sync(&name).await?,
        Ok(Ok(Created::Different(_))) => return Err(foreign(&name)),
        Ok(Ok(Created::Poisoned(source))) => {
            return Err(StoreError::SyncFailed {
                name: name.to_string(),
                source,
            });
        }
        Ok(Err(error @ StoreError::Replaced { .. })) => return Err(error),
        Ok(Err(error)) => return Err(Trouble::of(&error).storing_event()),
        Err(_) => {
            let last = last.get().unwrap_or_else(Trouble::unanswered);
            return Err(last.storing_event());
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
                shared.roll_trouble.note(&error);
                tracing::warn!(
                    error = error.with_causes(),
                    "events could not be rolled yet; they stay in the journal"
                );
                let now = tokio::time::Instant::now().into_std();
                let mut state = shared.state();
                state.events.handle_roll_failed(&uploader, now);
                state.note_roll_failed();
            } else {
                shared.roll_trouble.clear();
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
        lines.push(NamedLine::of_frame(&frame, &span.object.name)?);
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

fn not_stored(source: Arc<StoreError>) -> StoreError {
    StoreError::EventNotStored { source }
}
