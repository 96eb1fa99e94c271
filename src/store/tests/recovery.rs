//! After a crash: every acked byte is in the store, in order, exactly once; gaps are flagged; the journal is trimmed.

mod events;
mod openers;
mod steps;
mod takeover;

use std::time::Duration;

use bytes::Bytes;
use object_store::ObjectStoreExt;
use object_store::path::Path;

use super::super::{Opening, RecordingHandle, RecoveryState, RecoveryStats, Store, StoreError};
use super::process::Process;
use super::world::{BACKENDS, Backend, World, clean_end, durable_at, opening};
use crate::ids::RecordingId;
use crate::recording::manifest::{Gap, Manifest};

/// What a session sends: lines of an asciicast.
pub(super) const CAST: &[u8] =
    b"{\"version\":2,\"sshUser\":\"root\"}\n[0.5,\"o\",\"hello \"]\n[2,\"o\",\"world\"]\n";

/// A recording with these bytes, each piece durable before the next.
pub(super) async fn recording(store: &Store, pieces: &[&'static [u8]]) -> RecordingHandle {
    let mut handle = store.begin(opening()).unwrap();
    let mut offset = 0;
    for piece in pieces {
        handle.append(Bytes::from_static(piece)).await.unwrap();
        offset += piece.len() as u64;
        durable_at(&handle, offset).await.unwrap();
    }
    handle
}

pub(super) async fn recovered(store: &Store) -> RecoveryStats {
    tokio::time::timeout(Duration::from_secs(900), store.recovered())
        .await
        .unwrap_or_else(|_| panic!("{:?} {:?}", store.stats(), store.recovery_failure()))
}

impl World {
    /// Each sealed recording with its stream, read with nothing but object reads. Fails when one was sealed twice.
    pub(super) async fn sealed(&self) -> Vec<(Manifest, Vec<u8>)> {
        let mut sealed: Vec<(Manifest, Vec<u8>)> = Vec::new();
        for name in self.names_with(".json").await {
            let manifest = Manifest::decode(&self.get(&name).await).unwrap();
            let mut stream = Vec::new();
            for segment in &manifest.segments {
                stream.extend_from_slice(&self.get(&segment.name).await);
            }
            let again = |(other, _): &(Manifest, _)| other.recording_id == manifest.recording_id;
            assert!(
                !sealed.iter().any(again),
                "{name} is the second of its recording"
            );
            sealed.push((manifest, stream));
        }
        sealed
    }

    pub(super) async fn sealed_of(&self, id: RecordingId) -> (Manifest, Vec<u8>) {
        let all = self.sealed().await;
        let one = all
            .into_iter()
            .find(|(manifest, _)| manifest.recording_id == id);
        one.unwrap_or_else(|| panic!("{id} is not sealed"))
    }

    /// Everything that is left of the journal but what is never removed: openers, fences, markers.
    pub(super) async fn journal_left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for name in self.names_with("journal/").await {
            let bytes = self.get(&name).await;
            let object = crate::recording::journal_object::JournalObject::decode(&bytes);
            let kinds: Vec<_> = object
                .iter()
                .flat_map(|object| object.frames().flatten())
                .map(|frame| frame.kind)
                .collect();
            use crate::recording::frame::FrameKind::{Fence, Opener};
            if !matches!(kinds[..], [Opener | Fence]) {
                left.push(name);
            }
        }
        left
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_crash_left_open_is_sealed_by_the_next_start() {
    for backend in BACKENDS {
        let world = World::new(backend).await;
        let first = Process::start(&world, 1, None).await.unwrap();
        let mut open = recording(&first.store, &[CAST, b"[3,\"o\",\"!\"]\n"]).await;
        // Taken and not durable: never acked, and it may be lost.
        first.backend.stop();
        open.append(Bytes::from_static(b"lost")).await.unwrap();
        first.die();

        let second = Process::start(&world, 2, None).await.unwrap();
        let stats = recovered(&second.store).await;
        assert_eq!(
            (stats.epochs_found, stats.epochs_fenced, stats.epochs_closed),
            (1, 1, 1),
            "{stats:?}"
        );
        assert_eq!((stats.recordings_found, stats.recordings_sealed), (1, 1));
        let (manifest, stream) = world.only_manifest().await;
        assert_eq!(stream, [CAST, b"[3,\"o\",\"!\"]\n"].concat());
        assert_eq!(stats.bytes, stream.len() as u64);
        assert_eq!(manifest.recording_id, open.id());
        assert_eq!(manifest.flags, ["incomplete", "recovered"]);
        assert_eq!(
            manifest.reason,
            "the recorder stopped before the upload ended"
        );
        assert_eq!((manifest.event_count, manifest.clean), (3, false));
        assert_eq!(manifest.uploader, opening().uploader);
        assert_eq!(manifest.endpoint, opening().endpoint);
        assert_eq!(manifest.claimed.unwrap()["sshUser"], "root");
        assert_eq!(world.journal_left().await, Vec::<String>::new());
        world.audit_journal().await;

        // A third start has nothing to do, and says so.
        second.store.close().await.unwrap();
        let third = Process::start(&world, 3, None).await.unwrap();
        let stats = recovered(&third.store).await;
        let nothing = RecoveryStats {
            state: RecoveryState::Done,
            ..RecoveryStats::default()
        };
        assert_eq!(stats, nothing);
    }
}

#[tokio::test(start_paused = true)]
async fn a_recording_whose_end_was_journalled_is_as_complete_as_it_was() {
    for backend in BACKENDS {
        let world = World::new(backend).await;
        let first = Process::start(&world, 1, None).await.unwrap();
        let handle = recording(&first.store, &[CAST]).await;
        let id = handle.id();
        // The close frame is committed and the process dies at the first operation of the seal.
        first
            .backend
            .strike_at("get journal", super::process::Mishap::Dies);
        let finishing = handle.finish(clean_end());
        assert!(
            tokio::time::timeout(Duration::from_secs(5), finishing)
                .await
                .is_err()
        );
        first.die();

        let second = Process::start(&world, 2, None).await.unwrap();
        recovered(&second.store).await;
        let (manifest, stream) = world.sealed_of(id).await;
        assert_eq!(stream, CAST);
        assert_eq!(manifest.flags, ["complete", "recovered"]);
        assert_eq!(
            (manifest.clean, manifest.reason.as_str()),
            (true, "end of body")
        );
        assert_eq!(manifest.ended_at, clean_end().ended_at);
    }
}

#[tokio::test(start_paused = true)]
async fn remains_of_recordings_that_were_sealed_are_not_sealed_again() {
    for backend in BACKENDS {
        let world = World::new(backend).await;
        let first = Process::start(&world, 1, None).await.unwrap();
        let mut sealed = recording(&first.store, &[b"one ", b"two "]).await;
        let open = recording(&first.store, &[b"still open "]).await;
        // The end of the sealed one stands behind the beginning of the open one.
        sealed.append(Bytes::from_static(b"three")).await.unwrap();
        durable_at(&sealed, 13).await.unwrap();
        sealed.finish(clean_end()).await.unwrap();
        // The next commit says what is needed, and the opening of the sealed one goes.
        let late = recording(&first.store, &[b"late"]).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        first.die();

        let second = Process::start(&world, 2, None).await.unwrap();
        let stats = recovered(&second.store).await;
        assert_eq!(
            (stats.recordings_sealed, stats.recordings_dropped),
            (2, 1),
            "{stats:?}"
        );
        assert_eq!(world.sealed().await.len(), 3);
        assert_eq!(world.sealed_of(open.id()).await.1, b"still open ");
        assert_eq!(world.sealed_of(late.id()).await.1, b"late");
        assert_eq!(world.journal_left().await, Vec::<String>::new());
    }
}

#[tokio::test(start_paused = true)]
async fn a_damaged_object_costs_its_own_bytes_and_a_flag() {
    // Lost, bent, and replaced by a whole object of another number.
    for damage in ["lost", "bent", "replaced"] {
        for backend in BACKENDS {
            let world = World::new(backend).await;
            let first = Process::start(&world, 1, None).await.unwrap();
            let handle = recording(
                &first.store,
                &[CAST, b"[3,\"o\",\"gone\"]\n", b"[4,\"o\",\"!\"]\n"],
            )
            .await;
            let other = recording(&first.store, &[b"unharmed"]).await;
            first.die();
            let name = world.names_with("/0000000002").await.remove(0);
            let mut bytes = world.get(&name).await.to_vec();
            let path = Path::from(name.as_str());
            match damage {
                "lost" => world.objects.delete(&path).await.unwrap(),
                "bent" => {
                    bytes[150] ^= 1;
                    world.objects.put(&path, bytes.into()).await.unwrap();
                }
                _ => {
                    let third = world.get(&name.replace("/0000000002", "/0000000003")).await;
                    world.objects.put(&path, third.into()).await.unwrap();
                }
            };

            let second = Process::start(&world, 2, None).await.unwrap();
            let stats = recovered(&second.store).await;
            assert_eq!(stats.objects_damaged, 1, "{damage} {backend:?}");
            let (manifest, stream) = world.sealed_of(handle.id()).await;
            assert_eq!(stream, [CAST, b"[4,\"o\",\"!\"]\n"].concat());
            let gap = Gap {
                offset: CAST.len() as u64,
                bytes: Some(15),
            };
            assert_eq!(manifest.gaps, [gap]);
            assert_eq!(manifest.flags, ["gaps", "incomplete", "recovered"]);
            assert_eq!(manifest.bytes, stream.len() as u64 + 15);
            assert_eq!(manifest.transcript_sha256, None);
            let read = super::world::read_all(&second.store, manifest)
                .await
                .unwrap();
            assert_eq!(read, stream);
            let (manifest, stream) = world.sealed_of(other.id()).await;
            assert_eq!((manifest.gaps, stream), (vec![], b"unharmed".to_vec()));
            // What is damaged stays for whoever wants to look at it.
            let left = if damage == "lost" { 0 } else { 1 };
            assert_eq!(world.journal_left().await.len(), left);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_recording_whose_opening_is_lost_is_kept_under_an_unknown_uploader() {
    let world = World::new(Backend::Memory).await;
    let first = Process::start(&world, 1, None).await.unwrap();
    let sealed = recording(&first.store, &[b"sealed "]).await;
    let handle = recording(&first.store, &[b"lost ", b"kept"]).await;
    first.die();
    drop(sealed);
    let name = world.names_with("/0000000002").await.remove(0);
    world.objects.delete(&Path::from(name)).await.unwrap();

    let second = Process::start(&world, 2, None).await.unwrap();
    recovered(&second.store).await;
    let (manifest, stream) = world.sealed_of(handle.id()).await;
    assert_eq!(stream, b"kept");
    assert_eq!(
        manifest.gaps,
        [Gap {
            offset: 0,
            bytes: Some(5)
        }]
    );
    assert_eq!(manifest.uploader.stable_id, "unknown");
    assert!(
        manifest.flags.contains(&"opening_lost".to_owned()),
        "{:?}",
        manifest.flags
    );
}

#[tokio::test(start_paused = true)]
async fn a_clean_close_leaves_nothing_to_the_next_start() {
    for backend in BACKENDS {
        let world = World::new(backend).await;
        let first = Process::start(&world, 1, None).await.unwrap();
        recording(&first.store, &[CAST])
            .await
            .finish(clean_end())
            .await
            .unwrap();
        first.store.close().await.unwrap();
        assert_eq!(world.journal_left().await, Vec::<String>::new());
        assert_eq!(
            world.names_with("journal/").await.len(),
            2,
            "opener and fence"
        );
        let second = Process::start(&world, 2, None).await.unwrap();
        assert_eq!(recovered(&second.store).await.epochs_found, 0);
        assert_eq!(world.names_with("journal/").await.len(), 3);
    }
}

#[tokio::test(start_paused = true)]
async fn a_recording_never_ends_before_it_began_whatever_the_clocks_say() {
    for has_end in [false, true] {
        let world = World::new(Backend::Memory).await;
        let first = Process::start(&world, 1, None).await.unwrap();
        // The recorder's clock was far ahead of the backend's, by which a recovered recording ends; or it was set back meanwhile.
        let received_at = super::world::at("2150-01-01T00:00:00Z");
        let mut handle = first
            .store
            .begin(Opening {
                received_at,
                ..opening()
            })
            .unwrap();
        handle.append(Bytes::from_static(CAST)).await.unwrap();
        durable_at(&handle, CAST.len() as u64).await.unwrap();
        if has_end {
            handle.finish(clean_end()).await.unwrap();
        } else {
            first.die();
            let second = Process::start(&world, 2, None).await.unwrap();
            recovered(&second.store).await;
        }
        let (manifest, stream) = world.only_manifest().await;
        assert_eq!(stream, CAST);
        assert_eq!(
            (manifest.received_at, manifest.ended_at),
            (received_at, received_at),
            "{has_end}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_start_removes_the_probes_of_starts_that_were_killed() {
    let world = World::new(Backend::File).await;
    world.open().await.unwrap().close().await.unwrap();
    let folder = world.root().join("store");
    let made = |name: &str, age: Duration| {
        let file = std::fs::File::create_new(folder.join(name)).unwrap();
        let now = file.metadata().unwrap().modified().unwrap();
        file.set_modified(now - age).unwrap();
    };
    let hour = Duration::from_secs(3600);
    let letters = || b'a'..=b't';
    for (n, m) in letters().flat_map(|n| letters().take(15).map(move |m| (n, m))) {
        let random = [char::from(n), char::from(m)];
        made(
            &format!("probe-{}aaaaaaaaaaaaaa", String::from_iter(random)),
            2 * hour,
        );
    }
    // Another start may be at it, and what is no probe is not ours to remove.
    made("probe-bbbbbbbbbbbbbbbb", hour / 2);
    made("probe-of-something-else", 24 * hour);
    made("notes", 24 * hour);
    let others = [
        "store/id",
        "store/notes",
        "store/probe-bbbbbbbbbbbbbbbb",
        "store/probe-of-something-else",
    ];
    world.open().await.unwrap().close().await.unwrap();
    let left = world.names_with("store/").await.len();
    assert_eq!(
        left,
        300 - 256 + others.len(),
        "so many at once and no more"
    );
    world.open().await.unwrap().close().await.unwrap();
    assert_eq!(world.names_with("store/").await, others);
}

#[tokio::test(start_paused = true)]
async fn uploads_do_not_wait_for_recovery() {
    let world = World::new(Backend::Memory).await;
    let first = Process::start(&world, 1, None).await.unwrap();
    let left = recording(&first.store, &[CAST]).await;
    first.die();
    // The fence cannot be made for a while.
    for _ in 0..6 {
        world
            .objects
            .strike("/0000000002", super::faulty_store::Fault::Fails);
    }
    let second = Process::start(&world, 2, None).await.unwrap();
    let next = recording(&second.store, &[b"meanwhile"]).await;
    assert_ne!(second.store.stats().recovery.state, RecoveryState::Done);
    recovered(&second.store).await;
    assert_eq!(world.sealed_of(left.id()).await.1, CAST);
    next.finish(clean_end()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_a_newer_version_wrote_is_left_alone() {
    let world = World::new(Backend::Memory).await;
    let first = Process::start(&world, 1, None).await.unwrap();
    let _left = recording(&first.store, &[CAST]).await;
    first.die();
    let name = world.names_with("/0000000001").await.remove(0);
    let mut newer = world.get(&name).await.to_vec();
    newer[7] = 2;
    world
        .objects
        .put(&Path::from(name), newer.into())
        .await
        .unwrap();
    let second = Process::start(&world, 2, None).await.unwrap();
    let waiting = tokio::time::timeout(Duration::from_secs(60), second.store.recovered());
    assert!(waiting.await.is_err());
    let failure = second.store.recovery_failure().unwrap();
    assert!(
        matches!(*failure, StoreError::Journal { .. }),
        "{failure:?}"
    );
    assert_eq!(world.names_with(".json").await, Vec::<String>::new());
    assert_eq!(world.journal_left().await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_seal_that_failed_is_tried_again_until_it_succeeds_without_a_restart() {
    let world = World::new(Backend::Memory).await;
    let process = Process::start(&world, 1, None).await.unwrap();
    let handle = recording(&process.store, &[CAST]).await;
    let id = handle.id();
    // Three attempts with five tries each, and one more attempt in the background.
    for _ in 0..20 {
        let fault = super::faulty_store::Fault::Fails;
        world.objects.strike(".cast", fault);
    }
    assert!(handle.finish(clean_end()).await.is_err());
    assert_eq!(world.objects.faults_left(), 5);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(world.sealed_of(id).await.1, CAST);
    let stats = process.store.stats();
    assert_eq!(
        (stats.seals_failed, stats.sealed, stats.recordings_open),
        (1, 1, 0)
    );
    process.store.close().await.unwrap();
    assert_eq!(world.journal_left().await, Vec::<String>::new());
}
