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
pub use query::{Claimed, Entry, Query, TimeError, parse_time};

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

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::access::Identity;
    use crate::ids::LogKey;
    use crate::store::{End, Opening, Store, StoreConfig, StoreUrl};

    /// Records `bytes` of a node on a day, and seals it.
    async fn record(store: &Store, node: &str, day: &str, bytes: &'static [u8]) -> String {
        let received_at: Timestamp = format!("{day}T10:00:00Z").parse().unwrap();
        let opening = Opening {
            uploader: Identity {
                stable_id: format!("n-{node}"),
                node_name: format!("{node}.tail.test"),
                user: None,
                tags: vec!["tag:ssh".into()],
                address: "100.64.0.7".parse().unwrap(),
                capabilities: BTreeMap::new(),
            },
            endpoint: "/v2/record",
            received_at,
        };
        let mut handle = store.begin(opening).unwrap();
        handle.append(Bytes::from_static(bytes)).await.unwrap();
        let end = End {
            clean: true,
            reason: String::new(),
            ended_at: received_at,
            flags: Vec::new(),
        };
        handle.finish(end).await.unwrap().manifest_name
    }

    fn newest(limit: usize) -> Query {
        Query {
            node: None,
            user: None,
            since: None,
            until: None,
            limit,
        }
    }

    fn nodes(listing: &Listing) -> Vec<&str> {
        let entries = listing.entries.iter();
        entries.map(|entry| entry.stable_id.as_str()).collect()
    }

    #[tokio::test]
    async fn the_newest_come_first_and_a_broken_manifest_hides_no_other() {
        let root = tempfile::tempdir().unwrap();
        let url = StoreUrl::Local(root.path().into());
        let key = LogKey::from_bytes([7; LogKey::BYTES]);
        let store = Store::open(StoreConfig::new(url.clone(), key))
            .await
            .unwrap();
        record(&store, "b", "2026-11-02", b"two").await;
        record(&store, "c", "2026-11-03", b"three").await;
        let broken = record(&store, "a", "2026-11-01", b"one").await;
        store.close().await.unwrap();

        let reader = StoreReader::open(&url).await.unwrap();
        let listing = list(&reader, &newest(10)).await.unwrap();
        assert_eq!(nodes(&listing), ["n-c", "n-b", "n-a"]);
        assert_eq!((listing.more, listing.entries[0].bytes), (0, 5));
        let listing = list(&reader, &newest(2)).await.unwrap();
        assert_eq!((nodes(&listing), listing.more), (vec!["n-c", "n-b"], 1));
        let listing = list(&reader, &newest(0)).await.unwrap();
        assert_eq!((listing.entries.len(), listing.more), (0, 3));
        let of_b = Query {
            node: Some("b".into()),
            ..newest(10)
        };
        assert_eq!(nodes(&list(&reader, &of_b).await.unwrap()), ["n-b"]);

        std::fs::write(root.path().join(&broken), b"{}").unwrap();
        let listing = list(&reader, &newest(10)).await.unwrap();
        assert_eq!(nodes(&listing), ["n-c", "n-b"]);
        assert_eq!(listing.unreadable.len(), 1);
        assert_eq!(listing.unreadable[0].0, broken);
    }
}
