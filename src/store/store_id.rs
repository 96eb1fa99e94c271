//! The store's own id: made once, and held against what stands in the store.
//!
//! Invariant: no second id is made for a store that holds anything of a first, and no start goes on under an id that an opener, or where none
//! can be read a manifest, contradicts. An id is durable before anything names it, so that no loss of power looks like its loss. Called by [`super::Store::open`]
//! and `archive.rs`.

use std::cmp::Reverse;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::path::Path;
use rand_chacha::ChaCha20Rng;

use super::create::{ANSWER_TIMEOUT, Created, Objects, Patience};
use super::error::StoreError;
use super::layout;
use super::opener::{self, ReadOpener};
use crate::ids::{EpochId, JournalNumber, RecorderId, StoreId};
use crate::recording::manifest::Manifest;

/// A start that cannot reach its backend says so rather than waiting for it.
const START_TRIES: u32 = 3;
/// Of how many recorders a start reads openers, and how many of each, the newest first: one request each. Recovery reads those of
/// all epochs that have something left to do.
const RECORDERS_MAX: usize = 64;
const OPENERS_PER_RECORDER_MAX: usize = 8;
/// How many names that are none of ours are passed over in the search for one that is.
const PASSED_OVER_MAX: usize = 10_000;
/// How many manifests are read in the search for one that names the id: one request each.
const MANIFESTS_MAX: usize = 8;

/// Whoever comes first makes the id; everyone reads the same. When this returns, it is durable, and no opener that was read
/// names another; nor does a manifest, if no opener could be read.
///
/// # Errors
/// [`StoreError::StoreIdLost`], [`StoreError::StoreIdDiffers`]; [`StoreError::StoreIdDamaged`] or [`StoreError::ForeignObject`] when what stands there is none;
/// [`StoreError::Obstructed`]; the backend's.
pub(super) async fn read_or_make(
    objects: &Objects,
    rng: &mut ChaCha20Rng,
) -> Result<StoreId, StoreError> {
    let drawn = StoreId::random(rng);
    let id = match read_proven(objects).await? {
        Some(present) => present,
        None => make(objects, drawn).await?,
    };
    // Whoever made it may not have come to its fsync; what we write names it. If we stop here, the store has an id and nothing else.
    objects.sync_anew(&layout::store_id()).await?;
    Ok(id)
}

/// The id that stands in the store, held against its openers, or without any against a manifest; none where no recorder ever opened it.
///
/// # Errors
/// As [`read_or_make`].
pub(super) async fn read_proven(objects: &Objects) -> Result<Option<StoreId>, StoreError> {
    let Some(id) = read_or_miss(objects).await? else {
        return Ok(None);
    };
    let mut is_confirmed = false;
    for (recorder, epoch) in openers(objects).await? {
        match opener::read(objects, &recorder, &epoch).await {
            Ok(ReadOpener::Whole { store_id, .. }) => {
                agrees(id, store_id, &recorder, &epoch)?;
                is_confirmed = true;
            }
            // Recovery says what is to be said of them, when their epoch has its turn.
            Ok(
                ReadOpener::Absent
                | ReadOpener::Obstructed
                | ReadOpener::Damaged
                | ReadOpener::Newer(_),
            ) => {}
            Err(error) => {
                // An unreadable sector below one old object is no reason not to record; nor are ten seconds for each of them.
                tracing::warn!(
                    error = error.with_causes(),
                    "an opener cannot be read: the store's id is not held against the others"
                );
                break;
            }
        }
    }
    if !is_confirmed {
        match manifest_naming(objects, id).await {
            Ok(Some((name, named))) => agrees_at(id, named, &name)?,
            Ok(None) => {}
            // As above: recovery looks again, before it seals anything of an epoch that has lost its opener.
            Err(error) => tracing::warn!(
                error = error.with_causes(),
                "no opener and no manifest can be read: the store's id is not held against them"
            ),
        }
    }
    Ok(Some(id))
}

