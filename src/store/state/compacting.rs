//! Compaction between two commits: planned, read, taken along; and who keeps it from moving a recording.
//!
//! Invariant: one plan is under way at a time; nothing of a recording moves while somebody reads it. Pure. Called by the
//! journal, and by the sealer, which reads, through [`State`].

use std::ops::Range;
use std::time::Instant;

use super::{Move, SealBasis, State, moves};
use crate::ids::RecordingId;
use crate::store::ledger::Reason;

/// Where compaction is.
#[derive(Debug, Default)]
pub(super) enum Compacting {
    #[default]
    Idle,
    /// The frames are being read; whether the object that takes them waits for its time.
    Reading { at_once: bool },
    /// They go with the next object.
    Ready { moves: Vec<Move>, at_once: bool },
    /// They are in the object in flight.
    Committing,
}

impl State {
    /// The moves that still are what they were when they were planned; the others are given up.
    pub(super) fn take_moves(&mut self) -> Vec<Move> {
        let Compacting::Ready { moves, .. } = &mut self.compacting else {
            return Vec::new();
        };
        let mut moves = std::mem::take(moves);
        self.compacting = Compacting::Idle;
        moves.retain(|one| self.can_move(one).is_some());
        if !moves.is_empty() {
            self.compacting = Compacting::Committing;
        }
        moves
    }

    /// Where the spans of a move stand, if they may be moved.
    pub(super) fn can_move(&self, one: &Move) -> Option<Range<usize>> {
        let entry = self.recordings.get(&one.id)?;
        // A failed recording is sealed from where it is: its epoch is over, or it ended.
        (entry.is_alive() && entry.pins == 0)
            .then(|| entry.find_run(&one.spans))
            .flatten()
    }

    /// What compaction is to read now, if anything; [`State::handle_moves_read`] answers it.
    pub(in crate::store) fn plan_compaction(
        &mut self,
        epoch_index: u64,
        now: Instant,
    ) -> Vec<Move> {
        if !matches!(self.compacting, Compacting::Idle) {
            return Vec::new();
        }
        let mut planned = Vec::new();
        let mut at_once = false;
        if let Some(reason) = self.ledger.look(now, &self.limits) {
            let (entries, ledger) = (&self.recordings, &self.ledger);
            let plan = moves::plan_oldest(entries, ledger, epoch_index, reason, &self.limits);
            if plan.events_stand_in_the_way && reason == Reason::Ratio {
                self.events.roll_all();
            }
            planned = plan.moves;
            // The bound on the journal is not to wait for the interval, whose PUTs it does not add to otherwise.
            at_once = reason == Reason::Ratio;
        }
        if planned.is_empty() {
            let credit = self.ledger.credit();
            let mut crowded = self.crowded_spans.iter();
            planned.extend(
                crowded
                    .find_map(|id| moves::plan_merge(&self.recordings, *id, credit, &self.limits)),
            );
        }
        if !planned.is_empty() {
            self.compacting = Compacting::Reading { at_once };
        }
        planned
    }

    /// The frames of the planned moves were read; none when they could not be.
    pub(in crate::store) fn handle_moves_read(&mut self, moves: Vec<Move>) {
        let Compacting::Reading { at_once } = std::mem::take(&mut self.compacting) else {
            return;
        };
        if !moves.is_empty() {
            self.compacting = Compacting::Ready { moves, at_once };
        }
    }

    /// What there is of a recording. Its objects stay where they are until it is sealed or [`State::unpin`] is called as often.
    pub(in crate::store) fn seal_basis(&mut self, id: RecordingId) -> Option<SealBasis> {
        let entry = self.recordings.get_mut(&id)?;
        entry.pins = entry.pins.saturating_add(1);
        Some(SealBasis {
            spans: entry.spans.clone(),
            durable: entry.durable.borrow().clone(),
        })
    }

    /// One reader less: without any, compaction may move the recording.
    pub(in crate::store) fn unpin(&mut self, id: RecordingId) {
        if let Some(entry) = self.recordings.get_mut(&id) {
            entry.pins = entry.pins.saturating_sub(1);
        }
    }
}
