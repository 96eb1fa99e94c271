//! The endpoints (docs/ingest.md), seen from the far end of the real tunnel.

use http::Method;
use http_body_util::BodyExt;
use hyper::body::Body;
use tailtape::ingest::IngestConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::old_uploader::ask;
use crate::soon;
use crate::tailnet::LoopbackTailnet;
use crate::uploader::Uploader;

/// A session that a real shell made.
const SHELL_CAST: &[u8] = include_bytes!("../vectors/shell.cast");

/// As long as a frame may be away by the protocol's promise, and a second for the way.
const SILENCE_MAX: std::time::Duration = std::time::Duration::from_secs(6);

/// Short, so that the test need not wait for the real one.
const KEEP_ALIVE: std::time::Duration = std::time::Duration::from_secs(1);

#[tokio::test]
async fn the_response_head_comes_before_any_byte_of_the_body() {
    let tailnet = LoopbackTailnet::start(IngestConfig::default()).await;
    let mut uploader = Uploader::connect(tailnet.uploader(), tailnet.address).await;
    let upload = uploader.record().await;
    assert_eq!(upload.status, 200);
}

#[tokio::test]
async fn a_probe_is_answered_200_and_all_else_404_without_a_body() {
    let tailnet = LoopbackTailnet::start(IngestConfig::default()).await;
    let mut uploader = Uploader::connect(tailnet.uploader(), tailnet.address).await;
    for (method, path, expected) in [
        (Method::HEAD, "/v2/record", 200),
        (Method::GET, "/v2/record", 404),
        (Method::POST, "/v2/other", 404),
        (Method::HEAD, "/", 404),
        (Method::GET, "/", 404),
    ] {
        let response = uploader.request(method.clone(), path).await;
        assert_eq!(response.status(), expected, "{method} {path}");
        assert!(response.body().is_end_stream(), "{method} {path}");
    }
}

#[tokio::test]
async fn a_probe_over_http_1_is_404_so_that_the_client_falls_back() {
    let tailnet = LoopbackTailnet::start(IngestConfig::default()).await;
    let request = b"HEAD /v2/record HTTP/1.1\r\nHost: recorder\r\nConnection: close\r\n\r\n";
    let answer = ask(tailnet.dial().await, request).await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer:?}");
    assert!(answer.ends_with("\r\n\r\n"), "{answer:?}");
}

#[tokio::test]
async fn a_recorder_that_drains_refuses_in_words_without_a_body_and_lets_running_uploads_end() {
    let mut tailnet = LoopbackTailnet::start(IngestConfig::default()).await;
    let mut running = Uploader::connect(tailnet.uploader(), tailnet.address).await;
    let mut upload = running.begin("begun before\n").await;
    let stopping = tokio::spawn(tailnet.take_recorder().stop(crate::PATIENCE));

    // The stop has its way before the next request, or this one is still taken: ask until it is refused.
    let refused = soon("a refusal", async {
        loop {
            let mut late = Uploader::connect(tailnet.uploader(), tailnet.address).await;
            let answer = late.record().await;
            if answer.status != 200 {
                return answer;
            }
        }
    })
    .await;
    assert_eq!(refused.status, 503);
    assert_eq!(refused.headers["tailtape-reason"], "draining");
    let mut body = refused.into_answer();
    assert!(soon("the end", body.frame()).await.is_none());

    upload.send("ended while it drains\n").await;
    upload.end();
    let mut last = None;
    while let Some(acked) = soon("the end of the answer", upload.ack()).await {
        last = Some(acked);
    }
    assert_eq!(last, Some(35));
    drop(running);
    assert!(stopping.await.unwrap(), "everything ended in time");
    // An upload that was still taken above has none.
    let manifest = loop {
        let manifest = tailnet.next_manifest().await;
        if manifest.bytes > 0 {
            break manifest;
        }
    };
    assert!(manifest.clean);
    assert_eq!(manifest.bytes, 35);
}

