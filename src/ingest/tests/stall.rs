//! A store that takes nothing: running uploads are told, new ones refused, and everything goes on when it is back.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use tokio::time::Instant;

use super::client::{Client, Recording, TextClient, serve, serve_on, serve_with};
use super::memory_sink::{MemorySink, Mood, broken};
use super::{EVENT, HEADER};
use crate::ingest::IngestConfig;
use crate::store::StoreHealth;

#[tokio::test(start_paused = true)]
async fn every_upload_gets_one_error_frame_at_once_and_is_sealed_when_the_store_is_back() {
    let sink = MemorySink::new(Mood::Patient);
    let served = serve(&sink);
    let mut client = Client::connect(served.io).await;
    let mut recordings = Vec::new();
    for index in 0..3 {
        let mut recording = client.record().await;
        recording.send(HEADER).await;
        sink.until_received(index, HEADER.len()).await;
        recordings.push(recording);
    }
    sink.commit(0, 10);
    assert_eq!(recordings[0].text().await, "{\"ack\":10}\n");

    sink.stall("the disk");
    let stalled = Instant::now();
    let error =
        "{\"error\":\"the recorder's store is stalled: write the disk: no answer in time\"}\n";
    for recording in &mut recordings {
        assert_eq!(recording.rest().await, [error]);
    }
    assert_eq!(stalled.elapsed(), Duration::ZERO);

    // The store still seals, but that is no reason to keep the connection.
    assert_eq!((served.ingest.running(), served.ingest.sealing()), (0, 3));
    client.connection.await.unwrap();
    assert!(stalled.elapsed() <= Duration::from_secs(6));
    assert!(sink.with(0, |recorded| recorded.end.is_none()));

    sink.become_(Mood::Prompt);
    for index in 0..3 {
        let end = sink.until_ended(index).await;
        assert!(!end.clean && end.flags.is_empty());
        assert!(end.reason.contains("stalled"), "{}", end.reason);
        let stored = sink.with(index, |recorded| recorded.bytes.clone());
        assert_eq!(stored, HEADER, "as far as it came");
    }
    served.server.await.unwrap();
    assert_eq!((served.ingest.running(), served.ingest.sealing()), (0, 0));
    assert_eq!(served.ingest.stats().ended_stalled, 3);
}

#[tokio::test(start_paused = true)]
async fn an_upload_whose_share_of_the_buffer_is_full_is_told_too() {
    let sink = MemorySink::new(Mood::Stalled);
    let mut client = Client::connect(serve(&sink).io).await;
    let mut recording = client.record().await;
    recording.send(HEADER).await;
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert_eq!(recording.text().await, "{\"ack\":0}\n");
    assert_eq!(recording.text().await, "{\"ack\":0}\n");
    sink.stall("the disk");
    assert!(recording.text().await.starts_with("{\"error\":"));
    assert!(recording.frame().await.is_none());
}

/// A stalled upload: its first bytes, and many more behind them that the store never asked for. All that was sent.
async fn fill(client: &mut Client) -> (Recording, Vec<u8>) {
    let mut recording = client.record().await;
    recording.send(HEADER).await;
    let mut sent = HEADER.to_vec();
    for count in 0..4_u8 {
        let piece = vec![b'a' + count; 60_000];
        recording.send(piece.clone()).await;
        sent.extend(piece);
    }
    // All of it is below the window, so it arrives.
    tokio::time::sleep(Duration::from_secs(1)).await;
    (recording, sent)
}

#[tokio::test(start_paused = true)]
async fn what_had_arrived_when_the_store_stalled_is_kept_although_there_was_no_room_for_it() {
    let sink = MemorySink::new(Mood::Stalled);
    let served = serve(&sink);
    let mut client = Client::connect(served.io).await;
    let (mut recording, sent) = fill(&mut client).await;
    assert_eq!(sink.with(0, |recorded| recorded.received), 0);
    sink.stall("the disk");
    let stalled = Instant::now();
    assert!(recording.rest().await[0].starts_with("{\"error\":"));
    assert_eq!(stalled.elapsed(), Duration::ZERO, "it is told at once");
    client.connection.await.unwrap();
    assert!(sink.with(0, |recorded| recorded.end.is_none()));
    let waiting = &served.ingest.uploads()[0];
    assert!(waiting.ended);
    assert_eq!(waiting.received_bytes, sent.len() as u64);

    sink.become_(Mood::Prompt);
    let end = sink.until_ended(0).await;
    assert!(!end.clean && end.reason.ends_with("no answer in time"));
    assert!(sink.with(0, |recorded| recorded.bytes == sent));
    served.server.await.unwrap();
    assert_eq!(served.ingest.stats().recording_bytes, sent.len() as u64);
}

/// What a keystroke's echo is, a frame of its own.
const SMALL_LINE: &[u8] = b"[12.345678,\"o\",\"x\"]\n";

#[tokio::test(start_paused = true)]
async fn a_stalled_terminal_that_prints_single_signs_waits_and_its_connection_lives() {
    let sink = MemorySink::new(Mood::Stalled);
    let served = serve(&sink);
    let mut client = Client::connect(served.io).await;
    let mut recording = client.record().await;
    recording.send(HEADER).await;
    // Far more than the window takes: the sender is held up, and nothing is refused.
    let lines = 40_000;
    let all_sent = tokio::time::timeout(Duration::from_secs(20), async {
        for _ in 0..lines {
            recording.send(SMALL_LINE).await;
        }
    });
    assert!(all_sent.await.is_err(), "flow control never closed");
    sink.stall("the disk");
    let frames = recording.rest().await;
    assert!(
        frames.last().unwrap().starts_with("{\"error\":"),
        "{frames:?}"
    );
    sink.become_(Mood::Prompt);
    sink.until_ended(0).await;
    let kept = sink.with(0, |recorded| recorded.bytes.len());
    assert!(kept > 200 * 1024, "{kept}");
}

