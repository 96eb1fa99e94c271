//! The backend proven at start.
//!
//! Invariant: no recorder writes to a backend that lets two creates of one object both succeed, or whose listing lags; what a
//! start leaves that is killed in its proof, a later one removes. Called by [`super::Store::open`].

use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutMode, PutOptions};
use rand_chacha::ChaCha20Rng;

use super::create::{ANSWER_TIMEOUT, Objects};
use super::error::StoreError;
use super::layout;
use crate::ids::RecordingId;

/// A younger probe may be of a start under way, which would take its second create for a first one.
const LEFT_AGE_MS_MIN: i64 = 3600 * 1000;
/// How many probes one start removes, and how many it looks at.
const LEFT_MAX: usize = 256;
const LISTED_MAX: usize = 8192;

/// Two concurrent creates of one object: exactly one may win, and a later one must fail.
pub(super) async fn prove_create_is_exclusive(
    objects: &Objects,
    rng: &mut ChaCha20Rng,
) -> Result<(), StoreError> {
    let name = layout::probe(&RecordingId::random(rng));
    let (one, other) = tokio::join!(
        create_wins(objects, &name, b"one"),
        create_wins(objects, &name, b"other")
    );
    let (one, other) = (one?, other?);
    let later = create_wins(objects, &name, b"later").await?;
    let listed = list_probes(objects, &name).await?;
    // The proof is done: a probe that stays costs one small object until a later start removes it.
    for name in std::iter::once(&name).chain(&listed.left) {
        match tokio::time::timeout(ANSWER_TIMEOUT, objects.store().delete(name)).await {
            Ok(Ok(()) | Err(object_store::Error::NotFound { .. })) => {}
            Ok(Err(error)) => {
                tracing::warn!(%name, error = crate::tell::with_causes(&error), "the probe object stays")
            }
            Err(_) => {
                tracing::warn!(%name, "no answer to the removal of the probe object in time");
                break;
            }
        }
    }
    let winners = usize::from(one).saturating_add(usize::from(other));
    if winners != 1 || later {
        let later = if later { "won too" } else { "failed" };
        return Err(StoreError::CreateIsNotExclusive { winners, later });
    }
    if !listed.shows_ours {
        return Err(StoreError::ListIsStale {
            name: name.to_string(),
        });
    }
    Ok(())
}

/// What a listing shows of the probes.
#[derive(Default)]
struct Probes {
    shows_ours: bool,
    /// Those that starts left which were killed, [`LEFT_MAX`] at most.
    left: Vec<Path>,
}

/// A listing is a hint to recovery, but a hint that must not lag: an epoch that it does not show is not looked for.
async fn list_probes(objects: &Objects, ours: &Path) -> Result<Probes, StoreError> {
    let prefix = layout::store();
    let mut names = objects.store().list(Some(&prefix));
    let listing = async {
        let mut listed = Vec::new();
        let mut proven_at = None;
        while let Some(object) = names.try_next().await? {
            if object.location == *ours {
                proven_at = Some(object.last_modified.timestamp_millis());
            } else if layout::is_probe(&object.location) && listed.len() < LISTED_MAX {
                listed.push((object.last_modified.timestamp_millis(), object.location));
            }
        }
        // Both times are the backend's: its clock may be wrong, but not for one of them alone.
        let Some(proven_at) = proven_at else {
            return Ok(Probes::default());
        };
        let is_left = |(made, _): &(i64, Path)| proven_at.saturating_sub(*made) >= LEFT_AGE_MS_MIN;
        let left = listed.into_iter().filter(is_left);
        Ok(Probes {
            shows_ours: true,
            left: left.map(|(_, name)| name).take(LEFT_MAX).collect(),
        })
    };
    match tokio::time::timeout(ANSWER_TIMEOUT, listing).await {
        Ok(listed) => listed.map_err(|source| StoreError::Object {
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

async fn create_wins(
    objects: &Objects,
    name: &Path,
    bytes: &'static [u8],
) -> Result<bool, StoreError> {
    let options = PutOptions {
        mode: PutMode::Create,
        ..PutOptions::default()
    };
    let put = objects.store().put_opts(name, bytes.into(), options);
    match tokio::time::timeout(ANSWER_TIMEOUT, put).await {
        Ok(Ok(_)) => Ok(true),
        Ok(Err(
            object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. },
        )) => Ok(false),
        Ok(Err(source)) => Err(StoreError::Object {
            step: "probe",
            name: name.to_string(),
            source,
        }),
        Err(_) => Err(StoreError::Unanswered {
            step: "probe",
            name: name.to_string(),
        }),
    }
}
