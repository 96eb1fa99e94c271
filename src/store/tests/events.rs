//! Events: durable when answered, rolled by uploader, nothing lost and nothing twice, whatever fails or dies.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use object_store::path::Path;

use super::super::events::{EventIndex, RecoveredEvents, roll_recovered};
use super::super::state::ObjectPlace;
use super::super::{Event, Store, StoreError};
use super::faulty_store::{Fault, Outage};
use super::world::{BACKENDS, Backend, World, at, clean_end, durable_at, opening};
use crate::ids::{EventId, RecordingId, StreamOffset};
use crate::recording::frame::{Frame, FrameKind, encode};
use crate::recording::journal_object::{JournalObject, OBJECT_HEADER_BYTES};

const SECOND: Duration = Duration::from_secs(1);

fn event_of(uploader: &str, body: &str) -> Event {
    let mut event = Event {
        received_at: at("2026-11-20T10:15:00.123Z"),
        uploader: opening().uploader,
        body: Bytes::copy_from_slice(body.as_bytes()),
    };
    event.uploader.stable_id = uploader.into();
    event
}

async fn record(store: &Store, n: usize) -> Result<EventId, StoreError> {
    let body = format!("{{\"n\":{n}}}\n");
    store.record_event(event_of("nProxy", &body)).await
}

/// An event frame in the journal.
struct Journalled {
    place: Arc<ObjectPlace>,
    bytes: Range<u32>,
    plain: Bytes,
}

/// All event frames in the journal, in its order.
async fn journalled(world: &World) -> Vec<Journalled> {
    let mut frames = Vec::new();
    for name in world.names_with("journal/").await {
        let bytes = world.get(&name).await;
        let object = JournalObject::decode(&bytes).unwrap();
        let place = Arc::new(ObjectPlace {
            name: Path::from(name),
            number: object.header.number,
            epoch_index: 0,
        });
        let mut end = OBJECT_HEADER_BYTES;
        for frame in object.frames() {
            let frame = frame.unwrap();
            let start = end;
            end += frame.encoded_bytes();
            if frame.kind == FrameKind::Event {
                frames.push(Journalled {
                    place: Arc::clone(&place),
                    bytes: u32::try_from(start).unwrap()..u32::try_from(end).unwrap(),
                    plain: frame.plain().unwrap().into_owned().into(),
                });
            }
        }
    }
    frames
}

/// What recovery knows of these frames: it reads the objects from the newest down.
async fn index_of(world: &World, frames: &[Journalled]) -> EventIndex {
    let mut index = EventIndex::default();
    for of_object in frames.chunk_by(|a, b| a.place.name == b.place.name).rev() {
        let object = world.get(of_object[0].place.name.as_ref()).await;
        for one in of_object {
            let start = usize::try_from(one.bytes.start).unwrap();
            let (frame, _) = Frame::decode(&object[start..]).unwrap();
            index.handle_frame(&one.place, &frame, one.bytes.clone());
        }
    }
    index
}

async fn roll_again(world: &World, store: &Store, frames: &[Journalled]) -> RecoveredEvents {
    let index = index_of(world, frames).await;
    roll_recovered(&store.shared, vec![index]).await.unwrap()
}

/// How often each event stands below `events/`, by its id.
async fn stored(world: &World) -> BTreeMap<String, usize> {
    let mut ids = BTreeMap::<String, usize>::new();
    for name in world.names_with("events/").await {
        for line in world.get(&name).await.split(|byte| *byte == b'\n') {
            if !line.is_empty() {
                let json: serde_json::Value = serde_json::from_slice(line).unwrap();
                *ids.entry(json["id"].as_str().unwrap().into()).or_default() += 1;
            }
        }
    }
    ids
}

fn once(ids: &[EventId]) -> BTreeMap<String, usize> {
    ids.iter().map(|id| (id.to_string(), 1)).collect()
}

