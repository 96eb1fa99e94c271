//! A long recording is cut while it runs: its journal bytes go, and what is stored in the end is the same.

use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::super::{RecordingHandle, Store};
use super::process::{Mishap, Process};
use super::recovery::recovered;
use super::world::{BACKENDS, Backend, World, clean_end, durable_at, opening, read_all};
use crate::asciicast::parser::Parser;
use crate::recording::manifest::{Manifest, SourceNode};

const SEGMENT_BYTES: u64 = 100_000;

async fn world(backend: Backend) -> World {
    let mut world = World::new(backend).await;
    world.config.segment_bytes = SEGMENT_BYTES;
    world
}

/// Lines of 1000 bytes, the first a header.
fn lines(bytes: usize) -> Vec<u8> {
    let mut cast = format!("{{\"version\":2,\"command\":\"{}\"}}\n", "h".repeat(973)).into_bytes();
    for n in 0.. {
        if cast.len() >= bytes {
            break;
        }
        let text = format!("{n:06}{}", "x".repeat(981));
        cast.extend_from_slice(format!("[0.5,\"o\",\"{text}\"]\n").as_bytes());
    }
    cast.truncate(bytes);
    cast
}

async fn send(handle: &mut RecordingHandle, sent: &mut u64, bytes: &[u8]) {
    for piece in bytes.chunks(200_001) {
        handle.append(Bytes::copy_from_slice(piece)).await.unwrap();
        *sent += piece.len() as u64;
        durable_at(handle, *sent).await.unwrap();
    }
}

/// Lets the cut in flight come to its end.
async fn settle(store: &Store) {
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert!(store.stats().commit_running_for.is_none());
}

