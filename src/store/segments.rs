//! The stream of one recording on its way into segments: cut at 16 MiB between two lines, and at gaps.
//!
//! Invariant: each segment that is handed out stands in the store, durable, and its digests are those of the bytes that
//! were written; memory held is one part of a segment. Called by `writer.rs` and `cut.rs`.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStoreExt};

use super::create::{Created, Patience};
use super::error::StoreError;
use super::{Shared, layout, reader};
use crate::asciicast::parser::Parser;
use crate::ids::{AttemptId, RecordingId};
use crate::recording::hash::{ResumableSha256, Sha256};
use crate::recording::manifest::{Gap, Segment};
use crate::recording::records::OpenRecord;
use crate::recording::seal::{BlockDigests, BlockHasher};

/// In how many parts a whole segment is put: what is held in memory is one of them, 8 MiB of 16, above the 5 MiB that S3 wants.
const PARTS: u64 = 2;
/// How long one part, or the end of a multipart upload, may take.
const PART_TIMEOUT: Duration = Duration::from_secs(60);
/// How often one create of a seal is tried within an attempt.
pub(super) const CREATE_TRIES: u32 = 5;

/// How far a recording has been written, and what was learned on the way.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// The plain offset behind the last byte that was taken.
    pub(super) offset: u64,
    pub(super) plain: ResumableSha256,
    pub(super) parser: Parser,
    pub(super) segments: Vec<Segment>,
    pub(super) gaps: Vec<Gap>,
}

/// Whose segments these are: what their names are made of.
#[derive(Debug, Clone, Copy)]
pub(super) struct SegmentOwner<'a> {
    pub(super) id: RecordingId,
    pub(super) opening: &'a OpenRecord,
    pub(super) attempt: AttemptId,
}

/// Writes the segments of one attempt.
pub(super) struct SegmentsWriter<'a> {
    shared: &'a Shared,
    owner: SegmentOwner<'a>,
    pub(super) progress: Progress,
    /// The index of the first segment of this attempt: behind those of earlier cuts.
    first_index: usize,
    /// Stop behind the first segment, for a cut.
    only_one: bool,
    current: Option<Current>,
}

struct Current {
    name: Path,
    plain_offset: u64,
    blocks: BlockHasher,
    /// `None` for a segment that begins where the stream's hash does: its bytes are the stream's so far, and hashed as that already.
    whole: Option<Sha256>,
    stored_bytes: u64,
    held: Vec<u8>,
    part_bytes: usize,
    upload: Option<Box<dyn MultipartUpload>>,
}

impl<'a> SegmentsWriter<'a> {
    pub(super) fn new(shared: &'a Shared, owner: SegmentOwner<'a>, progress: Progress) -> Self {
        Self {
            shared,
            owner,
            progress,
            first_index: 0,
            only_one: false,
            current: None,
        }
    }

    /// The same behind so many segments of earlier cuts.
    pub(super) fn behind(self, first_index: usize) -> Self {
        Self {
            first_index,
            ..self
        }
    }

    /// The same, but it takes nothing behind the end of its first segment.
    pub(super) fn for_one_segment(self) -> Self {
        Self {
            only_one: true,
            ..self
        }
    }

    /// Whether the one segment of a cut has ended.
    pub(super) fn is_cut(&self) -> bool {
        self.only_one && !self.progress.segments.is_empty()
    }

    /// Takes the next bytes of the stream; `expected` bytes stand before the next gap or the end, these included.
    pub(super) async fn write(&mut self, bytes: &[u8], expected: u64) -> Result<(), StoreError> {
        let mut rest = bytes;
        while !rest.is_empty() && !self.is_cut() {
            let left = expected.saturating_sub(length(bytes).saturating_sub(length(rest)));
            let (piece, behind) = self.piece_of(rest);
            rest = behind;
            self.take(piece, left).await?;
            if self.is_full() && self.progress.parser.is_between_lines() {
                self.end_segment().await?;
            }
        }
        Ok(())
    }

    /// Bytes are lost here: the segment ends, and the next begins behind the gap. `None`: nobody knows how many.
    pub(super) async fn skip(&mut self, bytes: Option<u64>) -> Result<(), StoreError> {
        self.end_segment().await?;
        self.progress.parser.handle_gap();
        self.progress.gaps.push(Gap {
            offset: self.progress.offset,
            bytes,
        });
        self.progress.offset = self.progress.offset.saturating_add(bytes.unwrap_or(0));
        Ok(())
    }

    /// Ends the last segment. A recording has one at least, if an empty one.
    pub(super) async fn finish(mut self) -> Result<Progress, StoreError> {
        if self.current.is_none() && self.progress.segments.is_empty() && self.first_index == 0 {
            // All of it is a gap, or there was nothing: the empty segment stands at the start.
            self.current = Some(self.begin(0, 0).await?);
        }
        self.end_segment().await?;
        Ok(self.progress)
    }

    /// Ends the segment under way: when this returns, it is durable and was read back.
    pub(super) async fn end_segment(&mut self) -> Result<(), StoreError> {
        let Some(mut current) = self.current.take() else {
            return Ok(());
        };
        current.finish(self.shared).await?;
        let blocks = current.blocks.finish();
        // If we stop here: the segment is an orphan that nothing refers to; the journal still has the bytes.
        verify(self.shared, self.owner.id, &current.name, &blocks).await?;
        self.shared.objects.still_there().await?;
        let whole = current.whole.map(Sha256::finalize);
        let written = blocks.with_whole(whole.unwrap_or_else(|| self.progress.plain.finalize()));
        self.progress.segments.push(Segment {
            name: current.name.to_string(),
            plain_offset: current.plain_offset,
            plain_bytes: written.stored_bytes,
            stored_bytes: written.stored_bytes,
            sha256: written.sha256,
            blocks: written.blocks,
            root: written.root,
        });
        Ok(())
    }

