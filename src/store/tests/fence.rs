//! A recorder that was fenced notices without a commit; what that costs is counted; and no epoch of ours is trimmed without its fence.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::super::{StoreError, StoreHealth};
use super::faulty_store::Fault;
use super::process::{Mishap, Process};
use super::recovery::{CAST, recording, recovered};
use super::world::{BACKENDS, Backend, World, clean_end, durable_at};
use crate::recording::journal_object::JournalObject;

const HALF: Duration = Duration::from_millis(500);

async fn watchful_world(backend: Backend) -> World {
    let mut world = World::new(backend).await;
    world.config.fence_look_interval = HALF;
    world
}

/// How often the process asked for objects of the journal.
fn looks(process: &Process) -> usize {
    let log = process.backend.log();
    let gets = log.iter().filter(|step| step.starts_with("get journal/"));
    gets.count()
}

#[tokio::test(start_paused = true)]
async fn an_idle_recorder_that_was_fenced_ends_its_uploads_within_half_a_second() {
    for backend in BACKENDS {
        let world = watchful_world(backend).await;
        let first = Process::start(&world, 1, None).await.unwrap();
        let open = recording(&first.store, &[CAST]).await;
        let (before, puts) = (looks(&first), world.objects.puts_of(""));
        tokio::time::sleep(20 * HALF + HALF / 2).await;
        assert_eq!(looks(&first) - before, 20, "{backend:?}: one a half second");
        assert_eq!(world.objects.puts_of(""), puts, "and nothing is written");
        assert!(first.store.halted().is_none());

        // Another process has our key, and takes over.
        let second = Process::start(&world, 2, None).await.unwrap();
        assert_eq!(recovered(&second.store).await.epochs_fenced, 1);
        let fenced = Instant::now();
        let ended = durable_at(&open, u64::MAX).await.unwrap_err();
        assert!(matches!(*ended, StoreError::Fenced { .. }), "{ended:?}");
        assert!(fenced.elapsed() <= HALF, "{:?}", fenced.elapsed());
        let halted = first.store.halted().unwrap();
        assert!(matches!(*halted, StoreError::Fenced { .. }), "{halted:?}");
        assert!(matches!(
            *first.store.health().borrow(),
            StoreHealth::Ended(_)
        ));
        let asked = looks(&first);
        tokio::time::sleep(100 * HALF).await;
        assert_eq!(looks(&first), asked, "it knows");
    }
}

