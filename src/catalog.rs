//! Which recordings a store has, newest first. Read from its manifests each time: the store is the truth, and there is no index yet.
//!
//! Invariant: a manifest that cannot be read hides no other; memory holds at most as many entries as were asked for. Called by `ls`.

mod query;

use std::collections::BTreeMap;

use futures_util::{StreamExt, TryStreamExt};
use jiff::Timestamp;

use crate::ids::RecordingId;
use crate::recording::manifest::Manifest;
use crate::store::{StoreError, StoreReader};
pub use query::{Entry, Query, TimeError, parse_time};

/// Manifests that are read at once.
const READS_AT_ONCE: usize = 16;

/// What a query found.
#[derive(Debug, Default)]
pub struct Listing {
    /// The newest that match, newest first; at most as many as the query's limit.
    pub entries: Vec<Entry>,
    /// How many match and are older than those.
    pub more: u64,
    /// Manifests that could not be read: their names, and why.
    pub unreadable: Vec<(String, StoreError)>,
}

/// How many unreadable manifests are named; the rest is logged.
const UNREADABLE_MAX: usize = 100;

/// Finds recordings.
///
/// # Errors
/// [`StoreError::Object`] when the store cannot be listed.
pub async fn list(reader: &StoreReader, query: &Query) -> Result<Listing, StoreError> {
    let read = reader.manifest_names().map_ok(|name| {
        let reader = reader.clone();
        async move {
            let manifest = reader.manifest(&name).await;
            Ok((name, manifest))
        }
    });
    let mut read = Box::pin(read.try_buffer_unordered(READS_AT_ONCE));
    let mut newest: BTreeMap<(Timestamp, RecordingId), Entry> = BTreeMap::new();
    let mut listing = Listing::default();
    while let Some((name, manifest)) = read.next().await.transpose()? {
        let manifest: Manifest = match manifest {
            Ok(manifest) => manifest,
            Err(error) if listing.unreadable.len() < UNREADABLE_MAX => {
                listing.unreadable.push((name, error));
                continue;
            }
            Err(error) => {
                tracing::warn!(name, error = error.with_causes(), "unreadable manifest");
                continue;
            }
        };
        let entry = Entry::of(manifest, name);
        if !query.matches(&entry) {
            continue;
        }
        newest.insert((entry.received_at, entry.id), entry);
        if newest.len() > query.limit {
            newest.pop_first();
            listing.more = listing.more.saturating_add(1);
        }
    }
    listing.entries = newest.into_values().rev().collect();
    listing.unreadable.sort_by(|one, other| one.0.cmp(&other.0));
    Ok(listing)
}
