//! What is lost of events, said where events are: a line below `events/` in place of what no line tells.
//!
//! Invariant: a loss is declared under a name made of what is lost, so that whoever finds it, and however often, there is one line of it.
//! A line that declares is no event: its id is its own, and it has `lost` where an event has its body. Called by recovery.

use std::sync::atomic::AtomicU64;

use jiff::Timestamp;
use object_store::path::Path;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use sha2::{Digest, Sha256};

use super::super::create::{Created, Patience};
use super::super::error::StoreError;
use super::super::event::{self, Lost};
use super::super::{Shared, layout, reader};
use super::CREATE_TRIES;
use crate::ids::{EpochId, EventId, JournalNumber, RecorderId};
use crate::recording::seal::HexDigest;

/// Under whom events are lost of which nobody knows whose they were.
const UNKNOWN_UPLOADER: &str = "unknown";

/// An event whose line is an object of its own, as its frame says.
#[derive(Debug)]
pub(super) struct LongLine {
    pub(super) id: EventId,
    pub(super) received: Timestamp,
    pub(super) uploader: String,
    pub(super) object: String,
    pub(super) bytes: Option<u64>,
    pub(super) sha256: Option<HexDigest>,
}

/// Declares that whatever events stood in these objects of a dead epoch's journal are lost. Nobody can tell whether any did.
///
/// # Errors
/// Those of a create: nothing is declared yet.
pub(in crate::store) async fn declare_lost_objects(
    shared: &Shared,
    recorder: &RecorderId,
    epoch: &EpochId,
    numbers: &[JournalNumber],
) -> Result<(), StoreError> {
    if numbers.is_empty() {
        return Ok(());
    }
    let lost = Lost::Journal {
        recorder: *recorder,
        epoch: *epoch,
        numbers: runs_of(numbers),
    };
    let received = i64::try_from(epoch.started_ms()).unwrap_or(i64::MAX);
    let received = Timestamp::from_millisecond(received).unwrap_or_default();
    let name = declare(shared, UNKNOWN_UPLOADER, received, &lost).await?;
    tracing::error!(
        %recorder, %epoch, numbers = ?runs_of(numbers), %name,
        "events in lost journal objects are lost; a line below events/ declares it"
    );
    Ok(())
}

/// Looks whether the object of a long event is there and whole, and declares it lost if not; returns whether.
///
/// # Errors
/// Those of a read or a create: it is not known, or not declared yet.
pub(super) async fn declare_if_lost(shared: &Shared, line: &LongLine) -> Result<bool, StoreError> {
    let object = Path::from(line.object.as_str());
    let found = digest_of(shared, &object).await?;
    let is_whole = found.as_ref().is_some_and(|(bytes, sha256)| {
        line.bytes.is_none_or(|said| said == *bytes)
            && line.sha256.as_ref().is_none_or(|said| said.0 == sha256.0)
    });
    if is_whole {
        return Ok(false);
    }
    let lost = Lost::Event {
        event: line.id,
        object: line.object.clone(),
        bytes: line.bytes,
        sha256: line.sha256.as_ref().map(|sha256| HexDigest(sha256.0)),
    };
    let name = declare(shared, &line.uploader, line.received, &lost).await?;
    tracing::error!(
        event = %line.id, %object, is_there = found.is_some(), %name,
        "the object of a long event is lost or damaged: the event is lost; a line below events/ declares it"
    );
    Ok(true)
}

/// The length and digest of an object, read piece by piece; `None` when it is absent.
async fn digest_of(shared: &Shared, name: &Path) -> Result<Option<(u64, HexDigest)>, StoreError> {
    match reader::digests_of(shared, name).await {
        Ok(digests) => Ok(Some((digests.stored_bytes, digests.sha256))),
        Err(StoreError::Object {
            source: object_store::Error::NotFound { .. },
            ..
        }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes the line durable; returns the object that holds it.
async fn declare(
    shared: &Shared,
    uploader: &str,
    received: Timestamp,
    lost: &Lost,
) -> Result<Path, StoreError> {
    let seed = serde_json::to_vec(lost).map_err(|source| StoreError::Json {
        what: "a loss of events",
        source,
    })?;
    let received_ms = u64::try_from(received.as_millisecond()).unwrap_or_default();
    let mut rng = ChaCha20Rng::from_seed(Sha256::digest(&seed).into());
    let id = EventId::random(received_ms, &mut rng);
    let line = event::lost_line_of(id, received, uploader, lost)?;
    let name = layout::events(uploader, received, &id);
    let (patience, sends) = (Patience::Tries(CREATE_TRIES), AtomicU64::new(0));
    let created = shared.objects.create(&name, &line, patience, &sends);
    match created.await? {
        // If we stop here: it is declared, perhaps without the directories above it; the next pass comes here again.
        Created::Durable => shared.objects.sync(&name).await.map(|()| name),
        Created::Different(_) => Err(StoreError::ForeignObject {
            name: name.to_string(),
        }),
        Created::Poisoned(source) => Err(StoreError::SyncFailed {
            name: name.to_string(),
            source,
        }),
    }
}

/// The numbers in order, each run of them as its first and its last.
fn runs_of(numbers: &[JournalNumber]) -> Vec<(u64, u64)> {
    let mut numbers: Vec<u64> = numbers.iter().map(|number| number.0).collect();
    numbers.sort_unstable();
    let mut runs = Vec::<(u64, u64)>::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if number.saturating_sub(*last) <= 1 => *last = number,
            Some(_) | None => runs.push((number, number)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_numbers_are_told_in_runs_whatever_their_order() {
        let numbers = [9, 3, 1, 2, 7, 3].map(JournalNumber);
        assert_eq!(runs_of(&numbers), [(1, 3), (7, 7), (9, 9)]);
        assert_eq!(runs_of(&[]), []);
    }
}
