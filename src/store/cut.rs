//! A cut: what a long recording has so far goes into a segment while it runs, and its journal bytes go.
//!
//! Invariant: journal bytes are released only after a cut record is committed that names, durably, segments which were read
//! back and hold the same bytes. Cuts follow size alone, never memory pressure; one per recording is in flight. The order, and
//! what is true if we stop at each step, is written in [`Cutter::cut`]. Called by `handle.rs`; `writer.rs` goes on from the last cut.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use object_store::path::Path;
use tokio_util::sync::CancellationToken;

use super::error::StoreError;
use super::segments::{Progress, SegmentOwner, SegmentsWriter};
use super::state::Span;
use super::writer::{self, Course};
use super::{Shared, reader};
use crate::asciicast::parser::{LINE_BYTES_MAX, Parser};
use crate::ids::{AttemptId, RecordingId, StreamOffset};
use crate::recording::frame::{FRAME_PLAIN_BYTES_MAX, FrameKind};
use crate::recording::hash::ResumableSha256;
use crate::recording::manifest::{Segment, SourceNode};
use crate::recording::records::{CUT_VERSION, CutRecord, CutSegment, OpenRecord};

/// So many durable bytes behind the last cut make the next one: a whole segment, and behind it the end of a line, or so much of
/// one that it is not read any more.
pub(super) fn cut_bytes(shared: &Shared) -> u64 {
    let line_bytes = u64::try_from(LINE_BYTES_MAX).unwrap_or(u64::MAX);
    let more = line_bytes.saturating_add(1);
    shared.config.segment_bytes.saturating_add(more)
}

/// What its handle, its cuts and its seal share of one recording.
#[derive(Debug, Clone, Default)]
pub(super) struct Learned(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    /// The last committed cut, if any.
    cut: Option<Arc<CutRecord>>,
    source_node: Option<SourceNode>,
}

impl Learned {
    pub(super) fn cut(&self) -> Option<Arc<CutRecord>> {
        self.known().cut.clone()
    }

    pub(super) fn source_node(&self) -> Option<SourceNode> {
        self.known().source_node.clone()
    }

    /// To be said before its frame is pushed: a cut that releases the frame then holds it.
    pub(super) fn set_source_node(&self, node: SourceNode) {
        self.known().source_node = Some(node);
    }

    fn set_cut(&self, record: CutRecord) {
        self.known().cut = Some(Arc::new(record));
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What cuts one recording.
#[derive(Clone)]
pub(super) struct Cutter {
    pub(super) shared: Arc<Shared>,
    pub(super) id: RecordingId,
    pub(super) opening: Arc<OpenRecord>,
    pub(super) learned: Learned,
    /// Cancelled when the upload ends: what is not committed is left to the seal.
    pub(super) ended: CancellationToken,
}

impl Cutter {
    /// Cuts as long as there is enough to cut.
    pub(super) async fn run(self) {
        loop {
            match self.cut().await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    // The bytes stay in the journal; the next append tries again, or the seal takes them.
                    tracing::warn!(recording = %self.id, error = error.with_causes(), "a cut came to nothing");
                    return;
                }
            }
        }
    }

    /// One cut; false when there is not enough to cut, or the upload has ended.
    async fn cut(&self) -> Result<bool, StoreError> {
        let prepared = self.ended.run_until_cancelled(self.prepare()).await;
        // Until the released spans are, compaction leaves them where they are.
        let Some((record, released, _pin)) = prepared.transpose()?.flatten() else {
            return Ok(false);
        };
        let offset = StreamOffset(record.offset);
        let bytes = serde_json::to_vec(&record).map_err(|source| StoreError::Json {
            what: "a cut",
            source,
        })?;
        if bytes.len() > FRAME_PLAIN_BYTES_MAX {
            // A header of a hundred KiB, or a recording of tens of GiB: sealed in one go at its end.
            self.ended.cancel();
            return Ok(false);
        }
        let pushed = self
            .shared
            .state()
            .push_record(self.id, FrameKind::Cut, offset, bytes);
        let Some(committed) = pushed else {
            return Ok(false);
        };
        self.shared.wake_committer.notify_one();
        // If we stop here: the cut is in the journal or it is not; either way all bytes are in the journal still.
        if committed.await.is_err() {
            return Ok(false);
        }
        // If we stop here: the cut is committed, recovery goes on from it; what it makes needless is trimmed by recovery.
        self.learned.set_cut(record);
        self.shared.state().release(self.id, &released);
        self.shared.count_cut();
        // If we stop here: the next commit says that the released objects are not needed, and then they go.
        self.shared.wake_committer.notify_one();
        Ok(true)
    }

