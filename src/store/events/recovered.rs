//! What dead epochs left of events: where their lines stand, and the rolling of them.
//!
//! Invariant: memory held is some 64 bytes an event, and the lines of one object to be; whatever the journal holds. No event is stored
//! twice, however often, and by however many, this is done. Called by recovery.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::ops::Range;
use std::sync::Arc;

use object_store::path::Path;

use super::super::Shared;
use super::super::error::StoreError;
use super::super::event::{self, EventRecord, LineHead};
use super::super::state::{ObjectPlace, Span};
use super::loss::{self, LongLine};
use super::rolling::{NamedLine, ROLL_BYTES, foreign, ids_in, roll_lines};
use crate::ids::EventId;
use crate::recording::frame::Frame;

/// Lines that stand as near to one another in an object are read at once: what is read between them costs less than a request.
const SKIPPED_BYTES_MAX: u32 = 16 * 1024;

/// The events in the journal of one dead epoch.
#[derive(Debug, Default)]
pub(in crate::store) struct EventIndex {
    /// Where lines stand that a frame holds, by uploader, in the order in which the objects were read.
    lines: BTreeMap<String, Vec<EventAt>>,
    /// Lines that are objects of their own.
    long: Vec<LongLine>,
    /// Objects that marks name.
    marked: BTreeSet<String>,
    wrong: Option<StoreError>,
}

/// Where an event stands.
#[derive(Debug)]
struct EventAt {
    id: EventId,
    plain_bytes: u32,
    span: Span,
}

impl EventIndex {
    /// Takes a frame of kind `event`, which stands at `bytes` of its object. The frames of one object come in their order.
    pub(in crate::store) fn handle_frame(
        &mut self,
        place: &Arc<ObjectPlace>,
        frame: &Frame<'_>,
        bytes: Range<u32>,
    ) {
        let plain = frame.plain().map_err(|source| StoreError::ReadBack {
            recording: frame.recording,
            name: place.name.to_string(),
            source,
        });
        match plain.and_then(|plain| event::read_record(&plain)) {
            Ok(EventRecord::Rolled(rolled)) => self.marked.extend(rolled.objects),
            Ok(EventRecord::Line(LineHead {
                id,
                received,
                uploader,
                object: Some(object),
                bytes,
                sha256,
            })) => self.long.push(LongLine {
                id,
                received,
                uploader: uploader.stable_id,
                object,
                bytes,
                sha256,
            }),
            Ok(EventRecord::Line(head)) => {
                let object = Arc::clone(place);
                let lines = self.lines.entry(head.uploader.stable_id).or_default();
                lines.push(EventAt {
                    id: head.id,
                    plain_bytes: frame.plain_bytes(),
                    span: Span { object, bytes },
                });
            }
            Err(error) => self.wrong = Some(error),
        }
    }
}

/// What came of the events of dead epochs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::store) struct RecoveredEvents {
    /// Events that stood in the journal and in no object.
    pub(in crate::store) rolled: u64,
    /// Events that an object held already.
    pub(in crate::store) found: u64,
    /// Events whose line was an object of its own, which is lost or damaged.
    pub(in crate::store) lost: u64,
    /// The most bytes of lines that were held at once.
    pub(in crate::store) held_bytes_most: u64,
}

