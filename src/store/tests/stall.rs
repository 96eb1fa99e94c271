//! A store that is slow, dead, full, forbidden, and back again; a disk and a journal that are nearly full.

use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use object_store::path::Path;
use rand_core::{RngCore, SeedableRng};

use super::super::local_disk::DiskSync;
use super::super::{Store, StoreError, StoreHealth};
use super::faulty_store::{Fault, Outage};
use super::world::{BACKENDS, Backend, World, clean_end, durable_at, opening, read_all};

fn word(store: &Store) -> StoreHealth {
    store.health().borrow().clone()
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_store_that_takes_nothing_is_stalled_until_it_is_back_by_itself() {
    let outages = [
        (Outage::Says(ErrorKind::StorageFull), "ENOSPC"),
        (Outage::Says(ErrorKind::PermissionDenied), "EACCES"),
        (Outage::Says(ErrorKind::ConnectionRefused), "create"),
        (Outage::Hangs, "no answer in time"),
    ];
    for backend in BACKENDS {
        for (outage, named) in outages {
            let case = format!("{backend:?} {outage:?}");
            let world = World::new(backend).await;
            let store = world.open().await.unwrap();
            let mut health = store.health();
            let mut handle = store.begin(opening()).unwrap();
            handle.append(Bytes::from_static(b"acked ")).await.unwrap();
            durable_at(&handle, 6).await.unwrap();
            tokio::time::sleep(60 * SECOND).await;
            assert!(matches!(word(&store), StoreHealth::Ready), "{case}: idle");

            world.objects.set_outage(Some(outage));
            handle.append(Bytes::from_static(b"pending")).await.unwrap();
            tokio::time::sleep(24 * SECOND).await;
            assert!(
                matches!(word(&store), StoreHealth::Ready),
                "{case}: too early"
            );
            store.begin(opening()).unwrap();
            tokio::time::sleep(2 * SECOND).await;
            let StoreHealth::Stalled(why) = word(&store) else {
                panic!("{case}: {:?}", word(&store))
            };
            assert!(why.to_string().contains(named), "{case}: {why}");
            let told = why.with_causes();
            assert_eq!(told.matches("create journal/").count(), 1, "{case}: {told}");
            for twice in ["no answer in time", "os error", "permission denied"] {
                assert!(told.matches(twice).count() <= 1, "{case}: {told}");
            }
            let refused = store.begin(opening());
            assert!(matches!(refused, Err(StoreError::Stalled { .. })), "{case}");
            let stats = store.stats();
            assert_eq!((stats.stalls, stats.refused.stalled), (1, 1), "{case}");

            // Ingest ends the upload; what it took waits in the buffer.
            let id = handle.id();
            let mut end = clean_end();
            end.clean = false;
            let sealing = tokio::spawn(handle.finish(end));
            tokio::time::sleep(100 * SECOND).await;
            assert!(!sealing.is_finished(), "{case}");
            world.objects.set_outage(None);
            let back = health.wait_for(|health| matches!(health, StoreHealth::Ready));
            tokio::time::timeout(15 * SECOND, back)
                .await
                .unwrap_or_else(|_| panic!("{case}: not back"))
                .unwrap();
            sealing.await.unwrap().unwrap();
            let manifest = store.find(id).await.unwrap();
            assert_eq!(
                read_all(&store, manifest).await.unwrap(),
                b"acked pending",
                "{case}"
            );
            let mut next = store.begin(opening()).unwrap();
            next.append(Bytes::from_static(b"next")).await.unwrap();
            durable_at(&next, 4).await.unwrap();
            assert_eq!(
                (store.stats().stalls, store.stats().epochs),
                (1, 1),
                "{case}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_poisoned_epoch_whose_successor_cannot_be_claimed_stalls_too() {
    let world = World::new(Backend::File).await;
    let store = world.open().await.unwrap();
    world.objects.strike("/0000000001", Fault::FailsYetPersists);
    let mut handle = store.begin(opening()).unwrap();
    handle.append(Bytes::from_static(b"lost")).await.unwrap();
    tokio::task::yield_now().await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    world
        .objects
        .set_outage(Some(Outage::Says(ErrorKind::StorageFull)));
    tokio::time::sleep(26 * SECOND).await;
    assert!(durable_at(&handle, 4).await.is_err());
    assert!(matches!(word(&store), StoreHealth::Stalled(_)));
    world.objects.set_outage(None);
    let mut health = store.health();
    health
        .wait_for(|health| matches!(health, StoreHealth::Ready))
        .await
        .unwrap();
    assert_eq!(
        store.stats().epochs,
        2,
        "nothing was pending, and it came back"
    );
}

/// What was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_stall_is_logged_when_it_begins_once_a_minute_while_it_lasts_and_when_it_is_over() {
    let log = Log::default();
    let written = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || written.clone())
        .finish();
    // Were ours the only dispatcher, an event that another test meets first would be judged by that test's thread, which has none, and be silent for ever.
    let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::default());
    let _scope = tracing::subscriber::set_default(subscriber);
    let lines = |text: &str| {
        let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        log.lines().filter(|line| line.contains(text)).count()
    };
    let world = World::new(Backend::Memory).await;
    let store = world.open().await.unwrap();
    let mut handle = store.begin(opening()).unwrap();
    let full = Outage::Says(ErrorKind::StorageFull);
    world.objects.set_outage(Some(full));
    let puts = world.objects.puts_of("journal/");
    handle.append(Bytes::from_static(b"pending")).await.unwrap();
    tokio::time::sleep(630 * SECOND).await;
    assert!(
        world.objects.puts_of("journal/") > puts + 600,
        "it is tried each second"
    );
    assert_eq!(lines("create failed"), 11);
    assert_eq!(lines("failing_seconds=600"), 1);
    assert_eq!(lines("the store is stalled"), 1);
    assert_eq!(lines("create got through"), 0);
    world.objects.set_outage(None);
    durable_at(&handle, 7).await.unwrap();
    assert_eq!(lines("create got through"), 1);
    assert_eq!(lines("the store takes commits again"), 1);
}

#[tokio::test(start_paused = true)]
async fn an_ack_comes_within_two_puts_however_slow_they_are_and_however_many_sessions_there_are() {
    for backend in BACKENDS {
        for (sessions, put_ms) in [
            (1, 0),
            (1, 20),
            (7, 20),
            (1, 300),
            (7, 900),
            (1, 1_000),
            (7, 3_000),
            (1, 9_999),
            (1, 10_000),
            (7, 10_000),
        ] {
            let world = World::new(backend).await;
            let store = world.open().await.unwrap();
            let put = Duration::from_millis(put_ms);
            world.objects.set_latency(put);
            let bound = store.shared.config.commit_interval.max(put) + put;
            let bound = bound + Duration::from_millis(100);
            let acks = (0..sessions).map(|session| tokio::spawn(ack_times(store.clone(), session)));
            for session in acks.collect::<Vec<_>>() {
                let (worst, acked) = session.await.unwrap();
                assert!(
                    worst <= bound,
                    "{backend:?} {sessions} {put:?}: {worst:?} of {bound:?}"
                );
                assert!(acked > 100, "{acked} of 400 were acked");
            }
            assert_eq!(store.stats().stalls, 0, "{put:?}: slow is not stalled");
        }
    }
}

/// How long the slowest ack of a session took, and how many of its 400 bytes were acked.
async fn ack_times(store: Store, session: u64) -> (Duration, u64) {
    let mut handle = store.begin(opening()).unwrap();
    // A piece at uneven moments, so that some meet a commit that has just begun.
    let mut owed = std::collections::VecDeque::new();
    let mut durable = handle.durable();
    let mut worst = Duration::ZERO;
    for step in 0..400_u64 {
        handle.append(Bytes::from_static(b"x")).await.unwrap();
        owed.push_back((step + 1, tokio::time::Instant::now()));
        let pause = Duration::from_millis(13 + ((step + session) * 37) % 211);
        let until = tokio::time::Instant::now() + pause;
        while tokio::time::timeout_at(until, durable.changed())
            .await
            .is_ok()
        {
            let acked = durable.borrow_and_update().offset.0;
            while let Some((offset, since)) = owed.front().copied()
                && offset <= acked
            {
                worst = worst.max(since.elapsed());
                owed.pop_front();
            }
        }
    }
    // What is still owed has waited too.
    let waits = owed.front().map(|(_, since)| since.elapsed());
    (
        worst.max(waits.unwrap_or_default()),
        400 - owed.len() as u64,
    )
}

#[tokio::test(start_paused = true)]
async fn a_put_that_takes_as_long_as_its_time_out_or_longer_is_resolved() {
    for backend in BACKENDS {
        for put in [10, 12, 19] {
            let world = World::new(backend).await;
            let store = world.open().await.unwrap();
            world.objects.set_latency(put * SECOND);
            let mut handle = store.begin(opening()).unwrap();
            let start = tokio::time::Instant::now();
            handle.append(Bytes::from_static(b"slow")).await.unwrap();
            durable_at(&handle, 4).await.unwrap();
            // It is there when the PUT is done; that is seen at the next look, which an unanswered send delays by 10 s.
            let seen = start.elapsed();
            assert!(seen <= 2 * put * SECOND + SECOND, "{put} s: {seen:?}");
            assert_eq!(store.stats().epochs, 1, "{put} s");
            world.objects.set_latency(Duration::ZERO);
            assert_eq!(world.audit_journal().await[&handle.id()], b"slow");
        }
    }
}

/// A disk that says what it is told to have free.
#[derive(Debug)]
struct FillingDisk {
    disk: Arc<dyn DiskSync>,
    free: Arc<AtomicU64>,
}

impl DiskSync for FillingDisk {
    fn sync<'a>(&'a self, name: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        self.disk.sync(name)
    }

    fn sync_anew<'a>(&'a self, name: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        self.disk.sync_anew(name)
    }

    fn root(&self) -> Option<&std::path::Path> {
        self.disk.root()
    }

    fn free_bytes(&self) -> BoxFuture<'_, Result<u64, StoreError>> {
        let free = self.free.load(Ordering::Relaxed);
        Box::pin(async move { Ok(free) })
    }
}