/// Fails when what can be read in the store names another id, and nothing this one: then it is not known whose an epoch without its opener
/// is. `is_own` tells the epochs that this process has opened, whose word for the id is its own.
///
/// # Errors
/// [`StoreError::StoreIdDiffers`]; the backend's, to be tried again.
pub(super) async fn confirm(
    objects: &Objects,
    id: StoreId,
    is_own: impl Fn(&EpochId) -> bool,
) -> Result<(), StoreError> {
    let mut other = None;
    for (recorder, epoch) in openers(objects).await? {
        if is_own(&epoch) {
            continue;
        }
        match opener::read(objects, &recorder, &epoch).await? {
            ReadOpener::Whole { store_id, .. } if store_id == id => return Ok(()),
            ReadOpener::Whole { store_id, .. } => {
                let name = layout::journal_object(&recorder, &epoch, JournalNumber::OPENER);
                other = other.or(Some((name, store_id)));
            }
            ReadOpener::Absent
            | ReadOpener::Obstructed
            | ReadOpener::Damaged
            | ReadOpener::Newer(_) => {}
        }
    }
    match manifest_naming(objects, id).await? {
        Some((_, named)) if named == id => return Ok(()),
        named => other = other.or(named),
    }
    match other {
        Some((name, named)) => agrees_at(id, named, &name),
        // Nothing names an id: there is none that this one could contradict.
        None => Ok(()),
    }
}

/// The id that stands in the store; none where nothing of a recorder stands.
///
/// # Errors
/// [`StoreError::StoreIdLost`] when the store holds something and no id; [`StoreError::Obstructed`] when none can be put there;
/// [`StoreError::StoreIdDamaged`], or [`StoreError::ForeignObject`] when nothing else is there; the backend's.
pub(super) async fn read_or_miss(objects: &Objects) -> Result<Option<StoreId>, StoreError> {
    let damaged = match read(objects).await {
        Ok(Some(id)) => return Ok(Some(id)),
        Ok(None) => None,
        Err(error @ StoreError::ForeignObject { .. }) => Some(error),
        Err(error) => return Err(error),
    };
    let id_name = layout::store_id();
    if objects.is_obstructed(&id_name).await {
        return Err(StoreError::Obstructed {
            name: id_name.to_string(),
        });
    }
    let held = holding(objects).await?;
    match (damaged, held) {
        (None, None) => Ok(None),
        (Some(error), None) => Err(error),
        (Some(_), Some((name, named))) => Err(StoreError::StoreIdDamaged {
            name: name.to_string(),
            named,
        }),
        // Another start may have made the id and then the object that we found, since we looked.
        (None, Some((name, named))) => match read(objects).await? {
            Some(id) => Ok(Some(id)),
            None => Err(StoreError::StoreIdLost {
                name: name.to_string(),
                named,
            }),
        },
    }
}

/// Fails when an opener names another store than the one it stands in.
pub(super) fn agrees(
    id: StoreId,
    named: StoreId,
    recorder: &RecorderId,
    epoch: &EpochId,
) -> Result<(), StoreError> {
    let name = layout::journal_object(recorder, epoch, JournalNumber::OPENER);
    agrees_at(id, named, &name)
}

fn agrees_at(id: StoreId, named: StoreId, name: &Path) -> Result<(), StoreError> {
    if id == named {
        return Ok(());
    }
    Err(StoreError::StoreIdDiffers {
        present: id,
        name: name.to_string(),
        named,
    })
}

/// A manifest with the id that it names, of the first few: one that names `id` if there is one, else one that names another.
async fn manifest_naming(
    objects: &Objects,
    id: StoreId,
) -> Result<Option<(Path, StoreId)>, StoreError> {
    let prefix = layout::recordings();
    let mut names = objects.store().list(Some(&prefix));
    let (mut manifests, mut other) = (0, None);
    for _ in 0..PASSED_OVER_MAX {
        let Some(object) = answered(&prefix, names.try_next()).await? else {
            break;
        };
        let name = object.location;
        if layout::manifest_of(&name).is_none() {
            continue;
        }
        let manifest = objects.read(&name).await?;
        let manifest = manifest.and_then(|bytes| Manifest::decode(&bytes).ok());
        match manifest.map(|manifest| manifest.store_id) {
            Some(named) if named == id => return Ok(Some((name, named))),
            Some(named) => other = other.or(Some((name, named))),
            None => {}
        }
        manifests += 1;
        if manifests >= MANIFESTS_MAX {
            break;
        }
    }
    Ok(other)
}

async fn read(objects: &Objects) -> Result<Option<StoreId>, StoreError> {
    let name = layout::store_id();
    let present = objects.read(&name).await?;
    present.map(|bytes| parse(&name, &bytes)).transpose()
}

