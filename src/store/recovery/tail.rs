//! The end of an epoch's chain, found by asking for the next number until there is none.
//!
//! Invariant: a listing says where to begin asking and nothing else. An object that cannot be read is an error to be
//! tried again; one that was read and is wrong is damage. Called by `recovery.rs` and `epoch.rs`.

use bytes::Bytes;
use jiff::Timestamp;
use object_store::ObjectStoreExt;
use object_store::path::Path;

use super::super::create::ANSWER_TIMEOUT;
use super::super::error::StoreError;
use super::super::{Shared, layout, opener};
use super::fencing::Fence;
use crate::ids::{EpochId, JournalNumber, RecorderId};
use crate::recording::journal_object::{
    JournalObject, OBJECT_BYTES_MAX, ObjectDigest, ObjectError, digest_of,
};

/// The newest object of an epoch.
#[derive(Debug)]
pub(super) struct Tail {
    pub(super) number: JournalNumber,
    /// Zero when it could not be hashed: too large to be one of ours.
    pub(super) digest: ObjectDigest,
    /// What it says of the oldest object that is needed, when it can be read.
    pub(super) oldest_needed: Option<JournalNumber>,
    /// Set when it is a fence.
    pub(super) fence: Option<Fence>,
}

/// What stands at a number.
pub(super) enum Read {
    Absent,
    /// There, and no journal object: damaged, or larger than any.
    Damaged {
        digest: Option<ObjectDigest>,
        /// What is wrong with it, unless it is its length.
        why: Option<ObjectError>,
    },
    /// There and whole; when it was stored, by the backend's clock.
    Whole {
        bytes: Bytes,
        stored_at: Timestamp,
    },
}

impl Tail {
    /// Asks from `from` on, which a listing has shown, for the next number until it is absent.
    pub(super) async fn find(
        shared: &Shared,
        recorder: &RecorderId,
        epoch: &EpochId,
        from: JournalNumber,
    ) -> Result<Self, StoreError> {
        let mut tail = Self {
            number: from,
            digest: [0; 32],
            oldest_needed: None,
            fence: None,
        };
        let mut number = from;
        loop {
            let name = layout::journal_object(recorder, epoch, number);
            match read(shared, &name).await? {
                // The listed one itself may be absent: another recovery removed it in the meantime.
                Read::Absent if number == from => {}
                Read::Absent => return Ok(tail),
                Read::Damaged { digest, .. } => {
                    tail = Self {
                        number,
                        digest: digest.unwrap_or_default(),
                        oldest_needed: None,
                        fence: None,
                    };
                }
                Read::Whole { bytes, .. } => {
                    let fence = Fence::of(&bytes);
                    tail = Self {
                        number,
                        digest: digest_of(&bytes),
                        oldest_needed: JournalObject::decode(&bytes)
                            .ok()
                            .map(|object| object.header.oldest_needed),
                        fence,
                    };
                }
            }
            number = number.next();
        }
    }
}

/// Reads what stands at a number.
///
/// # Errors
/// The backend's, to be tried again; and what a newer version wrote, which is not ours to judge.
pub(super) async fn read(shared: &Shared, name: &Path) -> Result<Read, StoreError> {
    let failed = |source| StoreError::Object {
        step: "read",
        name: name.to_string(),
        source,
    };
    let reading = async {
        let object = match shared.objects.store().get(name).await {
            Ok(object) => object,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(source) => return Err(failed(source)),
        };
        let stored_at = object.meta.last_modified.timestamp_millis();
        if object.meta.size > u64::try_from(OBJECT_BYTES_MAX).unwrap_or(u64::MAX) {
            return Ok(Some((None, stored_at)));
        }
        let bytes = object.bytes().await.map_err(failed)?;
        Ok(Some((Some(bytes), stored_at)))
    };
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, reading)
        .await
        .map_err(|_| StoreError::Unanswered {
            step: "read",
            name: name.to_string(),
        })?;
    let Some((bytes, stored_ms)) = answer? else {
        return Ok(Read::Absent);
    };
    let Some(bytes) = bytes else {
        return Ok(Read::Damaged {
            digest: None,
            why: None,
        });
    };
    match whole(&bytes) {
        Ok(()) => Ok(Read::Whole {
            bytes,
            stored_at: Timestamp::from_millisecond(stored_ms).unwrap_or_default(),
        }),
        Err(source) if opener::is_newer(&source) => Err(StoreError::Journal {
            name: name.to_string(),
            source,
        }),
        // It is met again on the way down from the fence, and is told there, once.
        Err(why) => Ok(Read::Damaged {
            digest: Some(digest_of(&bytes)),
            why: Some(why),
        }),
    }
}

/// Walks every frame, so that what is indexed later cannot fail.
fn whole(bytes: &[u8]) -> Result<(), ObjectError> {
    JournalObject::decode(bytes)?
        .frames()
        .try_for_each(|frame| frame.map(drop))
}
