//! Each limit of recordings: its refusal or its end, its counter, and that it hurts nobody else.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use tokio::time::Instant;

use super::HEADER;
use super::client::{Client, TextClient, serve, serve_on, serve_with};
use super::memory_sink::{MemorySink, Mood};
use crate::ingest::upload::UploadConfig;
use crate::ingest::{Directory, Ingest, IngestConfig, NodeFacts, UploadPolicy};

#[tokio::test(start_paused = true)]
async fn recordings_are_limited_in_all_and_per_node_until_they_are_sealed() {
    let sink = MemorySink::new(Mood::Patient);
    let config = IngestConfig {
        recordings_max: 3,
        recordings_per_node_max: 2,
        ..IngestConfig::default()
    };
    let ingest = Ingest::new(sink.clone(), config);
    let mut first = Client::connect(serve_on(&ingest, "n1").io).await;
    let mut second = Client::connect(serve_on(&ingest, "n2").io).await;
    let mut ended = first.record().await;
    let _open = first.record().await;
    refused("recordings_per_node_max", &mut first).await;
    let _other = second.record().await;
    refused("recordings_max", &mut second).await;
    // Over both endpoints together.
    let mut old = TextClient::record(serve_on(&ingest, "n1").io).await;
    assert!(old.rest().await.starts_with("HTTP/1.1 503 "));

    ended.end();
    assert_eq!(ended.text().await, "{\"ack\":0}\n");
    refused("recordings_per_node_max", &mut first).await;
    sink.become_(Mood::Prompt);
    ended.rest().await;
    first.record().await;
    let stats = ingest.stats();
    assert_eq!(stats.refused_recordings_per_node, 3);
    assert_eq!((stats.refused_recordings, stats.recordings), (1, 4));
}

/// The next upload is refused, for that reason.
async fn refused(reason: &str, client: &mut Client) {
    let (_body, response) = client.request(Method::POST, "/v2/record").await;
    assert_eq!(response.status(), 503);
    let told = response.headers()["tailtape-reason"].to_str().unwrap();
    assert!(told.starts_with(reason), "{told}");
}

#[tokio::test(start_paused = true)]
async fn a_recording_that_is_too_large_ends_with_an_error_frame_and_is_kept_up_to_the_limit() {
    let sink = MemorySink::new(Mood::Prompt);
    let config = IngestConfig {
        upload: UploadConfig {
            recording_bytes_max: Some(100_000),
            ..UploadConfig::default()
        },
        ..IngestConfig::default()
    };
    let served = serve_with(&sink, config);
    let mut client = Client::connect(served.io).await;
    let mut other = client.record().await;
    let mut recording = client.record().await;
    for _ in 0..10 {
        recording.send(vec![b'x'; 10_000]).await;
    }
    sink.until_received(1, 100_000).await;
    assert_eq!(served.ingest.running(), 2, "exactly the limit is within it");
    recording.send("y").await;
    let frames = recording.rest().await;
    let error = "{\"error\":\"the recording reached recording_bytes_max, 100000 bytes\"}\n";
    assert_eq!(frames.last().unwrap(), error);
    let end = sink.until_ended(1).await;
    assert_eq!(
        (end.clean, end.flags),
        (false, vec!["limit_bytes".to_owned()])
    );
    let stored = sink.with(1, |recorded| recorded.bytes.clone());
    assert!(stored == vec![b'x'; 100_000]);
    other.end();
    assert!(sink.until_ended(0).await.clean);
    assert_eq!(served.ingest.stats().ended_limit_bytes, 1);
    assert_eq!(served.ingest.stats().recording_bytes, 100_000);
}