#[tokio::test]
async fn a_recorder_that_has_drained_refuses_in_words_until_it_is_dropped() {
    // Shorter than the test looks, so that nothing but the recorder itself keeps the port open.
    let config = IngestConfig {
        drain_limit: std::time::Duration::from_millis(50),
        ..IngestConfig::default()
    };
    let mut tailnet = LoopbackTailnet::start(config).await;
    let recorder = tailnet.take_recorder();
    assert!(soon("the end of the drain", recorder.drain(crate::PATIENCE)).await);
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    for (method, path) in [
        (Method::HEAD, "/v2/record"),
        (Method::POST, "/v2/record"),
        (Method::HEAD, "/v2/event"),
        (Method::POST, "/v2/event"),
    ] {
        let mut late = Uploader::connect(tailnet.uploader(), tailnet.address).await;
        let response = late.request(method.clone(), path).await;
        assert_eq!(response.status(), 503, "{method} {path}");
        assert_eq!(response.headers()["tailtape-reason"], "draining");
        assert!(response.body().is_end_stream(), "{method} {path}");
    }
    let old = b"POST /record HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n";
    let answer = String::from_utf8(answer_behind(&tailnet, old).await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer:?}");
    assert!(
        answer.contains("tailtape-reason: draining\r\n"),
        "{answer:?}"
    );
    // Once is as good as twice.
    assert!(soon("the end of the drain", recorder.drain(crate::PATIENCE)).await);

    drop(recorder);
    soon("a refused connection", async {
        while let Ok(mut stream) = tailnet.uploader().dial(tailnet.address).await {
            // One that came before the port was closed.
            let mut unread = Vec::new();
            drop(stream.read_to_end(&mut unread).await);
        }
    })
    .await;
}

#[tokio::test]
async fn an_idle_session_gets_a_frame_at_least_every_five_seconds() {
    let tailnet = LoopbackTailnet::start(IngestConfig::default()).await;
    let mut uploader = Uploader::connect(tailnet.uploader(), tailnet.address).await;
    let mut upload = uploader.begin("then silence\n").await;
    let frame = tokio::time::timeout(SILENCE_MAX, upload.ack()).await;
    assert_eq!(frame.unwrap(), Some(13), "it says again what is durable");
}

#[tokio::test]
async fn a_session_that_ends_is_acked_whole_and_stored_byte_for_byte() {
    let mut tailnet = LoopbackTailnet::start(IngestConfig::default()).await;
    let mut uploader = Uploader::connect(tailnet.uploader(), tailnet.address).await;
    let mut upload = uploader.record().await;
    for line in SHELL_CAST.split_inclusive(|byte| *byte == b'\n') {
        upload.send(line).await;
    }
    upload.end();
    let mut last = None;
    while let Some(acked) = soon("the end of the answer", upload.ack()).await {
        last = Some(acked);
    }
    assert_eq!(last, Some(SHELL_CAST.len() as u64));
    let manifest = tailnet.next_manifest().await;
    assert!(manifest.clean && manifest.flags.contains(&"complete".to_owned()));
    assert!(tailnet.stored(&manifest) == SHELL_CAST);
    assert_eq!(
        manifest.uploader.node_name,
        tailnet.uploader().status().name
    );
    assert_eq!(
        manifest.uploader.user.unwrap().login,
        "you@example.com",
        "the tailnet says who uploaded"
    );
}

#[tokio::test]
async fn a_reset_seals_what_had_come_as_incomplete_with_the_reason() {
    let mut tailnet = LoopbackTailnet::start(IngestConfig::default()).await;
    let mut uploader = Uploader::connect(tailnet.uploader(), tailnet.address).await;
    let mut upload = uploader.begin("half a session").await;
    upload.reset().await;
    let manifest = tailnet.next_manifest().await;
    assert!(!manifest.clean && manifest.flags.contains(&"incomplete".to_owned()));
    let reason = &manifest.reason;
    assert!(reason.contains("stream error received"), "{reason:?}");
    assert_eq!(tailnet.stored(&manifest), b"half a session");
}

