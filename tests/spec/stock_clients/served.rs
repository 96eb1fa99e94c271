//! The cases that are served as the table says.

use std::time::Duration;

use http::Method;
use rand_core::{RngCore, SeedableRng};
use tailtape::asciicast::{self, Event, Header};
use tailtape::capture::{AckDecoder, AckFrame};
use tailtape::ingest::IngestConfig;
use tailtape::recording::manifest::Manifest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use super::{runtime, virtual_time};
use crate::bench::Bench;
use crate::old_uploader::OldUploader;
use crate::soon;
use crate::tailnet::LoopbackTailnet;
use crate::uploader::{Upload, Uploader};

/// What the Go tests upload.
fn noise() -> Vec<u8> {
    let mut noise = vec![0; 1024 * 1024];
    rand_chacha::ChaCha8Rng::seed_from_u64(1).fill_bytes(&mut noise);
    noise
}

fn is_complete(manifest: &Manifest) -> bool {
    manifest.clean && manifest.flags.contains(&"complete".to_owned())
}

/// Reads acks to the clean end of the answer; the last one.
async fn last_ack(upload: &mut Upload) -> Option<u64> {
    let mut last = None;
    while let Some(acked) = soon("the end of the answer", upload.ack()).await {
        last = Some(acked);
    }
    last
}

pub(super) fn c01() {
    runtime().block_on(async {
        let mut tailnet = LoopbackTailnet::start(IngestConfig::default()).await;
        let mut upload = OldUploader::record(tailnet.dial().await).await.unwrap();
        let noise = noise();
        // A Go client cuts its writes at 32 KiB.
        for piece in noise.chunks(32 * 1024) {
            upload.send(piece).await;
        }
        let answer = upload.end().await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("connection: close\r\n"), "{answer}");
        let manifest = tailnet.next_manifest().await;
        assert!(is_complete(&manifest));
        assert_eq!(manifest.endpoint, "/record");
        assert!(tailnet.stored(&manifest) == noise);
    });
}

pub(super) fn c02() {
    runtime().block_on(async {
        let mut tailnet = LoopbackTailnet::start(IngestConfig::default()).await;
        let mut uploader = Uploader::connect(tailnet.uploader(), tailnet.address).await;
        let probe = uploader.request(Method::HEAD, "/v2/record").await;
        assert_eq!(probe.status(), 200);
        let mut upload = uploader.record().await;
        assert_eq!(upload.status, 200);
        let noise = noise();
        for piece in noise.chunks(10_007) {
            upload.send(piece.to_vec()).await;
        }
        upload.end();
        assert_eq!(last_ack(&mut upload).await, Some(noise.len() as u64));
        let manifest = tailnet.next_manifest().await;
        assert!(is_complete(&manifest));
        assert_eq!(manifest.endpoint, "/v2/record");
        assert!(tailnet.stored(&manifest) == noise);
    });
}

pub(super) fn c04() {
    const BODY: &str = "{\"type\":\"kubernetes-api-request\",\"id\":\"\",\"timestamp\":1770000000,\"userAgent\":\"curl\",\"request\":{\"method\":\"GET\",\"path\":\"/healthz\",\"body\":\"\",\"queryParameters\":{}},\"kubernetes\":{\"IsResourceRequest\":false,\"Parts\":null},\"source\":{\"node\":\"ci.ts.net\",\"nodeID\":\"n2\",\"nodeTags\":[\"tag:ci\"]},\"destination\":{\"node\":\"\",\"nodeID\":\"\"}}\n";
    runtime().block_on(async {
        let tailnet = LoopbackTailnet::start(IngestConfig::default()).await;
        let mut connection = tailnet.dial().await;
        connection
            .write_all(b"HEAD /v2/event HTTP/1.1\r\nHost: 100.64.0.9:80\r\n\r\n")
            .await
            .unwrap();
        let mut probed = vec![0; 17];
        connection.read_exact(&mut probed).await.unwrap();
        assert_eq!(probed, b"HTTP/1.1 200 OK\r\n");
        let request = format!(
            "POST /v2/event HTTP/1.1\r\nHost: 100.64.0.9:80\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{BODY}",
            BODY.len()
        );
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut answers = String::new();
        soon("the answer", connection.read_to_string(&mut answers))
            .await
            .unwrap();
        let answer = answers.split_once("\r\n\r\n").unwrap().1;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("connection: close\r\n"), "{answer}");
        // It was answered, so it is on the disk: one line, which any reader can take apart.
        let lines = tailnet.journalled_events();
        assert_eq!(lines.len(), 1);
        let line = &lines[0];
        let sent = BODY.trim_end();
        assert!(line.ends_with(&format!(",\"event\":{sent}}}\n")), "{line}");
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let node = tailnet.uploader().status();
        assert_eq!(line["destination"]["node"], node.name);
        assert_eq!(line["destination"]["nodeID"], line["uploader"]["stable_id"]);
        assert!(!line["destination"]["nodeID"].as_str().unwrap().is_empty());
        assert!(!line["id"].as_str().unwrap().is_empty());
    });
}