    /// Writes the next segment; returns the record that would commit it, and the spans that it makes needless.
    async fn prepare(&self) -> Result<Option<(CutRecord, Vec<Span>, Pin<'_>)>, StoreError> {
        // Few at a time: each holds one part of a segment in memory.
        let turn = self.shared.cuts.acquire().await;
        let _turn = turn.map_err(|_| StoreError::TaskLost)?;
        let Some(basis) = self.shared.state().seal_basis(self.id) else {
            return Ok(None);
        };
        let pin = Pin {
            shared: &self.shared,
            id: self.id,
        };
        let last = self.learned.cut();
        let from = last.as_ref().map_or(0, |cut| cut.offset);
        if basis.durable.offset.0.saturating_sub(from) < cut_bytes(&self.shared) {
            return Ok(None);
        }
        let owner = SegmentOwner {
            id: self.id,
            opening: &self.opening,
            attempt: self.shared.draw(AttemptId::random),
        };
        let (progress, before) = resume(self.id, last.as_deref())?;
        let mut segments = SegmentsWriter::new(&self.shared, owner, progress)
            .behind(before.len())
            .for_one_segment();
        // If we stop here, or while the segment is written: it is an orphan; the journal has all of the bytes.
        let mut released = Vec::new();
        let mut course = Course::straight(from.saturating_add(cut_bytes(&self.shared)));
        for span in basis.spans {
            let copied =
                writer::copy_span(&self.shared, self.id, &span, &mut segments, &mut course);
            let end = copied.await?;
            if segments.is_cut() && end > segments.progress.offset {
                break;
            }
            released.push(span);
            if segments.is_cut() {
                break;
            }
        }
        let progress = &segments.progress;
        let (Some(written), Some(parser)) = (progress.segments.first(), progress.parser.save())
        else {
            return Ok(None);
        };
        let written = CutSegment {
            name: written.name.clone(),
            plain_offset: written.plain_offset,
            plain_bytes: written.plain_bytes,
            sha256: written.sha256,
        };
        let record = CutRecord {
            version: CUT_VERSION,
            offset: progress.offset,
            opening: OpenRecord::clone(&self.opening),
            source_node: self.learned.source_node(),
            segments: before.into_iter().chain([written]).collect(),
            cast: progress.plain.save(),
            parser,
        };
        Ok(Some((record, released, pin)))
    }
}

/// Compaction leaves the recording alone until this is dropped.
struct Pin<'a> {
    shared: &'a Shared,
    id: RecordingId,
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        self.shared.state().unpin(self.id);
    }
}

/// Where to go on behind a cut: what was learned so far, and the segments that are there.
pub(super) fn resume(
    id: RecordingId,
    cut: Option<&CutRecord>,
) -> Result<(Progress, Vec<CutSegment>), StoreError> {
    let Some(cut) = cut else {
        return Ok((Progress::default(), Vec::new()));
    };
    let parts = ResumableSha256::resume(&cut.cast).zip(Parser::resume(&cut.parser));
    let (plain, parser) = parts.ok_or(StoreError::Mismatch {
        recording: id,
        what: "the state in its cut",
    })?;
    let progress = Progress {
        offset: cut.offset,
        plain,
        parser,
        ..Progress::default()
    };
    Ok((progress, cut.segments.clone()))
}

/// Proves the segments that a cut names, and makes their block digests.
pub(super) async fn prove(
    shared: &Shared,
    id: RecordingId,
    segments: Vec<CutSegment>,
) -> Result<Vec<Segment>, StoreError> {
    let mut proven = Vec::with_capacity(segments.len());
    for segment in segments {
        let name = Path::from(segment.name.as_str());
        let found = reader::digests_of(shared, &name).await?;
        if found.sha256 != segment.sha256 || found.stored_bytes != segment.plain_bytes {
            return Err(StoreError::Mismatch {
                recording: id,
                what: "a segment that its cut names",
            });
        }
        shared.objects.sync_anew(&name).await?;
        proven.push(Segment {
            name: segment.name,
            plain_offset: segment.plain_offset,
            plain_bytes: segment.plain_bytes,
            stored_bytes: found.stored_bytes,
            sha256: found.sha256,
            blocks: found.blocks,
            root: found.root,
        });
    }
    Ok(proven)
}
