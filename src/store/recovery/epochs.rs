//! Which epochs there are: a listing, taken as a hint.
//!
//! Invariant: what a listing does not show is not concluded to be absent; what it shows of an epoch only says where to begin
//! asking. Memory held is a few numbers per epoch. Called by `recovery.rs`.

use std::collections::BTreeMap;

use futures_util::TryStreamExt;
use futures_util::stream::BoxStream;
use object_store::ObjectMeta;
use object_store::path::Path;

use super::super::create::ANSWER_TIMEOUT;
use super::super::error::StoreError;
use super::super::{Shared, layout};
use crate::ids::{EpochId, JournalNumber, RecorderId};

/// How many epochs one pass looks at, the oldest first: 24 bytes and three numbers each. The rest comes with the next start.
const EPOCHS_MAX: usize = 100_000;

/// An epoch, as a listing shows it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Listed {
    pub(super) recorder: RecorderId,
    pub(super) epoch: EpochId,
    /// The least and the greatest number that the listing shows, the opener left out of the first.
    pub(super) oldest: Option<JournalNumber>,
    pub(super) newest: JournalNumber,
    /// Whether the listing shows the opener.
    pub(super) has_opener: bool,
}

impl Listed {
    pub(super) fn opener(&self) -> Path {
        layout::journal_object(&self.recorder, &self.epoch, JournalNumber::OPENER)
    }
}

/// Lists all epochs, in the order of their clocks.
pub(super) async fn list(shared: &Shared) -> Result<Vec<Listed>, StoreError> {
    let prefix = layout::journal();
    let mut epochs = BTreeMap::<(EpochId, RecorderId), Listed>::new();
    let mut names = shared.objects.store().list(Some(&prefix));
    while let Some(object) = next_listed(&mut names, &prefix).await? {
        let Some((recorder, epoch, number)) = layout::journal_place_of(&object.location) else {
            continue;
        };
        let room = epochs.len() < EPOCHS_MAX || epochs.contains_key(&(epoch, recorder));
        if !room {
            continue;
        }
        let listed = epochs.entry((epoch, recorder)).or_insert(Listed {
            recorder,
            epoch,
            oldest: None,
            newest: number,
            has_opener: false,
        });
        listed.newest = listed.newest.max(number);
        if number == JournalNumber::OPENER {
            listed.has_opener = true;
        } else {
            listed.oldest = Some(listed.oldest.map_or(number, |oldest| oldest.min(number)));
        }
    }
    Ok(epochs.into_values().collect())
}

/// The objects of one epoch that stand below `end`, but for the opener: what a trim is to remove.
pub(super) async fn numbers_below(
    shared: &Shared,
    listed: &Listed,
    end: JournalNumber,
) -> Result<Vec<Path>, StoreError> {
    let mut below = Vec::new();
    each_of(shared, listed, |number, name| {
        if number != JournalNumber::OPENER && number < end {
            below.push(name);
        }
    })
    .await?;
    Ok(below)
}

/// The greatest number that a listing of one epoch shows now.
pub(super) async fn newest(shared: &Shared, listed: &Listed) -> Result<JournalNumber, StoreError> {
    let mut newest = JournalNumber::OPENER;
    each_of(shared, listed, |number, _| newest = newest.max(number)).await?;
    Ok(newest)
}

/// Whether a listing shows an object of an epoch: a directory alone is none, and no pass would meet it.
pub(super) async fn has_objects(
    shared: &Shared,
    recorder: &RecorderId,
    epoch: &EpochId,
) -> Result<bool, StoreError> {
    let prefix = layout::epoch(recorder, epoch);
    let mut names = shared.objects.store().list(Some(&prefix));
    while let Some(object) = next_listed(&mut names, &prefix).await? {
        if layout::journal_place_of(&object.location).is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Lists one epoch.
async fn each_of(
    shared: &Shared,
    listed: &Listed,
    mut met: impl FnMut(JournalNumber, Path),
) -> Result<(), StoreError> {
    let prefix = layout::epoch(&listed.recorder, &listed.epoch);
    let mut names = shared.objects.store().list(Some(&prefix));
    while let Some(object) = next_listed(&mut names, &prefix).await? {
        if let Some((_, _, number)) = layout::journal_place_of(&object.location) {
            met(number, object.location);
        }
    }
    Ok(())
}

/// The next name of a listing; a backend that does not answer holds nobody up for ever.
pub(super) async fn next_listed(
    names: &mut BoxStream<'static, object_store::Result<ObjectMeta>>,
    prefix: &Path,
) -> Result<Option<ObjectMeta>, StoreError> {
    match tokio::time::timeout(ANSWER_TIMEOUT, names.try_next()).await {
        Ok(Ok(object)) => Ok(object),
        Ok(Err(source)) => Err(StoreError::Object {
            step: "list",
            name: prefix.to_string(),
            source,
        }),
        Err(_) => Err(StoreError::Unanswered {
            step: "list",
            name: prefix.to_string(),
        }),
    }
}