pub(super) fn c10() {
    let header = br#"{"version":2,"width":0,"height":0,"timestamp":1770000000,"command":"echo \"Ran echo!\"","srcNode":"ci.tail-scale.ts.net","srcNodeID":"nXyZCNTRL","srcNodeTags":["tag:ci"],"env":{"TERM":"xterm-256color"},"sshUser":"root","localUser":"root","connectionID":"ssh-conn-20260201T101500-0123456789"}"#;
    let cast = [header.as_slice(), b"\n[0.25,\"o\",\"Ran echo!\\r\\n\"]\n"].concat();
    let manifest = record(&cast);
    assert!(is_complete(&manifest) && manifest.flags.len() == 1);
    let claimed: Header = serde_json::from_value(manifest.claimed.unwrap()).unwrap();
    assert_eq!(claimed.ssh_user, "root");
    assert_eq!(claimed.command, "echo \"Ran echo!\"");
    assert_eq!(manifest.event_count, 1);
}

pub(super) fn c12() {
    let header = |size: &str, kind: &str| {
        format!(
            "{{\"version\":2,{size},\"timestamp\":1770000000,\"command\":\"sh\",\"srcNode\":\"laptop.ts.net\",\"srcNodeID\":\"nAbCdEfCNTRL\",\"srcNodeUserID\":30585448562688899,\"srcNodeUser\":\"alice@example.com\",\"env\":null,\"sshUser\":\"\",\"localUser\":\"\",\"connectionID\":\"\",\"kubernetes\":{{\"PodName\":\"web-0\",\"Namespace\":\"default\",\"Container\":\"\",\"SessionType\":\"{kind}\"}}}}\n"
        )
    };
    // Without a terminal there is no size; with one the first resize is in the header, the second is an event: rows, then columns.
    let without = header("\"width\":0,\"height\":0", "exec")
        + "[9.99e-7,\"o\",\"stdout\"]\n[0.5,\"o\",\"stderr\"]\n";
    let with = header("\"width\":120,\"height\":40", "attach")
        + "[0,\"o\",\"$ \"]\n[1.5,\"r\",\"50x132\"]\n";
    for (cast, events, kind) in [(without, 2, "exec"), (with, 2, "attach")] {
        let manifest = record(cast.as_bytes());
        assert!(
            is_complete(&manifest) && manifest.flags.len() == 1,
            "{:?}",
            manifest.flags
        );
        assert_eq!(manifest.event_count, events);
        let claimed: Header = serde_json::from_value(manifest.claimed.unwrap()).unwrap();
        assert!(claimed.env.is_none());
        assert_eq!(claimed.src_node_user_id, 30_585_448_562_688_899);
        let kubernetes = claimed.kubernetes.unwrap();
        assert_eq!(
            (
                kubernetes.pod_name.as_str(),
                kubernetes.session_type.as_str()
            ),
            ("web-0", kind)
        );
    }
    let resize = Event::parse(b"[1.5,\"r\",\"50x132\"]").unwrap();
    assert_eq!(resize.code, asciicast::CODE_RESIZE);
}