#[tokio::test(start_paused = true)]
async fn a_recording_that_lasts_too_long_ends_with_an_error_frame_also_when_nobody_reads() {
    for reads in [true, false] {
        let sink = MemorySink::new(Mood::Prompt);
        let config = IngestConfig {
            upload: UploadConfig {
                recording_duration_max: Some(Duration::from_secs(1800)),
                ..UploadConfig::default()
            },
            ..IngestConfig::default()
        };
        let served = serve_with(&sink, config);
        let mut client = Client::connect(served.io).await;
        let mut recording = client.record().await;
        recording.send(HEADER).await;
        let start = Instant::now();
        if reads {
            let error = recording.rest().await.pop().unwrap();
            assert!(error.contains("recording_duration_max, 1800s"), "{error}");
        }
        let end = sink.until_ended(0).await;
        assert_eq!(start.elapsed().as_secs(), 1800);
        assert_eq!(end.flags, ["limit_duration"]);
        assert_eq!(served.ingest.stats().ended_limit_duration, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn an_operator_ends_one_upload_and_no_other() {
    let sink = MemorySink::new(Mood::Prompt);
    let served = serve(&sink);
    let ingest = served.ingest.clone();
    let mut client = Client::connect(served.io).await;
    let mut good = client.record().await;
    let mut bad = client.record().await;
    bad.send(HEADER).await;
    sink.until_received(1, HEADER.len()).await;
    assert_eq!(bad.text().await, format!("{{\"ack\":{}}}\n", HEADER.len()));

    let uploads = ingest.uploads();
    assert_eq!(uploads.len(), 2);
    let status = &uploads[1];
    assert_eq!(status.uploader.stable_id, "nServerCNTRL");
    assert_eq!((status.endpoint, status.ended), ("/v2/record", false));
    assert_eq!(status.received_bytes, HEADER.len() as u64);
    assert_eq!(status.durable_bytes, HEADER.len() as u64);

    assert!(ingest.terminate(status.id, "ended by eve@example.com"));
    assert_eq!(
        bad.rest().await,
        ["{\"error\":\"ended by eve@example.com\"}\n"]
    );
    let end = sink.until_ended(1).await;
    assert_eq!(
        (end.clean, end.flags),
        (false, vec!["terminated".to_owned()])
    );
    assert_eq!(end.reason, "ended by eve@example.com");
    assert!(!ingest.terminate(status.id, "again"), "it has ended");

    good.end();
    good.rest().await;
    assert!(sink.until_ended(0).await.clean);
    served.server.await.unwrap();
    assert!(ingest.uploads().is_empty());
    let stats = ingest.stats();
    assert_eq!((stats.ended_terminated, stats.ended_complete), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_the_policy_does_not_permit_is_refused_with_403_and_no_body() {
    let sink = MemorySink::new(Mood::Prompt);
    let config = IngestConfig {
        policy: UploadPolicy::Capability("example.com/cap/record".to_owned()),
        ..IngestConfig::default()
    };
    let served = serve_with(&sink, config);
    let mut client = Client::connect(served.io).await;
    for (method, path) in [
        (Method::HEAD, "/v2/record"),
        (Method::POST, "/v2/record"),
        (Method::HEAD, "/v2/event"),
        (Method::POST, "/v2/event"),
    ] {
        let (_body, response) = client.request(method, path).await;
        assert_eq!(response.status(), 403);
        assert!(http_body::Body::is_end_stream(response.body()));
    }
    let (_body, response) = client.request(Method::POST, "/record").await;
    assert_eq!(response.status(), 404, "what is not there is not there");
    assert_eq!(served.ingest.stats().refused_policy, 4);
    assert_eq!(sink.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_the_tailnet_says_of_the_persons_node_is_noted_and_a_contradiction_flagged() {
    let line =
        |name: &str| format!("{{\"version\":2,\"srcNode\":\"{name}\",\"srcNodeID\":\"n9\"}}\n");
    for (name, flags) in [
        ("laptop", vec![]),
        ("other", vec!["source_mismatch".to_owned()]),
    ] {
        let sink = MemorySink::new(Mood::Prompt);
        let directory: Directory = Arc::new(|id| {
            assert_eq!(id, "n9");
            Some(NodeFacts {
                node_name: "laptop".to_owned(),
                user: None,
                tags: vec!["tag:dev".to_owned()],
                addresses: vec![[100, 64, 0, 9].into()],
            })
        });
        let ingest = Ingest::with_directory(sink.clone(), IngestConfig::default(), directory);
        let mut client = Client::connect(serve_on(&ingest, "n1").io).await;
        let mut recording = client.record().await;
        let line = line(name);
        let (first, second) = line.split_at(20);
        recording.send(first.to_owned()).await;
        recording.send(second.to_owned()).await;
        recording.send(line.clone()).await;
        recording.end();
        recording.rest().await;
        assert_eq!(sink.until_ended(0).await.flags, flags);
        let notes = sink.with(0, |recorded| recorded.notes.clone());
        assert_eq!(notes.len(), 1, "of the header alone");
        assert_eq!((notes[0].stable_id.as_str(), notes[0].found), ("n9", true));
        assert_eq!(notes[0].tags, ["tag:dev"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_that_finds_an_upload_ending_waits_for_its_seal() {
    let sink = MemorySink::new(Mood::Patient);
    let served = serve(&sink);
    let mut client = Client::connect(served.io).await;
    let mut recording = client.record().await;
    recording.send(HEADER).await;
    sink.until_received(0, HEADER.len()).await;
    served.shutdown.cancel();
    recording.end();
    assert_eq!(recording.text().await, "{\"ack\":0}\n");
    sink.become_(Mood::Prompt);
    let all = format!("{{\"ack\":{}}}\n", HEADER.len());
    assert_eq!(recording.rest().await.last().unwrap(), &all);
    served.server.await.unwrap();
    assert!(sink.until_ended(0).await.clean);
}
