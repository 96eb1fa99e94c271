//! Who lives and who is dead: another recorder's epoch is taken over by time, or at once where its lock is free.

use std::time::Duration;

use bytes::Bytes;
use object_store::ObjectStoreExt;
use object_store::path::Path;

use super::super::super::{RecoveryState, StoreConfig};
use super::super::process::{Mishap, Process};
use super::super::world::{BACKENDS, Backend, World, at, clean_end, durable_at};
use super::{CAST, recording, recovered};
use crate::ids::LogKey;

/// The state directory is lost: the same machine comes back under another key.
fn another_key(world: &World) -> StoreConfig {
    StoreConfig {
        log_key: LogKey::from_bytes([8; LogKey::BYTES]),
        ..world.config.clone()
    }
}

#[tokio::test(start_paused = true)]
async fn a_foreign_epoch_is_taken_over_when_one_number_has_stood_for_90_seconds() {
    let world = World::new(Backend::Memory).await;
    let first = Process::start(&world, 1, None).await.unwrap();
    let left = recording(&first.store, &[CAST]).await;
    first.die();
    let second = Process::start_as(&world, another_key(&world), 2, None)
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(89)).await;
    let stats = second.store.stats().recovery;
    assert_eq!(
        (stats.state, stats.epochs_foreign),
        (RecoveryState::Running, 1)
    );
    assert_eq!(world.names_with(".json").await, Vec::<String>::new());
    let stats = recovered(&second.store).await;
    assert_eq!((stats.epochs_fenced, stats.epochs_foreign), (1, 0));
    assert_eq!(world.sealed_of(left.id()).await.1, CAST);
    assert_eq!(world.journal_left().await, Vec::<String>::new());
    // One number was asked for four times, and the listing for it never decided anything.
    let asked = second.backend.log();
    let asked = asked
        .iter()
        .filter(|step| step.starts_with("get journal/") && step.ends_with("/0000000002"));
    assert!((4..=6).contains(&asked.count()));
}

#[tokio::test(start_paused = true)]
async fn a_foreign_recorder_that_commits_is_let_be_until_it_stops() {
    let world = World::new(Backend::Memory).await;
    let first = Process::start(&world, 1, None).await.unwrap();
    let mut open = recording(&first.store, &[CAST]).await;
    let second = Process::start_as(&world, another_key(&world), 2, None)
        .await
        .unwrap();
    let mut sent = CAST.len() as u64;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_secs(20)).await;
        open.append(Bytes::from_static(b"x")).await.unwrap();
        sent += 1;
        durable_at(&open, sent).await.unwrap();
    }
    let stats = recovered(&second.store).await;
    assert_eq!(
        (stats.epochs_found, stats.epochs_foreign),
        (0, 1),
        "{stats:?}"
    );
    first.die();
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(world.sealed_of(open.id()).await.1.len() as u64, sent);
}

#[tokio::test(start_paused = true)]
async fn on_a_disk_a_free_lock_is_a_death_certificate_and_a_held_one_a_sign_of_life() {
    let world = World::new(Backend::File).await;
    let first = Process::start(&world, 1, None).await.unwrap();
    let open = recording(&first.store, &[CAST]).await;
    let second = Process::start_as(&world, another_key(&world), 2, None)
        .await
        .unwrap();
    let stats = recovered(&second.store).await;
    assert_eq!((stats.epochs_found, stats.epochs_foreign), (0, 1));
    // Idle for an hour, and alive.
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(second.store.stats().recovery.epochs_found, 0);
    second.store.close().await.unwrap();
    first.die();
    let start = tokio::time::Instant::now();
    let third = Process::start_as(&world, another_key(&world), 3, None)
        .await
        .unwrap();
    let stats = recovered(&third.store).await;
    assert_eq!(stats.epochs_fenced, 1);
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "on a clock that moves when everybody waits"
    );
    assert_eq!(world.sealed_of(open.id()).await.1, CAST);
}

/// Both epochs of a dead recorder are dead, also when its second start died before it could fence the first: the lock that is taken for
/// the one is no sign of life for the other.
#[tokio::test(start_paused = true)]
async fn all_epochs_of_a_dead_recorder_are_closed_in_one_pass() {
    let world = World::new(Backend::File).await;
    let first = Process::start(&world, 1, None).await.unwrap();
    let open = recording(&first.store, &[CAST]).await;
    first.die();
    let second = Process::start(&world, 2, None).await.unwrap();
    second.die();
    let left = world.names_with("journal/").await;
    assert_eq!(left.len(), 3, "two openers and a commit: {left:?}");

    let third = Process::start_as(&world, another_key(&world), 3, None)
        .await
        .unwrap();
    let stats = recovered(&third.store).await;
    assert_eq!(
        (
            stats.epochs_found,
            stats.epochs_fenced,
            stats.epochs_closed,
            stats.epochs_foreign
        ),
        (2, 2, 2, 0),
        "{stats:?}"
    );
    assert_eq!(world.sealed_of(open.id()).await.1, CAST);
    assert_eq!(world.journal_left().await, Vec::<String>::new());
}

