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
        entry.spans.retain(|kept| {
            let is_kept =
                |gone: &Span| !Arc::ptr_eq(&gone.object, &kept.object) || gone.bytes != kept.bytes;
            spans.iter().all(is_kept)
        });
        self.trim_due = true;
    }
}