#[tokio::test]
async fn a_node_that_vanishes_without_a_word_is_missed_and_its_session_sealed_as_incomplete() {
    let config = IngestConfig {
        keep_alive_interval: KEEP_ALIVE,
        keep_alive_timeout: KEEP_ALIVE,
        ..IngestConfig::default()
    };
    let mut tailnet = LoopbackTailnet::start(config).await;
    let mut uploader = Uploader::connect(tailnet.uploader(), tailnet.address).await;
    let _upload = uploader.begin("half a session").await;
    tailnet.vanish();
    let manifest = tailnet.next_manifest().await;
    assert!(!manifest.clean && manifest.flags.contains(&"incomplete".to_owned()));
    let reason = &manifest.reason;
    assert!(reason.contains("no longer answers"), "{reason:?}");
    assert_eq!(tailnet.stored(&manifest), b"half a session");
}

/// What a client sends that reads nothing before it has sent all of it.
const UNREAD_BYTES: usize = 10 * 1024 * 1024;

/// Sends all of `request`, and only then reads; all that was answered. A reset in place of an answer fails the test.
async fn answer_behind(tailnet: &LoopbackTailnet, request: &[u8]) -> Vec<u8> {
    let mut stream = tailnet.dial().await;
    soon("room for all of it", stream.write_all(request))
        .await
        .unwrap();
    let mut answer = Vec::new();
    soon("the end", stream.read_to_end(&mut answer))
        .await
        .unwrap();
    answer
}

#[tokio::test]
async fn a_refusal_arrives_though_the_client_sends_ten_mebibytes_before_it_reads() {
    let config = IngestConfig {
        event_body_bytes_max: 1024,
        ..IngestConfig::default()
    };
    let tailnet = LoopbackTailnet::start(config).await;
    let rest = vec![b'a'; UNREAD_BYTES];
    let declared = format!("Content-Length: {UNREAD_BYTES}");
    let table = [
        (
            "413",
            format!("POST /v2/event HTTP/1.1\r\nHost: r\r\n{declared}\r\n\r\n"),
        ),
        (
            "413",
            format!(
                "POST /v2/event HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\n\r\n{UNREAD_BYTES:x}\r\n"
            ),
        ),
        (
            "404",
            format!("POST /elsewhere HTTP/1.1\r\nHost: r\r\n{declared}\r\n\r\n"),
        ),
        ("400", "a line that is no request\r\n\r\n".to_owned()),
        (
            "431",
            "HEAD /v2/event HTTP/1.1\r\nHost: r\r\nx: ".to_owned(),
        ),
    ];
    for (status, head) in table {
        let answer = answer_behind(&tailnet, &[head.as_bytes(), &rest].concat()).await;
        let answer = String::from_utf8(answer).unwrap();
        let expected = format!("HTTP/1.1 {status} ");
        assert!(answer.starts_with(&expected), "{head:?}: {answer:?}");
        assert!(answer.ends_with("\r\n\r\n"), "{head:?}: {answer:?}");
    }
}

#[tokio::test]
async fn a_goaway_arrives_though_the_client_sends_ten_mebibytes_before_it_reads() {
    const GOAWAY: u8 = 7;
    const FRAME_SIZE_ERROR: u8 = 6;
    const ENHANCE_YOUR_CALM: u8 = 11;
    let tailnet = LoopbackTailnet::start(IngestConfig::default()).await;
    let frame = |kind: u8, stream: u8, payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let head = [&length[1..], &[kind, 0, 0, 0, 0, stream]].concat();
        [&head, payload].concat()
    };
    let opening = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(),
        &frame(4, 0, b""),
    ]
    .concat();
    // A head that goes on and on, and a frame that is larger than any may be.
    let head = [
        frame(1, 1, &[0x86]),
        frame(9, 1, &[0; 16 * 1024]).repeat(UNREAD_BYTES >> 14),
    ]
    .concat();
    let large = frame(0, 1, &vec![0; UNREAD_BYTES]);
    for (what, code, frames) in [
        ("a head without end", ENHANCE_YOUR_CALM, head),
        ("a frame too large", FRAME_SIZE_ERROR, large),
    ] {
        let answer = answer_behind(&tailnet, &[opening.clone(), frames].concat()).await;
        let mut codes = Vec::new();
        let mut rest = answer.as_slice();
        while let Some((head, behind)) = rest.split_at_checked(9) {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let (payload, behind) = behind.split_at(usize::try_from(length).unwrap());
            if head[3] == GOAWAY {
                codes.push(payload[7]);
            }
            rest = behind;
        }
        assert_eq!(codes, [code], "{what}");
    }
}