pub(super) fn x01() {
    let mut decoder = AckDecoder::new();
    let mut heard = Vec::new();
    decoder
        .handle_bytes(b"{}{\"ack\":1}  {\"ack\":2,\"new\":[1]}", |frame| {
            heard.push(frame);
        })
        .unwrap();
    decoder.handle_end().unwrap();
    let durable = |acked_bytes| AckFrame::Durable { acked_bytes };
    assert_eq!(heard, [durable(0), durable(1), durable(2)]);

    // And ours: a stream of JSON values to any reader, which needs no white space to know where they end.
    virtual_time().block_on(async {
        let bench = Bench::start(IngestConfig::default()).await;
        let mut uploader = Uploader::over(bench.connect()).await;
        let mut upload = uploader.record().await;
        let header = "{\"version\":2,\"width\":80,\"height\":24}\n";
        upload.send(header).await;
        upload.until_acked(header.len() as u64).await;
        upload.end();
        let answer = upload.into_answer();
        let bytes = http_body_util::BodyExt::collect(answer).await.unwrap();
        let bytes: Vec<u8> = bytes
            .to_bytes()
            .into_iter()
            .filter(|byte| *byte != b'\n')
            .collect();
        let values = serde_json::Deserializer::from_slice(&bytes).into_iter::<serde_json::Value>();
        let values: Vec<_> = values.map(Result::unwrap).collect();
        assert_eq!(values.last().unwrap()["ack"], header.len());
    });
}

pub(super) fn x06() {
    virtual_time().block_on(async {
        let bench = Bench::start(IngestConfig::default()).await;
        let mut uploader = Uploader::over(bench.connect()).await;
        let mut upload = uploader.begin("one line\n").await;
        bench.store.delay_seals(Duration::from_secs(3600));
        upload.end();
        let (mut frames, mut last) = (0, Instant::now());
        while let Some(acked) = upload.ack().await {
            assert_eq!(acked, 9);
            assert!(last.elapsed() <= Duration::from_millis(5100));
            (frames, last) = (frames + 1, Instant::now());
        }
        assert!((719..=722).contains(&frames), "{frames} frames in an hour");
        assert!(is_complete(&bench.store.manifest().await));
    });
}

pub(super) fn x16() {
    virtual_time().block_on(async {
        let bench = Bench::start(IngestConfig::default()).await;
        let mut uploader = Uploader::over(bench.connect()).await;
        let mut upload = uploader.begin("one line\n").await;
        let start = Instant::now();
        let mut frames = 0;
        while start.elapsed() < Duration::from_secs(10_000) {
            assert_eq!(upload.ack().await, Some(9));
            frames += 1;
        }
        assert!((1999..=2001).contains(&frames), "{frames} frames");
        upload.send("another\n").await;
        upload.end();
        assert_eq!(last_ack(&mut upload).await, Some(17));
        assert!(is_complete(&bench.store.manifest().await));
    });
}

pub(super) fn x17() {
    runtime().block_on(async {
        let mut tailnet = LoopbackTailnet::start(IngestConfig::default()).await;
        let mut uploader = Uploader::connect(tailnet.uploader(), tailnet.address).await;
        let _upload = uploader.begin("half a session").await;
        drop(uploader);
        let manifest = tailnet.next_manifest().await;
        assert!(!manifest.clean && manifest.flags.contains(&"incomplete".to_owned()));
        let reason = &manifest.reason;
        assert!(reason.contains("broken pipe"), "{reason:?}");
        assert_eq!(tailnet.stored(&manifest), b"half a session");

        let mut old = OldUploader::record(tailnet.dial().await).await.unwrap();
        old.send(b"half an old one").await;
        drop(old);
        let manifest = tailnet.next_manifest().await;
        assert!(!manifest.clean && manifest.flags.contains(&"incomplete".to_owned()));
        assert_eq!(tailnet.stored(&manifest), b"half an old one");
    });
}

/// Uploads a cast line by line, and gives what is kept of it.
fn record(cast: &[u8]) -> Manifest {
    runtime().block_on(async {
        let bench = Bench::start(IngestConfig::default()).await;
        let mut uploader = Uploader::over(bench.connect()).await;
        let mut upload = uploader.record().await;
        for line in cast.split_inclusive(|byte| *byte == b'\n') {
            upload.send(line.to_vec()).await;
        }
        upload.end();
        assert_eq!(last_ack(&mut upload).await, Some(cast.len() as u64));
        bench.store.manifest().await
    })
}
