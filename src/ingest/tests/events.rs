//! `/v2/event` as a Kubernetes proxy sees it: always answered, 200 only when durable.

use std::time::Duration;

use http::Method;
use tokio::io::AsyncReadExt;
use tokio::time::Instant;

use super::client::{Client, TextClient, serve, serve_on, serve_with};
use super::memory_sink::{MemorySink, Mood};
use crate::ingest::{Ingest, IngestConfig};
use crate::turns::until;

const BODY: &str = "{\"type\":\"kubernetes-api-request\",\"id\":\"\",\"timestamp\":1770000000}\n";

/// A stock client's request: head, and body if it is not empty.
fn post(body: &str) -> String {
    format!(
        "POST /v2/event HTTP/1.1\r\nHost: 100.64.0.9:80\r\nUser-Agent: Go-http-client/1.1\r\n\
         Content-Length: {}\r\nContent-Type: application/json\r\nAccept-Encoding: gzip\r\n\r\n{body}",
        body.len()
    )
}

const HEAD: &[u8] = b"HEAD /v2/event HTTP/1.1\r\nHost: 100.64.0.9:80\r\n\r\n";

#[tokio::test(start_paused = true)]
async fn an_event_is_probed_for_and_stored_on_one_connection_verbatim() {
    let sink = MemorySink::new(Mood::Prompt);
    let served = serve(&sink);
    let mut client = TextClient(served.io);
    client.write(HEAD).await;
    let probed = client.head().await;
    assert!(probed.starts_with("HTTP/1.1 200 OK\r\n"), "{probed}");
    assert!(!probed.contains("connection: close"), "{probed}");
    client.write(post(BODY).as_bytes()).await;
    let answer = client.rest().await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("connection: close\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    let events = sink.events();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].body, BODY);
    assert_eq!(events[0].uploader.stable_id, "nServerCNTRL");
    let stats = served.ingest.stats();
    assert_eq!((stats.events, stats.event_bytes), (1, BODY.len() as u64));
    assert_eq!(served.ingest.event_bytes_in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_event_over_http_2_is_stored_too() {
    let sink = MemorySink::new(Mood::Prompt);
    let mut client = Client::connect(serve(&sink).io).await;
    let (_body, response) = client.request(Method::HEAD, "/v2/event").await;
    assert_eq!(response.status(), 200);
    assert_eq!(client.event(BODY).await, 200);
    assert_eq!(sink.events()[0].body, BODY);
}

#[tokio::test(start_paused = true)]
async fn the_answer_waits_until_the_event_is_durable() {
    let sink = MemorySink::new(Mood::Patient);
    let served = serve(&sink);
    let mut client = TextClient(served.io);
    client.write(post(BODY).as_bytes()).await;
    let mut byte = [0];
    let early = tokio::time::timeout(Duration::from_secs(20), client.0.read(&mut byte)).await;
    assert!(early.is_err(), "not a byte of an answer");
    assert_eq!(served.ingest.event_bytes_in_flight(), 4096);
    sink.become_(Mood::Prompt);
    assert!(client.rest().await.contains(" 200 OK\r\n"));
    assert_eq!(sink.events().len(), 1);
    assert_eq!(served.ingest.event_bytes_in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_the_store_does_not_take_is_refused_in_bounded_time() {
    type Trouble = fn(&MemorySink);
    let table: [(Mood, Trouble, u64, &str); 4] = [
        (Mood::Patient, |_| {}, 30, "event_store_limit"),
        (
            Mood::Patient,
            |sink| sink.stall("the disk"),
            0,
            "write the disk",
        ),
        (Mood::Refusing, |_| {}, 0, "write disk full?"),
        (Mood::PanicsAtBegin, |_| {}, 0, "internal error"),
    ];
    for (mood, trouble, seconds, reason) in table {
        let sink = MemorySink::new(mood);
        let served = serve(&sink);
        let mut client = TextClient(served.io);
        client.write(post(BODY).as_bytes()).await;
        until(
            "the event is held, if the store is to keep it waiting",
            || (mood != Mood::Patient || served.ingest.event_bytes_in_flight() > 0).then_some(()),
        )
        .await;
        let start = Instant::now();
        trouble(&sink);
        let answer = client.rest().await;
        assert_eq!(start.elapsed().as_secs(), seconds);
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(
            answer.contains(&format!("tailtape-reason: {reason}")),
            "{answer}"
        );
        assert!(answer.ends_with("\r\n\r\n"), "{answer}");
        assert_eq!(served.ingest.event_bytes_in_flight(), 0);
        assert!(sink.events().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn no_events_means_404_for_the_probe_too() {
    let sink = MemorySink::new(Mood::Prompt);
    let config = IngestConfig {
        events: false,
        ..IngestConfig::default()
    };
    let served = serve_with(&sink, config);
    let mut client = TextClient(served.io);
    client.write(HEAD).await;
    assert!(client.head().await.starts_with("HTTP/1.1 404 "));
    client.write(post(BODY).as_bytes()).await;
    assert!(client.rest().await.starts_with("HTTP/1.1 404 "));
    assert_eq!(served.ingest.stats().refused_events_off, 2);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_says_it_is_too_large_is_refused_before_its_first_byte() {
    let sink = MemorySink::new(Mood::Prompt);
    let served = serve(&sink);
    let mut client = TextClient(served.io);
    let head = post("").replace("Length: 0", &format!("Length: {}", 64 * 1024 * 1024 + 1));
    client.write(head.as_bytes()).await;
    let answer = client.rest().await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.contains("connection: close\r\n") && answer.ends_with("\r\n\r\n"));
    assert_eq!(served.ingest.stats().refused_event_size, 1);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_becomes_too_large_is_refused_at_the_limit() {
    let sink = MemorySink::new(Mood::Prompt);
    let config = IngestConfig {
        event_body_bytes_max: 100,
        ..IngestConfig::default()
    };
    let ingest = Ingest::new(sink.clone(), config);
    for (length, status) in [(100, "200"), (101, "413")] {
        let mut client = TextClient(serve_on(&ingest, "n1").io);
        client
            .write(b"POST /v2/event HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\n\r\n")
            .await;
        client.chunk(&vec![b'x'; length]).await;
        client.end().await;
        let answer = client.rest().await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
        assert!(answer.contains("connection: close\r\n") && answer.ends_with("\r\n\r\n"));
    }
    assert_eq!(sink.events().len(), 1);
    assert_eq!(ingest.event_bytes_in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn memory_is_counted_as_bodies_arrive_for_all_and_for_each_node() {
    let sink = MemorySink::new(Mood::Prompt);
    let config = IngestConfig {
        events_in_flight_bytes_max: 250_000,
        events_in_flight_bytes_per_node_max: 150_000,
        ..IngestConfig::default()
    };
    let ingest = Ingest::new(sink.clone(), config);
    let slow = |node: &'static str, held: usize| {
        let ingest = ingest.clone();
        async move {
            let mut client = TextClient(serve_on(&ingest, node).io);
            // What is declared is not yet held.
            let head = post("").replace("Length: 0", "Length: 1000000");
            client.write(head.as_bytes()).await;
            client.write(&vec![b'x'; held]).await;
            client
        }
    };
    let settled = async |bytes: u64| {
        until(&format!("{bytes} bytes of events in flight"), || {
            (ingest.event_bytes_in_flight() == bytes).then_some(())
        })
        .await;
    };
    let mut first = slow("n1", 100_000).await;
    settled(100_000).await;
    let mut greedy = slow("n1", 100_000).await;
    let answer = greedy.rest().await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("per_node_max"), "{answer}");
    let _second = slow("n2", 140_000).await;
    settled(240_000).await;
    let mut third = slow("n3", 20_000).await;
    let answer = third.rest().await;
    assert!(answer.contains(": events_in_flight_bytes_max"), "{answer}");
    assert_eq!(ingest.stats().refused_event_memory, 2);

    // A slow sender holds its share for no longer than a body may take.
    let start = Instant::now();
    let answer = first.rest().await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert_eq!(start.elapsed().as_secs(), 60);
    settled(0).await;
    assert_eq!(ingest.stats().refused_event_body, 2);
    assert!(sink.events().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_event_that_is_cut_off_is_not_stored_and_one_whose_sender_hung_up_behind_it_is() {
    let sink = MemorySink::new(Mood::Patient);
    let ingest = Ingest::new(sink.clone(), IngestConfig::default());
    let cut = serve_on(&ingest, "n1");
    let mut client = TextClient(cut.io);
    // Above what any event counts as.
    let body = BODY.repeat(100);
    let request = post(&body);
    client.write(&request.as_bytes()[..request.len() - 1]).await;
    drop(client);
    cut.server.await.unwrap();

    let whole = serve_on(&ingest, "n1");
    let mut client = TextClient(whole.io);
    client.write(request.as_bytes()).await;
    until("the whole event is held", || {
        (ingest.event_bytes_in_flight() == body.len() as u64).then_some(())
    })
    .await;
    drop(client);
    whole.server.await.unwrap();
    sink.become_(Mood::Prompt);
    until("the event is stored", || {
        (ingest.event_bytes_in_flight() == 0).then_some(())
    })
    .await;
    assert_eq!(sink.events().len(), 1);
    assert_eq!(ingest.stats().refused_event_body, 1);
}

#[tokio::test(start_paused = true)]
async fn small_events_that_wait_for_the_store_are_bounded_also_when_their_senders_are_gone() {
    const EVENTS: u64 = 16;
    let sink = MemorySink::new(Mood::Stalled);
    let config = IngestConfig {
        events_in_flight_bytes_per_node_max: EVENTS * 4096,
        ..IngestConfig::default()
    };
    let ingest = Ingest::new(sink.clone(), config);
    for count in 1..=EVENTS {
        let sender = serve_on(&ingest, "n1");
        let mut client = TextClient(sender.io);
        client.write(post("{}").as_bytes()).await;
        until("the event is read", || {
            (ingest.event_bytes_in_flight() == count * 4096).then_some(())
        })
        .await;
        drop(client);
        sender.server.await.unwrap();
    }
    let mut client = TextClient(serve_on(&ingest, "n1").io);
    client.write(post("{}").as_bytes()).await;
    assert!(client.rest().await.starts_with("HTTP/1.1 503 "));
    assert_eq!(ingest.stats().refused_event_memory, 1);
    // Another node has room, and what waits is stored.
    let mut other = TextClient(serve_on(&ingest, "n2").io);
    other.write(post("{}").as_bytes()).await;
    sink.become_(Mood::Prompt);
    assert!(other.rest().await.starts_with("HTTP/1.1 200 "));
    assert_eq!(sink.events().len() as u64, EVENTS + 1);
    assert_eq!(ingest.event_bytes_in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_event_whose_body_drips_does_not_hold_up_a_recorder_that_stops() {
    let sink = MemorySink::new(Mood::Prompt);
    let served = serve(&sink);
    let mut client = TextClient(served.io);
    let request = post(BODY);
    client.write(&request.as_bytes()[..request.len() - 1]).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    served.shutdown.cancel();
    let stopped = Instant::now();
    let answer = client.rest().await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("tailtape-reason: draining\r\n"), "{answer}");
    drop(client);
    served.server.await.unwrap();
    assert_eq!(stopped.elapsed().as_secs(), 20);
    assert_eq!(served.ingest.stats().refused_draining, 1);
    assert!(sink.events().is_empty());
}
