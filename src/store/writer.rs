//! Seals a recording: journal frames to segments, then the manifest.
//!
//! Invariant: the manifest's create is the one commit point; what it names was read back from the store and is what was
//! received; memory held is one part of a segment, whatever the recording's length. The order, and what is true if we
//! stop at each step, is written in [`attempt`]. Called by `handle.rs` when an upload ends, and by recovery.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use object_store::ObjectStoreExt;
use object_store::path::Path;

use super::create::{Created, Patience, RETRY_PAUSE};
use super::cut::{self, Learned};
use super::error::StoreError;
use super::handle::{End, SealedRecording};
use super::segments::{CREATE_TRIES, Progress, SegmentOwner, SegmentsWriter};
use super::state::Span;
use super::{Shared, Store, layout};
use crate::asciicast::parser::Facts;
use crate::ids::{AttemptId, RecordingId, StreamOffset};
use crate::recording::frame::{Frame, FrameError, FrameKind};
use crate::recording::manifest::{
    FLAG_COMPLETE, FLAG_GAPS, FLAG_INCOMPLETE, Format, Gap, MANIFEST_VERSION, Manifest, SourceNode,
};
use crate::recording::records::{CutRecord, OpenRecord};
use crate::recording::seal::HexDigest;

/// How many attempts a seal has before its uploader is told that it failed.
const SEAL_TRIES: u32 = 3;
/// How long a failed seal rests before it is tried again: at first, and at most.
const SEAL_PAUSE_MIN: Duration = Duration::from_secs(10);
const SEAL_PAUSE_MAX: Duration = Duration::from_secs(600);

/// What is to be sealed when an upload ends.
#[derive(Debug, Clone)]
pub(super) struct SealOrder {
    pub(super) id: RecordingId,
    pub(super) opening: Arc<OpenRecord>,
    pub(super) end: End,
    pub(super) received: Received,
    pub(super) learned: Learned,
}

/// What an uploader sent, as its close says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Received {
    pub(super) bytes: StreamOffset,
    pub(super) sha256: [u8; 32],
}

/// A recording as it stands in the journal, with all that its manifest is to say.
#[derive(Debug)]
pub(super) struct SealJob {
    pub(super) id: RecordingId,
    pub(super) opening: Arc<OpenRecord>,
    pub(super) end: End,
    /// Where its frames are, in the order of their offsets; some may stand twice, but then whole.
    pub(super) spans: Vec<Span>,
    /// Where what can be read ends, gaps included.
    pub(super) length: StreamOffset,
    /// What the uploader sent; not known when the upload had no end.
    pub(super) received: Option<Received>,
    /// The last committed cut, if any: the spans are needed from its offset on.
    pub(super) cut: Option<Arc<CutRecord>>,
    /// What is known to be lost, in order. Anything else that is missing is an error.
    pub(super) gaps: Vec<Gap>,
    pub(super) source_node: Option<SourceNode>,
}

/// What became of a seal.
#[derive(Debug)]
pub(super) enum Sealed {
    /// Ours is the manifest.
    Ours(SealedRecording),
    /// Somebody else's was there first.
    Theirs(SealedRecording),
}

impl Sealed {
    pub(super) fn into_recording(self) -> SealedRecording {
        match self {
            Self::Ours(sealed) | Self::Theirs(sealed) => sealed,
        }
    }
}

impl Store {
    /// Why the newest seal failed, on one line with its causes and what an operator can do, if none has succeeded since. Unset while a seal is
    /// only being tried again for an uploader that still waits for it.
    pub fn seal_failure(&self) -> Option<Arc<str>> {
        self.shared.state().seal_failure()
    }
}

