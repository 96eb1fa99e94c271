//! Removes segments that no manifest names: attempts that did not come to their end.
//!
//! Invariant: a segment goes only when it is a day old and the manifest of its recording names others, or when there is no
//! manifest and no journal that could still lead to one. An orphan costs room, never truth. Called by `recovery.rs`.

use std::collections::{BTreeMap, BTreeSet};

use object_store::ObjectStoreExt;
use object_store::path::Path;

use super::super::create::ANSWER_TIMEOUT;
use super::super::error::StoreError;
use super::super::{Shared, layout};
use super::epochs::next_listed;
use crate::ids::AttemptId;
use crate::recording::manifest::Manifest;

/// A younger segment may be of an attempt under way.
const ORPHAN_AGE_MS_MIN: i64 = 24 * 3600 * 1000;
/// How many recordings are held in memory at once; a day of one uploader with more is looked at in part.
const RECORDINGS_MAX: usize = 100_000;

/// What one directory (a day of one uploader) has of one recording.
#[derive(Default)]
struct Found {
    sealed: bool,
    attempts: BTreeSet<AttemptId>,
    old_segments: Vec<Path>,
}

/// Looks through all recordings; `alone` when no other recorder may be about to name a segment.
pub(super) async fn sweep(shared: &Shared, alone: bool) -> Result<(), StoreError> {
    for uploader in directories(shared, &layout::recordings()).await? {
        for day in directories(shared, &uploader).await? {
            sweep_day(shared, &day, alone).await?;
        }
    }
    Ok(())
}

async fn directories(shared: &Shared, above: &Path) -> Result<Vec<Path>, StoreError> {
    let listing = shared.objects.store().list_with_delimiter(Some(above));
    match tokio::time::timeout(ANSWER_TIMEOUT, listing).await {
        Ok(Ok(listed)) => Ok(listed.common_prefixes),
        Ok(Err(source)) => Err(StoreError::Object {
            step: "list",
            name: above.to_string(),
            source,
        }),
        Err(_) => Err(StoreError::Unanswered {
            step: "list",
            name: above.to_string(),
        }),
    }
}

async fn sweep_day(shared: &Shared, day: &Path, alone: bool) -> Result<(), StoreError> {
    let now_ms = (shared.wall_clock)().as_millisecond();
    let mut recordings = BTreeMap::<String, Found>::new();
    let mut objects = shared.objects.store().list(Some(day));
    while let Some(object) = next_listed(&mut objects, day).await? {
        let Some((base, attempt)) = layout::parts_of(&object.location) else {
            continue;
        };
        if recordings.len() >= RECORDINGS_MAX && !recordings.contains_key(&base) {
            continue;
        }
        let found = recordings.entry(base).or_default();
        let Some(attempt) = attempt else {
            found.sealed = true;
            continue;
        };
        found.attempts.insert(attempt);
        let age_ms = now_ms.saturating_sub(object.last_modified.timestamp_millis());
        if age_ms >= ORPHAN_AGE_MS_MIN {
            found.old_segments.push(object.location);
        }
    }
    for (base, found) in recordings {
        sweep_recording(shared, &base, found, alone).await?;
    }
    Ok(())
}

async fn sweep_recording(
    shared: &Shared,
    base: &str,
    found: Found,
    alone: bool,
) -> Result<(), StoreError> {
    // One attempt and a manifest: it names that attempt. This is nearly every recording, and costs no read.
    if found.old_segments.is_empty() || (found.sealed && found.attempts.len() == 1) {
        return Ok(());
    }
    let manifest_name = Path::from(format!("{base}.json"));
    let named: BTreeSet<String> = match shared.objects.read(&manifest_name).await? {
        Some(bytes) => {
            let manifest = Manifest::decode(&bytes).map_err(|source| StoreError::Manifest {
                name: manifest_name.to_string(),
                source,
            })?;
            let segments = manifest.segments.into_iter();
            segments.map(|segment| segment.name).collect()
        }
        None => {
            let open = layout::manifest_of(&manifest_name)
                .is_none_or(|id| shared.state().has_recording(id));
            if open || !alone {
                return Ok(());
            }
            BTreeSet::new()
        }
    };
    for name in found.old_segments {
        if named.contains(name.as_ref()) {
            continue;
        }
        // If we stop here: the others stay for the next sweep.
        match shared.objects.store().delete(&name).await {
            Ok(()) => tracing::info!(%name, "a segment that no manifest names is removed"),
            Err(error) => {
                tracing::warn!(%name, error = crate::tell::with_causes(&error), "an unused segment stays")
            }
        }
    }
    Ok(())
}
