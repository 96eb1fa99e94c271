//! Journal bytes ≤ 2 × open bytes and one object, write amplification ≤ 2, a bounded index, and nothing lost by any of it.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};

use super::super::ledger::CompactionLimits;
use super::super::{RecordingHandle, Store};
use super::faulty_store::Fault;
use super::world::{BACKENDS, Backend, World, clean_end, durable_at, opening, read_all};
use crate::ids::RecordingId;

/// The rule of 64 objects and one object of slack, sized for a test.
const SMALL: CompactionLimits = CompactionLimits {
    objects: 16,
    interval: Duration::from_secs(300),
    slack_bytes: 64 * 1024,
    copy_bytes_max: 32 * 1024,
    spans_max: 32,
};

async fn small_world(backend: Backend) -> World {
    let mut world = World::new(backend).await;
    world.config.compaction = SMALL;
    world
}

fn noise(rng: &mut ChaCha20Rng, bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    rng.fill_bytes(&mut noise);
    noise
}

fn below(rng: &mut ChaCha20Rng, end: u32) -> u32 {
    rng.next_u32() % end
}

fn assert_bounds(store: &Store, case: &str) {
    let stats = store.stats();
    let bound = 2 * stats.journal_bytes_open + SMALL.slack_bytes;
    assert!(stats.journal_bytes_kept <= bound, "{case}: {stats:?}");
    assert!(
        2 * stats.copied_bytes <= stats.journal_bytes,
        "{case}: {stats:?}"
    );
    let spans_max = u64::try_from(2 * SMALL.spans_max).unwrap();
    assert!(stats.spans_most <= spans_max, "{case}: {stats:?}");
}

