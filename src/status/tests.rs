//! The socket asked by its own client, by another, and by nobody.

use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

#[derive(Default)]
struct Fake {
    drains: AtomicUsize,
    reasons: Vec<String>,
}

impl Admin for Fake {
    fn status(&self) -> Status {
        picture()
    }

    fn health(&self) -> Health {
        Health {
            reasons: self.reasons.clone(),
        }
    }

    fn drain(&self) {
        self.drains.fetch_add(1, Ordering::Relaxed);
    }
}

fn picture() -> Status {
    Status {
        version: "0.1.0".into(),
        phase: Phase::Running,
        started_at: "2026-11-20T10:15:00Z".parse().unwrap(),
        uptime_seconds: 3723,
        node: NodeReport {
            name: "recorder.tail.test".into(),
            stable_id: "nRec".into(),
            addresses: vec!["100.64.0.1".parse().unwrap()],
            tunnel: vec!["192.0.2.7:41641".parse().unwrap()],
            peers: 2,
        },
        control: ControlReport {
            url: "http://127.0.0.1:8080".into(),
            joined: true,
            trouble: None,
        },
        network: NetworkReport {
            dropped: [
                ("node_filtered".into(), 2),
                ("tcp_malformed".into(), 0),
                ("tcp_syn_dropped".into(), 99_000),
            ]
            .into(),
            counted: [("node_datagrams_in".into(), 123_456)].into(),
        },
        recordings: vec![OpenRecording {
            id: "aaaqeayeaudaocaj".parse().unwrap(),
            node: "web.tail.test".into(),
            stable_id: "nWeb".into(),
            user: None,
            endpoint: "/v2/record".into(),
            since: "2026-11-20T11:00:00Z".parse().unwrap(),
            received_bytes: 12,
            durable_bytes: 10,
            ended: false,
        }],
        recordings_open: 2,
        ingest: [
            ("recordings".into(), 5),
            ("ended_complete".into(), 3),
            ("refused_policy".into(), 1),
        ]
        .into(),
        store: StoreReport {
            url: "file:///srv/tailtape".into(),
            counters: [("commits".into(), 7), ("sealed".into(), 3)].into(),
            ..StoreReport::default()
        },
        access_rules: 1,
        log_lines_withheld: 1234,
        limits: [("recordings_max".into(), "10000".into())].into(),
    }
}

/// A served socket, and where it is.
fn served(
    fake: Fake,
) -> (
    tempfile::TempDir,
    PathBuf,
    Arc<Fake>,
    tokio::task::JoinHandle<()>,
) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tailtape.sock");
    let fake = Arc::new(fake);
    let socket = AdminSocket::bind(&path).unwrap();
    let task = tokio::spawn(serve(socket, Arc::clone(&fake)));
    (directory, path, fake, task)
}

