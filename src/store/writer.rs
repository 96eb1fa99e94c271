//! Seals a finished recording: journal frames to one segment, then the manifest.
//!
//! Invariant: the manifest's create is the one commit point; what it names was read back from the store and is what was
//! received; memory held is one part of a segment, whatever the recording's length. The order, and what is true if we
//! stop at each step, is written in [`attempt`]. Called by `handle.rs` when an upload ends.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStoreExt};
use sha2::{Digest, Sha256};

use super::create::{ANSWER_TIMEOUT, Created, Patience, RETRY_PAUSE};
use super::error::StoreError;
use super::handle::{End, Opening, SealedRecording};
use super::state::{SealBasis, Span};
use super::{Store, layout, reader};
use crate::asciicast::parser::{Facts, Parser};
use crate::ids::{AttemptId, RecordingId, StreamOffset};
use crate::recording::frame::{Frame, FrameError, FrameKind};
use crate::recording::manifest::{
    FLAG_COMPLETE, FLAG_INCOMPLETE, Format, MANIFEST_VERSION, Manifest, Segment,
};
use crate::recording::seal::{HexDigest, SegmentDigests, SegmentHasher};

/// What is held in memory and put at once: above the 5 MiB that S3 wants of a part.
const PART_BYTES: usize = 8 * 1024 * 1024;
/// How long one part, or the end of a multipart upload, may take.
const PART_TIMEOUT: Duration = Duration::from_secs(60);
/// How many attempts a seal has before its bytes are left to recovery.
const SEAL_TRIES: u32 = 3;
/// How often one create of a seal is tried within an attempt.
const CREATE_TRIES: u32 = 5;

/// What is to be sealed.
#[derive(Debug)]
pub(super) struct SealOrder {
    pub(super) id: RecordingId,
    pub(super) opening: Arc<Opening>,
    pub(super) end: End,
    pub(super) received: StreamOffset,
    pub(super) received_sha256: [u8; 32],
}

