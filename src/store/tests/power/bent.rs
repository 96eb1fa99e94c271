//! The auditor is shown stores that are wrong in every way that matters: it must see each.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::audit::Objects;
use super::ledger::{Ledger, Sender};
use super::model_disk::ModelDisk;
use super::{FIRST_KEY, SEGMENT_BYTES, life, processes, start};
use crate::recording::manifest::Manifest;

/// A store that sealed one recording of three segments and another of one, and what its senders know.
fn sound() -> (Objects, Arc<Ledger>) {
    let (disk, ledger) = (Arc::new(ModelDisk::new()), Arc::new(Ledger::default()));
    let objects = life(async {
        let store = start(&disk, SEGMENT_BYTES, FIRST_KEY, 0).await.unwrap();
        let mut large = Sender::begin(&store, &ledger).unwrap();
        let lines = "[1,\"o\",\"a line of output\"]\n".repeat(6_000);
        large.send(lines.into()).await;
        let mut small = Sender::begin(&store, &ledger).unwrap();
        small.send(Bytes::from_static(b"small")).await;
        large.finish().await.unwrap();
        small.finish().await.unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
        store.close().await.unwrap();
        Objects::read(&processes(&disk)).await
    });
    (objects, ledger)
}

fn name_of(objects: &Objects, ending: &str) -> String {
    let mut names = objects.0.keys().filter(|name| name.ends_with(ending));
    names.next_back().unwrap().clone()
}

/// Rewrites the manifest of the large recording.
fn rewrite(objects: &mut Objects, change: fn(&mut Manifest)) {
    let manifests = objects.manifests().unwrap();
    let (_, mut manifest) = manifests
        .into_iter()
        .max_by_key(|(_, manifest)| manifest.bytes)
        .unwrap();
    let id = manifest.recording_id;
    change(&mut manifest);
    let bytes = manifest.encode().unwrap();
    let name = name_of(objects, &format!("-{id}.json"));
    objects.0.insert(name, bytes.into());
}

#[test]
fn the_auditor_sees_what_is_wrong_with_a_store() {
    let (objects, ledger) = sound();
    let sealed = objects.seal_what_was_acked(&ledger).unwrap();
    assert_eq!((sealed.recordings, sealed.complete), (2, 2));
    objects.hold_what_was_acked(&ledger).unwrap();
    objects.have_a_trimmed_journal().unwrap();

    type Bend = fn(&mut Objects);
    let bends: [(&str, Bend); 7] = [
        ("have no manifest", |objects| {
            objects.0.remove(&name_of(objects, ".json"));
        }),
        ("is gone", |objects| {
            objects.0.remove(&name_of(objects, ".2.cast"));
        }),
        ("is not what was sent", |objects| {
            let name = name_of(objects, ".1.cast");
            let mut bytes = objects.0[&name].to_vec();
            bytes[7] ^= 1;
            objects.0.insert(name, bytes.into());
        }),
        ("sealed twice", |objects| {
            let name = name_of(objects, ".json");
            let again = objects.0[&name].clone();
            objects.0.insert(format!("recordings/{name}"), again);
        }),
        ("the sender was told of another seal", |objects| {
            rewrite(objects, |manifest| manifest.cast_sha256.0[0] ^= 1);
        }),
        ("flags", |objects| {
            rewrite(objects, |manifest| manifest.flags.clear());
        }),
        ("bytes sealed of", |objects| {
            rewrite(objects, |manifest| {
                let last = manifest.segments.pop().unwrap();
                manifest.bytes -= last.plain_bytes;
            });
        }),
    ];
    for (complaint, bend) in bends {
        let mut bent = Objects(objects.0.clone());
        bend(&mut bent);
        let seen = bent.seal_what_was_acked(&ledger).unwrap_err();
        assert!(seen.contains(complaint), "{complaint}: {seen}");
    }
}

#[test]
fn the_auditor_sees_what_is_wrong_with_a_journal() {
    let (disk, ledger) = (Arc::new(ModelDisk::new()), Arc::new(Ledger::default()));
    let objects = life(async {
        let store = start(&disk, SEGMENT_BYTES, FIRST_KEY, 0).await.unwrap();
        let mut open = Sender::begin(&store, &ledger).unwrap();
        for _ in 0..3 {
            open.send(Bytes::from_static(b"acked ")).await;
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        let objects = Objects::read(&processes(&disk)).await;
        drop(open);
        objects
    });
    objects.hold_what_was_acked(&ledger).unwrap();
    let untrimmed = objects.have_a_trimmed_journal().unwrap_err();
    assert!(
        untrimmed.contains("no fence") || untrimmed.contains("still in the journal"),
        "{untrimmed}"
    );

    let mut lost = Objects(objects.0.clone());
    lost.0.remove(&name_of(&lost, "/0000000003"));
    let seen = lost.hold_what_was_acked(&ledger).unwrap_err();
    assert!(seen.contains("12 bytes of 18 acked"), "{seen}");

    let mut swapped = Objects(objects.0);
    let (one, other) = (
        name_of(&swapped, "/0000000002"),
        name_of(&swapped, "/0000000003"),
    );
    let bytes = swapped.0[&one].clone();
    swapped.0.insert(other, bytes);
    assert!(
        swapped
            .hold_what_was_acked(&ledger)
            .unwrap_err()
            .contains("another object")
    );
}