#[tokio::test(start_paused = true)]
async fn an_old_upload_too_keeps_what_the_store_had_no_room_for() {
    let sink = MemorySink::new(Mood::Stalled);
    let served = serve(&sink);
    let mut client = TextClient::begin(served.io).await;
    client.chunk(HEADER).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    sink.stall("the disk");
    assert_eq!(client.rest().await, "");
    sink.become_(Mood::Prompt);
    assert!(!sink.until_ended(0).await.clean);
    let stored = sink.with(0, |recorded| recorded.bytes.clone());
    assert_eq!(stored, HEADER);
}

#[tokio::test(start_paused = true)]
async fn what_waits_behind_a_stall_is_bounded_and_a_recording_says_how_much_of_it_is_gone() {
    const ARRIVED_BYTES_MAX: u64 = 300_000;
    let sink = MemorySink::new(Mood::Stalled);
    let config = IngestConfig {
        arrived_bytes_max: ARRIVED_BYTES_MAX,
        ..IngestConfig::default()
    };
    let served = serve_with(&sink, config);
    let mut client = Client::connect(served.io).await;
    let (mut first, sent) = fill(&mut client).await;
    let (mut second, _) = fill(&mut client).await;
    sink.stall("the disk");
    first.rest().await;
    second.rest().await;
    sink.become_(Mood::Prompt);
    let mut kept_bytes = 0;
    for index in 0..2 {
        let end = sink.until_ended(index).await;
        let stored = sink.with(index, |recorded| recorded.bytes.clone());
        assert!(sent.starts_with(&stored), "a prefix, without a gap");
        let lost = sent.len() - stored.len();
        let told = format!("; {lost} bytes that had arrived are not kept: arrived_bytes_max");
        assert_eq!(end.reason.ends_with(&told), lost > 0, "{}", end.reason);
        kept_bytes += stored.len() as u64;
    }
    assert!(kept_bytes <= ARRIVED_BYTES_MAX);
    assert!(kept_bytes > ARRIVED_BYTES_MAX - 64 * 1024, "{kept_bytes}");
    // The room is there for the next.
    sink.say(StoreHealth::Ready);
    sink.become_(Mood::Stalled);
    let mut client = Client::connect(serve_on(&served.ingest, "n1").io).await;
    let (mut third, sent) = fill(&mut client).await;
    sink.stall("the disk");
    third.rest().await;
    sink.become_(Mood::Prompt);
    sink.until_ended(2).await;
    assert!(sink.with(2, |recorded| recorded.bytes == sent));
}

#[tokio::test(start_paused = true)]
async fn everything_is_refused_until_the_store_is_back() {
    let why = || Arc::new(broken("the disk"));
    for health in [
        StoreHealth::Refusing(why()),
        StoreHealth::Stalled(why()),
        StoreHealth::Ended(why()),
    ] {
        let sink = MemorySink::new(Mood::Prompt);
        let served = serve(&sink);
        let ingest = served.ingest.clone();
        let mut client = Client::connect(served.io).await;
        sink.say(health.clone());
        for (method, path) in [
            (Method::HEAD, "/v2/record"),
            (Method::POST, "/v2/record"),
            (Method::HEAD, "/v2/event"),
            (Method::POST, "/v2/event"),
        ] {
            let (_body, response) = client.request(method.clone(), path).await;
            assert_eq!(response.status(), 503, "{method} {path}");
            let reason = &response.headers()["tailtape-reason"];
            assert_eq!(reason, "write the disk: no answer in time");
        }
        let mut old = TextClient::record(serve_on(&ingest, "n1").io).await;
        let answer = old.rest().await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert_eq!(sink.count(), 0);
        assert_eq!(ingest.stats().refused_store, 5);

        sink.say(StoreHealth::Ready);
        let (_body, response) = client.request(Method::HEAD, "/v2/record").await;
        assert_eq!(response.status(), 200);
        let mut recording = client.record().await;
        recording.end();
        recording.rest().await;
        assert!(sink.until_ended(0).await.clean);
        TextClient::begin(serve_on(&ingest, "n1").io).await;
    }
}

#[tokio::test(start_paused = true)]
async fn running_uploads_go_on_while_new_ones_are_refused_because_the_store_is_nearly_full() {
    let sink = MemorySink::new(Mood::Prompt);
    let mut client = Client::connect(serve(&sink).io).await;
    let mut recording = client.record().await;
    recording.send(HEADER).await;
    sink.say(StoreHealth::Refusing(Arc::new(broken("the disk"))));
    sink.until_received(0, HEADER.len()).await;
    recording.send(EVENT).await;
    recording.end();
    let all = HEADER.len() + EVENT.len();
    let frames = recording.rest().await;
    assert_eq!(frames.last().unwrap(), &format!("{{\"ack\":{all}}}\n"));
    assert!(sink.until_ended(0).await.clean);
}

#[tokio::test(start_paused = true)]
async fn a_stall_behind_a_complete_body_is_told_and_the_recording_is_complete() {
    let sink = MemorySink::new(Mood::Patient);
    let mut client = Client::connect(serve(&sink).io).await;
    let mut recording = client.record().await;
    recording.send(HEADER).await;
    recording.end();
    assert_eq!(recording.text().await, "{\"ack\":0}\n");
    sink.stall("the disk");
    assert!(recording.rest().await[0].starts_with("{\"error\":"));
    sink.become_(Mood::Prompt);
    assert!(sink.until_ended(0).await.clean);
}
