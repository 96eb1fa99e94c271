//! What is stored is what was sent: segments, manifests, trimming, reading back.

use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode};
use rand_core::{RngCore, SeedableRng};
use sha2::{Digest, Sha256};

use super::super::StoreError;
use super::faulty_store::Fault;
use super::world::{BACKENDS, Backend, World, clean_end, durable_at, opening, read_all};
use crate::recording::manifest::Manifest;

fn noise(bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    rand_chacha::ChaCha20Rng::seed_from_u64(7).fill_bytes(&mut noise);
    noise
}

#[tokio::test(start_paused = true)]
async fn a_finished_recording_is_one_plain_segment_and_its_manifest() {
    for backend in BACKENDS {
        // Nothing, little, around a block, and more than one part of a multipart upload.
        for bytes in [0, 6, 256 * 1024, 256 * 1024 + 1, 9 * 1024 * 1024] {
            let world = World::new(backend).await;
            let store = world.open().await.unwrap();
            let sent = noise(bytes);
            let mut handle = store.begin(opening()).unwrap();
            for piece in sent.chunks(300_000) {
                handle.append(Bytes::copy_from_slice(piece)).await.unwrap();
            }
            let id = handle.id();
            let sealed = handle.finish(clean_end()).await.unwrap();

            let (manifest, stored) = world.only_manifest().await;
            assert!(stored == sent, "{backend:?} {bytes}");
            assert_eq!(sealed.sha256, <[u8; 32]>::from(Sha256::digest(&sent)));
            assert_eq!((sealed.id, sealed.bytes), (id, bytes as u64));
            assert_eq!(sealed.segment_names, [manifest.segments[0].name.clone()]);
            let (manifest_name, segment_name) = (&sealed.manifest_name, &sealed.segment_names[0]);
            assert_eq!(
                *manifest_name,
                format!("recordings/nAbCdEfCNTRL/2026-11-20/101500.123Z-{id}.json")
            );
            assert!(segment_name.starts_with(manifest_name.strip_suffix("json").unwrap()));
            assert!(segment_name.ends_with(".0.cast"));
            assert_eq!(manifest.flags[0], "complete");
            assert_eq!(manifest.uploader, opening().uploader);
            assert_eq!(store.find(id).await.unwrap(), manifest);
            assert!(read_all(&store, manifest).await.unwrap() == sent);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_content_says_is_read_behind_the_journal() {
    let world = World::new(Backend::Memory).await;
    let store = world.open().await.unwrap();
    let cast = b"{\"version\":2,\"sshUser\":\"root\"}\n[0.5,\"o\",\"hello \"]\n[1,\"r\",\"24x80\"]\n[2,\"o\",\"world\"]\n";
    let mut handle = store.begin(opening()).unwrap();
    for piece in cast.chunks(7) {
        handle.append(Bytes::copy_from_slice(piece)).await.unwrap();
    }
    handle.finish(clean_end()).await.unwrap();
    let (manifest, _) = world.only_manifest().await;
    assert_eq!(manifest.flags, ["complete"]);
    assert_eq!(manifest.event_count, 3);
    assert_eq!(manifest.claimed.unwrap()["sshUser"], "root");
    let transcript: [u8; 32] = Sha256::digest(b"hello world").into();
    assert_eq!(manifest.transcript_sha256.unwrap().0, transcript);
}

#[tokio::test(start_paused = true)]
async fn sealed_bytes_leave_the_journal_but_the_opener_and_the_chain_stay() {
    for backend in BACKENDS {
        let world = World::new(backend).await;
        let store = world.open().await.unwrap();
        let mut open = store.begin(opening()).unwrap();
        for n in 0..3 {
            let mut handle = store.begin(opening()).unwrap();
            handle
                .append(Bytes::from_static(b"over soon"))
                .await
                .unwrap();
            durable_at(&handle, 9).await.unwrap();
            handle.finish(clean_end()).await.unwrap();
            if n == 1 {
                open.append(Bytes::from_static(b"still here"))
                    .await
                    .unwrap();
                durable_at(&open, 10).await.unwrap();
            }
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        let journal = world.audit_journal().await;
        assert_eq!(journal[&open.id()], b"still here");
        let first = &world.names_with("/000000000").await;
        assert!(first[0].ends_with("/0000000000"));
        assert!(!first[1].ends_with("/0000000001"), "{first:?}");

        open.finish(clean_end()).await.unwrap();
        store.close().await.unwrap();
        assert_eq!(
            world.names_with("journal/").await.len(),
            2,
            "the opener and the last object"
        );
        assert!(world.audit_journal().await.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_recording_is_sealed_as_incomplete() {
    for backend in BACKENDS {
        let world = World::new(backend).await;
        let store = world.open().await.unwrap();
        let mut handle = store.begin(opening()).unwrap();
        handle.append(Bytes::from_static(b"cut of")).await.unwrap();
        drop(handle);
        store.close().await.unwrap();
        let (manifest, stored) = world.only_manifest().await;
        assert_eq!(stored, b"cut of");
        assert_eq!(
            (manifest.flags[0].as_str(), manifest.reason.as_str()),
            ("incomplete", "dropped")
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_seal_goes_on_when_nobody_waits_for_it() {
    let world = World::new(Backend::Memory).await;
    let store = world.open().await.unwrap();
    let mut handle = store.begin(opening()).unwrap();
    handle.append(Bytes::from_static(b"hello")).await.unwrap();
    let finishing = tokio::time::timeout(Duration::ZERO, handle.finish(clean_end()));
    assert!(finishing.await.is_err());
    store.close().await.unwrap();
    assert_eq!(world.only_manifest().await.0.flags[0], "complete");
}

#[tokio::test(start_paused = true)]
async fn a_manifest_that_exists_is_adopted_and_our_attempt_removed() {
    for backend in BACKENDS {
        let world = World::new(backend).await;
        let store = world.open().await.unwrap();
        let mut handle = store.begin(opening()).unwrap();
        handle.append(Bytes::from_static(b"hello")).await.unwrap();
        durable_at(&handle, 5).await.unwrap();
        // Another recorder of the fleet sealed it in the meantime.
        let theirs = "recordings/nAbCdEfCNTRL/2026-11-20/theirs.aaaaaaaa.0.cast";
        world
            .objects
            .put(&Path::from(theirs), "hello".into())
            .await
            .unwrap();
        let mut manifest: Manifest =
            Manifest::decode(include_bytes!("../../../tests/vectors/manifest.json")).unwrap();
        manifest.recording_id = handle.id();
        (manifest.bytes, manifest.segments[0].plain_bytes) = (5, 5);
        manifest.segments[0].name = theirs.into();
        let name = format!(
            "recordings/nAbCdEfCNTRL/2026-11-20/101500.123Z-{}.json",
            handle.id()
        );
        let bytes = manifest.encode().unwrap();
        world
            .objects
            .put_opts(
                &Path::from(name.as_str()),
                bytes.into(),
                PutMode::Create.into(),
            )
            .await
            .unwrap();

        let sealed = handle.finish(clean_end()).await.unwrap();
        assert_eq!(sealed.segment_names, [theirs]);
        assert_eq!(world.names_with(".cast").await, [theirs]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_bent_segment_is_not_handed_out() {
    let world = World::new(Backend::Memory).await;
    let store = world.open().await.unwrap();
    let mut handle = store.begin(opening()).unwrap();
    handle.append(noise(600_000).into()).await.unwrap();
    let sealed = handle.finish(clean_end()).await.unwrap();
    let manifest = store.manifest(&sealed.manifest_name).await.unwrap();
    let mut bent = world.get(&sealed.segment_names[0]).await.to_vec();
    bent[300_000] ^= 1;
    world
        .objects
        .put(&Path::from(sealed.segment_names[0].as_str()), bent.into())
        .await
        .unwrap();
    let read = read_all(&store, manifest.clone()).await;
    assert!(
        matches!(read, Err(StoreError::BlockMismatch { block: 1, .. })),
        "{read:?}"
    );

    let mut short = manifest;
    short.cast_sha256.0[0] ^= 1;
    short.segments[0].blocks.pop();
    let read = read_all(&store, short).await;
    assert!(read.is_err());
}

#[tokio::test(start_paused = true)]
async fn damage_to_the_journal_is_found_before_the_seal() {
    let world = World::new(Backend::Memory).await;
    let store = world.open().await.unwrap();
    let mut handle = store.begin(opening()).unwrap();
    handle.append(Bytes::from_static(b"hello")).await.unwrap();
    durable_at(&handle, 5).await.unwrap();
    let name = world.names_with("/0000000001").await.remove(0);
    let mut bent = world.get(&name).await.to_vec();
    let place = bent
        .windows(5)
        .position(|window| window == b"hello")
        .unwrap();
    bent[place] ^= 1;
    world
        .objects
        .put(&Path::from(name), bent.into())
        .await
        .unwrap();
    let sealed = handle.finish(clean_end()).await;
    assert!(
        matches!(sealed, Err(StoreError::ReadBack { .. })),
        "{sealed:?}"
    );
    assert!(world.names_with(".json").await.is_empty());
    assert_eq!(store.stats().seals_failed, 1);
}

#[tokio::test(start_paused = true)]
async fn seals_that_fail_are_told_until_one_succeeds_and_not_while_one_is_only_tried_again() {
    let world = World::new(Backend::Memory).await;
    let store = world.open().await.unwrap();
    // Five creates are one attempt, and three attempts a seal.
    for (faults, fails) in [(5, false), (15, true)] {
        for _ in 0..faults {
            world.objects.strike(".cast", Fault::Fails);
        }
        let mut handle = store.begin(opening()).unwrap();
        handle.append(Bytes::from_static(b"hello")).await.unwrap();
        let sealing = tokio::spawn(handle.finish(clean_end()));
        while !sealing.is_finished() {
            assert_eq!(store.seal_failure(), None, "{faults}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(sealing.await.unwrap().is_err(), fails);
    }
    let why = store.seal_failure().unwrap();
    assert!(why.contains(".cast: "), "with its cause: {why}");
    assert!(why.contains("; look at its room"), "with a remedy: {why}");
    // It is tried again by itself, and succeeds.
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((store.seal_failure(), store.stats().sealed), (None, 2));
}

#[tokio::test(start_paused = true)]
async fn a_reason_is_kept_up_to_its_limit_and_cut_between_characters() {
    let world = World::new(Backend::Memory).await;
    let store = world.open().await.unwrap();
    let handle = store.begin(opening()).unwrap();
    let mut end = clean_end();
    end.reason = "ä".repeat(600) + "x";
    handle.finish(end).await.unwrap();
    assert_eq!(world.only_manifest().await.0.reason, "ä".repeat(512));
}