    fn is_full(&self) -> bool {
        let full = self.shared.config.segment_bytes;
        self.current
            .as_ref()
            .is_some_and(|current| current.stored_bytes >= full)
    }

    /// What of `bytes` goes next: up to the limit, and from there to the end of a line.
    fn piece_of<'b>(&self, bytes: &'b [u8]) -> (&'b [u8], &'b [u8]) {
        let stored = self
            .current
            .as_ref()
            .map_or(0, |current| current.stored_bytes);
        let room = usize::try_from(self.shared.config.segment_bytes.saturating_sub(stored))
            .unwrap_or(usize::MAX);
        let until = if room > 0 {
            room
        } else {
            let newline = bytes.iter().position(|byte| *byte == b'\n');
            newline.map_or(bytes.len(), |at| at.saturating_add(1))
        };
        bytes.split_at_checked(until).unwrap_or((bytes, &[]))
    }

    async fn take(&mut self, piece: &[u8], left: u64) -> Result<(), StoreError> {
        if self.current.is_none() {
            self.current = Some(self.begin(self.progress.offset, left).await?);
        }
        let Some(current) = &mut self.current else {
            return Ok(());
        };
        current.blocks.update(piece);
        if let Some(whole) = &mut current.whole {
            whole.update(piece);
        }
        current.stored_bytes = current.stored_bytes.saturating_add(length(piece));
        current.hold(piece).await?;
        self.progress.plain.update(piece);
        self.progress.parser.handle_bytes(piece);
        self.progress.offset = self.progress.offset.saturating_add(length(piece));
        Ok(())
    }

    /// `expected` bytes are to come at most: few of them go in one create.
    async fn begin(&mut self, plain_offset: u64, expected: u64) -> Result<Current, StoreError> {
        let owner = self.owner;
        let index = self
            .first_index
            .saturating_add(self.progress.segments.len());
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        let name = layout::segment(
            &owner.opening.uploader.stable_id,
            owner.opening.received_at,
            &owner.id,
            &owner.attempt,
            index,
        );
        let part_bytes = self.shared.config.segment_bytes / PARTS;
        let upload = if expected <= part_bytes {
            None
        } else {
            // A multipart upload cannot say "if absent"; the attempt in the name is what keeps it apart from others.
            let begun = self.shared.objects.store().put_multipart(&name);
            let begun = answered("begin", &name, begun).await;
            Some(begun.inspect_err(|_| self.shared.objects.note_trouble())?)
        };
        Ok(Current {
            name,
            plain_offset,
            blocks: BlockHasher::default(),
            whole: (!self.progress.plain.is_empty()).then(Sha256::default),
            stored_bytes: 0,
            held: Vec::new(),
            part_bytes: usize::try_from(part_bytes).unwrap_or(usize::MAX).max(1),
            upload,
        })
    }
}

impl Current {
    async fn hold(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.held.extend_from_slice(bytes);
        while let Some(upload) = &mut self.upload
            && self.held.len() >= self.part_bytes
        {
            let rest = self.held.split_off(self.part_bytes);
            let part = std::mem::replace(&mut self.held, rest);
            answered("write a part of", &self.name, upload.put_part(part.into())).await?;
        }
        Ok(())
    }

    async fn finish(&mut self, shared: &Shared) -> Result<(), StoreError> {
        let held = std::mem::take(&mut self.held);
        let Some(mut upload) = self.upload.take() else {
            let bytes = Bytes::from(held);
            let sends = AtomicU64::new(0);
            let patience = Patience::Tries(CREATE_TRIES);
            return match shared
                .objects
                .create(&self.name, &bytes, patience, &sends)
                .await?
            {
                Created::Durable => Ok(()),
                Created::Different(_) => Err(StoreError::ForeignObject {
                    name: self.name.to_string(),
                }),
                Created::Poisoned(source) => Err(StoreError::SyncFailed {
                    name: self.name.to_string(),
                    source,
                }),
            };
        };
        if !held.is_empty() {
            answered("write a part of", &self.name, upload.put_part(held.into())).await?;
        }
        // On a local disk this fsyncs the file and its directory before it answers.
        answered("complete", &self.name, upload.complete())
            .await
            .inspect_err(|_| shared.objects.note_trouble())
            .map(drop)
    }
}

/// Reads a segment back and proves it, then brings it and its directories to the disk.
async fn verify(
    shared: &Shared,
    id: RecordingId,
    name: &Path,
    written: &BlockDigests,
) -> Result<(), StoreError> {
    // The whole's own digest would prove nothing more: blocks and length fix every byte that it is made of.
    if reader::blocks_of(shared, name).await? != *written {
        return Err(StoreError::Mismatch {
            recording: id,
            what: "the stored segment",
        });
    }
    // The manifest goes into the same directory, so its own create need not answer for those above.
    shared.objects.sync(name).await
}

async fn answered<T>(
    step: &'static str,
    name: &Path,
    answer: impl Future<Output = object_store::Result<T>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(PART_TIMEOUT, answer).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(StoreError::Object {
            step,
            name: name.to_string(),
            source,
        }),
        Err(_) => Err(StoreError::Unanswered {
            step,
            name: name.to_string(),
        }),
    }
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}