fn check(manifest: &Manifest, stream: &[u8], sent: &[u8]) {
    assert!(stream == sent, "{} of {} bytes", stream.len(), sent.len());
    assert_eq!(
        manifest.cast_sha256.0,
        <[u8; 32]>::from(Sha256::digest(sent))
    );
    let mut parser = Parser::new();
    parser.handle_bytes(sent);
    let facts = parser.facts();
    assert_eq!(manifest.event_count, facts.event_count);
    assert_eq!(
        manifest.transcript_sha256.map(|hash| hash.0),
        facts.transcript_sha256
    );
    assert_eq!(manifest.claimed, facts.header);
    for flag in &facts.flags {
        assert!(manifest.flags.contains(&flag.to_string()), "{flag}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_long_recording_is_cut_between_lines_and_its_journal_bytes_go_while_it_runs() {
    for backend in BACKENDS {
        let world = world(backend).await;
        let process = Process::start(&world, 1, None).await.unwrap();
        let sent = lines(6_000_000);
        let mut handle = process.store.begin(opening()).unwrap();
        let mut offset = 0;
        send(&mut handle, &mut offset, &sent).await;
        settle(&process.store).await;
        // A segment and a line that is too long stay at most, and an object in which the cut stands.
        let cuts = process.store.stats().cuts;
        assert!(cuts >= 40, "{cuts}");
        handle.append(Bytes::from_static(b"")).await.unwrap();
        let journalled: usize = {
            let mut bytes = 0;
            for name in world.names_with("journal/").await {
                bytes += world.get(&name).await.len();
            }
            bytes
        };
        assert!(journalled < 2_000_000, "{journalled}");

        handle.finish(clean_end()).await.unwrap();
        let (manifest, stream) = world.only_manifest().await;
        check(&manifest, &stream, &sent);
        assert_eq!(manifest.flags, ["complete"]);
        assert!(manifest.segments.len() >= 50, "{}", manifest.segments.len());
        for (segment, n) in manifest.segments.iter().zip(0..) {
            assert!(segment.name.ends_with(&format!(".{n}.cast")));
            assert!(segment.plain_offset % 1000 == 0, "cut between lines");
        }
        assert!(read_all(&process.store, manifest).await.unwrap() == sent);
        process.store.close().await.unwrap();
        assert_eq!(world.journal_left().await, Vec::<String>::new());
    }
}

#[tokio::test(start_paused = true)]
async fn an_endless_line_is_cut_within_and_read_as_if_it_had_not_been() {
    let world = world(Backend::Memory).await;
    let process = Process::start(&world, 1, None).await.unwrap();
    let mut sent = lines(3_000);
    sent.extend(std::iter::repeat_n(b'x', 4_000_000));
    sent.extend_from_slice(b"\n[9,\"o\",\"after\"]\n");
    let mut handle = process.store.begin(opening()).unwrap();
    let mut offset = 0;
    send(&mut handle, &mut offset, &sent).await;
    settle(&process.store).await;
    assert!(process.store.stats().cuts >= 2);
    handle.finish(clean_end()).await.unwrap();
    let (manifest, stream) = world.only_manifest().await;
    check(&manifest, &stream, &sent);
    assert_eq!(manifest.flags, ["complete", "line_too_long"]);
}

#[tokio::test(start_paused = true)]
async fn recovery_and_seal_go_on_from_the_last_cut() {
    for backend in BACKENDS {
        let world = world(backend).await;
        let process = Process::start(&world, 1, None).await.unwrap();
        let note = SourceNode {
            stable_id: "nPersonCNTRL".into(),
            found: true,
            node_name: "laptop.tail-scale.ts.net".into(),
            user: None,
            tags: vec![],
            addresses: vec!["100.64.0.9".parse().unwrap()],
            mismatch: vec!["srcNodeUser".into()],
        };
        let sent = lines(2_500_000);
        let mut handle = process.store.begin(opening()).unwrap();
        handle.note(note.clone()).unwrap();
        let mut offset = 0;
        send(&mut handle, &mut offset, &sent).await;
        settle(&process.store).await;
        assert!(process.store.stats().cuts >= 2);
        // Somebody else's commit says that what the cut has is not needed.
        let mut other = process.store.begin(opening()).unwrap();
        other.append(Bytes::from_static(b"other")).await.unwrap();
        durable_at(&other, 5).await.unwrap();
        settle(&process.store).await;
        let first = world
            .names_with("journal/")
            .await
            .into_iter()
            .nth(1)
            .unwrap();
        assert!(
            !first.ends_with("/0000000001"),
            "{first}: the opening's object is trimmed"
        );
        process.die();

        let next = Process::start(&world, 2, None).await.unwrap();
        let stats = recovered(&next.store).await;
        assert_eq!((stats.recordings_sealed, stats.objects_damaged), (2, 0));
        let (manifest, stream) = world.sealed_of(handle.id()).await;
        check(&manifest, &stream, &sent);
        assert!(manifest.gaps.is_empty());
        assert_eq!(manifest.source_node, Some(note));
        assert_eq!(manifest.uploader, opening().uploader);
        assert_eq!(world.journal_left().await, Vec::<String>::new());
    }
}

#[tokio::test(start_paused = true)]
async fn a_cut_that_fails_or_dies_at_any_step_loses_nothing() {
    // The last piece makes enough for a cut; the newline behind it finds that out.
    let sent = lines(1_200_006);
    let log = {
        let world = world(Backend::Memory).await;
        let process = Process::start(&world, 1, None).await.unwrap();
        let mut handle = process.store.begin(opening()).unwrap();
        send(&mut handle, &mut 0, &sent).await;
        settle(&process.store).await;
        let before = process.backend.log().len();
        handle.append(Bytes::from_static(b"\n")).await.unwrap();
        settle(&process.store).await;
        assert!(process.store.stats().cuts >= 1);
        process.backend.log().split_off(before)
    };
    assert!(
        log.iter().any(|step| step.contains(".cast")) && log.len() > 5,
        "{log:?}"
    );
    for backend in BACKENDS {
        for mishap in [
            Mishap::Fails,
            Mishap::FailsYetPersists,
            Mishap::Dies,
            Mishap::DiesYetPersists,
        ] {
            // What a mishap does differently on a disk is to poison, and to leave half-done files.
            if backend == Backend::File
                && !matches!(mishap, Mishap::FailsYetPersists | Mishap::Dies)
            {
                continue;
            }
            for (number, step) in log.iter().enumerate() {
                let case = format!("{backend:?} {mishap:?} at {number}: {step}");
                let world = world(backend).await;
                let process = Process::start(&world, 1, None).await.unwrap();
                let mut handle = process.store.begin(opening()).unwrap();
                let mut offset = 0;
                send(&mut handle, &mut offset, &sent).await;
                settle(&process.store).await;
                process.backend.strike(number, mishap);
                handle.append(Bytes::from_static(b"\n")).await.unwrap();
                tokio::time::sleep(Duration::from_secs(60)).await;
                let acked = handle.durable().borrow().offset.0;
                let id = handle.id();
                if process.backend.is_running() {
                    handle
                        .finish(clean_end())
                        .await
                        .unwrap_or_else(|error| panic!("{case}: {error}"));
                    process.store.close().await.unwrap();
                } else {
                    process.die();
                }
                let next = Process::start(&world, 2, None).await.unwrap();
                recovered(&next.store).await;
                let (manifest, stream) = world.sealed_of(id).await;
                assert!(stream.len() as u64 >= acked, "{case}");
                assert!(
                    [sent.as_slice(), b"\n"].concat().starts_with(&stream),
                    "{case}"
                );
                check(&manifest, &stream, &stream);
                assert!(manifest.gaps.is_empty(), "{case}");
                assert_eq!(world.sealed().await.len(), 1, "{case}");
                assert_eq!(world.journal_left().await, Vec::<String>::new(), "{case}");
            }
        }
    }
}
