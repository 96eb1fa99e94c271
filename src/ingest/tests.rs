//! The listener as an uploader sees it, over an in-memory stream and in virtual time.

mod client;
mod events;
mod hostile;
mod limits;
mod memory_sink;
mod record_v1;
mod slow_store;
mod stall;

use std::time::Duration;

use http::Method;
use rand_core::{RngCore, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use client::{Client, DATA, END_STREAM, GOAWAY, HEADERS, RST_STREAM, RawClient, serve};
use memory_sink::{MemorySink, Mood};

const HEADER: &[u8] = b"{\"version\":2,\"width\":80,\"height\":24,\"sshUser\":\"root\"}\n";
const EVENT: &[u8] = b"[0.5,\"o\",\"$ \"]\n";

#[tokio::test(start_paused = true)]
async fn the_response_head_comes_before_any_byte_of_the_body() {
    let sink = MemorySink::new(Mood::Patient);
    let start = Instant::now();
    let mut client = Client::connect(serve(&sink).io).await;
    let _recording = client.record().await;
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(sink.with(0, |recorded| recorded.bytes.len()), 0);
    let opening = sink.with(0, |recorded| recorded.opening.clone());
    assert_eq!(opening.endpoint, "/v2/record");
    assert_eq!(opening.uploader.stable_id, "nServerCNTRL");
}

#[tokio::test(start_paused = true)]
async fn an_ack_is_sent_only_after_the_bytes_are_durable() {
    let sink = MemorySink::new(Mood::Patient);
    let mut client = Client::connect(serve(&sink).io).await;
    let mut recording = client.record().await;
    recording.send(HEADER).await;
    recording.send(EVENT).await;
    sink.until_received(0, HEADER.len() + EVENT.len()).await;
    // Received, not durable: idle frames only, for as long as it takes.
    for _ in 0..3 {
        assert_eq!(recording.text().await, "{\"ack\":0}\n");
    }
    sink.commit(0, 10);
    assert_eq!(recording.text().await, "{\"ack\":10}\n");
    assert_eq!(recording.text().await, "{\"ack\":10}\n");

    // Nor does the end of the body, before the seal.
    recording.end();
    for _ in 0..3 {
        assert_eq!(recording.text().await, "{\"ack\":10}\n");
    }
    sink.become_(Mood::Prompt);
    let all = HEADER.len() + EVENT.len();
    assert_eq!(recording.rest().await, [format!("{{\"ack\":{all}}}\n")]);
}

#[tokio::test(start_paused = true)]
async fn a_clean_upload_is_stored_byte_for_byte() {
    let sink = MemorySink::new(Mood::Prompt);
    let mut client = Client::connect(serve(&sink).io).await;
    let mut recording = client.record().await;
    recording.send(HEADER).await;
    recording.send(EVENT).await;
    recording.end();
    let end = sink.until_ended(0).await;
    assert_eq!((end.clean, end.reason.as_str()), (true, ""));
    assert!(end.flags.is_empty());
    assert_eq!(
        sink.with(0, |recorded| recorded.bytes.clone()),
        [HEADER, EVENT].concat()
    );
}

#[tokio::test(start_paused = true)]
async fn a_mebibyte_of_noise_arrives_intact() {
    let sink = MemorySink::new(Mood::Prompt);
    let mut noise = vec![0; 1024 * 1024];
    rand_chacha::ChaCha8Rng::seed_from_u64(7).fill_bytes(&mut noise);
    let mut client = Client::connect(serve(&sink).io).await;
    let mut recording = client.record().await;
    for piece in noise.chunks(10_007) {
        recording.send(piece.to_vec()).await;
    }
    recording.end();
    let end = sink.until_ended(0).await;
    assert!(end.clean);
    assert!(sink.with(0, |recorded| recorded.bytes == noise));
    assert_eq!(
        recording.rest().await.last().unwrap(),
        &format!("{{\"ack\":{}}}\n", noise.len())
    );
}

#[tokio::test(start_paused = true)]
async fn an_idle_upload_gets_a_frame_every_five_seconds_and_stays_open_for_hours() {
    let sink = MemorySink::new(Mood::Prompt);
    let mut client = Client::connect(serve(&sink).io).await;
    let mut recording = client.record().await;
    recording.send(HEADER).await;
    let ack = format!("{{\"ack\":{}}}\n", HEADER.len());
    assert_eq!(recording.text().await, ack);
    let mut last = Instant::now();
    let frames_of_three_hours = 3 * 3600 / 5;
    for _ in 0..frames_of_three_hours {
        assert_eq!(recording.text().await, ack);
        let gap = last.elapsed();
        assert!(gap <= Duration::from_millis(5010) && gap >= Duration::from_millis(4990));
        last = Instant::now();
    }
    assert!(sink.with(0, |recorded| recorded.end.is_none()));
}

#[tokio::test(start_paused = true)]
async fn the_response_is_held_open_for_a_moment_after_the_body_ended() {
    let sink = MemorySink::new(Mood::Prompt);
    let mut client = Client::connect(serve(&sink).io).await;
    let mut recording = client.record().await;
    recording.send(HEADER).await;
    sink.until_received(0, HEADER.len()).await;
    recording.end();
    let ended = Instant::now();
    sink.until_ended(0).await;
    recording.rest().await;
    let hold = ended.elapsed();
    assert!(hold >= Duration::from_millis(250) && hold <= Duration::from_millis(500));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_one_headers_frame_with_end_stream_and_no_body() {
    let table = [
        (
            Mood::Refusing,
            "POST",
            "/v2/record",
            "503",
            "write disk full?: no answer in time",
        ),
        (
            Mood::PanicsAtBegin,
            "POST",
            "/v2/record",
            "503",
            "internal error",
        ),
        (
            Mood::Prompt,
            "POST",
            "/record/v2",
            "404",
            "no such endpoint",
        ),
        (Mood::Prompt, "PUT", "/v2/record", "404", "no such endpoint"),
        (Mood::Prompt, "GET", "/v2/record", "404", "no such endpoint"),
        (
            Mood::Prompt,
            "POST",
            "/v2/record/",
            "404",
            "no such endpoint",
        ),
    ];
    for (mood, method, path, status, reason) in table {
        let sink = MemorySink::new(mood);
        let mut client = RawClient::connect(serve(&sink).io).await;
        client.post(1, method, path).await;
        let mut frames = Vec::new();
        while let Some(frame) = client.read().await {
            if frame.stream == 1 && frame.kind != RST_STREAM {
                frames.push(frame);
            }
        }
        assert_eq!(frames.len(), 1, "{method} {path}: {frames:?}");
        assert_eq!(frames[0].kind, HEADERS);
        assert_ne!(frames[0].flags & END_STREAM, 0);
        assert_eq!(sink.count(), 0);

        let mut client = Client::connect(serve(&sink).io).await;
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let (_body, response) = client.request(method, path).await;
        assert_eq!(response.status().as_str(), status);
        assert_eq!(response.headers()["tailtape-reason"], reason);
    }
}

#[tokio::test(start_paused = true)]
async fn the_probe_is_answered_over_http_2_alone() {
    let sink = MemorySink::new(Mood::Prompt);
    let mut client = Client::connect(serve(&sink).io).await;
    let (_body, response) = client.request(Method::HEAD, "/v2/record").await;
    assert_eq!(response.status(), 200);

    for method in ["HEAD", "POST"] {
        let mut io = serve(&sink).io;
        let head = format!(
            "{method} /v2/record HTTP/1.1\r\nHost: 100.64.0.9:80\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        io.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        io.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
        assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    }
    assert_eq!(sink.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_is_cut_is_incomplete_with_its_reason_and_all_its_bytes() {
    const CANCEL: u32 = 8;
    const NO_ERROR: u32 = 0;
    for (cut, reason) in [
        (Some(CANCEL), "no longer needed"),
        (Some(NO_ERROR), "without an error"),
        (None, "error reading a body"),
    ] {
        let sink = MemorySink::new(Mood::Prompt);
        let served = serve(&sink);
        let mut client = RawClient::connect(served.io).await;
        client.post(1, "POST", "/v2/record").await;
        client.write(DATA, 0, 1, HEADER).await;
        client.write(DATA, 0, 1, EVENT).await;
        sink.until_received(0, 1).await;
        match cut {
            Some(code) => client.write(RST_STREAM, 0, 1, &code.to_be_bytes()).await,
            None => drop(client),
        }
        let end = sink.until_ended(0).await;
        assert!(!end.clean);
        assert!(end.reason.contains(reason), "{}", end.reason);
        assert_eq!(
            sink.with(0, |recorded| recorded.bytes.clone()),
            [HEADER, EVENT].concat()
        );
        served.server.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn one_bad_upload_does_not_disturb_another() {
    let sink = MemorySink::new(Mood::Prompt);
    let mut client = Client::connect(serve(&sink).io).await;
    let mut good = client.record().await;
    good.send(HEADER).await;
    sink.until_received(0, HEADER.len()).await;

    let mut reset = client.record().await;
    reset.send("half a li").await;
    sink.until_received(1, 9).await;
    reset.reset().await;
    assert!(!sink.until_ended(1).await.clean);

    sink.become_(Mood::PanicsAtAppend);
    let mut panicking = client.record().await;
    panicking.send(HEADER).await;
    assert!(panicking.frame().await.unwrap().is_err(), "no clean end");
    sink.become_(Mood::Prompt);

    good.send(EVENT).await;
    good.end();
    let end = sink.until_ended(0).await;
    assert!(end.clean);
    let all = HEADER.len() + EVENT.len();
    assert_eq!(
        good.rest().await.last().unwrap(),
        &format!("{{\"ack\":{all}}}\n")
    );
}

#[tokio::test(start_paused = true)]
async fn a_failed_store_ends_the_upload_with_an_error_frame() {
    let sink = MemorySink::new(Mood::Prompt);
    let mut client = Client::connect(serve(&sink).io).await;
    let mut recording = client.record().await;
    recording.send(HEADER).await;
    sink.until_received(0, HEADER.len()).await;
    sink.fail(0, "no space left");
    let frames = recording.rest().await;
    let why = "write no space left: no answer in time; see why the backend does not answer: its load, its network, its mount. What was acked is safe";
    assert_eq!(
        *frames.last().unwrap(),
        format!("{{\"error\":\"{why}\"}}\n")
    );
    let end = sink.until_ended(0).await;
    assert_eq!((end.clean, end.reason.as_str()), (false, why));
}

#[tokio::test(start_paused = true)]
async fn a_stalled_store_stops_the_uploader_but_not_the_frames() {
    let sink = MemorySink::new(Mood::Stalled);
    let mut client = Client::connect(serve(&sink).io).await;
    let mut recording = client.record().await;
    let piece = vec![b'x'; 64 * 1024];
    let mut sent = 0;
    while tokio::time::timeout(Duration::from_secs(1), recording.send(piece.clone()))
        .await
        .is_ok()
    {
        sent += piece.len();
        assert!(sent <= 2 * 1024 * 1024, "flow control closes");
    }
    for _ in 0..20 {
        assert_eq!(recording.text().await, "{\"ack\":0}\n");
    }
    sink.become_(Mood::Prompt);
    sink.until_received(0, sent).await;
    recording.end();
    assert!(sink.until_ended(0).await.clean);
    recording.rest().await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_uploader_is_found_dead_by_ping() {
    let sink = MemorySink::new(Mood::Prompt);
    let start = Instant::now();
    let served = serve(&sink);
    let mut client = RawClient::connect(served.io).await;
    client.post(1, "POST", "/v2/record").await;
    client.write(DATA, 0, 1, HEADER).await;
    let end = sink.until_ended(0).await;
    assert!(!end.clean);
    assert!(start.elapsed() <= Duration::from_secs(45));
    served.server.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_closed_soon_after_its_only_upload() {
    let sink = MemorySink::new(Mood::Prompt);
    let served = serve(&sink);
    let mut client = RawClient::connect(served.io).await;
    client.post(1, "POST", "/v2/record").await;
    client.write(DATA, END_STREAM, 1, HEADER).await;
    sink.until_ended(0).await;
    let ended = Instant::now();
    assert!(!client.read_all(GOAWAY).await.is_empty());
    // Linger, then the limit for a client that does not answer.
    assert!(ended.elapsed() >= Duration::from_secs(5));
    assert!(ended.elapsed() <= Duration::from_secs(11));
    served.server.await.unwrap();

    let mut client = Client::connect(serve(&sink).io).await;
    let mut recording = client.record().await;
    recording.end();
    recording.rest().await;
    let ended = Instant::now();
    client.connection.await.unwrap();
    assert!(ended.elapsed() >= Duration::from_secs(4));
    assert!(ended.elapsed() <= Duration::from_secs(6));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_sends_no_request_is_closed() {
    for opening in [
        &b""[..],
        b"PRI * HT",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"HEAD /v2/record HTTP/1.1\r\nHost: ",
    ] {
        let start = Instant::now();
        let served = serve(&MemorySink::new(Mood::Prompt));
        let mut io = served.io;
        io.write_all(opening).await.unwrap();
        served.server.await.unwrap();
        assert!(start.elapsed() >= Duration::from_secs(10));
        assert!(start.elapsed() <= Duration::from_secs(16));
    }
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_refuses_new_uploads_and_drains_running_ones() {
    let sink = MemorySink::new(Mood::Prompt);
    let served = serve(&sink);
    let mut client = Client::connect(served.io).await;
    let mut short = client.record().await;
    let mut long = client.record().await;
    short.send(HEADER).await;
    long.send(HEADER).await;
    sink.until_received(1, HEADER.len()).await;
    served.shutdown.cancel();
    let stopped = Instant::now();
    for method in [Method::HEAD, Method::POST] {
        let (_body, response) = client.request(method, "/v2/record").await;
        assert_eq!(response.status(), 503);
    }

    tokio::time::sleep(Duration::from_secs(6)).await;
    short.send(EVENT).await;
    short.end();
    assert!(sink.until_ended(0).await.clean);
    short.rest().await;

    let frames = long.rest().await;
    assert_eq!(
        frames.last().unwrap(),
        "{\"error\":\"the recorder is stopping\"}\n"
    );
    assert_eq!(stopped.elapsed().as_secs(), 20);
    let end = sink.until_ended(1).await;
    assert_eq!(end.reason, "the recorder is stopping");
    served.server.await.unwrap();
    assert_eq!(stopped.elapsed().as_secs(), 20);
}
