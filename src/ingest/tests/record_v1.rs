//! `/record` as a client of 2023 sees it: `100 Continue`, chunks, one status.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use super::client::{Served, TextClient, serve, serve_with};
use super::memory_sink::{MemorySink, Mood};
use super::{EVENT, HEADER};
use crate::ingest::{IngestConfig, UploadPolicy};

#[tokio::test(start_paused = true)]
async fn the_body_is_asked_for_at_once_and_the_recording_has_begun_by_then() {
    let sink = MemorySink::new(Mood::Patient);
    let start = Instant::now();
    let _client = TextClient::begin(serve(&sink).io).await;
    assert_eq!(start.elapsed(), Duration::ZERO);
    let opening = sink.with(0, |recorded| recorded.opening.clone());
    assert_eq!(opening.endpoint, "/record");
    assert_eq!(opening.uploader.stable_id, "nServerCNTRL");
}

#[tokio::test(start_paused = true)]
async fn the_status_comes_when_all_is_sealed_and_no_sooner_than_the_hold() {
    for seal in [Duration::ZERO, Duration::from_secs(40)] {
        let sink = MemorySink::new(Mood::Patient);
        let served = serve(&sink);
        let mut client = TextClient::begin(served.io).await;
        client.chunk(HEADER).await;
        client.chunk(EVENT).await;
        let both = HEADER.len() + EVENT.len();
        sink.until_received(0, both).await;
        client.end().await;
        let ended = Instant::now();
        tokio::time::sleep(seal).await;
        sink.become_(Mood::Prompt);
        let answer = client.rest().await;
        let waited = ended.elapsed();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("connection: close\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\n"), "{answer}");
        let hold = Duration::from_millis(300);
        assert!(waited >= seal.max(hold) && waited < seal.max(hold) + Duration::from_millis(20));
        let end = sink.until_ended(0).await;
        assert!(end.clean && end.flags.is_empty());
        let stored = sink.with(0, |recorded| recorded.bytes.clone());
        assert_eq!(stored, [HEADER, EVENT].concat());
        served.server.await.unwrap();
        assert_eq!(served.ingest.stats().ended_complete, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_comes_instead_of_the_continue_and_closes_the_connection() {
    let denied = IngestConfig {
        policy: UploadPolicy::Tags(vec!["tag:other".to_owned()]),
        ..IngestConfig::default()
    };
    let full = IngestConfig {
        recordings_max: 0,
        ..IngestConfig::default()
    };
    let table = [
        (
            Mood::Refusing,
            IngestConfig::default(),
            "503",
            "write disk full?",
        ),
        (
            Mood::PanicsAtBegin,
            IngestConfig::default(),
            "503",
            "internal error",
        ),
        (Mood::Prompt, denied, "403", "upload = tags"),
        (Mood::Prompt, full, "503", "recordings_max"),
    ];
    for (mood, config, status, reason) in table {
        let sink = MemorySink::new(mood);
        let served = serve_with(&sink, config);
        let answer = TextClient::record(served.io).await.rest().await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
        assert!(answer.contains("connection: close\r\n"), "{answer}");
        assert!(
            answer.contains(&format!("tailtape-reason: {reason}")),
            "{answer}"
        );
        assert!(answer.ends_with("\r\n\r\n"), "no body: {answer}");
        assert_eq!(sink.count(), 0);
        served.server.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_recording_that_cannot_go_on_gets_no_status() {
    type Trouble = fn(&MemorySink, &Served);
    let config = || IngestConfig {
        upload: crate::ingest::upload::UploadConfig {
            recording_bytes_max: Some(HEADER.len() as u64),
            recording_duration_max: Some(Duration::from_secs(60)),
            ..Default::default()
        },
        ..IngestConfig::default()
    };
    let table: [(Trouble, &str, Option<&str>); 5] = [
        (
            |sink, _| sink.stall("the disk"),
            "the recorder's store is stalled: write the disk",
            None,
        ),
        (|sink, _| sink.fail(0, "the disk"), "write the disk", None),
        (
            |_, served| {
                let id = served.ingest.uploads()[0].id;
                assert!(served.ingest.terminate(id, "ended by eve"));
            },
            "ended by eve",
            Some("terminated"),
        ),
        (
            |_, served| served.shutdown.cancel(),
            "the recorder is stopping",
            None,
        ),
        (
            |_, _| {},
            "recording_duration_max, 60s",
            Some("limit_duration"),
        ),
    ];
    for (trouble, reason, flag) in table {
        let sink = MemorySink::new(Mood::Prompt);
        let mut served = serve_with(&sink, config());
        let (io, _) = tokio::io::duplex(1);
        let mut client = TextClient::begin(std::mem::replace(&mut served.io, io)).await;
        client.chunk(HEADER).await;
        sink.until_received(0, HEADER.len()).await;
        trouble(&sink, &served);
        assert_eq!(client.rest().await, "", "{reason}");
        let end = sink.until_ended(0).await;
        assert!(!end.clean && end.reason.contains(reason), "{}", end.reason);
        assert_eq!(end.flags, Vec::from_iter(flag));
        let stored = sink.with(0, |recorded| recorded.bytes.clone());
        assert_eq!(stored, HEADER);
        served.server.await.unwrap();
    }

    let sink = MemorySink::new(Mood::Prompt);
    let mut client = TextClient::begin(serve_with(&sink, config()).io).await;
    client.chunk(&[HEADER, b"x"].concat()).await;
    assert_eq!(client.rest().await, "");
    let end = sink.until_ended(0).await;
    assert_eq!(end.flags, ["limit_bytes"]);
    let stored = sink.with(0, |recorded| recorded.bytes.clone());
    assert_eq!(stored, HEADER, "up to the limit, no byte more or less");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_end_as_the_protocol_says_is_incomplete_with_the_reason() {
    let table: [(&[u8], &str); 5] = [
        (b"", "unexpected EOF"),
        (b"5\r\nab", "end of file before"),
        (b"zz\r\n", "chunk size"),
        (b"2\r\nabcd\r\n", "chunk"),
        (b"0\r\nx-more: y\r\n\r\n", "trailers"),
    ];
    for (bytes, reason) in table {
        let sink = MemorySink::new(Mood::Prompt);
        let served = serve(&sink);
        let mut client = TextClient::begin(served.io).await;
        client.chunk(HEADER).await;
        client.write(bytes).await;
        client.0.shutdown().await.unwrap();
        let answer = client.rest().await;
        assert!(!answer.contains("200"), "{answer}");
        let end = sink.until_ended(0).await;
        assert!(!end.clean);
        assert!(end.reason.contains(reason), "{bytes:?}: {}", end.reason);
        let stored = sink.with(0, |recorded| recorded.bytes.clone());
        assert!(stored.starts_with(HEADER));
        served.server.await.unwrap();
        assert_eq!(served.ingest.stats().ended_reset, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_whose_connection_is_dropped_by_the_wiring_is_incomplete() {
    let sink = MemorySink::new(Mood::Prompt);
    let served = serve(&sink);
    let mut client = TextClient::begin(served.io).await;
    client.chunk(HEADER).await;
    sink.until_received(0, HEADER.len()).await;
    served.server.abort();
    assert!(served.server.await.unwrap_err().is_cancelled());
    assert!(!sink.until_ended(0).await.clean);
    assert_eq!(client.rest().await, "");
}

#[tokio::test(start_paused = true)]
async fn a_silent_body_stays_open_for_days() {
    let sink = MemorySink::new(Mood::Prompt);
    let mut client = TextClient::begin(serve(&sink).io).await;
    client.chunk(HEADER).await;
    tokio::time::sleep(Duration::from_secs(3 * 24 * 3600)).await;
    client.chunk(EVENT).await;
    client.end().await;
    assert!(sink.until_ended(0).await.clean);
    assert!(client.rest().await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test(start_paused = true)]
async fn nothing_behind_the_body_is_taken_for_a_request() {
    let sink = MemorySink::new(Mood::Prompt);
    let served = serve(&sink);
    let mut client = TextClient::begin(served.io).await;
    client.chunk(HEADER).await;
    client
        .write(b"0\r\n\r\nPOST /record HTTP/1.1\r\nHost: r\r\nContent-Length: 1\r\n\r\nx")
        .await;
    let answer = client.rest().await;
    assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
    served.server.await.unwrap();
    assert_eq!(sink.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_body_with_a_declared_length_is_taken_too() {
    let sink = MemorySink::new(Mood::Prompt);
    let mut client = TextClient(serve(&sink).io);
    client
        .write(b"POST /record HTTP/1.1\r\nHost: r\r\nContent-Length: 3\r\n\r\nabc")
        .await;
    assert!(client.rest().await.starts_with("HTTP/1.1 200 "));
    assert!(sink.until_ended(0).await.clean);
    assert_eq!(sink.with(0, |recorded| recorded.bytes.clone()), b"abc");
}

#[tokio::test(start_paused = true)]
async fn a_stalled_store_stops_the_sender_of_a_body() {
    let sink = MemorySink::new(Mood::Stalled);
    let mut client = TextClient::begin(serve(&sink).io).await;
    let piece = vec![b'x'; 64 * 1024];
    let mut sent = 0;
    while tokio::time::timeout(Duration::from_secs(1), client.chunk(&piece))
        .await
        .is_ok()
    {
        sent += piece.len();
        assert!(sent <= 1024 * 1024, "the window closes");
    }
}
