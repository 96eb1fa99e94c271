//! What a damaged store lost of events is said where events are.

use std::collections::BTreeMap;

use object_store::ObjectStoreExt;
use object_store::path::Path;

use super::super::super::{Event, Store};
use super::super::process::Process;
use super::super::world::{BACKENDS, World, at, opening};
use super::{CAST, recording, recovered};
use crate::ids::EventId;

async fn record(store: &Store, uploader: &str, body: String) -> EventId {
    let mut event = Event {
        received_at: at("2026-11-20T10:15:00.123Z"),
        uploader: opening().uploader,
        body: body.into(),
    };
    event.uploader.stable_id = uploader.into();
    store.record_event(event).await.unwrap()
}

/// Every line below `events/`: events by id with how often they stand there, and what is declared lost.
async fn lines(world: &World) -> (BTreeMap<String, usize>, Vec<(String, serde_json::Value)>) {
    let (mut events, mut lost) = (BTreeMap::<String, usize>::new(), Vec::new());
    for name in world.names_with("events/").await {
        for line in world
            .get(&name)
            .await
            .split_inclusive(|byte| *byte == b'\n')
        {
            let json: serde_json::Value = serde_json::from_slice(line).unwrap();
            match json.get("lost") {
                Some(declared) => lost.push((name.clone(), declared.clone())),
                None => {
                    *events
                        .entry(json["id"].as_str().unwrap().into())
                        .or_default() += 1
                }
            }
        }
    }
    (events, lost)
}

fn once(ids: &[EventId]) -> BTreeMap<String, usize> {
    ids.iter().map(|id| (id.to_string(), 1)).collect()
}

#[tokio::test(start_paused = true)]
async fn events_in_a_damaged_journal_object_are_declared_lost_once() {
    for damage in ["lost", "bent", "replaced"] {
        for backend in BACKENDS {
            let world = World::new(backend).await;
            let first = Process::start(&world, 1, None).await.unwrap();
            let mut ids = Vec::new();
            for n in 0..4 {
                ids.push(record(&first.store, "nProxy", format!("{{\"n\":{n}}}")).await);
            }
            first.die();
            let name = world.names_with("/0000000002").await.remove(0);
            let path = Path::from(name.as_str());
            let mut bytes = world.get(&name).await.to_vec();
            match damage {
                "lost" => world.objects.delete(&path).await.unwrap(),
                "bent" => {
                    bytes[150] ^= 1;
                    world
                        .objects
                        .put(&path, bytes.into())
                        .await
                        .map(drop)
                        .unwrap();
                }
                _ => {
                    let third = world.get(&name.replace("/0000000002", "/0000000003")).await;
                    world
                        .objects
                        .put(&path, third.into())
                        .await
                        .map(drop)
                        .unwrap();
                }
            }
            // The first pass declares, and fails before it closes the epoch; a later one meets what it declared.
            let strike = super::super::faulty_store::Fault::Fails;
            for _ in 0..20 {
                world.objects.strike("/0000000006", strike);
            }
            let second = Process::start(&world, 2, None).await.unwrap();
            let stats = recovered(&second.store).await;
            assert!(world.objects.faults_left() < 20, "a pass failed");
            assert_eq!(
                (stats.objects_damaged, stats.events_lost),
                (1, 0),
                "{damage}"
            );
            ids.remove(1);
            let (events, lost) = lines(&world).await;
            assert_eq!(events, once(&ids), "{damage} {backend:?}");
            let [(place, declared)] = &lost[..] else {
                panic!("{damage} {backend:?}: {lost:?}")
            };
            assert!(
                place.starts_with("events/unknown/2026-11-20/1020-"),
                "{place}"
            );
            let mut parts = name.split('/').skip(1);
            assert_eq!(declared["recorder"], parts.next().unwrap());
            assert_eq!(declared["epoch"], parts.next().unwrap());
            assert_eq!(declared["numbers"], serde_json::json!([[2, 2]]));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_long_event_whose_object_is_lost_or_bent_is_said_to_be_lost() {
    for damage in ["none", "lost", "bent", "cut"] {
        for backend in BACKENDS {
            let world = World::new(backend).await;
            let first = Process::start(&world, 1, None).await.unwrap();
            let long = format!("{{\"body\":\"{}\"}}", "x".repeat(300 * 1024));
            // Nothing needs the frame of a long event: a recording that is open keeps it in the journal.
            let open = recording(&first.store, &[CAST]).await;
            let id = record(&first.store, "nProxy", long).await;
            first.die();
            drop(open);
            let name = world.names_with("events/").await.remove(0);
            let path = Path::from(name.as_str());
            let mut bytes = world.get(&name).await.to_vec();
            let sent = bytes.len();
            match damage {
                "none" => {}
                "lost" => world.objects.delete(&path).await.unwrap(),
                "bent" => bytes[sent / 2] = b'y',
                _ => bytes.truncate(sent / 2),
            }
            if damage == "bent" || damage == "cut" {
                world.objects.put(&path, bytes.into()).await.unwrap();
            }
            let second = Process::start(&world, 2, None).await.unwrap();
            let stats = recovered(&second.store).await;
            let is_lost = damage != "none";
            assert_eq!(
                stats.events_lost,
                u64::from(is_lost),
                "{damage} {backend:?}"
            );
            let declared = world.names_with("events/").await;
            let declared: Vec<_> = declared
                .into_iter()
                .filter(|other| *other != name)
                .collect();
            assert_eq!(declared.len(), usize::from(is_lost), "{damage} {backend:?}");
            for place in declared {
                assert!(
                    place.starts_with("events/nProxy/2026-11-20/1015-"),
                    "{place}"
                );
                let line = world.get(&place).await;
                let line: serde_json::Value = serde_json::from_slice(&line).unwrap();
                assert_eq!(line["lost"]["event"], id.to_string());
                assert_eq!(
                    (&line["lost"]["object"], &line["lost"]["bytes"]),
                    (&name.clone().into(), &sent.into())
                );
                assert_ne!(
                    line["id"], line["lost"]["event"],
                    "the line is not the event"
                );
            }
        }
    }
}