/// Seals, with a new attempt after each failure. When this returns a recording, its manifest is durable.
pub(super) async fn seal(store: &Store, order: SealOrder) -> Result<SealedRecording, StoreError> {
    let shared = &store.shared;
    // Seals wait for one another, not for ever: each is bounded by its tries and time-outs.
    let _turn = shared
        .seals
        .acquire()
        .await
        .map_err(|_| StoreError::TaskLost)?;
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
    let mut tries_left = SEAL_TRIES;
    loop {
        let result = attempt(store, &order, &basis).await;
        tries_left = tries_left.saturating_sub(1);
        match result {
            Ok(sealed) => {
                shared.state().forget_sealed(order.id);
                shared.wake_committer.notify_one();
                return Ok(sealed);
            }
            Err(error) if tries_left == 0 || matches!(error, StoreError::Mismatch { .. }) => {
                tracing::error!(recording = %order.id, error = &error as &dyn std::error::Error, "the seal is given up; the bytes stay in the journal");
                shared.state().note_seal_failed(order.id);
                return Err(error);
            }
            Err(error) => {
                tracing::warn!(recording = %order.id, error = &error as &dyn std::error::Error, "the seal failed; it will be tried again");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }
}

async fn attempt(
    store: &Store,
    order: &SealOrder,
    basis: &SealBasis,
) -> Result<SealedRecording, StoreError> {
    let shared = &store.shared;
    let attempt = shared.draw(AttemptId::random);
    let opening = &order.opening;
    let segment_name = layout::segment(
        &opening.uploader.stable_id,
        opening.received_at,
        &order.id,
        &attempt,
        0,
    );
    let manifest_name =
        layout::manifest(&opening.uploader.stable_id, opening.received_at, &order.id);
    // If we stop here: every durable byte is in the journal, nothing else happened.
    let (digests, cast_sha256, facts) =
        write_segment(store, order.id, basis, &segment_name).await?;
    // If we stop here: the segment is an orphan that nothing refers to; the journal still has the bytes.
    let complete = basis.durable.offset == order.received;
    if digests.stored_bytes != basis.durable.offset.0 {
        return Err(StoreError::Mismatch {
            recording: order.id,
            what: "the length read back from the journal",
        });
    }
    if complete && cast_sha256 != order.received_sha256 {
        return Err(StoreError::Mismatch {
            recording: order.id,
            what: "what was read back from the journal",
        });
    }
    if reader::digests_of(store, &segment_name).await? != digests {
        return Err(StoreError::Mismatch {
            recording: order.id,
            what: "the stored segment",
        });
    }
    // The manifest goes into the same directory, so its own create need not answer for those above.
    shared.objects.sync(&segment_name).await?;
    let manifest = manifest_of(
        store,
        order,
        complete,
        digests,
        cast_sha256,
        facts,
        &segment_name,
    );
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
    // finds the manifest. If it is not, or not known to be: the segment must stay, for the manifest may name it.
    match created {
        Created::Durable => Ok(sealed(&manifest_name, manifest)),
        Created::Poisoned(source) => Err(StoreError::SyncFailed {
            name: manifest_name.to_string(),
            source,
        }),
        Created::Different(present) => {
            let present = Manifest::decode(&present).map_err(|source| StoreError::Manifest {
                name: manifest_name.to_string(),
                source,
            })?;
            adopt(store, order.id, &manifest_name, present, &segment_name).await
        }
    }
}

/// Somebody sealed it, perhaps an earlier attempt of ours: theirs counts, ours goes.
async fn adopt(
    store: &Store,
    id: RecordingId,
    manifest_name: &Path,
    manifest: Manifest,
    own_segment: &Path,
) -> Result<SealedRecording, StoreError> {
    if manifest.recording_id != id {
        return Err(StoreError::ForeignObject {
            name: manifest_name.to_string(),
        });
    }
    let objects = &store.shared.objects;
    // Its maker may have died between the link and the fsync of the directory.
    let segments = manifest
        .segments
        .iter()
        .map(|segment| Path::from(segment.name.as_str()));
    for name in segments.chain([manifest_name.clone()]) {
        objects.sync(&name).await?;
    }
    // If we stop here: our segment is an orphan.
    let is_named = manifest
        .segments
        .iter()
        .any(|segment| segment.name == own_segment.as_ref());
    if !is_named && let Err(error) = objects.store().delete(own_segment).await {
        tracing::warn!(name = %own_segment, %error, "an unused segment stays");
    }
    Ok(sealed(manifest_name, manifest))
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

fn manifest_of(
    store: &Store,
    order: &SealOrder,
    complete: bool,
    digests: SegmentDigests,
    cast_sha256: [u8; 32],
    facts: Facts,
    segment_name: &Path,
) -> Manifest {
    let clean = order.end.clean && complete;
    let mut flags = order.end.flags.clone();
    flags.extend(facts.flags.iter().map(ToString::to_string));
    flags.push(
        if clean {
            FLAG_COMPLETE
        } else {
            FLAG_INCOMPLETE
        }
        .into(),
    );
    flags.sort_unstable();
    flags.dedup();
    Manifest {
        version: MANIFEST_VERSION,
        recording_id: order.id,
        store_id: store.shared.store_id,
        recorder: store.shared.config.recorder(),
        endpoint: order.opening.endpoint.into(),
        received_at: order.opening.received_at,
        ended_at: order.end.ended_at,
        clean,
        reason: order.end.reason.clone(),
        flags,
        bytes: digests.stored_bytes,
        cast_sha256: HexDigest(cast_sha256),
        event_count: facts.event_count,
        transcript_sha256: facts.transcript_sha256.map(HexDigest),
        uploader: order.opening.uploader.clone(),
        claimed: facts.header,
        format: Format::Plain,
        segments: vec![Segment {
            name: segment_name.to_string(),
            plain_offset: 0,
            plain_bytes: digests.stored_bytes,
            stored_bytes: digests.stored_bytes,
            sha256: digests.sha256,
            blocks: digests.blocks,
            root: digests.root,
        }],
    }
}

/// Streams the recording from the journal into one segment, which is durable when this returns.
async fn write_segment(
    store: &Store,
    id: RecordingId,
    basis: &SealBasis,
    name: &Path,
) -> Result<(SegmentDigests, [u8; 32], Facts), StoreError> {
    let part_bytes = u64::try_from(PART_BYTES).unwrap_or(u64::MAX);
    let mut sink = if basis.durable.offset.0 <= part_bytes {
        SegmentSink::whole(store, name)
    } else {
        SegmentSink::in_parts(store, name).await?
    };
    let mut stored = SegmentHasher::default();
    let mut plain = Sha256::new();
    let mut parser = Parser::new();
    let mut next = StreamOffset(0);
    for span in &basis.spans {
        let frames = read_span(store, span).await?;
        let wrong = |source| StoreError::ReadBack {
            recording: id,
            name: span.object.name.to_string(),
            source,
        };
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
            if frame.offset != next {
                return Err(wrong(FrameError::Malformed("offset")));
            }
            let bytes = frame.plain().map_err(wrong)?;
            next = StreamOffset(next.0.saturating_add(u64::from(frame.plain_bytes())));
            plain.update(&bytes);
            parser.handle_bytes(&bytes);
            stored.update(&bytes);
            sink.write(&bytes).await?;
        }
    }
    sink.finish().await?;
    Ok((stored.finish(), plain.finalize().into(), parser.facts()))
}

async fn read_span(store: &Store, span: &Span) -> Result<Bytes, StoreError> {
    let name = &span.object.name;
    let range = u64::from(span.bytes.start)..u64::from(span.bytes.end);
    match tokio::time::timeout(
        ANSWER_TIMEOUT,
        store.shared.objects.store().get_range(name, range),
    )
    .await
    {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(source)) => Err(StoreError::Object {
            step: "read",
            name: name.to_string(),
            source,
        }),
        Err(_) => Err(StoreError::Unanswered {
            step: "read",
            name: name.to_string(),
        }),
    }
}

/// Where a segment's bytes go: one create if they are few, else a multipart upload.
struct SegmentSink<'a> {
    store: &'a Store,
    name: &'a Path,
    held: Vec<u8>,
    upload: Option<Box<dyn MultipartUpload>>,
}

