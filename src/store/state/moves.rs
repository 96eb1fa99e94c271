//! What compaction copies: spans of the oldest objects, and long runs of small spans.
//!
//! Invariant: a move is a run of spans that stand side by side in the order of their recording's stream, so that one span
//! can take their place; nothing of a recording that somebody reads is moved, and no event is: it is rolled. Pure.
//! Called by `state.rs`.

use std::collections::{BTreeMap, BTreeSet};

use super::{Entry, Span};
use crate::ids::RecordingId;
use crate::store::ledger::{CompactionLimits, Ledger, ObjectKey, Reason};

/// A merge takes at least as many spans as this part of the most that a recording may have: else it would pay off too little.
const MERGE_PART: usize = 4;

/// Frames of one recording that are copied into the next object.
#[derive(Debug, Clone)]
pub(in crate::store) struct Move {
    pub(in crate::store) id: RecordingId,
    /// Where they stand now, in the order of the stream.
    pub(in crate::store) spans: Vec<Span>,
    /// The frames, verbatim; empty until they were read.
    pub(in crate::store) frames: Vec<u8>,
    pub(in crate::store) frame_count: u32,
}

/// What the oldest objects of an epoch come to.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) moves: Vec<Move>,
    /// Journalled events stand in the way: they are to be rolled.
    pub(super) events_stand_in_the_way: bool,
}

type Entries = BTreeMap<RecordingId, Entry>;

/// The live frames of the oldest objects, within `budget` bytes.
pub(super) fn plan_oldest(
    entries: &Entries,
    ledger: &Ledger,
    epoch_index: u64,
    reason: Reason,
    limits: &CompactionLimits,
) -> Plan {
    let mut plan = Plan::default();
    let mut taken = BTreeMap::<RecordingId, BTreeSet<usize>>::new();
    let (mut won_bytes, mut cost_bytes, mut objects) = (0_u64, 0_u64, 0_u32);
    let objects_max = usize::try_from(limits.objects).unwrap_or(usize::MAX);
    if reason == Reason::Due {
        // Most looks end here, and cost no walk through the recordings.
        let sums = ledger.oldest(epoch_index).take(objects_max).fold(
            (0_u64, 0_u64),
            |(all, held), (_, bytes, held_bytes, _, _)| {
                (all.saturating_add(bytes), held.saturating_add(held_bytes))
            },
        );
        if sums.0 < sums.1.saturating_mul(2) {
            return plan;
        }
    }
    'objects: for (key, bytes, _, events, owners) in ledger.oldest(epoch_index).take(objects_max) {
        if events > 0 {
            plan.events_stand_in_the_way = true;
            break;
        }
        let mut owned = owners.iter().filter_map(|id| Some((id, entries.get(id)?)));
        if owned
            .clone()
            .any(|(_, entry)| entry.pins > 0 && holds(entry, key))
        {
            break;
        }
        for (id, entry) in &mut owned {
            let spans = entry.spans.iter().enumerate();
            for (place, span) in spans.filter(|(_, span)| span.object.key() == key) {
                let cost = cost_bytes.saturating_add(span.bytes_len());
                // One span that is larger by itself goes alone.
                let fits = cost <= limits.copy_bytes_max || cost_bytes == 0;
                if !fits || cost > ledger.credit() {
                    break 'objects;
                }
                cost_bytes = cost;
                taken.entry(*id).or_default().insert(place);
            }
        }
        won_bytes = won_bytes.saturating_add(bytes);
        objects = objects.saturating_add(1);
    }
    let pays = match reason {
        Reason::Ratio => true,
        Reason::Due => objects > 1 && won_bytes >= cost_bytes.saturating_mul(2),
    };
    if pays {
        let moved = taken.into_iter();
        plan.moves = moved
            .flat_map(|(id, places)| runs(entries, id, &places))
            .collect();
    }
    plan
}

/// The newest spans of a recording that has too many, as far back as each is no larger than all behind it together: a
/// byte is merged again only when what is behind it has doubled.
pub(super) fn plan_merge(
    entries: &Entries,
    id: RecordingId,
    credit: u64,
    limits: &CompactionLimits,
) -> Option<Move> {
    let entry = entries.get(&id).filter(|entry| entry.pins == 0)?;
    let least = limits.spans_max / MERGE_PART;
    let (mut count, mut bytes) = (0_usize, 0_u64);
    for span in entry.spans.iter().rev() {
        let with = bytes.saturating_add(span.bytes_len());
        if with > limits.copy_bytes_max || (count >= least && span.bytes_len() > bytes) {
            break;
        }
        bytes = with;
        count = count.saturating_add(1);
    }
    // The index must not grow for ever, so far beyond the limit it is merged on credit.
    let must = entry.spans.len() >= limits.spans_max.saturating_mul(2);
    if count < 2 || (bytes > credit && !must) {
        return None;
    }
    let start = entry.spans.len().saturating_sub(count);
    Some(Move {
        id,
        spans: entry.spans.get(start..)?.to_vec(),
        frames: Vec::new(),
        frame_count: 0,
    })
}

/// How many spans leave each object.
pub(super) fn count_by_object<'a>(
    moves: impl Iterator<Item = &'a Move>,
) -> BTreeMap<ObjectKey, u32> {
    let mut counts = BTreeMap::<ObjectKey, u32>::new();
    for span in moves.flat_map(|one| &one.spans) {
        let count = counts.entry(span.object.key()).or_default();
        *count = count.saturating_add(1);
    }
    counts
}

fn holds(entry: &Entry, key: ObjectKey) -> bool {
    entry.spans.iter().any(|span| span.object.key() == key)
}

/// Cuts the places of a recording's spans into runs without a gap.
fn runs(entries: &Entries, id: RecordingId, places: &BTreeSet<usize>) -> Vec<Move> {
    let mut moves = Vec::<Move>::new();
    let mut before = None;
    for place in places {
        let Some(span) = entries.get(&id).and_then(|entry| entry.spans.get(*place)) else {
            continue;
        };
        match moves.last_mut() {
            Some(last)
                if before.is_some_and(|before: usize| before.checked_add(1) == Some(*place)) =>
            {
                last.spans.push(span.clone());
            }
            Some(_) | None => moves.push(Move {
                id,
                spans: vec![span.clone()],
                frames: Vec::new(),
                frame_count: 0,
            }),
        }
        before = Some(*place);
    }
    moves
}