#[tokio::test(start_paused = true)]
async fn a_long_workload_keeps_the_journal_small_and_writes_no_byte_more_than_twice() {
    for seed in 0..3 {
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        let world = small_world(Backend::Memory).await;
        let store = world.open().await.unwrap();
        // One idle session from the start, and one that never ends.
        let mut idle = store.begin(opening()).unwrap();
        idle.append(Bytes::from_static(b"idle from the start"))
            .await
            .unwrap();
        let mut endless = store.begin(opening()).unwrap();
        let mut endless_sent = Vec::new();
        let mut open = Vec::<(RecordingHandle, Vec<u8>)>::new();
        let mut ended = Vec::<(RecordingId, Vec<u8>)>::new();
        for step in 0..600 {
            let piece = noise(&mut rng, 30);
            endless.append(piece.clone().into()).await.unwrap();
            endless_sent.extend(piece);
            if open.len() < 12 && below(&mut rng, 3) == 0 {
                open.push((store.begin(opening()).unwrap(), Vec::new()));
            }
            for (handle, sent) in &mut open {
                if below(&mut rng, 2) == 0 {
                    let bytes = usize::try_from(below(&mut rng, 3000)).unwrap();
                    let piece = noise(&mut rng, bytes);
                    handle.append(piece.clone().into()).await.unwrap();
                    sent.extend(piece);
                }
            }
            if !open.is_empty() && below(&mut rng, 8) == 0 {
                let place = usize::try_from(rng.next_u32()).unwrap() % open.len();
                let (handle, sent) = open.swap_remove(place);
                ended.push((handle.id(), sent));
                handle.finish(clean_end()).await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(1500)).await;
            assert_bounds(&store, &format!("seed {seed}, step {step}"));
        }
        let stats = store.stats();
        assert!(stats.compactions > 20, "{stats:?}");
        let journal = world.audit_journal().await;
        assert_eq!(journal[&idle.id()], b"idle from the start");
        assert!(journal[&endless.id()] == endless_sent);
        for (id, sent) in ended {
            let manifest = store.find(id).await.unwrap();
            assert!(
                read_all(&store, manifest).await.unwrap() == sent,
                "seed {seed}"
            );
        }
        for (handle, sent) in open {
            let id = handle.id();
            handle.finish(clean_end()).await.unwrap();
            let manifest = store.find(id).await.unwrap();
            assert!(
                read_all(&store, manifest).await.unwrap() == sent,
                "seed {seed}"
            );
        }
        drop((idle, endless));
        store.close().await.unwrap();
        assert_eq!(world.names_with("journal/").await.len(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn when_most_of_the_journal_dies_at_once_it_shrinks_without_a_further_byte() {
    let world = small_world(Backend::Memory).await;
    let store = world.open().await.unwrap();
    let mut rng = ChaCha20Rng::seed_from_u64(1);
    let mut idle = store.begin(opening()).unwrap();
    idle.append(Bytes::from_static(b"in the way"))
        .await
        .unwrap();
    let mut large = store.begin(opening()).unwrap();
    for _ in 0..10 {
        large.append(noise(&mut rng, 100_000).into()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(store.stats().journal_bytes_kept > 1_000_000);
    large.finish(clean_end()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_bounds(&store, "after the large one");
    // It is quiet from here on, for good.
    let puts = world.objects.puts_of("");
    tokio::time::sleep(Duration::from_secs(24 * 3600)).await;
    assert_eq!(world.objects.puts_of(""), puts);
    assert_eq!(world.audit_journal().await[&idle.id()], b"in the way");
}

#[tokio::test(start_paused = true)]
async fn many_small_commits_leave_few_objects_and_few_spans() {
    let world = small_world(Backend::Memory).await;
    let store = world.open().await.unwrap();
    let mut handle = store.begin(opening()).unwrap();
    for n in 1..=1000_u64 {
        handle.append(Bytes::from_static(b"k")).await.unwrap();
        durable_at(&handle, n).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let stats = store.stats();
    assert_bounds(&store, "keystrokes");
    // Headers of small objects are won back: of 1000 objects a fraction is left.
    assert!(stats.journal_objects_kept < 500, "{stats:?}");
    assert_eq!(world.audit_journal().await[&handle.id()], vec![b'k'; 1000]);
    assert_eq!(handle.finish(clean_end()).await.unwrap().bytes, 1000);
}

/// An idle recording, some objects that are needed by nobody, and one commit that makes compaction due.
async fn with_compaction_due(store: &Store) -> BTreeMap<RecordingId, RecordingHandle> {
    let mut idle = BTreeMap::new();
    for _ in 0..3 {
        let mut handle = store.begin(opening()).unwrap();
        handle.append(Bytes::from_static(b"idle")).await.unwrap();
        durable_at(&handle, 4).await.unwrap();
        idle.insert(handle.id(), handle);
    }
    for _ in 0..5 {
        let mut short = store.begin(opening()).unwrap();
        short.append(vec![b'x'; 400].into()).await.unwrap();
        // A fault may be meant for it.
        let _durable_or_not = durable_at(&short, 400).await;
        short.finish(clean_end()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    idle
}

#[tokio::test(start_paused = true)]
async fn a_compaction_that_meets_a_fault_loses_nothing() {
    for backend in BACKENDS {
        for fault in Fault::ALL {
            for number in [
                "/0000000016",
                "/0000000017",
                "/0000000018",
                "/0000000019",
                "/0000000020",
                "/0000000021",
            ] {
                let case = format!("{backend:?} {fault:?} {number}");
                let world = small_world(backend).await;
                let store = world.open().await.unwrap();
                world.objects.strike(number, fault);
                let idle = with_compaction_due(&store).await;
                let mut busy = store.begin(opening()).unwrap();
                for _ in 0..20 {
                    if busy.append(Bytes::from_static(b"busy")).await.is_err() {
                        busy = store.begin(opening()).unwrap();
                    }
                    tokio::time::sleep(Duration::from_secs(30)).await;
                }
                assert_eq!(world.objects.faults_left(), 0, "{case}");
                let poisoned = store.stats().epochs > 1;
                let stands = fault == Fault::FailsYetPersists;
                assert_eq!(poisoned, backend == Backend::File && stands, "{case}");
                // What was open when an epoch was poisoned is sealed from there, and not moved.
                assert!(poisoned || store.stats().compactions > 0, "{case}");
                let journal = world.audit_journal().await;
                for (id, handle) in idle {
                    assert_eq!(journal[&id], b"idle", "{case}");
                    let sealed = handle.finish(clean_end()).await;
                    assert_eq!(sealed.unwrap().bytes, 4, "{case}");
                }
                drop(busy);
                store.close().await.unwrap();
                assert_bounds(&store, &case);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_recording_that_is_being_read_is_not_moved_and_its_objects_stay() {
    let world = small_world(Backend::Memory).await;
    let store = world.open().await.unwrap();
    let mut read = store.begin(opening()).unwrap();
    read.append(Bytes::from_static(b"being read"))
        .await
        .unwrap();
    durable_at(&read, 10).await.unwrap();
    let basis = store.shared.state().seal_basis(read.id()).unwrap();
    let mut busy = store.begin(opening()).unwrap();
    let write = async |busy: &mut RecordingHandle| {
        for _ in 0..60 {
            busy.append(Bytes::from_static(b"x")).await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    write(&mut busy).await;
    let place = basis.spans[0].object.name.to_string();
    assert!(world.names().await.contains(&place));
    store.shared.state().unpin(read.id());
    write(&mut busy).await;
    assert!(
        !world.names().await.contains(&place),
        "it was moved, and trimmed"
    );
    assert_eq!(world.audit_journal().await[&read.id()], b"being read");
}

#[tokio::test(start_paused = true)]
async fn the_objects_of_a_poisoned_epoch_go_when_nobody_needs_them() {
    let world = small_world(Backend::File).await;
    let store = world.open().await.unwrap();
    world.objects.strike("/0000000002", Fault::FailsYetPersists);
    let mut handle = store.begin(opening()).unwrap();
    handle.append(Bytes::from_static(b"durable")).await.unwrap();
    durable_at(&handle, 7).await.unwrap();
    handle.append(Bytes::from_static(b" lost")).await.unwrap();
    assert!(durable_at(&handle, 12).await.is_err());
    let mut next = store.begin(opening()).unwrap();
    next.append(Bytes::from_static(b"next")).await.unwrap();
    durable_at(&next, 4).await.unwrap();
    assert_eq!(
        world.names_with("journal/").await.len(),
        5,
        "the failed recording needs the old epoch"
    );
    handle.finish(clean_end()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let left = world.names_with("journal/").await;
    let openers = left.iter().filter(|name| name.ends_with("/0000000000"));
    assert_eq!(openers.count(), 2, "openers stay");
    let of_epoch = |opener: &str| {
        let epoch = opener.strip_suffix("0000000000").unwrap();
        left.iter().filter(|name| name.starts_with(epoch)).count()
    };
    let openers = left.iter().filter(|name| name.ends_with("/0000000000"));
    let fewest = openers.map(|opener| of_epoch(opener)).min();
    assert_eq!(fewest, Some(2), "the opener and a fence: {left:?}");
    assert_eq!(world.audit_journal().await[&next.id()], b"next");
}

#[test]
fn a_kill_during_compaction_loses_no_acked_byte() {
    for backend in BACKENDS {
        for kill_after_ms in (20_000..32_000).step_by(500) {
            let outer = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let world = outer.block_on(small_world(backend));
            let inner = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .start_paused(true)
                .build()
                .unwrap();
            let (acked, compactions) = inner.block_on(async {
                let store = world.open().await.unwrap();
                let mut handles: Vec<_> = (0..4).map(|_| store.begin(opening()).unwrap()).collect();
                // One line a commit: its header is most of it, so there is much to win.
                let writing = async {
                    for n in 0_usize.. {
                        let handle = &mut handles[if n < 4 { n } else { n % 3 }];
                        handle.append(Bytes::from_static(b"line\n")).await.unwrap();
                        tokio::time::sleep(Duration::from_millis(1100)).await;
                    }
                };
                let end = Duration::from_millis(kill_after_ms);
                assert!(tokio::time::timeout(end, writing).await.is_err());
                let acked: Vec<_> = handles
                    .iter()
                    .map(|handle| (handle.id(), handle.durable().borrow().offset.0))
                    .collect();
                // The process is gone: nothing may run its end.
                handles.into_iter().for_each(std::mem::forget);
                (acked, store.stats().compactions)
            });
            inner.shutdown_timeout(Duration::from_secs(10));
            assert!(compactions > 0, "{backend:?} {kill_after_ms}");
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