impl<'a> SegmentSink<'a> {
    fn whole(store: &'a Store, name: &'a Path) -> Self {
        Self {
            store,
            name,
            held: Vec::new(),
            upload: None,
        }
    }

    async fn in_parts(store: &'a Store, name: &'a Path) -> Result<Self, StoreError> {
        // A multipart upload cannot say "if absent"; the attempt in the name is what keeps it apart from others.
        let upload = answered(
            "begin",
            name,
            store.shared.objects.store().put_multipart(name),
        )
        .await?;
        Ok(Self {
            upload: Some(upload),
            ..Self::whole(store, name)
        })
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.held.extend_from_slice(bytes);
        while let Some(upload) = &mut self.upload
            && self.held.len() >= PART_BYTES
        {
            let rest = self.held.split_off(PART_BYTES);
            let part = std::mem::replace(&mut self.held, rest);
            answered("write a part of", self.name, upload.put_part(part.into())).await?;
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<(), StoreError> {
        let Some(mut upload) = self.upload.take() else {
            let bytes = Bytes::from(self.held);
            let sends = AtomicU64::new(0);
            let objects = &self.store.shared.objects;
            return match objects
                .create(self.name, &bytes, Patience::Tries(CREATE_TRIES), &sends)
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
        if !self.held.is_empty() {
            answered(
                "write a part of",
                self.name,
                upload.put_part(self.held.into()),
            )
            .await?;
        }
        // On a local disk this fsyncs the file and its directory before it answers.
        answered("complete", self.name, upload.complete())
            .await
            .map(drop)
    }
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