/// The number that a recovery found free, and wants for its fence, is free again when it comes to create it: the recorder lives, has
/// committed it, sealed and trimmed. Such a fence stops nobody, and another one is needed at the end.
#[tokio::test(start_paused = true)]
async fn a_fence_at_a_number_that_was_trimmed_meanwhile_is_not_taken_for_the_end() {
    for backend in [Backend::Memory, Backend::File] {
        let world = World::new(backend).await;
        let first = Process::start(&world, 1, None).await.unwrap();
        recovered(&first.store).await;
        let second = Process::start(&world, 2, None).await.unwrap();
        second.backend.strike_at("put journal/", Mishap::Freezes);
        while second.backend.is_running() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let ended = recording(&first.store, &[CAST]).await;
        let id = ended.id();
        ended.finish(clean_end()).await.unwrap();
        let mut open = recording(&first.store, &[CAST]).await;
        let mut sent = CAST.to_vec();
        let start = tokio::time::Instant::now();
        while !world.names_with("/0000000001").await.is_empty() {
            assert!(start.elapsed() < Duration::from_secs(600), "never trimmed");
            // A commit tells what is needed no more, and only then that may go.
            open.append(Bytes::from_static(b"more")).await.unwrap();
            sent.extend_from_slice(b"more");
            durable_at(&open, sent.len() as u64).await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }

        second.backend.thaw();
        let stats = recovered(&second.store).await;
        assert_eq!((stats.epochs_fenced, stats.recordings_sealed), (1, 1));
        assert_eq!(world.sealed_of(id).await.1, CAST);
        assert_eq!(world.sealed_of(open.id()).await.1, sent);
        // The first hears of it at its next commit, which is never acked.
        open.append(Bytes::from_static(b"lost")).await.unwrap();
        let offset = sent.len() as u64 + 4;
        assert!(durable_at(&open, offset).await.is_err(), "{backend:?}");
        assert_eq!(world.journal_left().await, Vec::<String>::new());
    }
}

