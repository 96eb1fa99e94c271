//! An acked byte is a durable byte: offsets, group commit, back-pressure, kills.

use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;

use super::super::{Store, StoreConfig, StoreError, StoreUrl};
use super::faulty_store::FaultyStore;
use super::world::{BACKENDS, Backend, World, clean_end, durable_at, opening};
use crate::ids::{LogKey, StreamOffset};

#[tokio::test(start_paused = true)]
async fn the_offset_moves_only_after_the_put_succeeded() {
    for backend in BACKENDS {
        let world = World::new(backend).await;
        let store = world.open().await.unwrap();
        let gate = world.objects.gate_journal();
        let mut handle = store.begin(opening()).unwrap();
        handle.append(Bytes::from_static(b"hello\n")).await.unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(handle.durable().borrow().offset, StreamOffset(0));
        assert!(
            world.audit_journal().await.is_empty(),
            "nothing is stored yet"
        );
        assert!(store.stats().commit_running_for.unwrap() >= Duration::from_secs(4));

        gate.add_permits(1);
        durable_at(&handle, 6).await.unwrap();
        assert_eq!(world.audit_journal().await[&handle.id()], b"hello\n");
        gate.add_permits(100);
        handle.finish(clean_end()).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn puts_per_interval_do_not_depend_on_the_number_of_recordings() {
    for backend in BACKENDS {
        let mut puts = Vec::new();
        for recordings in [1, 100] {
            let world = World::new(backend).await;
            let store = world.open().await.unwrap();
            let mut handles: Vec<_> = (0..recordings)
                .map(|_| store.begin(opening()).unwrap())
                .collect();
            let before = world.objects.puts_of("journal/");
            // Ten intervals, each recording ten times in each.
            for _ in 0..100 {
                for handle in &mut handles {
                    handle
                        .append(Bytes::from_static(b"[0.1,\"o\",\"x\"]\n"))
                        .await
                        .unwrap();
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            puts.push(world.objects.puts_of("journal/") - before);
            for handle in &handles {
                durable_at(handle, 1400).await.unwrap();
            }
            assert_eq!(world.audit_journal().await.len(), recordings);
        }
        assert_eq!(puts[0], puts[1], "{backend:?}");
        assert!((9..=12).contains(&puts[0]), "{puts:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_recording_puts_nothing() {
    let world = World::new(Backend::Memory).await;
    let store = world.open().await.unwrap();
    let handle = store.begin(opening()).unwrap();
    let before = world.objects.puts_of("");
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(world.objects.puts_of(""), before);
    drop(handle);
}

#[tokio::test(start_paused = true)]
async fn the_first_bytes_after_idleness_are_committed_at_once() {
    let world = World::new(Backend::Memory).await;
    let store = world.open().await.unwrap();
    let mut handle = store.begin(opening()).unwrap();
    for n in 1..=3 {
        tokio::time::sleep(Duration::from_secs(60)).await;
        let start = tokio::time::Instant::now();
        handle.append(Bytes::from_static(b"x")).await.unwrap();
        durable_at(&handle, n).await.unwrap();
        assert_eq!(
            start.elapsed(),
            Duration::ZERO,
            "on a clock that only moves when everybody waits"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_append_waits_while_the_share_is_full_and_takes_nothing_when_dropped() {
    let mut world = World::new(Backend::Memory).await;
    world.config.upload_buffer_bytes_max = 10;
    let store = world.open().await.unwrap();
    let gate = world.objects.gate_journal();
    let mut handle = store.begin(opening()).unwrap();
    let mut other = store.begin(opening()).unwrap();
    handle
        .append(Bytes::from_static(b"0123456789"))
        .await
        .unwrap();
    let waiting = tokio::time::timeout(
        Duration::from_secs(3),
        handle.append(Bytes::from_static(b"lost")),
    )
    .await;
    assert!(waiting.is_err(), "the share is full");
    assert!(
        other
            .append(Bytes::from_static(b"free"))
            .now_or_never()
            .is_some(),
        "another's share is not"
    );

    gate.add_permits(100);
    handle
        .append(Bytes::from_static(b"ABCDEFGHIJ, more than a share"))
        .await
        .unwrap();
    durable_at(&handle, 39).await.unwrap();
    assert_eq!(
        world.audit_journal().await[&handle.id()],
        b"0123456789ABCDEFGHIJ, more than a share"
    );
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_fills_its_share_never_waits_for_the_commit_interval() {
    let mut world = World::new(Backend::Memory).await;
    world.config.upload_buffer_bytes_max = 64 * 1024;
    let store = world.open().await.unwrap();
    let mut handle = store.begin(opening()).unwrap();
    let start = tokio::time::Instant::now();
    for _ in 0..100 {
        handle
            .append(Bytes::from(vec![b'x'; 16 * 1024]))
            .await
            .unwrap();
    }
    // One piece above half of the share waits too, without having filled it.
    for _ in 0..10 {
        handle
            .append(Bytes::from(vec![b'x'; 40 * 1024]))
            .await
            .unwrap();
    }
    assert_eq!(
        start.elapsed(),
        Duration::ZERO,
        "on a clock that only moves when everybody waits"
    );
}

#[tokio::test(start_paused = true)]
async fn the_buffer_of_all_is_bounded_and_given_back() {
    let mut world = World::new(Backend::Memory).await;
    world.config.buffer_bytes_max = 100;
    let store = world.open().await.unwrap();
    let mut handles: Vec<_> = (0..10).map(|_| store.begin(opening()).unwrap()).collect();
    for _ in 0..20 {
        for handle in &mut handles {
            handle
                .append(Bytes::from_static(b"0123456789abcdef"))
                .await
                .unwrap();
        }
    }
    for handle in handles {
        durable_at(&handle, 320).await.unwrap();
        handle.finish(clean_end()).await.unwrap();
    }
    assert_eq!(store.shared.space.available_permits(), 100);
}

#[tokio::test(start_paused = true)]
async fn a_commit_splits_at_the_object_limit() {
    let world = World::new(Backend::Memory).await;
    let store = world.open().await.unwrap();
    let gate = world.objects.gate_journal();
    let mut handles = Vec::new();
    for n in 0..20_u8 {
        let mut handle = store.begin(opening()).unwrap();
        handle.append(vec![n; 1024 * 1024].into()).await.unwrap();
        handles.push(handle);
    }
    gate.add_permits(100);
    for handle in &handles {
        durable_at(handle, 1024 * 1024).await.unwrap();
    }
    // The first bytes went alone; the other 19 MiB do not fit into one object of 16 MiB.
    assert!(store.stats().commits >= 2, "{:?}", store.stats());
    let journal = world.audit_journal().await;
    for (n, handle) in (0..).zip(&handles) {
        assert_eq!(journal[&handle.id()], vec![n; 1024 * 1024]);
    }
}

#[test]
fn a_kill_at_any_moment_loses_no_acked_byte() {
    for backend in BACKENDS {
        for kill_after_ms in [0, 1, 999, 1000, 1001, 2500, 10_500] {
            let outer = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let world = outer.block_on(World::new(backend));
            let inner = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .start_paused(true)
                .build()
                .unwrap();
            let acked = inner.block_on(async {
                let store = world.open().await.unwrap();
                let mut handles: Vec<_> = (0..5).map(|_| store.begin(opening()).unwrap()).collect();
                let writing = async {
                    for n in 0_u64.. {
                        let handle = &mut handles[usize::try_from(n % 5).unwrap()];
                        handle.append(format!("line {n}\n").into()).await.unwrap();
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                };
                assert!(
                    tokio::time::timeout(Duration::from_millis(kill_after_ms), writing)
                        .await
                        .is_err()
                );
                let acked = handles
                    .iter()
                    .map(|handle| (handle.id(), handle.durable().borrow().offset.0));
                let acked: Vec<_> = acked.collect();
                // The process is gone: nothing may run its end.
                handles.into_iter().for_each(std::mem::forget);
                acked
            });
            inner.shutdown_timeout(Duration::from_secs(10));
            let journal = outer.block_on(world.audit_journal());
            for (id, offset) in acked {
                let stored = journal.get(&id).map_or(0, |stream| stream.len() as u64);
                assert!(
                    stored >= offset,
                    "{backend:?} after {kill_after_ms} ms: {stored} of {offset}"
                );
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn close_commits_what_is_pending_and_refuses_what_comes_after() {
    for backend in BACKENDS {
        let world = World::new(backend).await;
        let store = world.open().await.unwrap();
        let mut handle = store.begin(opening()).unwrap();
        handle.append(Bytes::from_static(b"first ")).await.unwrap();
        durable_at(&handle, 6).await.unwrap();
        handle.append(Bytes::from_static(b"last")).await.unwrap();
        let (one, other) = tokio::join!(store.close(), store.close());
        one.and(other).unwrap();
        let durable = handle.durable().borrow().clone();
        assert_eq!(durable.offset, StreamOffset(10));
        assert!(matches!(
            durable.failed.as_deref(),
            Some(StoreError::Closed)
        ));
        assert!(matches!(store.begin(opening()), Err(StoreError::Closed)));
        assert!(matches!(
            handle.append(Bytes::from_static(b"x")).await,
            Err(StoreError::RecordingFailed { .. })
        ));
        assert_eq!(world.audit_journal().await[&handle.id()], b"first last");
    }
}

#[tokio::test]
async fn the_id_of_a_store_is_made_once_and_epochs_name_the_one_before() {
    for backend in BACKENDS {
        let world = World::new(backend).await;
        let first = world.open().await.unwrap();
        let second = world.open().await.unwrap();
        assert_eq!(first.id(), second.id());
        let openers = world.names_with("/0000000000").await;
        assert_eq!(openers.len(), 2);
        let mut previous = Vec::new();
        for name in &openers {
            let bytes = world.get(name).await;
            let object = crate::recording::journal_object::JournalObject::decode(&bytes).unwrap();
            let frame = object.frames().next().unwrap().unwrap();
            let json: serde_json::Value = serde_json::from_slice(&frame.plain().unwrap()).unwrap();
            let log_key: LogKey = json["log_key"].as_str().unwrap().parse().unwrap();
            let recorder = crate::ids::RecorderId::from_log_key(log_key.as_bytes());
            assert_eq!(json["recorder"], recorder.to_string());
            assert_eq!(json["store_id"], first.id().to_string());
            previous.push(json["previous_epoch"].as_str().map(str::to_owned));
        }
        let named = previous.iter().flatten().count();
        assert_eq!(named, 1, "only the first has none before it");
    }
}

#[tokio::test]
async fn a_backend_that_overwrites_silently_is_refused() {
    let objects =
        FaultyStore::overwriting(std::sync::Arc::new(object_store::memory::InMemory::new()));
    let config = StoreConfig::new(StoreUrl::Memory, LogKey::from_bytes([7; LogKey::BYTES]));
    let rng = rand_core::SeedableRng::seed_from_u64(1);
    let opened = Store::open_with(config, objects, None, rng, jiff::Timestamp::now).await;
    assert!(
        matches!(
            opened,
            Err(StoreError::CreateIsNotExclusive { winners: 2, .. })
        ),
        "{opened:?}"
    );
}

#[tokio::test]
async fn open_takes_a_file_url_and_a_memory_url_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("file://{}/a/b", directory.path().display());
    for url in [url.as_str(), "memory://"] {
        let config = StoreConfig::new(url.parse().unwrap(), LogKey::from_bytes([7; LogKey::BYTES]));
        let store = Store::open(config).await.unwrap();
        store.close().await.unwrap();
    }
    assert!(directory.path().join("a/b/store/id").exists());
    for url in [
        "s3://bucket",
        "file://host/path",
        "data",
        "memory://name",
        "file:///a?b",
    ] {
        assert!(url.parse::<StoreUrl>().is_err(), "{url}");
    }
}
