//! Recording id in, verified plain bytes out, in order.
//!
//! Invariant: no byte is handed out before its whole block was proven against the manifest. Memory held is one read.
//! Called through [`Store`] and [`StoreReader`] by whoever plays, exports or verifies.

use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use sha2::{Digest, Sha256};

use super::create::{ANSWER_TIMEOUT, Objects};
use super::error::StoreError;
use super::{Shared, Store, StoreReader, layout};
use crate::ids::RecordingId;
use crate::recording::manifest::{Manifest, Segment};
use crate::recording::seal::{
    BLOCK_BYTES, BlockDigests, BlockHasher, HexDigest, SegmentDigests, SegmentHasher,
};

impl Store {
    /// See [`StoreReader::manifest_names`].
    ///
    /// # Errors
    /// [`StoreError::Object`].
    pub fn manifest_names(
        &self,
    ) -> impl Stream<Item = Result<String, StoreError>> + Send + 'static {
        self.reader().manifest_names()
    }

    /// See [`StoreReader::find`].
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Object`], [`StoreError::Manifest`].
    pub async fn find(&self, recording: RecordingId) -> Result<Manifest, StoreError> {
        self.reader().find(recording).await
    }

    /// See [`StoreReader::manifest`].
    ///
    /// # Errors
    /// [`StoreError::Object`], [`StoreError::Manifest`], [`StoreError::ForeignObject`].
    pub async fn manifest(&self, name: &str) -> Result<Manifest, StoreError> {
        self.reader().manifest(name).await
    }

    /// See [`StoreReader::read_plain`].
    ///
    /// Ends after the first error: [`StoreError::SegmentLost`], [`StoreError::BlockMismatch`], [`StoreError::Mismatch`], [`StoreError::Object`].
    pub fn read_plain(
        &self,
        manifest: Manifest,
    ) -> impl Stream<Item = Result<Bytes, StoreError>> + Send + 'static {
        self.reader().read_plain(manifest)
    }
}

impl StoreReader {
    /// The object names of all manifests, in no order. A listing: it may lag behind on some backends.
    ///
    /// # Errors
    /// [`StoreError::Object`].
    pub fn manifest_names(
        &self,
    ) -> impl Stream<Item = Result<String, StoreError>> + Send + 'static + use<> {
        let prefix = layout::recordings();
        let listed = self.objects.store().list(Some(&prefix));
        listed
            .try_filter_map(|object| async move {
                Ok(layout::manifest_of(&object.location).map(|_| object.location.to_string()))
            })
            .map_err(move |source| StoreError::Object {
                step: "list",
                name: prefix.to_string(),
                source,
            })
    }

    /// The manifest of a recording, found by listing.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Object`], [`StoreError::Manifest`].
    pub async fn find(&self, recording: RecordingId) -> Result<Manifest, StoreError> {
        let mut names = Box::pin(self.manifest_names());
        while let Some(name) = names.next().await.transpose()? {
            if layout::manifest_of(&Path::from(name.as_str())) == Some(recording) {
                return self.manifest(&name).await;
            }
        }
        Err(StoreError::NotFound { recording })
    }

    /// The manifest of that object name.
    ///
    /// # Errors
    /// [`StoreError::Object`], [`StoreError::Manifest`]; [`StoreError::ForeignObject`] when there is none.
    pub async fn manifest(&self, name: &str) -> Result<Manifest, StoreError> {
        let bytes = self.objects.read(&Path::from(name)).await?;
        let bytes = bytes.ok_or_else(|| StoreError::ForeignObject { name: name.into() })?;
        Manifest::decode(&bytes).map_err(|source| StoreError::Manifest {
            name: name.into(),
            source,
        })
    }

    /// The plain stream of a recording, block by block, each proven against `manifest` before it is handed out.
    ///
    /// Ends after the first error: [`StoreError::SegmentLost`], [`StoreError::BlockMismatch`], [`StoreError::Mismatch`], [`StoreError::Object`].
    pub fn read_plain(
        &self,
        manifest: Manifest,
    ) -> impl Stream<Item = Result<Bytes, StoreError>> + Send + 'static + use<> {
        let reading = Reading {
            objects: self.objects.clone(),
            manifest,
            segment: 0,
            block: 0,
            plain: Sha256::new(),
        };
        stream::try_unfold(Some(reading), |reading| async {
            let Some(reading) = reading else {
                return Ok(None);
            };
            reading.step().await
        })
    }
}

