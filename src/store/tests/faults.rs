//! Each step × {fails, fails yet persists, hangs, hangs yet persists}, then everything is verified; fencing.

use std::time::Duration;

use bytes::Bytes;
use object_store::ObjectStoreExt;
use object_store::path::Path;

use super::super::StoreError;
use super::faulty_store::Fault;
use super::world::{BACKENDS, Backend, World, clean_end, durable_at, opening, read_all};

#[tokio::test(start_paused = true)]
async fn a_fault_at_any_step_loses_no_acked_byte() {
    for backend in BACKENDS {
        for step in ["/0000000001", "/0000000002", ".cast", ".json"] {
            for fault in Fault::ALL {
                let case = format!("{backend:?} {step} {fault:?}");
                let world = World::new(backend).await;
                let store = world.open().await.unwrap();
                world.objects.strike(step, fault);
                let mut handle = store.begin(opening()).unwrap();
                handle.append(Bytes::from_static(b"hello ")).await.unwrap();
                let first = durable_at(&handle, 6).await;
                let second = handle.append(Bytes::from_static(b"world")).await;
                let acked = handle.durable().borrow().offset.0;
                assert!(
                    world
                        .audit_journal()
                        .await
                        .values()
                        .all(|stream| stream.len() as u64 >= acked),
                    "{case}"
                );
                let id = handle.id();
                let sealed = handle.finish(clean_end()).await;
                assert_eq!(
                    world.objects.faults_left(),
                    0,
                    "{case}: the fault did not strike"
                );

                // A failed create that stands on a local disk can only be a failed fsync: that epoch is over.
                let poisons = backend == Backend::File && fault == Fault::FailsYetPersists;
                let poisoned = poisons && step.starts_with("/000");
                assert_eq!(first.is_err(), poisoned && step == "/0000000001", "{case}");
                assert_eq!(second.is_err(), first.is_err(), "{case}");

                let sealed = sealed.unwrap_or_else(|error| panic!("{case}: {error:?}"));
                let manifest = store.find(id).await.unwrap();
                let whole = b"hello world".as_slice();
                let expected = if poisoned {
                    &whole[..usize::try_from(acked).unwrap()]
                } else {
                    whole
                };
                assert_eq!(
                    read_all(&store, manifest.clone()).await.unwrap(),
                    expected,
                    "{case}"
                );
                assert_eq!(
                    manifest.flags[0],
                    if poisoned { "incomplete" } else { "complete" },
                    "{case}"
                );
                assert_eq!(sealed.bytes, expected.len() as u64);

                // The store goes on.
                let mut next = store.begin(opening()).unwrap();
                next.append(Bytes::from_static(b"next")).await.unwrap();
                durable_at(&next, 4)
                    .await
                    .unwrap_or_else(|error| panic!("{case}: {error:?}"));
                next.finish(clean_end()).await.unwrap();
                // A new epoch is claimed behind the failure's back: it is there once the next bytes are durable.
                assert_eq!(store.stats().epochs, if poisoned { 2 } else { 1 }, "{case}");
                store.close().await.unwrap();
                world.audit_journal().await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_exists_after_a_hang_counts_only_when_our_own_fsync_succeeds() {
    // Fsyncs go through another directory, whose entries lead to the objects' own: without the entry they fail.
    let mut world = World::new(Backend::File).await;
    let through = World::new(Backend::File).await;
    world.disk.clone_from(&through.disk);
    let world = world;
    let lead = |name: &str| {
        std::os::unix::fs::symlink(world.root().join(name), through.root().join(name)).unwrap();
    };
    lead("store");
    lead("journal");
    lead("recordings");
    let store = world.open().await.unwrap();
    let mut handle = store.begin(opening()).unwrap();
    handle.append(Bytes::from_static(b"acked")).await.unwrap();
    durable_at(&handle, 5).await.unwrap();

    world.objects.strike("/0000000002", Fault::HangsYetPersists);
    std::fs::remove_file(through.root().join("journal")).unwrap();
    handle
        .append(Bytes::from_static(b" not acked"))
        .await
        .unwrap();
    let failed = durable_at(&handle, 15).await;
    assert!(
        matches!(
            failed.as_ref().map_err(|error| &**error),
            Err(StoreError::SyncFailed { .. })
        ),
        "{failed:?}"
    );
    assert_eq!(handle.durable().borrow().offset.0, 5);
    lead("journal");
    assert_eq!(handle.finish(clean_end()).await.unwrap().bytes, 5);
    store.close().await.unwrap();
    assert_eq!(store.stats().epochs, 2);
}

#[tokio::test(start_paused = true)]
async fn an_opener_that_fails_or_hangs_is_claimed_again_at_start() {
    for backend in BACKENDS {
        for fault in [Fault::Fails, Fault::Hangs] {
            let world = World::new(backend).await;
            world.objects.strike("/0000000000", fault);
            let store = world.open().await.unwrap();
            assert_eq!(store.stats().journal_puts, 2, "{backend:?} {fault:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_is_tried_again_each_second_and_nothing_is_acked_meanwhile() {
    for backend in BACKENDS {
        let world = World::new(backend).await;
        let store = world.open().await.unwrap();
        for _ in 0..5 {
            world.objects.strike("/0000000001", Fault::Fails);
        }
        let mut handle = store.begin(opening()).unwrap();
        handle.append(Bytes::from_static(b"hello")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(3500)).await;
        assert_eq!(handle.durable().borrow().offset.0, 0);
        assert_eq!(
            world.objects.puts_of("/0000000001"),
            4,
            "one at once, then one a second"
        );
        durable_at(&handle, 5).await.unwrap();
        assert_eq!(store.stats().epochs, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn the_bytes_of_a_number_are_the_same_at_every_send() {
    let world = World::new(Backend::Memory).await;
    let store = world.open().await.unwrap();
    world.objects.strike("/0000000001", Fault::HangsYetPersists);
    let mut handle = store.begin(opening()).unwrap();
    handle.append(Bytes::from_static(b"first")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let sent = world.get(&world.names_with("/0000000001").await[0]).await;
    // More bytes come while the number is unresolved: they belong to the next.
    handle.append(Bytes::from_static(b" second")).await.unwrap();
    durable_at(&handle, 12).await.unwrap();
    assert_eq!(
        world.get(&world.names_with("/0000000001").await[0]).await,
        sent
    );
    assert_eq!(world.audit_journal().await[&handle.id()], b"first second");
}

#[tokio::test(start_paused = true)]
async fn a_recorder_that_lost_its_number_to_another_stops() {
    for backend in BACKENDS {
        let world = World::new(backend).await;
        let store = world.open().await.unwrap();
        let mut handle = store.begin(opening()).unwrap();
        handle.append(Bytes::from_static(b"acked")).await.unwrap();
        durable_at(&handle, 5).await.unwrap();
        let ours = world.names_with("/0000000001").await.remove(0);
        let fence = ours.replace("/0000000001", "/0000000002");
        world
            .objects
            .put(&Path::from(fence), "a fence".into())
            .await
            .unwrap();

        handle
            .append(Bytes::from_static(b" not acked"))
            .await
            .unwrap();
        let failed = durable_at(&handle, 15).await;
        assert!(
            matches!(
                failed.as_ref().map_err(|error| &**error),
                Err(StoreError::Fenced { .. })
            ),
            "{failed:?}"
        );
        assert_eq!(handle.durable().borrow().offset.0, 5);
        let Err(StoreError::RecordingFailed { source, .. }) = handle.finish(clean_end()).await
        else {
            panic!()
        };
        assert!(matches!(*source, StoreError::Fenced { .. }));
        assert!(matches!(
            store.begin(opening()),
            Err(StoreError::Fenced { .. })
        ));
        assert!(matches!(
            store.close().await,
            Err(StoreError::Fenced { .. })
        ));
        assert!(
            world.names_with(".json").await.is_empty(),
            "who fenced us seals it"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_append_that_waits_is_woken_by_a_failure() {
    let mut world = World::new(Backend::Memory).await;
    world.config.upload_buffer_bytes_max = 4;
    world.config.buffer_bytes_max = 6;
    let store = world.open().await.unwrap();
    let gate = world.objects.gate_journal();
    let mut one = store.begin(opening()).unwrap();
    let mut other = store.begin(opening()).unwrap();
    one.append(Bytes::from_static(b"1234")).await.unwrap();
    let waiting_for_share =
        tokio::spawn(async move { one.append(Bytes::from_static(b"5678")).await });
    let waiting_for_space =
        tokio::spawn(async move { other.append(Bytes::from_static(b"abcd")).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!waiting_for_share.is_finished() && !waiting_for_space.is_finished());
    let opener = world.names_with("/0000000000").await.remove(0);
    let fence = Path::from(opener.replace("/0000000000", "/0000000001"));
    world
        .objects
        .inner()
        .put(&fence, "a fence".into())
        .await
        .unwrap();
    gate.add_permits(100);
    assert!(waiting_for_share.await.unwrap().is_err());
    assert!(waiting_for_space.await.unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn close_gives_up_on_a_backend_that_never_answers() {
    let world = World::new(Backend::Memory).await;
    let store = world.open().await.unwrap();
    world.objects.gate_journal();
    let mut handle = store.begin(opening()).unwrap();
    handle
        .append(Bytes::from_static(b"never durable"))
        .await
        .unwrap();
    let closed = store.close().await;
    let Err(error @ StoreError::CloseTimedOut { .. }) = closed else {
        panic!("{closed:?}")
    };
    assert!(
        error.to_string().ends_with("no answer in time"),
        "{error}: the commit that was under way"
    );
    let failed = handle.durable().borrow().failed.clone();
    assert!(matches!(failed.as_deref(), Some(StoreError::Closed)));
}