#[tokio::test(start_paused = true)]
async fn a_disk_with_too_little_room_takes_no_new_recording_but_serves_those_it_has() {
    let mut world = World::new(Backend::File).await;
    let free = Arc::new(AtomicU64::new(2000));
    world.disk = Some(Arc::new(FillingDisk {
        disk: world.disk.take().unwrap(),
        free: Arc::clone(&free),
    }));
    world.config.disk_free_bytes_min = 1000;
    let store = world.open().await.unwrap();
    let mut running = store.begin(opening()).unwrap();
    running.append(Bytes::from_static(b"one ")).await.unwrap();
    durable_at(&running, 4).await.unwrap();

    free.store(999, Ordering::Relaxed);
    let mut health = store.health();
    let refusing = health.wait_for(|health| health.refusal().is_some());
    let refusing = tokio::time::timeout(6 * SECOND, refusing).await.is_ok();
    assert!(refusing, "it is looked at while a recording is open");
    assert!(word(&store).ends_running().is_none());
    let refused = store.begin(opening());
    assert!(
        matches!(
            refused,
            Err(StoreError::DiskNearlyFull {
                free_bytes: 999,
                free_bytes_min: 1000
            })
        ),
        "{refused:?}"
    );
    running.append(Bytes::from_static(b"two")).await.unwrap();
    durable_at(&running, 7).await.unwrap();
    assert!(running.finish(clean_end()).await.is_ok());
    assert_eq!(store.stats().recordings_open, 0);
    assert_eq!(store.stats().refused.disk_nearly_full, 1);

    // Nobody records, and yet it is found that there is room again: a tenth more than the limit.
    free.store(1099, Ordering::Relaxed);
    tokio::time::sleep(20 * SECOND).await;
    assert!(store.begin(opening()).is_err());
    free.store(1100, Ordering::Relaxed);
    tokio::time::sleep(6 * SECOND).await;
    store.begin(opening()).unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_idle_recorder_finds_its_disk_full_and_writes_nothing_for_that() {
    for fleet in [false, true] {
        let mut world = World::new(Backend::File).await;
        let free = Arc::new(AtomicU64::new(2000));
        world.disk = Some(Arc::new(FillingDisk {
            disk: world.disk.take().unwrap(),
            free: Arc::clone(&free),
        }));
        world.config.disk_free_bytes_min = 1000;
        world.config.fleet = fleet;
        let store = world.open().await.unwrap();
        let mut health = store.health();
        let puts = world.objects.puts_of("");
        tokio::time::sleep(62 * SECOND).await;
        assert!(matches!(word(&store), StoreHealth::Ready));

        free.store(999, Ordering::Relaxed);
        let refusing = health.wait_for(|health| health.refusal().is_some());
        let refusing = tokio::time::timeout(6 * SECOND, refusing).await.is_ok();
        assert!(refusing, "fleet {fleet}: nothing was ever recorded");
        assert_eq!(store.stats().disk_free_bytes, Some(999));
        assert!(store.begin(opening()).is_err());
        // The looks at the disk put off no beat of a fleet.
        let beats = if fleet { 3 } else { 0 };
        assert_eq!(world.objects.puts_of("") - puts, beats, "fleet {fleet}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_disk_is_asked_for_its_room() {
    let mut world = World::new(Backend::File).await;
    world.config.disk_free_bytes_min = 1;
    let store = world.open().await.unwrap();
    assert!(store.stats().disk_free_bytes.unwrap() > 1);
    world.config.disk_free_bytes_min = u64::MAX;
    let store = world.open().await.unwrap();
    assert!(matches!(
        store.begin(opening()),
        Err(StoreError::DiskNearlyFull { .. })
    ));
}

#[tokio::test(start_paused = true)]
async fn a_journal_that_holds_too_much_takes_no_new_recording_until_it_is_trimmed() {
    let mut world = World::new(Backend::Memory).await;
    world.config.journal_bytes_max = 10_000;
    let store = world.open().await.unwrap();
    let mut running = store.begin(opening()).unwrap();
    let mut noise = vec![0; 9000];
    rand_chacha::ChaCha20Rng::seed_from_u64(7).fill_bytes(&mut noise);
    for _ in 0..3 {
        running.append(noise.clone().into()).await.unwrap();
        tokio::time::sleep(2 * SECOND).await;
    }
    let refused = store.begin(opening());
    assert!(
        matches!(
            refused,
            Err(StoreError::JournalFull {
                bytes_max: 10_000,
                ..
            })
        ),
        "{refused:?}"
    );
    assert!(word(&store).ends_running().is_none());
    running.finish(clean_end()).await.unwrap();
    tokio::time::sleep(2 * SECOND).await;
    assert!(store.stats().journal_bytes_kept < 9000);
    store.begin(opening()).unwrap();
    assert_eq!(store.stats().refused.journal_full, 1);
}

#[tokio::test(start_paused = true)]
async fn a_closed_store_and_a_failed_seal_are_told_apart() {
    let world = World::new(Backend::Memory).await;
    let store = world.open().await.unwrap();
    for _ in 0..15 {
        world.objects.strike(".cast", Fault::Fails);
    }
    let mut handle = store.begin(opening()).unwrap();
    handle.append(Bytes::from_static(b"hello")).await.unwrap();
    assert!(handle.finish(clean_end()).await.is_err());
    assert_eq!(store.stats().seals_failed, 1);
    assert!(
        matches!(word(&store), StoreHealth::Ready),
        "commits get through, so uploads are taken"
    );
    store.close().await.unwrap();
    let StoreHealth::Ended(why) = word(&store) else {
        panic!()
    };
    assert!(matches!(*why, StoreError::Closed));
}