struct Reading {
    objects: Objects,
    manifest: Manifest,
    segment: usize,
    block: usize,
    plain: Sha256,
}

impl Reading {
    async fn step(mut self) -> Result<Option<(Bytes, Option<Self>)>, StoreError> {
        loop {
            let Some(segment) = self.manifest.segments.get(self.segment) else {
                let sha256: [u8; 32] = self.plain.finalize().into();
                let as_sealed = sha256 == self.manifest.cast_sha256.0;
                let recording = self.manifest.recording_id;
                return as_sealed.then_some(None).ok_or(StoreError::Mismatch {
                    recording,
                    what: "the whole stream",
                });
            };
            let Some(digest) = segment.blocks.get(self.block).copied() else {
                self.segment = self.segment.saturating_add(1);
                self.block = 0;
                continue;
            };
            let bytes = read_block(&self.objects, segment, self.block, digest).await?;
            self.block = self.block.saturating_add(1);
            self.plain.update(&bytes);
            return Ok(Some((bytes, Some(self))));
        }
    }
}

async fn read_block(
    objects: &Objects,
    segment: &Segment,
    block: usize,
    digest: HexDigest,
) -> Result<Bytes, StoreError> {
    let name = Path::from(segment.name.as_str());
    let block_bytes = u64::try_from(BLOCK_BYTES).unwrap_or(u64::MAX);
    let start = u64::try_from(block)
        .unwrap_or(u64::MAX)
        .saturating_mul(block_bytes);
    let end = start.saturating_add(block_bytes).min(segment.stored_bytes);
    let read = objects.store().get_range(&name, start..end).await;
    let bytes = match read {
        Ok(bytes) => bytes,
        Err(source) => return Err(unread(objects, segment, block, source).await),
    };
    let found: [u8; 32] = Sha256::digest(&bytes).into();
    if found != digest.0 {
        return Err(StoreError::BlockMismatch {
            name: name.to_string(),
            block,
        });
    }
    Ok(bytes)
}

/// Why a block could not be read: what is gone or too short calls for a copy, all else for a look at the backend.
async fn unread(
    objects: &Objects,
    segment: &Segment,
    block: usize,
    source: object_store::Error,
) -> StoreError {
    let name = segment.name.clone();
    if matches!(source, object_store::Error::NotFound { .. }) {
        return StoreError::SegmentLost { name };
    }
    let there = objects.store().head(&Path::from(name.as_str())).await;
    match there.is_ok_and(|object| object.size < segment.stored_bytes) {
        true => StoreError::BlockMismatch { name, block },
        false => StoreError::Object {
            step: "read",
            name,
            source,
        },
    }
}

/// Reads a stored object through and hashes it: whole, and by blocks.
pub(super) async fn digests_of(shared: &Shared, name: &Path) -> Result<SegmentDigests, StoreError> {
    let mut hasher = SegmentHasher::default();
    read_through(shared, name, |bytes| hasher.update(bytes)).await?;
    Ok(hasher.finish())
}

/// The same by blocks alone: half the work, and as good to compare with.
pub(super) async fn blocks_of(shared: &Shared, name: &Path) -> Result<BlockDigests, StoreError> {
    let mut hasher = BlockHasher::default();
    read_through(shared, name, |bytes| hasher.update(bytes)).await?;
    Ok(hasher.finish())
}

async fn read_through(
    shared: &Shared,
    name: &Path,
    mut take: impl FnMut(&[u8]),
) -> Result<(), StoreError> {
    let failed = |source| StoreError::Object {
        step: "read",
        name: name.to_string(),
        source,
    };
    let unanswered = |_| StoreError::Unanswered {
        step: "read",
        name: name.to_string(),
    };
    let getting = tokio::time::timeout(ANSWER_TIMEOUT, shared.objects.store().get(name));
    let object = getting.await.map_err(unanswered)?.map_err(failed)?;
    let mut pieces = object.into_stream();
    while let Some(piece) = tokio::time::timeout(ANSWER_TIMEOUT, pieces.next())
        .await
        .map_err(unanswered)?
    {
        take(&piece.map_err(failed)?);
    }
    Ok(())
}