#[tokio::test]
async fn the_client_hears_what_the_recorder_says() {
    let (_directory, path, fake, _task) = served(Fake::default());
    let client = Client::new(&path);
    assert_eq!(client.status().await.unwrap(), picture());
    assert!(client.health().await.unwrap().healthy());
    client.drain().await.unwrap();
    client.drain().await.unwrap();
    assert_eq!(fake.drains.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn an_unhealthy_recorder_says_why() {
    let reasons = vec!["not joined".to_owned()];
    let (_directory, path, ..) = served(Fake {
        reasons: reasons.clone(),
        ..Fake::default()
    });
    let health = Client::new(&path).health().await.unwrap();
    assert!(!health.healthy());
    assert_eq!(health.reasons, reasons);
}

#[tokio::test]
async fn the_socket_is_for_its_owner_alone_and_goes_with_its_recorder() {
    let (_directory, path, _fake, task) = served(Fake::default());
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    assert!(!path.exists());
    let error = Client::new(&path).status().await.unwrap_err();
    assert!(matches!(error, StatusError::NotServed { .. }), "{error:?}");
}

#[tokio::test]
async fn a_socket_in_use_is_left_alone_and_a_stale_one_is_replaced() {
    let (directory, path, ..) = served(Fake::default());
    let error = AdminSocket::bind(&path).unwrap_err();
    assert!(matches!(error, StatusError::InUse { .. }), "{error:?}");
    assert!(Client::new(&path).health().await.unwrap().healthy());

    let stale = directory.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    assert!(stale.exists(), "the file outlives its listener");
    let socket = AdminSocket::bind(&stale).unwrap();
    drop(socket);

    let file = directory.path().join("file");
    std::fs::write(&file, b"precious").unwrap();
    let error = AdminSocket::bind(&file).unwrap_err();
    assert!(matches!(error, StatusError::NoSocket { .. }), "{error:?}");
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
}

#[tokio::test]
async fn what_is_no_request_of_ours_is_refused_and_drains_nothing() {
    let (_directory, path, fake, _task) = served(Fake::default());
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(64 * 1024));
    let many = format!("GET /v1/status HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(100));
    for (request, answer) in [
        ("GET /v1/drain HTTP/1.1\r\nHost: r\r\n\r\n", "HTTP/1.1 404"),
        (
            "POST /v1/status HTTP/1.1\r\nHost: r\r\n\r\n",
            "HTTP/1.1 404",
        ),
        ("noise\r\n\r\n", "HTTP/1.1 400"),
        (&long, "HTTP/1.1 4"),
        (&many, "HTTP/1.1 431"),
    ] {
        let mut stream = UnixStream::connect(&path).await.unwrap();
        let mut told = Vec::new();
        let exchange = async {
            // The recorder may close before it has read all.
            drop(stream.write_all(request.as_bytes()).await);
            drop(stream.read_to_end(&mut told).await);
        };
        exchange.await;
        let told = String::from_utf8_lossy(&told);
        assert!(told.starts_with(answer), "{request:.20}: {told}");
    }
    assert_eq!(fake.drains.load(Ordering::Relaxed), 0);
}

#[test]
fn the_text_is_what_a_person_reads_first() {
    let expected = "\
recorder   running, version 0.1.0, up 1h 2m, 1234 log lines withheld
node       recorder.tail.test  100.64.0.1  tunnel on 192.0.2.7:41641  2 peers
control    http://127.0.0.1:8080  joined
network    123456 datagrams; dropped: tcp_syn_dropped 99000, node_filtered 2
store      file:///srv/tailtape  7 commits, 3 sealed
uploads    2 open, 5 begun, 3 whole; 0 events
refused    refused_policy 1
access     1 rule in the settings

ID                SINCE                 NODE           OWNER  RECEIVED  DURABLE
aaaqeayeaudaocaj  2026-11-20 11:00:00Z  web.tail.test  -      12        10
and 1 more
";
    assert_eq!(picture().to_text(None), expected);
    let narrow = picture().to_text(Some(40));
    assert!(narrow.lines().all(|line| line.chars().count() <= 40));
}

#[test]
fn no_counter_of_harm_is_absent_from_the_text() {
    let told_otherwise = [
        ("connections", "work"),
        ("recordings", "begun"),
        ("recording_bytes", "work"),
        ("ended_complete", "whole"),
        ("events", "events"),
        ("event_bytes", "work"),
    ];
    for (name, _) in crate::ingest::IngestStats::default().counters() {
        let mut status = picture();
        status.ingest = [(name.to_owned(), 4711)].into();
        let text = status.to_text(Some(80));
        let is_harm = told_otherwise.iter().all(|(other, _)| *other != name);
        assert_eq!(text.contains(&format!("{name} 4711")), is_harm, "{text}");
    }
    let counted = crate::store::StoreStats::default().counters();
    let added = [("added_tomorrow", 0)];
    let mut told = Vec::new();
    for (name, _) in counted.into_iter().chain(added) {
        let mut status = picture();
        status.store.counters = [(name.to_owned(), 4711)].into();
        let text = status.to_text(Some(80));
        // A name may begin with another one, and a line ends where it is full.
        if text
            .split([' ', '\n'])
            .collect::<Vec<_>>()
            .join(" ")
            .contains(&format!(" {name} 4711"))
        {
            told.push(name);
        }
    }
    told.sort_unstable();
    assert_eq!(
        told,
        [
            "added_tomorrow",
            "epochs_poisoned",
            "recovery_events_lost",
            "recovery_objects_damaged",
            "refused_closed",
            "refused_disk_nearly_full",
            "refused_journal_full",
            "refused_stalled",
            "refused_too_many",
            "rolls_failed",
            "stalls",
        ]
    );
}

#[test]
fn how_recordings_ended_is_told_by_reason_however_narrow_the_terminal() {
    let mut status = picture();
    let ended = [
        ("ended_complete", 3),
        ("ended_reset", 2),
        ("ended_stalled", 7),
        ("ended_limit_bytes", 1),
        ("ended_limit_duration", 0),
        ("ended_terminated", 1),
        ("panics", 1),
    ];
    status.ingest = ended.map(|(name, count)| (name.to_owned(), count)).into();
    let text = status.to_text(Some(60));
    let expected = "\
cut short  ended_stalled 7, ended_reset 2,
           ended_limit_bytes 1, ended_terminated 1
trouble    panics 1
access     1 rule in the settings
";
    assert!(text.contains(expected), "{text}");
    assert!(!text.contains("refused "), "{text}");
}
