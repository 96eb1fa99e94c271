//! The objects that end an epoch: its fence, and behind it the marker that all of it is sealed.
//!
//! Invariant: they are ordinary objects of the epoch's chain, so whoever creates one takes the number from everybody else.
//! Called by recovery, and by the journal when it closes.

use std::sync::atomic::AtomicU64;

use bytes::Bytes;

use super::super::create::{Created, Patience};
use super::super::error::StoreError;
use super::super::{Shared, layout};
use crate::ids::{RecordingId, StreamOffset};
use crate::recording::frame::FrameKind;
use crate::recording::journal_object::{
    JournalObject, ObjectDigest, ObjectHeader, ObjectWriter, digest_of,
};
use crate::recording::records::{FENCE_VERSION, FenceReason, FenceRecord};

/// How often one create of a fence is tried within a pass.
const CREATE_TRIES: u32 = 3;

/// A fence as it stands in the store.
#[derive(Debug, Clone, Copy)]
pub(in crate::store) struct Fence {
    pub(in crate::store) header: ObjectHeader,
    pub(in crate::store) digest: ObjectDigest,
}

impl Fence {
    /// Whether nothing before it is needed: the epoch is closed.
    pub(in crate::store) fn is_final(&self) -> bool {
        self.header.oldest_needed == self.header.number
    }

    /// Reads `bytes` as a fence.
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        let object = JournalObject::decode(bytes).ok()?;
        let first = object.frames().next()?.ok()?;
        (first.kind == FrameKind::Fence).then(|| Self {
            header: object.header,
            digest: digest_of(bytes),
        })
    }
}

/// What became of a fence that was to be created.
pub(super) enum Placed {
    /// A fence stands there, durable; `ours` when we made it.
    Fence { fence: Fence, ours: bool },
    /// The number was taken by a commit of the epoch's own recorder.
    Lost,
}

/// Creates the object of `header` as a fence. When this returns a fence, it is durable.
pub(super) async fn place(
    shared: &Shared,
    header: &ObjectHeader,
    reason: FenceReason,
) -> Result<Placed, StoreError> {
    let name = layout::journal_object(&header.recorder, &header.epoch, header.number);
    let (bytes, digest) = fence_object(shared, header, reason)?;
    let patience = Patience::Tries(CREATE_TRIES);
    let sends = AtomicU64::new(0);
    match shared
        .objects
        .create(&name, &bytes, patience, &sends)
        .await?
    {
        Created::Durable => {
            // The directory of a dead epoch was made by another process, perhaps one that died before its
            // fsync, or whose fsync failed: so its names are written anew, all of them.
            shared.objects.sync_anew(&name).await?;
            let fence = Fence {
                header: *header,
                digest,
            };
            Ok(Placed::Fence { fence, ours: true })
        }
        Created::Different(present) => match Fence::of(&present) {
            Some(fence) => {
                shared.objects.sync_anew(&name).await?;
                Ok(Placed::Fence { fence, ours: false })
            }
            None => Ok(Placed::Lost),
        },
        Created::Poisoned(source) => Err(StoreError::SyncFailed {
            name: name.to_string(),
            source,
        }),
    }
}

/// The bytes of a fence at the place of `header`.
pub(in crate::store) fn fence_object(
    shared: &Shared,
    header: &ObjectHeader,
    reason: FenceReason,
) -> Result<(Bytes, ObjectDigest), StoreError> {
    let by_epoch = shared.newest_own_epoch().unwrap_or(header.epoch);
    let record = FenceRecord {
        version: FENCE_VERSION,
        by: shared.config.recorder(),
        by_epoch,
        reason,
        at: (shared.wall_clock)(),
    };
    let record = serde_json::to_vec(&record).map_err(|source| StoreError::Json {
        what: "a fence",
        source,
    })?;
    let mut writer = ObjectWriter::new(header);
    writer
        .push(
            None,
            FrameKind::Fence,
            RecordingId::from_bytes([0; 10]),
            StreamOffset(0),
            &record,
        )
        .map_err(|source| StoreError::Journal {
            name: layout::journal_object(&header.recorder, &header.epoch, header.number)
                .to_string(),
            source,
        })?;
    Ok(writer.finish())
}