/// Seals, with a new attempt after each failure. When this returns a recording, its manifest is durable. When it returns
/// an error, the bytes stay in the journal, and it is tried again in the background while the process lives.
pub(super) async fn seal(
    shared: &Arc<Shared>,
    order: SealOrder,
) -> Result<SealedRecording, StoreError> {
    // Seals wait for one another, not for ever: each is bounded by its tries and time-outs.
    let turn = shared
        .seals
        .acquire()
        .await
        .map_err(|_| StoreError::TaskLost)?;
    let job = job_of(shared, &order)?;
    let mut tries_left = SEAL_TRIES;
    loop {
        let result = attempt(shared, &job).await;
        tries_left = tries_left.saturating_sub(1);
        match result {
            Ok(sealed) => {
                forget(shared, order.id);
                return Ok(sealed.into_recording());
            }
            Err(error) if tries_left == 0 || is_final(&error) => {
                tracing::error!(recording = %order.id, error = error.with_causes(), "the seal failed; the bytes stay in the journal");
                shared.state().note_seal_failed(order.id, &error);
                drop(turn);
                if !is_final(&error) {
                    retry_later(shared, order);
                }
                return Err(error);
            }
            Err(error) => {
                tracing::warn!(recording = %order.id, error = error.with_causes(), "the seal failed; it will be tried again");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }
}

/// Trying again cannot help: what was read is not what was written.
fn is_final(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Mismatch { .. } | StoreError::RecordingFailed { .. }
    )
}

fn forget(shared: &Shared, id: RecordingId) {
    shared.state().forget_sealed(id);
    shared.wake_committer.notify_one();
}

/// Tries a failed seal again, ever more rarely, until it succeeds or the store is closed. One task per failed seal; their
/// number is that of the open recordings at most.
fn retry_later(shared: &Arc<Shared>, order: SealOrder) {
    let task_shared = Arc::clone(shared);
    let stop = shared.stop.clone();
    let retrying = async move {
        let mut pause = SEAL_PAUSE_MIN;
        loop {
            tokio::time::sleep(pause).await;
            pause = pause.saturating_mul(2).min(SEAL_PAUSE_MAX);
            let Ok(_turn) = task_shared.seals.acquire().await else {
                return;
            };
            let sealed = match job_of(&task_shared, &order) {
                Ok(job) => {
                    let sealed = attempt(&task_shared, &job).await;
                    if sealed.is_err() {
                        task_shared.state().unpin(order.id);
                    }
                    sealed
                }
                Err(error) => Err(error),
            };
            match sealed {
                Ok(_) => {
                    tracing::info!(recording = %order.id, "a seal that had failed succeeded");
                    return forget(&task_shared, order.id);
                }
                Err(error) if is_final(&error) => {
                    tracing::error!(recording = %order.id, error = error.with_causes(), "the seal is given up; the bytes stay in the journal");
                    return;
                }
                Err(error) => {
                    tracing::warn!(recording = %order.id, error = error.with_causes(), "the seal failed again");
                }
            }
        }
    };
    // If we stop here: the bytes are in the journal, and the next start recovers them.
    shared
        .runtime
        .spawn(stop.run_until_cancelled_owned(retrying));
}

fn job_of(shared: &Shared, order: &SealOrder) -> Result<SealJob, StoreError> {
    let basis = shared
        .state()
        .seal_basis(order.id)
        .ok_or(StoreError::NotFound {
            recording: order.id,
        })?;
    if let Some(failed) = &basis.durable.failed
        && matches!(**failed, StoreError::Fenced { .. })
    {
        // Who fenced us seals it; a second seal would only race.
        return Err(StoreError::RecordingFailed {
            recording: order.id,
            source: Arc::clone(failed),
        });
    }
    Ok(SealJob {
        id: order.id,
        opening: Arc::clone(&order.opening),
        end: order.end.clone(),
        spans: basis.spans,
        length: basis.durable.offset,
        received: Some(order.received),
        cut: order.learned.cut(),
        gaps: Vec::new(),
        source_node: order.learned.source_node(),
    })
}

/// One attempt to seal.
pub(super) async fn attempt(shared: &Shared, job: &SealJob) -> Result<Sealed, StoreError> {
    let attempt = shared.draw(AttemptId::random);
    let opening = &job.opening;
    let manifest_name = layout::manifest(&opening.uploader.stable_id, opening.received_at, &job.id);
    // If we stop here: every durable byte is in the journal, nothing else happened.
    let owner = SegmentOwner {
        id: job.id,
        opening,
        attempt,
    };
    let progress = write_segments(shared, job, owner).await?;
    // If we stop here: the segments are orphans that nothing refers to; the journal still has the bytes.
    let manifest = manifest_of(shared, job, progress)?;
    let bytes = manifest.encode().map_err(|source| StoreError::Manifest {
        name: manifest_name.to_string(),
        source,
    })?;
    let sends = AtomicU64::new(0);
    let created = shared
        .objects
        .create(
            &manifest_name,
            &bytes.into(),
            Patience::Tries(CREATE_TRIES),
            &sends,
        )
        .await?;
    // If we stop here, and it is durable: the recording is sealed; its journal objects are no longer needed and recovery
    // finds the manifest. If it is not, or not known to be: the segments must stay, for the manifest may name them.
    match created {
        Created::Durable => Ok(Sealed::Ours(sealed(&manifest_name, manifest))),
        Created::Poisoned(source) => Err(StoreError::SyncFailed {
            name: manifest_name.to_string(),
            source,
        }),
        Created::Different(present) => {
            let present = decode(&manifest_name, &present)?;
            let own = manifest
                .segments
                .iter()
                .map(|segment| Path::from(segment.name.as_str()));
            adopt(shared, job.id, &manifest_name, present, own.collect()).await
        }
    }
}

fn decode(name: &Path, bytes: &[u8]) -> Result<Manifest, StoreError> {
    Manifest::decode(bytes).map_err(|source| StoreError::Manifest {
        name: name.to_string(),
        source,
    })
}

/// Looks whether somebody sealed the recording already, and makes sure that it lasts.
pub(super) async fn adopt_if_sealed(
    shared: &Shared,
    id: RecordingId,
    manifest_name: &Path,
) -> Result<Option<SealedRecording>, StoreError> {
    let Some(bytes) = shared.objects.read(manifest_name).await? else {
        return Ok(None);
    };
    let manifest = decode(manifest_name, &bytes)?;
    let sealed = adopt(shared, id, manifest_name, manifest, Vec::new()).await?;
    Ok(Some(sealed.into_recording()))
}

/// Somebody sealed it, perhaps an earlier attempt of ours: theirs counts, ours goes.
async fn adopt(
    shared: &Shared,
    id: RecordingId,
    manifest_name: &Path,
    manifest: Manifest,
    own_segments: Vec<Path>,
) -> Result<Sealed, StoreError> {
    if manifest.recording_id != id {
        return Err(StoreError::ForeignObject {
            name: manifest_name.to_string(),
        });
    }
    let objects = &shared.objects;
    // Its maker may have died between the link and the fsync of the directory, or seen that one fail.
    let segments = manifest
        .segments
        .iter()
        .map(|segment| Path::from(segment.name.as_str()));
    for name in segments.chain([manifest_name.clone()]) {
        objects.sync_anew(&name).await?;
    }
    // If we stop here: our segments are orphans.
    for own in own_segments {
        let is_named = manifest
            .segments
            .iter()
            .any(|segment| segment.name == own.as_ref());
        if !is_named && let Err(error) = objects.store().delete(&own).await {
            tracing::warn!(name = %own, error = crate::tell::with_causes(&error), "an unused segment stays");
        }
    }
    Ok(Sealed::Theirs(sealed(manifest_name, manifest)))
}

fn sealed(manifest_name: &Path, manifest: Manifest) -> SealedRecording {
    SealedRecording {
        id: manifest.recording_id,
        manifest_name: manifest_name.to_string(),
        segment_names: manifest
            .segments
            .into_iter()
            .map(|segment| segment.name)
            .collect(),
        bytes: manifest.bytes,
        sha256: manifest.cast_sha256.0,
    }
}

fn manifest_of(shared: &Shared, job: &SealJob, progress: Progress) -> Result<Manifest, StoreError> {
    let mismatch = |what| StoreError::Mismatch {
        recording: job.id,
        what,
    };
    if progress.offset != job.length.0 {
        return Err(mismatch("the length read back from the journal"));
    }
    if progress.gaps != job.gaps {
        return Err(mismatch("what is missing in the journal"));
    }
    let cast_sha256 = progress.plain.finalize();
    let complete = progress.gaps.is_empty()
        && job
            .received
            .is_some_and(|received| received.bytes == job.length);
    if complete
        && job
            .received
            .is_some_and(|received| received.sha256 != cast_sha256)
    {
        return Err(mismatch("what was read back from the journal"));
    }
    let clean = job.end.clean && complete;
    let facts = progress.parser.facts();
    Ok(Manifest {
        version: MANIFEST_VERSION,
        recording_id: job.id,
        store_id: shared.store_id,
        recorder: shared.config.recorder(),
        endpoint: job.opening.endpoint.clone(),
        received_at: job.opening.received_at,
        // The end may be of another clock than the beginning: of the backend when it is recovered, or of ours, set back.
        ended_at: job.end.ended_at.max(job.opening.received_at),
        clean,
        reason: job.end.reason.clone(),
        flags: flags_of(job, &facts, clean),
        bytes: job.length.0,
        gaps: progress.gaps,
        cast_sha256: HexDigest(cast_sha256),
        event_count: facts.event_count,
        transcript_sha256: facts.transcript_sha256.map(HexDigest),
        uploader: job.opening.uploader.clone(),
        claimed: facts.header,
        source_node: job.source_node.clone(),
        format: Format::Plain,
        segments: progress.segments,
    })
}

fn flags_of(job: &SealJob, facts: &Facts, clean: bool) -> Vec<String> {
    let mut flags = job.end.flags.clone();
    flags.extend(facts.flags.iter().map(ToString::to_string));
    let whole = if clean {
        FLAG_COMPLETE
    } else {
        FLAG_INCOMPLETE
    };
    flags.push(whole.into());
    if !job.gaps.is_empty() {
        flags.push(FLAG_GAPS.into());
    }
    flags.sort_unstable();
    flags.dedup();
    flags
}

/// Streams the recording from the journal into segments, which are durable and proven when this returns: from its last cut on,
/// behind the segments that the cut names.
async fn write_segments(
    shared: &Shared,
    job: &SealJob,
    owner: SegmentOwner<'_>,
) -> Result<Progress, StoreError> {
    let (progress, before) = cut::resume(job.id, job.cut.as_deref())?;
    let before = cut::prove(shared, job.id, before).await?;
    let mut segments = SegmentsWriter::new(shared, owner, progress).behind(before.len());
    let mut course = Course {
        gaps: job.gaps.clone().into(),
        length: job.length.0,
    };
    for span in &job.spans {
        copy_span(shared, job.id, span, &mut segments, &mut course).await?;
    }
    if let Some(gap) = course.gap_at(segments.progress.offset) {
        segments.skip(gap.bytes).await?;
    }
    let mut progress = segments.finish().await?;
    progress.segments = before.into_iter().chain(progress.segments).collect();
    Ok(progress)
}

/// What is to come of a stream: the gaps, and where it ends.
#[derive(Debug)]
pub(super) struct Course {
    gaps: VecDeque<Gap>,
    length: u64,
}

impl Course {
    /// Without gaps.
    pub(super) const fn straight(length: u64) -> Self {
        Self {
            gaps: VecDeque::new(),
            length,
        }
    }

    fn gap_at(&mut self, offset: u64) -> Option<Gap> {
        self.gaps
            .front()
            .is_some_and(|gap| gap.offset == offset)
            .then(|| self.gaps.pop_front())
            .flatten()
    }

    /// How many bytes stand between `offset` and the next gap or the end.
    fn run_from(&self, offset: u64) -> u64 {
        let end = self.gaps.front().map_or(self.length, |gap| gap.offset);
        end.saturating_sub(offset)
    }
}

/// Copies what a span has of the stream behind what was taken already; returns where its last byte stands, 0 when it has none.
/// Stops where a cut's segment ends.
pub(super) async fn copy_span(
    shared: &Shared,
    id: RecordingId,
    span: &Span,
    segments: &mut SegmentsWriter<'_>,
    course: &mut Course,
) -> Result<u64, StoreError> {
    let frames = shared.objects.read_span(span).await?;
    let wrong = |source| StoreError::ReadBack {
        recording: id,
        name: span.object.name.to_string(),
        source,
    };
    let mut end = 0;
    let mut rest: &[u8] = &frames;
    while !rest.is_empty() {
        let (frame, behind) = Frame::decode(rest).map_err(wrong)?;
        rest = behind;
        if frame.recording != id {
            return Err(wrong(FrameError::Malformed("recording")));
        }
        if frame.kind != FrameKind::Data {
            continue;
        }
        end = frame
            .offset
            .0
            .saturating_add(u64::from(frame.plain_bytes()));
        // What a compaction has copied stands twice, and a cut may end within a frame.
        if end <= segments.progress.offset || segments.is_cut() {
            continue;
        }
        if frame.offset.0 > segments.progress.offset
            && let Some(gap) = course.gap_at(segments.progress.offset)
        {
            segments.skip(gap.bytes).await?;
        }
        let known = segments.progress.offset.checked_sub(frame.offset.0);
        let known = known.and_then(|known| usize::try_from(known).ok());
        let known = known.ok_or_else(|| wrong(FrameError::Malformed("offset")))?;
        let plain = frame.plain().map_err(wrong)?;
        let expected = course.run_from(segments.progress.offset);
        let news = plain.get(known..).unwrap_or_default();
        segments.write(news, expected).await?;
    }
    Ok(end)
}