#[tokio::test(start_paused = true)]
async fn an_event_is_committed_at_once_also_right_after_another_commit() {
    for backend in BACKENDS {
        let world = World::new(backend).await;
        let store = world.open().await.unwrap();
        let start = tokio::time::Instant::now();
        for n in 1..=5 {
            let id = record(&store, n).await.unwrap();
            let frames = journalled(&world).await;
            assert_eq!(frames.len(), n);
            let line: serde_json::Value = serde_json::from_slice(&frames[n - 1].plain).unwrap();
            assert_eq!(line["id"], id.to_string());
            assert_eq!(line["event"]["n"], n);
            assert_eq!(line["destination"]["nodeID"], "nProxy");
        }
        assert_eq!(
            start.elapsed(),
            Duration::ZERO,
            "no event waits for the interval"
        );
        assert_eq!((store.stats().commits, store.stats().events), (5, 5));
    }
}

#[tokio::test(start_paused = true)]
async fn events_that_come_during_a_commit_ride_the_next_together() {
    let world = World::new(Backend::Memory).await;
    let store = world.open().await.unwrap();
    world.objects.set_latency(2 * SECOND);
    let start = tokio::time::Instant::now();
    let first = record(&store, 1);
    let store = &store;
    let others = futures_util::future::join_all((2..=20).map(|n| async move {
        tokio::time::sleep(SECOND).await;
        record(store, n).await.unwrap();
    }));
    let (first, _) = tokio::join!(first, others);
    first.unwrap();
    assert_eq!(store.stats().commits, 2);
    assert_eq!(start.elapsed(), 4 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_long_event_is_an_object_first_and_its_name_in_the_journal() {
    for backend in BACKENDS {
        let world = World::new(backend).await;
        let store = world.open().await.unwrap();
        let body = format!("{{\"body\":\"{}\"}}\n", "x".repeat(300 * 1024));
        let id = store.record_event(event_of("nProxy", &body)).await.unwrap();
        let name = format!("events/nProxy/2026-11-20/1015-{id}.ndjson");
        let object = world.get(&name).await;
        let line: serde_json::Value = serde_json::from_slice(&object).unwrap();
        assert_eq!(line["event"]["body"].as_str().unwrap().len(), 300 * 1024);
        let frames = journalled(&world).await;
        let frame: serde_json::Value = serde_json::from_slice(&frames[0].plain).unwrap();
        assert_eq!(frame["object"], name);
        assert_eq!(frame["bytes"], object.len());
        assert_eq!(
            store.stats().events_journalled,
            0,
            "nothing is left to roll"
        );
        assert_eq!(
            roll_again(&world, &store, &frames).await,
            RecoveredEvents::default()
        );
        store.close().await.unwrap();
        assert_eq!(stored(&world).await, once(&[id]));
    }
}

#[tokio::test(start_paused = true)]
async fn events_are_rolled_by_uploader_after_an_hour_and_leave_the_journal() {
    for backend in BACKENDS {
        let world = World::new(backend).await;
        let store = world.open().await.unwrap();
        let mut ids = Vec::new();
        for n in 0..6 {
            let uploader = ["nOne", "nOther"][n % 2];
            ids.push(store.record_event(event_of(uploader, "{}")).await.unwrap());
            tokio::time::sleep(60 * SECOND).await;
        }
        assert!(world.names_with("events/").await.is_empty());
        tokio::time::sleep(3600 * SECOND).await;
        let names = world.names_with("events/").await;
        let expected = [
            format!("events/nOne/2026-11-20/1015-{}.ndjson", ids[0]),
            format!("events/nOther/2026-11-20/1015-{}.ndjson", ids[1]),
        ];
        assert_eq!(names, expected);
        assert_eq!(stored(&world).await, once(&ids));
        let stats = store.stats();
        assert_eq!((stats.events_journalled, stats.events_rolled), (0, 6));
        assert_eq!(stats.journal_bytes_open, 0);
        assert!(
            journalled(&world).await.is_empty(),
            "trimmed, the marks too"
        );
        // Quiet from here on.
        let puts = world.objects.puts_of("");
        tokio::time::sleep(24 * 3600 * SECOND).await;
        assert_eq!(world.objects.puts_of(""), puts);
    }
}

#[tokio::test(start_paused = true)]
async fn eight_mebibytes_of_events_are_rolled_without_waiting_for_the_hour() {
    let world = World::new(Backend::Memory).await;
    let store = world.open().await.unwrap();
    let body = format!("{{\"body\":\"{}\"}}", "x".repeat(200 * 1024));
    let mut ids = Vec::new();
    for _ in 0..60 {
        ids.push(store.record_event(event_of("nProxy", &body)).await.unwrap());
    }
    tokio::time::sleep(5 * SECOND).await;
    assert_eq!(world.names_with("events/").await.len(), 1);
    assert!(store.stats().events_rolled >= 38, "{:?}", store.stats());
    store.close().await.unwrap();
    assert_eq!(stored(&world).await, once(&ids));
    assert!(journalled(&world).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn journalled_events_do_not_hold_the_journal_open() {
    let mut world = World::new(Backend::Memory).await;
    world.config.compaction.slack_bytes = 64 * 1024;
    let store = world.open().await.unwrap();
    let id = record(&store, 1).await.unwrap();
    let mut busy = store.begin(opening()).unwrap();
    for _ in 0..200 {
        let mut short = store.begin(opening()).unwrap();
        short.append(vec![b'x'; 300].into()).await.unwrap();
        short.finish(clean_end()).await.unwrap();
        busy.append(Bytes::from_static(b"x")).await.unwrap();
        tokio::time::sleep(SECOND).await;
    }
    let stats = store.stats();
    assert_eq!(stats.events_rolled, 1, "long before its hour");
    assert!(stats.journal_bytes_kept <= 2 * stats.journal_bytes_open + 64 * 1024);
    assert_eq!(stored(&world).await, once(&[id]));
}

#[tokio::test(start_paused = true)]
async fn a_fault_at_any_step_of_a_roll_loses_no_event_and_stores_none_twice() {
    for backend in BACKENDS {
        for step in [
            "/0000000001",
            "/0000000002",
            "/0000000003",
            "/0000000004",
            ".ndjson",
        ] {
            for fault in Fault::ALL {
                let case = format!("{backend:?} {step} {fault:?}");
                let world = World::new(backend).await;
                let store = world.open().await.unwrap();
                world.objects.strike(step, fault);
                let mut acked = Vec::new();
                for n in 0..3 {
                    // What is not acknowledged may be stored or not.
                    acked.extend(record(&store, n).await.ok());
                }
                tokio::time::sleep(3 * 3600 * SECOND).await;
                store
                    .close()
                    .await
                    .unwrap_or_else(|error| panic!("{case}: {error}"));
                let poisons = backend == Backend::File && fault == Fault::FailsYetPersists;
                assert_eq!(
                    store.stats().rolls_failed > 0,
                    poisons && step == ".ndjson",
                    "{case}"
                );
                assert!(acked.len() >= 2, "{case}");
                assert_eq!(stored(&world).await, once(&acked), "{case}");
                assert_eq!(store.stats().events_journalled, 0, "{case}");
            }
        }
    }
}

/// Runs a store on events and rolls until it has sent `puts`, and kills it there. Says what was acknowledged, and whether
/// it came to the end.
fn killed_after(world: &World, puts: usize, persists: bool) -> (Vec<EventId>, bool) {
    let inner = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    let outcome = inner.block_on(async {
        let store = world.open().await.unwrap();
        world.objects.die_after(puts, persists);
        let acked = std::sync::Mutex::new(Vec::new());
        let work = async {
            let mut open = store.begin(opening()).unwrap();
            open.append(Bytes::from_static(b"holds the journal"))
                .await
                .unwrap();
            // The process is to be gone without its end.
            let open = std::mem::ManuallyDrop::new(open);
            durable_at(&open, 17).await.unwrap();
            store.shared.state().seal_basis(open.id()).unwrap();
            for round in 0..2 {
                for n in 0..4 {
                    let id = record(&store, round * 4 + n).await.unwrap();
                    acked.lock().unwrap().push(id);
                }
                tokio::time::sleep(2 * 3600 * SECOND).await;
            }
        };
        let done = tokio::select! {
            biased;
            () = world.objects.died() => false,
            () = work => true,
        };
        (acked.into_inner().unwrap(), done)
    });
    inner.shutdown_timeout(10 * SECOND);
    world.objects.revive();
    outcome
}

#[test]
fn a_kill_at_any_put_loses_no_acked_event_and_recovery_stores_none_twice() {
    for backend in BACKENDS {
        for persists in [false, true] {
            let mut kills = 0;
            for puts in 1.. {
                let case = format!("{backend:?} {puts} {persists}");
                let outer = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                let world = outer.block_on(World::new(backend));
                let (acked, done) = killed_after(&world, puts, persists);
                outer.block_on(recovers(&world, &acked, &case));
                if done {
                    break;
                }
                kills += 1;
            }
            assert!(kills >= 12, "{kills}");
        }
    }
}

async fn recovers(world: &World, acked: &[EventId], case: &str) {
    let frames = journalled(world).await;
    let store = world.open().await.unwrap();
    // Its own recovery would trim the journal that we are to read three times.
    store.committer.stop.cancel();
    // Two recoverers at once, and one that comes late.
    tokio::join!(
        roll_again(world, &store, &frames),
        roll_again(world, &store, &frames)
    );
    let late = roll_again(world, &store, &frames).await;
    assert!(late.rolled + late.found <= 8, "{case}");
    let stored = stored(world).await;
    assert!(
        stored.values().all(|times| *times == 1),
        "{case}: {stored:?}"
    );
    for id in acked {
        assert!(stored.contains_key(&id.to_string()), "{case}: {id} is lost");
    }
}

#[tokio::test(start_paused = true)]
async fn events_that_were_rolled_are_not_rolled_again_when_the_oldest_of_them_are_trimmed() {
    let world = World::new(Backend::Memory).await;
    let store = world.open().await.unwrap();
    let mut open = store.begin(opening()).unwrap();
    open.append(Bytes::from_static(b"holds the journal"))
        .await
        .unwrap();
    durable_at(&open, 17).await.unwrap();
    store.shared.state().seal_basis(open.id()).unwrap();
    let mut acked = Vec::new();
    for n in 0..5 {
        acked.push(record(&store, n).await.unwrap());
    }
    tokio::time::sleep(2 * 3600 * SECOND).await;
    for n in 5..8 {
        acked.push(record(&store, n).await.unwrap());
    }
    let frames = journalled(&world).await;
    assert_eq!(frames.len(), 9, "eight events and a mark");
    for trimmed in [5, 4, 3, 2, 1, 0] {
        roll_again(&world, &store, &frames[trimmed..]).await;
        assert_eq!(stored(&world).await, once(&acked), "{trimmed} are gone");
    }
    let mut wrong = index_of(&world, &frames).await;
    let mut noise = Vec::new();
    let nobody = RecordingId::from_bytes([0; 10]);
    encode(
        &mut noise,
        None,
        FrameKind::Event,
        nobody,
        StreamOffset(0),
        b"no event",
    )
    .unwrap();
    let (frame, _) = Frame::decode(&noise).unwrap();
    wrong.handle_frame(&frames[0].place, &frame, 0..1);
    let refused = roll_recovered(&store.shared, vec![wrong]).await;
    assert!(matches!(refused, Err(StoreError::EventLine(_))));
}

#[tokio::test(start_paused = true)]
async fn recovery_holds_the_lines_of_one_object_whatever_the_journal_holds() {
    let world = World::new(Backend::Memory).await;
    let store = world.open().await.unwrap();
    // Nothing is rolled, so that the journal holds all of it.
    store.committer.roller.abort();
    let mut ids = Vec::new();
    for n in 0..150 {
        let body = format!("{{\"body\":\"{n} {}\"}}", "x".repeat(200 * 1024));
        let uploader = ["nOne", "nOther", "nThird"][n % 3];
        ids.push(store.record_event(event_of(uploader, &body)).await.unwrap());
    }
    let rolled = roll_again(&world, &store, &journalled(&world).await).await;
    assert_eq!((rolled.rolled, rolled.found, rolled.lost), (150, 0, 0));
    let most = 8 * 1024 * 1024;
    assert!(
        (most / 2..=most).contains(&rolled.held_bytes_most),
        "of 30 MB: {rolled:?}"
    );
    // Of 50 events of 200 KiB of each uploader 40 go into an object.
    assert_eq!(world.names_with("events/").await.len(), 6);
    assert_eq!(stored(&world).await, once(&ids));
}

#[tokio::test(start_paused = true)]
async fn a_sender_is_answered_within_the_stall_limit() {
    let world = World::new(Backend::Memory).await;
    let store = world.open().await.unwrap();
    world
        .objects
        .set_outage(Some(Outage::Says(ErrorKind::StorageFull)));
    let start = tokio::time::Instant::now();
    let long = format!("{{\"body\":\"{}\"}}\n", "x".repeat(300 * 1024));
    let (short, long) = tokio::join!(
        record(&store, 1),
        store.record_event(event_of("nProxy", &long))
    );
    let Err(StoreError::EventNotStored { source }) = short else {
        panic!("{short:?}")
    };
    assert!(matches!(*source, StoreError::Stalled { .. }));
    let long = long.unwrap_err();
    assert!(
        long.to_string().contains("(ENOSPC): free some room"),
        "{long}"
    );
    assert!(start.elapsed() <= 25 * SECOND);
    assert!(matches!(
        record(&store, 2).await,
        Err(StoreError::Stalled { .. })
    ));
    world.objects.set_outage(None);
    tokio::time::sleep(15 * SECOND).await;
    record(&store, 3).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_long_event_that_is_waited_for_no_longer_keeps_what_the_backend_said() {
    let mut world = World::new(Backend::Memory).await;
    // Less than the tries of a create take.
    world.config.store_stall_limit = 2 * SECOND;
    let store = world.open().await.unwrap();
    let long = format!("{{\"body\":\"{}\"}}\n", "x".repeat(300 * 1024));
    let rows = [
        (
            Outage::Says(ErrorKind::StorageFull),
            "no space is left (ENOSPC)",
        ),
        (Outage::Hangs, "the backend did not answer in time"),
    ];
    for (outage, cause) in rows {
        world.objects.set_outage(Some(outage));
        let refused = store.record_event(event_of("nProxy", &long)).await;
        let error = refused.unwrap_err();
        let told = error.to_string();
        let head = format!("the event is not known to be stored: {cause}");
        assert!(told.starts_with(&head), "{told}");
        let logged = error.with_causes();
        let full = matches!(outage, Outage::Says(_));
        assert_eq!(logged.contains("create events/nProxy/"), full, "{logged}");
        assert!(!told.contains("events/"), "peers read it: {told}");
        world.objects.set_outage(None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_close_that_events_hold_up_says_what_the_backend_said_of_them() {
    let world = World::new(Backend::Memory).await;
    let store = world.open().await.unwrap();
    record(&store, 1).await.unwrap();
    let denied = Outage::Says(ErrorKind::PermissionDenied);
    world.objects.set_outage(Some(denied));
    let closed = store.close().await;
    let Err(error @ StoreError::CloseTimedOut { .. }) = closed else {
        panic!("{closed:?}")
    };
    let told = error.with_causes();
    assert!(
        told.starts_with("close the store: access is denied (EACCES)"),
        "{told}"
    );
    assert!(told.contains("create events/nProxy/"), "{told}");
}

#[tokio::test(start_paused = true)]
async fn the_bytes_of_events_in_flight_are_bounded() {
    let mut world = World::new(Backend::Memory).await;
    world.config.events_in_flight_bytes_max = 20;
    let store = world.open().await.unwrap();
    let refused = store
        .record_event(event_of("nProxy", &"x".repeat(21)))
        .await;
    assert!(
        matches!(
            refused,
            Err(StoreError::EventTooLarge {
                bytes: 21,
                bytes_max: 20
            })
        ),
        "{refused:?}"
    );
    let gate = world.objects.gate_journal();
    let one = tokio::spawn({
        let store = store.clone();
        async move {
            store
                .record_event(event_of("nProxy", &"x".repeat(15)))
                .await
        }
    });
    tokio::time::sleep(SECOND).await;
    let mut other = Box::pin(store.record_event(event_of("nProxy", &"y".repeat(15))));
    assert!(other.as_mut().now_or_never().is_none());
    gate.add_permits(100);
    one.await.unwrap().unwrap();
    other.await.unwrap();
    assert_eq!(store.shared.event_space.available_permits(), 20);
    assert_eq!(store.stats().commits, 2, "one after the other");
}
