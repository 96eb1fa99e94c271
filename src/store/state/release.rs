//! What a cut makes needless, and who still has something in the journal.
//!
//! Invariant: only spans that a committed cut holds are released. Called by `cut.rs` and by recovery's sweep.

use std::sync::Arc;

use super::{Span, State};
use crate::ids::RecordingId;

impl State {
    /// Whether the recording is open or unsealed.
    pub(in crate::store) fn has_recording(&self, id: RecordingId) -> bool {
        self.recordings.contains_key(&id)
    }

    /// A committed cut holds what stood in these spans: they are needed no more.
    pub(in crate::store) fn release(&mut self, id: RecordingId, spans: &[Span]) {
        let Some(entry) = self.recordings.get_mut(&id) else {
            return;
        };
        let ledger = &mut self.ledger;
        entry.spans.retain(|kept| {
            let is_kept =
                |gone: &Span| !Arc::ptr_eq(&gone.object, &kept.object) || gone.bytes != kept.bytes;
            let stays = spans.iter().all(is_kept);
            if !stays {
                ledger.release(kept.object.key(), kept.bytes_len(), false);
            }
            stays
        });
        self.trim_due = true;
    }
}