#[tokio::test(start_paused = true)]
async fn two_recorders_that_recover_at_once_both_end_well() {
    for steps in 0..40 {
        let world = World::new(Backend::Memory).await;
        let first = Process::start(&world, 1, None).await.unwrap();
        let open = recording(&first.store, &[CAST, b"more"]).await;
        let other = recording(&first.store, &[CAST]).await;
        first.die();
        // The one is frozen at some step of its recovery, the other goes all the way, and the one goes on.
        let one = Process::start_as(&world, another_key(&world), 2, None)
            .await
            .unwrap();
        one.backend.strike(steps, Mishap::Freezes);
        tokio::time::sleep(Duration::from_secs(150)).await;
        let third = LogKey::from_bytes([9; LogKey::BYTES]);
        let config = StoreConfig {
            log_key: third,
            ..world.config.clone()
        };
        let two = Process::start_as(&world, config, 3, None).await.unwrap();
        tokio::time::sleep(Duration::from_secs(300)).await;
        one.backend.thaw();
        tokio::time::sleep(Duration::from_secs(300)).await;
        two.store.close().await.unwrap();
        drop(one.store.close().await);
        assert_eq!(world.sealed().await.len(), 2);
        assert_eq!(world.sealed_of(open.id()).await.1, [CAST, b"more"].concat());
        assert_eq!(world.sealed_of(other.id()).await.1, CAST);
        let last = Process::start_as(&world, another_key(&world), 4, None)
            .await
            .unwrap();
        recovered(&last.store).await;
        assert_eq!(world.journal_left().await, Vec::<String>::new(), "{steps}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_recorder_of_a_fleet_says_every_20_seconds_that_it_lives() {
    let mut world = World::new(Backend::Memory).await;
    world.config.fleet = true;
    let first = Process::start(&world, 1, None).await.unwrap();
    let open = recording(&first.store, &[CAST]).await;
    let second = Process::start_as(&world, another_key(&world), 2, None)
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(600)).await;
    let stats = second.store.stats().recovery;
    assert_eq!((stats.epochs_fenced, stats.epochs_foreign), (0, 1));
    // Its bytes, and the beats since.
    let commits = first.store.stats().commits;
    assert!((30..=32).contains(&commits), "{commits}");
    first.die();
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(world.sealed_of(open.id()).await.1, CAST);
}

#[tokio::test(start_paused = true)]
async fn a_segment_that_no_manifest_names_goes_after_a_day() {
    for backend in [Backend::Memory, Backend::File] {
        let world = World::new(backend).await;
        let first = Process::start(&world, 1, None).await.unwrap();
        let handle = recording(&first.store, &[CAST]).await;
        let id = handle.id();
        let sealed = handle.finish(clean_end()).await.unwrap();
        // Left by an attempt that did not come to its end; and one of a recording that was never sealed.
        let named = &sealed.segment_names[0];
        let (base, _) = named.split_once(&format!("{id}.")).unwrap();
        let orphans = [
            format!("{base}{id}.aaaaaaaa.0.cast"),
            format!("{base}aaaaaaaaaaaaaaaa.bbbbbbbb.0.cast"),
        ];
        for orphan in &orphans {
            let name = Path::from(orphan.as_str());
            world.objects.put(&name, "orphan".into()).await.unwrap();
        }
        first.store.close().await.unwrap();
        let second = Process::start(&world, 2, None).await.unwrap();
        recovered(&second.store).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(
            world.names_with(".cast").await.len(),
            3,
            "not yet a day old"
        );
        second.store.close().await.unwrap();

        let process = Process::backend(&world, None);
        let config = world.config.clone();
        let third = Process::start_at(&world, config, 3, process, || at("2100-01-01T00:00:00Z"))
            .await
            .unwrap();
        recovered(&third.store).await;
        // The sweep follows: the clock moves only when everybody waits, and a disk is waited for in real time.
        for _ in 0..1000 {
            if world.names_with(".cast").await.len() == 1 {
                break;
            }
            tokio::task::yield_now().await;
        }
        assert_eq!(
            world.names_with(".cast").await,
            std::slice::from_ref(named),
            "{backend:?}"
        );
    }
}

/// The same random bits in the same millisecond, as in copies of one machine: the later one takes the next millisecond.
#[tokio::test(start_paused = true)]
async fn a_start_that_draws_the_epoch_of_another_takes_the_next_millisecond() {
    for backend in BACKENDS {
        let world = World::new(backend).await;
        let first = Process::start(&world, 1, None).await.unwrap();
        let open = recording(&first.store, &[CAST]).await;
        first.die();
        let second = Process::start(&world, 1, None).await.unwrap();
        let of = |process: &Process| process.store.shared.newest_own_epoch().unwrap();
        let (one, other) = (of(&first), of(&second));
        assert_eq!(one.started_ms() + 1, other.started_ms());
        assert_ne!(one.random_bits(), other.random_bits());
        // What the first left is recovered: it is not taken for an epoch of the second.
        let stats = recovered(&second.store).await;
        assert_eq!((stats.epochs_found, stats.epochs_closed), (1, 1));
        assert_eq!(world.sealed_of(open.id()).await.1, CAST);
        second.store.close().await.unwrap();
    }
}

/// A recorder of a fleet whose store has nothing left to watch finds one that came later, and died, within minutes.
#[tokio::test(start_paused = true)]
async fn a_recorder_that_comes_later_and_dies_is_taken_over_within_minutes() {
    for comes_back in [false, true] {
        let world = World::new(Backend::Memory).await;
        if comes_back {
            // Known before, and closed: it is a new epoch of a known recorder then.
            let known = Process::start_as(&world, another_key(&world), 9, None);
            known.await.unwrap().store.close().await.unwrap();
        }
        let watching = Process::start(&world, 1, None).await.unwrap();
        let stats = recovered(&watching.store).await;
        assert_eq!(stats.epochs_foreign, 0);
        tokio::time::sleep(Duration::from_secs(2 * 3600)).await;
        let listings = |process: &Process| {
            let log = process.backend.log();
            log.iter()
                .filter(|step| step.starts_with("list journal"))
                .count()
        };
        let before = listings(&watching);
        tokio::time::sleep(Duration::from_secs(3600)).await;
        let per_look = 1 + usize::from(comes_back);
        assert_eq!(
            listings(&watching) - before,
            6 * per_look,
            "each ten minutes"
        );

        let late = Process::start_as(&world, another_key(&world), 2, None);
        let late = late.await.unwrap();
        let open = recording(&late.store, &[CAST]).await;
        late.die();
        tokio::time::sleep(Duration::from_secs(600 + 150)).await;
        let stats = watching.store.stats().recovery;
        assert_eq!(
            (stats.epochs_fenced, stats.epochs_closed),
            (1, 1),
            "{stats:?}"
        );
        assert_eq!(world.sealed_of(open.id()).await.1, CAST);
    }
}

/// What is left of an epoch that died before its opener, or whose objects somebody removed.
#[tokio::test(start_paused = true)]
async fn an_epoch_directory_without_objects_is_no_news() {
    let world = World::new(Backend::File).await;
    let known = Process::start_as(&world, another_key(&world), 9, None);
    known.await.unwrap().store.close().await.unwrap();
    let opener = world.names_with("/0000000000").await.remove(0);
    let epoch = world.root().join(opener);
    let of_recorder = epoch.parent().unwrap().parent().unwrap();
    let empty = of_recorder.join("1764000000123-caireeyuculbogazdinryhi6d4");
    std::fs::create_dir(empty).unwrap();

    let watching = Process::start(&world, 1, None).await.unwrap();
    recovered(&watching.store).await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let log = || watching.backend.log();
    let listings = || log().iter().filter(|step| *step == "list journal").count();
    let before = listings();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    // A pass would list the journal once more at each look.
    assert_eq!(listings() - before, 6);
}