/// Rolls what dead epochs left: `epochs` are the events of each, oldest epoch first. May be called again with the same events, also
/// by two at once: no event is stored twice.
///
/// All dead epochs of one recorder go into one call: a mark, and an object that has none yet, may be of a later epoch than the
/// first of the events that it is about. Each epoch is rolled into objects of its own, and the newest is to be closed first:
/// whoever comes when only older ones are left then meets, under the first event of each, the object that holds it.
///
/// # Errors
/// Any [`StoreError`] of a create or a read: the frames are still needed. [`StoreError::EventLine`] when one of them is no
/// event, after all others were rolled.
pub(in crate::store) async fn roll_recovered(
    shared: &Shared,
    epochs: Vec<EventIndex>,
) -> Result<RecoveredEvents, StoreError> {
    let mut recovered = RecoveredEvents::default();
    let mut done = BTreeSet::new();
    for name in epochs.iter().flat_map(|epoch| &epoch.marked) {
        let name = Path::from(name.as_str());
        match shared.objects.read(&name).await? {
            Some(object) => done.extend(ids_in(&object).ok_or_else(|| foreign(&name))?),
            // What a mark names was durable before it; what the journal still has of it is rolled anew.
            None => tracing::error!(%name, "an object of events that the journal names is lost"),
        }
    }
    let mut seen = BTreeSet::new();
    let mut wrong = None;
    for mut epoch in epochs {
        wrong = wrong.or(epoch.wrong.take());
        for line in &epoch.long {
            let lost = loss::declare_if_lost(shared, line).await?;
            recovered.lost = recovered.lost.saturating_add(lost.into());
        }
        for (uploader, mut lines) in epoch.lines {
            // Objects were read from the newest down; within an object the order is right.
            lines.sort_by_key(|line| line.span.object.number);
            lines.retain(|line| seen.insert(line.id));
            roll_uploader(shared, &uploader, lines, &mut done, &mut recovered).await?;
        }
    }
    // If we stop here: everything is in objects; the dead journals may be trimmed.
    wrong.map_or(Ok(recovered), Err)
}

/// Rolls what one uploader has in one epoch, one object at a time.
async fn roll_uploader(
    shared: &Shared,
    uploader: &str,
    mut rest: Vec<EventAt>,
    done: &mut BTreeSet<EventId>,
    recovered: &mut RecoveredEvents,
) -> Result<(), StoreError> {
    let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    loop {
        let before = rest.len();
        rest.retain(|line| !done.contains(&line.id));
        let found = before.saturating_sub(rest.len());
        recovered.found = recovered.found.saturating_add(number(found));
        let part = take_part(&mut rest);
        if part.is_empty() {
            return Ok(());
        }
        let lines = read_lines(shared, &part).await?;
        let held = lines.iter().map(NamedLine::bytes_len).sum();
        recovered.held_bytes_most = recovered.held_bytes_most.max(number(held));
        // If we stop here, or within: the events stand in the dead journal still; the next recovery meets the objects.
        roll_lines(shared, uploader, lines, done).await?;
        recovered.rolled = recovered.rolled.saturating_add(number(part.len()));
    }
}

/// Takes the lines off `rest` that one object holds: as many as are not more than 8 MiB, at least one if there is any.
fn take_part(rest: &mut Vec<EventAt>) -> Vec<EventAt> {
    let mut bytes = 0_usize;
    let fits = rest.iter().take_while(|line| {
        let line_bytes = usize::try_from(line.plain_bytes).unwrap_or(usize::MAX);
        let is_first = bytes == 0;
        bytes = bytes.saturating_add(line_bytes);
        is_first || bytes <= ROLL_BYTES
    });
    let count = fits.count();
    let behind = rest.split_off(count);
    mem::replace(rest, behind)
}

/// Reads the lines of `part` back from the journal.
async fn read_lines(shared: &Shared, part: &[EventAt]) -> Result<Vec<NamedLine>, StoreError> {
    let mut lines = Vec::with_capacity(part.len());
    let are_near = |one: &EventAt, next: &EventAt| {
        let (one, next) = (&one.span, &next.span);
        let skipped = next.bytes.start.checked_sub(one.bytes.end);
        Arc::ptr_eq(&one.object, &next.object)
            && skipped.is_some_and(|skipped| skipped <= SKIPPED_BYTES_MAX)
    };
    for run in part.chunk_by(are_near) {
        let (Some(first), Some(last)) = (run.first(), run.last()) else {
            continue;
        };
        let start = first.span.bytes.start;
        let whole = Span {
            object: Arc::clone(&first.span.object),
            bytes: start..last.span.bytes.end,
        };
        let frames = shared.objects.read_span(&whole).await?;
        for line in run {
            let from = line.span.bytes.start.saturating_sub(start);
            let from = usize::try_from(from).unwrap_or(usize::MAX);
            let frame = frames.get(from..).unwrap_or_default();
            lines.push(NamedLine::of_frame(frame, &whole.object.name)?);
        }
    }
    Ok(lines)
}
