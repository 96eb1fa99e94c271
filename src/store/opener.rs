//! The opener: object 0 of an epoch, which says whose it is and of which store.
//!
//! Invariant: what is read was written by anybody; it is taken at its word only when it stands in its place and is whole, and never more
//! than a small object is read for it. Called by the journal, which writes it, by `store_id.rs` and by recovery.

use bytes::Bytes;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use super::create::{ANSWER_TIMEOUT, Objects};
use super::error::StoreError;
use super::layout;
use crate::ids::{EpochId, JournalNumber, LogKey, RecorderId, RecordingId, StoreId, StreamOffset};
use crate::recording::frame::{FrameError, FrameKind};
use crate::recording::journal_object::{
    JournalObject, ObjectDigest, ObjectError, ObjectHeader, ObjectWriter, digest_of,
};

const OPENER_VERSION: u32 = 1;
/// One has some 600 bytes; what is larger is none.
const OPENER_BYTES_MAX: u64 = 64 * 1024;

/// The JSON in an opener.
#[derive(Debug, Serialize, Deserialize)]
struct OpenerRecord {
    version: u32,
    recorder: RecorderId,
    log_key: LogKey,
    epoch: EpochId,
    store_id: StoreId,
    /// The epoch that this recorder knew to be its last; absent at the first, or when none was found.
    previous_epoch: Option<EpochId>,
}

/// What an opener of ours says.
pub(super) struct Opener {
    pub(super) log_key: LogKey,
    pub(super) epoch: EpochId,
    pub(super) store_id: StoreId,
    pub(super) previous_epoch: Option<EpochId>,
}

impl Opener {
    pub(super) fn name(&self) -> Path {
        layout::journal_object(&self.recorder(), &self.epoch, JournalNumber::OPENER)
    }

    pub(super) fn recorder(&self) -> RecorderId {
        RecorderId::from_log_key(self.log_key.as_bytes())
    }

    /// The bytes of the object.
    pub(super) fn encode(&self) -> Result<(Bytes, ObjectDigest), StoreError> {
        let recorder = self.recorder();
        let record = OpenerRecord {
            version: OPENER_VERSION,
            recorder,
            log_key: self.log_key,
            epoch: self.epoch,
            store_id: self.store_id,
            previous_epoch: self.previous_epoch,
        };
        let record = serde_json::to_vec(&record).map_err(|source| StoreError::Json {
            what: "an opener",
            source,
        })?;
        let number = JournalNumber::OPENER;
        let mut writer = ObjectWriter::new(&ObjectHeader {
            recorder,
            epoch: self.epoch,
            number,
            previous: [0; 32],
            oldest_needed: number.next(),
        });
        let nobody = RecordingId::from_bytes([0; RecordingId::BYTES]);
        writer
            .push(None, FrameKind::Opener, nobody, StreamOffset(0), &record)
            .map_err(|source| StoreError::Journal {
                name: self.name().to_string(),
                source,
            })?;
        Ok(writer.finish())
    }
}

/// What stands in the place of an opener.
#[derive(Debug)]
pub(super) enum ReadOpener {
    Absent,
    /// Absent, and on the disk a directory or a link to nothing has its name.
    Obstructed,
    /// There, and no opener of this epoch.
    Damaged,
    /// A newer version wrote it.
    Newer(ObjectError),
    Whole {
        store_id: StoreId,
        digest: ObjectDigest,
    },
}

/// Reads the opener of an epoch.
///
/// # Errors
/// The backend's, to be tried again.
pub(super) async fn read(
    objects: &Objects,
    recorder: &RecorderId,
    epoch: &EpochId,
) -> Result<ReadOpener, StoreError> {
    let name = layout::journal_object(recorder, epoch, JournalNumber::OPENER);
    let reading = async {
        let object = objects.store().get(&name).await?;
        if object.meta.size > OPENER_BYTES_MAX {
            return Ok(None);
        }
        object.bytes().await.map(Some)
    };
    match tokio::time::timeout(ANSWER_TIMEOUT, reading).await {
        Ok(Ok(bytes)) => {
            Ok(bytes.map_or(ReadOpener::Damaged, |bytes| decode(&bytes, recorder, epoch)))
        }
        Ok(Err(object_store::Error::NotFound { .. })) => {
            Ok(match objects.is_obstructed(&name).await {
                true => ReadOpener::Obstructed,
                false => ReadOpener::Absent,
            })
        }
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

fn decode(bytes: &[u8], recorder: &RecorderId, epoch: &EpochId) -> ReadOpener {
    /// The version first: a newer form may not parse as this one.
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let object = match JournalObject::decode(bytes) {
        Ok(object) => object,
        Err(error) if is_newer(&error) => return ReadOpener::Newer(error),
        Err(_) => return ReadOpener::Damaged,
    };
    let header = object.header;
    let in_place = (header.recorder, header.epoch, header.number)
        == (*recorder, *epoch, JournalNumber::OPENER);
    let frame = match object.frames().next() {
        Some(Ok(frame)) if in_place && frame.kind == FrameKind::Opener => frame,
        Some(Err(error)) if is_newer(&error) => return ReadOpener::Newer(error),
        Some(_) | None => return ReadOpener::Damaged,
    };
    let Ok(plain) = frame.plain() else {
        return ReadOpener::Damaged;
    };
    match serde_json::from_slice::<Version>(&plain) {
        Ok(Version {
            version: OPENER_VERSION,
        }) => {}
        Ok(Version { version }) => {
            let version = u16::try_from(version).unwrap_or(u16::MAX);
            return ReadOpener::Newer(ObjectError::UnknownVersion(version));
        }
        Err(_) => return ReadOpener::Damaged,
    }
    match serde_json::from_slice::<OpenerRecord>(&plain) {
        Ok(record) if (record.recorder, record.epoch) == (*recorder, *epoch) => ReadOpener::Whole {
            store_id: record.store_id,
            digest: digest_of(bytes),
        },
        Ok(_) | Err(_) => ReadOpener::Damaged,
    }
}

/// Whether an object is wrong only because this version does not know its form.
pub(super) const fn is_newer(error: &ObjectError) -> bool {
    matches!(
        error,
        ObjectError::UnknownVersion(_)
            | ObjectError::Frame {
                source: FrameError::Unknown { .. },
                ..
            }
    )
}