#[tokio::test(start_paused = true)]
async fn a_recorder_that_commits_does_not_look() {
    let world = watchful_world(Backend::Memory).await;
    let first = Process::start(&world, 1, None).await.unwrap();
    let mut open = recording(&first.store, &[CAST]).await;
    let before = looks(&first);
    for _ in 0..300 {
        open.append(Bytes::from_static(b"x")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(first.store.stats().commits >= 30);
    assert_eq!(looks(&first) - before, 0);
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_is_far_off_does_not_keep_a_recorder_from_looking() {
    let mut world = watchful_world(Backend::Memory).await;
    world.config.commit_interval = Duration::from_secs(20);
    let first = Process::start(&world, 1, None).await.unwrap();
    let mut open = recording(&first.store, &[CAST]).await;
    open.append(Bytes::from_static(b"pending")).await.unwrap();
    let second = Process::start(&world, 2, None).await.unwrap();
    recovered(&second.store).await;
    let fenced = Instant::now();
    let ended = durable_at(&open, CAST.len() as u64 + 7).await.unwrap_err();
    assert!(matches!(*ended, StoreError::Fenced { .. }), "{ended:?}");
    assert!(fenced.elapsed() <= HALF, "{:?}", fenced.elapsed());
    assert_eq!(world.sealed_of(open.id()).await.1, CAST);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_comes_after_our_own_commit_is_no_fence() {
    let world = watchful_world(Backend::Memory).await;
    let store = world.open().await.unwrap();
    let mut open = recording(&store, &[CAST]).await;
    let mut sent = CAST.len() as u64;
    world.objects.set_read_latency(Duration::from_secs(5));
    for _ in 0..10 {
        // The look began before; it is answered when our own object stands at the number that it asked for.
        tokio::time::sleep(Duration::from_secs(3)).await;
        open.append(Bytes::from_static(b"x")).await.unwrap();
        sent += 1;
        durable_at(&open, sent).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(store.halted().is_none(), "{:?}", store.halted());
}

#[tokio::test(start_paused = true)]
async fn a_look_that_fails_or_hangs_changes_nothing() {
    let world = watchful_world(Backend::Memory).await;
    let first = Process::start(&world, 1, None).await.unwrap();
    let mut open = recording(&first.store, &[CAST]).await;
    first.backend.strike_at("get journal/", Mishap::Fails);
    tokio::time::sleep(4 * HALF).await;
    assert!(matches!(*first.store.health().borrow(), StoreHealth::Ready));
    let before = looks(&first);
    // No answer in time, again and again: one look each ten seconds, and commits go on beside them.
    world.objects.set_read_latency(Duration::from_secs(3600));
    tokio::time::sleep(Duration::from_secs(105)).await;
    assert_eq!(looks(&first) - before, 10);
    open.append(Bytes::from_static(b"x")).await.unwrap();
    let start = Instant::now();
    durable_at(&open, CAST.len() as u64 + 1).await.unwrap();
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert!(matches!(*first.store.health().borrow(), StoreHealth::Ready));
}

#[tokio::test(start_paused = true)]
async fn a_poisoned_epoch_is_fenced_for_good_before_any_of_its_objects_goes() {
    for mishap in [Mishap::Dies, Mishap::DiesYetPersists] {
        let world = World::new(Backend::File).await;
        let first = Process::start(&world, 1, None).await.unwrap();
        let mut spent = recording(&first.store, &[CAST, b"[3,\"o\",\"!\"]\n"]).await;
        world.objects.strike("/0000000003", Fault::FailsYetPersists);
        spent.append(Bytes::from_static(b"lost")).await.unwrap();
        let offset = CAST.len() as u64 + 16;
        assert!(durable_at(&spent, offset).await.is_err(), "poisoned");
        let id = spent.id();
        let next = recording(&first.store, &[b"next"]).await;
        let poisoned = world.names_with("/0000000003").await.remove(0);
        let epoch = poisoned.strip_suffix("0000000003").unwrap();

        // With its seal nobody needs the epoch any more, and the process dies at the first removal.
        first.backend.strike_at("delete journal/", mishap);
        spent.finish(clean_end()).await.unwrap();
        let mut kick = recording(&first.store, &[b"kick"]).await;
        kick.append(Bytes::from_static(b"!")).await.unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(!first.backend.is_running(), "it died at a removal");
        first.die();

        let fence = world.get(&format!("{epoch}0000000004")).await;
        let fence = JournalObject::decode(&fence).unwrap().header;
        assert_eq!(fence.oldest_needed, fence.number, "nothing is needed");
        let left = world.names_with(epoch).await.len();
        assert_eq!(left, if mishap == Mishap::Dies { 5 } else { 4 });
        let second = Process::start(&world, 2, None).await.unwrap();
        let stats = recovered(&second.store).await;
        assert_eq!(
            (stats.epochs_found, stats.objects_damaged),
            (1, 0),
            "{mishap:?}: the other epoch alone, and nothing passes for lost: {stats:?}"
        );
        assert_eq!(world.names_with("events/").await, Vec::<String>::new());
        let (manifest, stream) = world.sealed_of(id).await;
        assert_eq!(stream, [CAST, b"[3,\"o\",\"!\"]\n"].concat());
        assert_eq!(manifest.gaps, []);
        assert_eq!(world.sealed_of(next.id()).await.1, b"next");
        assert_eq!(world.names_with(epoch).await.len(), 2, "opener and fence");
    }
}
