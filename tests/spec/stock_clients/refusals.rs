//! The cases in which the recorder refuses, or gives up, in just the way that clients understand.

use http::Method;
use hyper::body::Body;
use tailtape::capture::AckFrame;
use tailtape::ingest::{IngestConfig, UploadPolicy};

use super::{runtime, virtual_time};
use crate::bench::Bench;
use crate::old_uploader::{OldUploader, ask};
use crate::tailnet::LoopbackTailnet;
use crate::uploader::Uploader;

pub(super) fn c05() {
    runtime().block_on(async {
        let config = IngestConfig {
            events: false,
            ..IngestConfig::default()
        };
        let tailnet = LoopbackTailnet::start(config).await;
        let probe = b"HEAD /v2/event HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\r\n";
        let answer = ask(tailnet.dial().await, probe).await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    });
}

pub(super) fn c06() {
    virtual_time().block_on(async {
        let bench = Bench::start(IngestConfig::default()).await;
        bench.store.stall();
        let mut uploader = Uploader::over(bench.connect()).await;
        for (method, path) in [(Method::HEAD, "/v2/record"), (Method::HEAD, "/v2/event")] {
            let response = uploader.request(method, path).await;
            assert_eq!(response.status(), 503, "{path}");
            assert!(response.body().is_end_stream());
        }
        assert_eq!(uploader.record().await.status, 503);
        let event = b"POST /v2/event HTTP/1.1\r\nHost: r\r\nContent-Length: 3\r\n\r\n{}\n";
        let answer = ask(bench.connect(), event).await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        let Err(refused) = OldUploader::record(bench.connect()).await else {
            panic!("taken");
        };
        assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
        assert!(bench.store.events().is_empty() && bench.ingest.uploads().is_empty());
    });
}

pub(super) fn c07() {
    runtime().block_on(async {
        let config = IngestConfig {
            policy: UploadPolicy::Tags(vec!["tag:k8s".to_owned()]),
            ..IngestConfig::default()
        };
        let tailnet = LoopbackTailnet::start(config).await;
        let mut uploader = Uploader::connect(tailnet.uploader(), tailnet.address).await;
        let refused = uploader.record().await;
        assert_eq!(refused.status, 403);
        let reason = refused.headers["tailtape-reason"].to_str().unwrap();
        assert!(reason.starts_with("upload = tags"), "{reason}");
        let Err(refused) = OldUploader::record(tailnet.dial().await).await else {
            panic!("taken");
        };
        assert!(refused.starts_with("HTTP/1.1 403 "), "{refused}");
        assert!(refused.ends_with("\r\n\r\n"), "no body: {refused}");
        assert_eq!(tailnet.store.stats().recordings_open, 0);
    });
}

pub(super) fn c08() {
    virtual_time().block_on(async {
        let bench = Bench::start(IngestConfig::default()).await;
        let mut uploader = Uploader::over(bench.connect()).await;
        let mut upload = uploader.begin("x").await;
        let id = bench.ingest.uploads()[0].id;
        assert!(bench.ingest.terminate(id, "ended by an operator"));
        let Some(AckFrame::Failed { message }) = upload.frame().await else {
            panic!("no error frame");
        };
        assert_eq!(message, "ended by an operator");
        assert_eq!(upload.frame().await, None, "it is the last word");
        // What the session still writes goes nowhere: nobody reads it.
        upload.try_send("later output").await;
        let manifest = bench.store.manifest().await;
        assert!(!manifest.clean && manifest.flags.contains(&"terminated".to_owned()));
        assert_eq!(manifest.bytes, 1);
    });
}

pub(super) fn x02() {
    virtual_time().block_on(async {
        let bench = Bench::start(IngestConfig::default()).await;
        let mut uploader = Uploader::over(bench.connect()).await;
        let mut upload = uploader.begin("one line\n").await;
        bench.store.stall();
        let Some(AckFrame::Failed { message }) = upload.frame().await else {
            panic!("no error frame");
        };
        assert_eq!(
            message,
            "the recorder's store is stalled: create journal/0: no answer in time"
        );
        assert_eq!(upload.frame().await, None);
        let manifest = bench.store.manifest().await;
        assert!(!manifest.clean);
        assert_eq!((manifest.reason, manifest.bytes), (message, 9));
    });
}

pub(super) fn x07() {
    virtual_time().block_on(async {
        let config = IngestConfig {
            policy: UploadPolicy::Capability("example.com/cap/record".to_owned()),
            ..IngestConfig::default()
        };
        let bench = Bench::start(config).await;
        let mut uploader = Uploader::over(bench.connect()).await;
        for _ in 0..3 {
            let refused = uploader.record().await;
            assert_eq!(refused.status, 403);
            assert!(refused.into_answer().is_end_stream());
        }
        assert_eq!(bench.ingest.stats().refused_policy, 3);
    });
}
