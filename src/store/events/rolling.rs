//! Lines of one uploader, made durable as objects.
//!
//! Invariant: an object is named by its first line and holds that line; where one stands already, what it holds stays there and is not
//! stored again. The order, and what is true if we stop at each step, is written in [`roll_lines`]. Called by `events.rs` and `recovered.rs`.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use jiff::Timestamp;
use object_store::path::Path;

use super::super::create::{Created, Patience};
use super::super::error::StoreError;
use super::super::event::{self, EventRecord, LineHead};
use super::super::{Shared, layout};
use super::CREATE_TRIES;
use crate::ids::{EventId, RecordingId};
use crate::recording::frame::{Frame, FrameError, FrameKind};

/// What one object of events holds at most, but for one line that is longer.
pub(super) const ROLL_BYTES: usize = 8 * 1024 * 1024;

/// A line with what its name and its place among others depend on.
pub(super) struct NamedLine {
    id: EventId,
    received: Timestamp,
    bytes: Bytes,
}

impl NamedLine {
    pub(super) const fn bytes_len(&self) -> usize {
        self.bytes.len()
    }

    /// Reads the line in the frame at the beginning of `frames`, which were read from `name`.
    pub(super) fn of_frame(frames: &[u8], name: &Path) -> Result<Self, StoreError> {
        let wrong = |source| StoreError::ReadBack {
            recording: RecordingId::from_bytes([0; RecordingId::BYTES]),
            name: name.to_string(),
            source,
        };
        let (frame, _) = Frame::decode(frames).map_err(wrong)?;
        if frame.kind != FrameKind::Event {
            return Err(wrong(FrameError::Malformed("kind")));
        }
        Self::read(frame.plain().map_err(wrong)?.into_owned().into())
    }

    fn read(bytes: Bytes) -> Result<Self, StoreError> {
        match event::read_record(&bytes)? {
            EventRecord::Line(LineHead { id, received, .. }) => Ok(Self {
                id,
                received,
                bytes,
            }),
            EventRecord::Rolled(rolled) => Err(StoreError::ForeignObject {
                name: rolled.objects.concat(),
            }),
        }
    }
}

/// Makes the lines of one uploader durable in objects of at most 8 MiB (or one line), each named by its first line. Where
/// such an object exists, what it holds stays there and is added to `met`, and the rest goes on under its own first. Returns
/// their names.
pub(super) async fn roll_lines(
    shared: &Shared,
    uploader: &str,
    lines: Vec<NamedLine>,
    met: &mut BTreeSet<EventId>,
) -> Result<Vec<Path>, StoreError> {
    let mut rest = lines;
    let mut names = Vec::new();
    while let Some(first) = rest.first() {
        let name = layout::events(uploader, first.received, &first.id);
        let mut bytes = Vec::new();
        let mut taken = 0_usize;
        for line in &rest {
            if taken > 0 && bytes.len().saturating_add(line.bytes.len()) > ROLL_BYTES {
                break;
            }
            bytes.extend_from_slice(&line.bytes);
            taken = taken.saturating_add(1);
        }
        let bytes = Bytes::from(bytes);
        let sends = AtomicU64::new(0);
        let patience = Patience::Tries(CREATE_TRIES);
        match shared
            .objects
            .create(&name, &bytes, patience, &sends)
            .await?
        {
            Created::Durable => {
                // If we stop here: the object is durable, perhaps without the directories above it; the journal has its events.
                shared.objects.sync(&name).await?;
                if shared.objects.read(&name).await?.as_ref() != Some(&bytes) {
                    return Err(foreign(&name));
                }
                rest.drain(..taken);
            }
            Created::Different(present) => {
                // An earlier roll, of this process or of one that died, made it of some of these events.
                let there = ids_in(&present).ok_or_else(|| foreign(&name))?;
                if !there.contains(&first.id) {
                    return Err(foreign(&name));
                }
                // Its maker may have died between the link and the fsync of the directory, or seen that one fail.
                shared.objects.sync_anew(&name).await?;
                rest.retain(|line| !there.contains(&line.id));
                met.extend(there);
            }
            Created::Poisoned(source) => {
                // Its bytes were on the disk before its name was made; of the name, nothing says that it is. It stays: whoever meets it, the next
                // roll or a successor, makes the name durable anew and may count on it from then on, so that nobody may ever remove it.
                return Err(StoreError::SyncFailed {
                    name: name.to_string(),
                    source,
                });
            }
        }
        names.push(name);
    }
    Ok(names)
}

/// The ids of the lines in an object of events; `None` when it is something else.
pub(super) fn ids_in(object: &[u8]) -> Option<BTreeSet<EventId>> {
    let lines = object.strip_suffix(b"\n")?.split(|byte| *byte == b'\n');
    lines
        .map(|line| match event::read_record(line) {
            Ok(EventRecord::Line(head)) => Some(head.id),
            Ok(EventRecord::Rolled(_)) | Err(_) => None,
        })
        .collect()
}

pub(super) fn foreign(name: &Path) -> StoreError {
    StoreError::ForeignObject {
        name: name.to_string(),
    }
}
