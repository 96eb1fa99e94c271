//! The world of the suite: a backend, a seed, a clock that stands still, and an auditor who reads the objects raw.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use jiff::Timestamp;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

use super::super::local_disk::{DiskSync, LocalDisk};
use super::super::{End, Opening, RecordingHandle, Store, StoreConfig, StoreError, StoreUrl};
use super::faulty_store::FaultyStore;
use crate::access::Identity;
use crate::ids::{LogKey, RecorderId, RecordingId, StreamOffset};
use crate::recording::frame::FrameKind;
use crate::recording::journal_object::{JournalObject, digest_of};
use crate::recording::manifest::Manifest;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Backend {
    Memory,
    File,
}

pub(super) const BACKENDS: [Backend; 2] = [Backend::Memory, Backend::File];

/// A backend that outlives the stores opened on it.
pub(super) struct World {
    pub(super) objects: Arc<FaultyStore>,
    pub(super) disk: Option<Arc<dyn DiskSync>>,
    pub(super) config: StoreConfig,
    directory: Option<tempfile::TempDir>,
    seed: std::cell::Cell<u64>,
}

impl World {
    pub(super) async fn new(backend: Backend) -> Self {
        let log_key = LogKey::from_bytes([7; LogKey::BYTES]);
        let recorder = RecorderId::from_log_key(log_key.as_bytes());
        let (inner, disk, directory, url): (Arc<dyn ObjectStore>, Option<Arc<dyn DiskSync>>, _, _) =
            match backend {
                Backend::Memory => (Arc::new(InMemory::new()), None, None, StoreUrl::Memory),
                Backend::File => {
                    let directory = scratch();
                    let disk = LocalDisk::prepare(directory.path().into(), recorder)
                        .await
                        .unwrap();
                    let url = StoreUrl::Local(directory.path().into());
                    (disk.objects(), Some(Arc::new(disk)), Some(directory), url)
                }
            };
        let objects = FaultyStore::new(inner);
        // Tests let days pass in which nothing happens, and count what does: those of the fence set their own interval.
        let config = StoreConfig {
            fence_look_interval: Duration::MAX,
            ..StoreConfig::new(url, log_key)
        };
        Self {
            objects,
            disk,
            config,
            directory,
            seed: 0.into(),
        }
    }

    /// Where a world on disk has its objects.
    pub(super) fn root(&self) -> &std::path::Path {
        self.directory.as_ref().unwrap().path()
    }

    pub(super) async fn open(&self) -> Result<Store, StoreError> {
        self.seed.set(self.seed.get() + 1);
        let rng = ChaCha20Rng::seed_from_u64(self.seed.get());
        let objects: Arc<FaultyStore> = Arc::clone(&self.objects);
        Store::open_with(self.config.clone(), objects, self.disk.clone(), rng, || {
            at("2026-11-20T10:20:00Z")
        })
        .await
    }

    pub(super) async fn names(&self) -> Vec<String> {
        let listed: Vec<_> = self.objects.list(None).try_collect().await.unwrap();
        let mut names: Vec<_> = listed
            .into_iter()
            .map(|object| object.location.to_string())
            .collect();
        names.sort_unstable();
        names
    }

    pub(super) async fn names_with(&self, text: &str) -> Vec<String> {
        self.names()
            .await
            .into_iter()
            .filter(|name| name.contains(text))
            .collect()
    }

    pub(super) async fn get(&self, name: &str) -> Bytes {
        self.objects
            .get(&Path::from(name))
            .await
            .unwrap()
            .bytes()
            .await
            .unwrap()
    }

    /// Reads the journal as a stranger would: checks every chain, returns each recording's bytes from its beginning to
    /// the first gap. Compaction leaves the same frame in two objects for a while: both must hold the same bytes.
    pub(super) async fn audit_journal(&self) -> BTreeMap<RecordingId, Vec<u8>> {
        let mut pieces = BTreeMap::<RecordingId, BTreeMap<u64, Vec<u8>>>::new();
        let mut before: Option<(JournalPlace, [u8; 32])> = None;
        for name in self.names_with("journal/").await {
            let bytes = self.get(&name).await;
            let object = JournalObject::decode(&bytes).unwrap();
            let place = (object.header.epoch, object.header.number.0);
            assert!(name.ends_with(&format!("{}/{:010}", place.0, place.1)));
            if let Some((last, digest)) = before
                && last == (place.0, place.1.wrapping_sub(1))
            {
                assert_eq!(object.header.previous, digest, "the chain breaks at {name}");
            } else {
                assert!(
                    place.1 == 0 || object.header.oldest_needed.0 <= place.1,
                    "a hole before {name}"
                );
            }
            for frame in object.frames() {
                let frame = frame.unwrap();
                if frame.kind == FrameKind::Data {
                    let plain = frame.plain().unwrap().into_owned();
                    let stream = pieces.entry(frame.recording).or_default();
                    let there = stream
                        .entry(frame.offset.0)
                        .or_insert_with(|| plain.clone());
                    assert_eq!(*there, plain, "a copy differs in {name}");
                }
            }
            before = Some((place, digest_of(&bytes)));
        }
        let whole = pieces.into_iter().map(|(id, pieces)| {
            let mut stream = Vec::new();
            for (offset, piece) in pieces {
                if offset == stream.len() as u64 {
                    stream.extend(piece);
                }
            }
            (id, stream)
        });
        whole.collect()
    }

    /// The only manifest, and its stream read with nothing but object reads.
    pub(super) async fn only_manifest(&self) -> (Manifest, Vec<u8>) {
        let names = self.names_with(".json").await;
        assert_eq!(names.len(), 1, "{names:?}");
        let manifest = Manifest::decode(&self.get(&names[0]).await).unwrap();
        let mut stream = Vec::new();
        for segment in &manifest.segments {
            stream.extend_from_slice(&self.get(&segment.name).await);
        }
        (manifest, stream)
    }
}

/// In memory where the system offers it: tables of faults fsync tens of thousands of times, and prove nothing about a disk.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

type JournalPlace = (crate::ids::EpochId, u64);

pub(super) fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

pub(super) fn opening() -> Opening {
    Opening {
        uploader: Identity {
            stable_id: "nAbCdEfCNTRL".into(),
            node_name: "web.tail-scale.ts.net".into(),
            user: None,
            tags: vec!["tag:ssh".into()],
            address: "100.64.0.7".parse().unwrap(),
            capabilities: BTreeMap::new(),
        },
        endpoint: "/v2/record",
        received_at: at("2026-11-20T10:15:00.123Z"),
    }
}

pub(super) fn clean_end() -> End {
    End {
        clean: true,
        reason: "end of body".into(),
        ended_at: at("2026-11-20T10:16:00Z"),
        flags: vec![],
    }
}

/// Waits until the recording is durable up to `offset`, or failed.
pub(super) async fn durable_at(
    handle: &RecordingHandle,
    offset: u64,
) -> Result<(), Arc<StoreError>> {
    let mut durable = handle.durable();
    let reached = durable
        .wait_for(|durable| durable.offset >= StreamOffset(offset) || durable.failed.is_some());
    let reached = tokio::time::timeout(Duration::from_secs(120), reached)
        .await
        .expect("durable within two minutes");
    match &reached.unwrap().failed {
        Some(error) => Err(Arc::clone(error)),
        None => Ok(()),
    }
}

pub(super) async fn read_all(store: &Store, manifest: Manifest) -> Result<Vec<u8>, StoreError> {
    let pieces: Vec<Bytes> = store.read_plain(manifest).try_collect().await?;
    Ok(pieces.concat())
}