async fn make(objects: &Objects, id: StoreId) -> Result<StoreId, StoreError> {
    let name = layout::store_id();
    let bytes = Bytes::from(format!("{id}\n"));
    let (patience, sends) = (Patience::Tries(START_TRIES), AtomicU64::new(0));
    match objects.create(&name, &bytes, patience, &sends).await? {
        Created::Durable => Ok(id),
        Created::Different(present) => parse(&name, &present),
        Created::Poisoned(source) => Err(StoreError::SyncFailed {
            name: name.to_string(),
            source,
        }),
    }
}

fn parse(name: &Path, bytes: &[u8]) -> Result<StoreId, StoreError> {
    let text = std::str::from_utf8(bytes)
        .ok()
        .and_then(|text| text.strip_suffix('\n'));
    let id = text.and_then(|text| text.parse().ok());
    id.ok_or_else(|| StoreError::ForeignObject {
        name: name.to_string(),
    })
}

/// Something that a recorder has made here, with the id that it names: an opener if there is one, else a manifest, else
/// whatever there is.
async fn holding(objects: &Objects) -> Result<Option<(Path, Option<StoreId>)>, StoreError> {
    for (recorder, epoch) in openers(objects).await? {
        if let ReadOpener::Whole { store_id, .. } = opener::read(objects, &recorder, &epoch).await?
        {
            let name = layout::journal_object(&recorder, &epoch, JournalNumber::OPENER);
            return Ok(Some((name, Some(store_id))));
        }
    }
    let is_recording = |name: &Path| layout::parts_of(name).is_some();
    if let Some(name) = first_below(objects, layout::recordings(), is_recording).await? {
        let manifest = match layout::manifest_of(&name) {
            Some(_) => objects.read(&name).await?,
            None => None,
        };
        let manifest = manifest.and_then(|bytes| Manifest::decode(&bytes).ok());
        return Ok(Some((name, manifest.map(|manifest| manifest.store_id))));
    }
    let is_journal = |name: &Path| layout::journal_place_of(name).is_some();
    let found = match first_below(objects, layout::journal(), is_journal).await? {
        Some(name) => Some(name),
        None => first_below(objects, layout::all_events(), layout::is_events).await?,
    };
    Ok(found.map(|name| (name, None)))
}

/// The newest epochs of each recorder that a listing shows.
async fn openers(objects: &Objects) -> Result<Vec<(RecorderId, EpochId)>, StoreError> {
    let mut openers = Vec::new();
    let recorders = names_in::<RecorderId>(objects, &layout::journal()).await?;
    for recorder in recorders.into_iter().take(RECORDERS_MAX) {
        let mut epochs = names_in::<EpochId>(objects, &layout::journal_of(&recorder)).await?;
        epochs.sort_unstable_by_key(|epoch| Reverse(*epoch));
        let newest = epochs.into_iter().take(OPENERS_PER_RECORDER_MAX);
        openers.extend(newest.map(|epoch| (recorder, epoch)));
    }
    Ok(openers)
}

/// What the directories right below `prefix` name.
pub(super) async fn names_in<T: std::str::FromStr>(
    objects: &Objects,
    prefix: &Path,
) -> Result<Vec<T>, StoreError> {
    let listing = objects.store().list_with_delimiter(Some(prefix));
    let listed = answered(prefix, listing).await?;
    let names = listed.common_prefixes.iter();
    Ok(names
        .filter_map(|name| name.filename()?.parse().ok())
        .collect())
}

async fn first_below(
    objects: &Objects,
    prefix: Path,
    is_ours: impl Fn(&Path) -> bool,
) -> Result<Option<Path>, StoreError> {
    let mut names = objects.store().list(Some(&prefix));
    for _ in 0..PASSED_OVER_MAX {
        match answered(&prefix, names.try_next()).await? {
            Some(object) if is_ours(&object.location) => return Ok(Some(object.location)),
            Some(_) => {}
            None => break,
        }
    }
    Ok(None)
}

/// The answer to a listing, waited for as long as for any other.
async fn answered<T>(
    prefix: &Path,
    listing: impl Future<Output = object_store::Result<T>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(ANSWER_TIMEOUT, listing).await {
        Ok(answer) => answer.map_err(|source| StoreError::Object {
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
