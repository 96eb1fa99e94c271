//! A disk that takes nothing more, under `tailtape serve`: acks stop where the disk stops, uploads are told in time, and it all goes on by itself.
//!
//! Each test runs itself again where it may mount a file system of its own, or where it may not write what is forbidden. The rest:
//! `namespace` (how), `disk` (a small one, and what is on it), `session` (uploads that stream, byte by byte and frame by frame).

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test program: to panic is to fail"
)]

mod disk;
mod namespace;
#[path = "../spec/process.rs"]
#[allow(dead_code, reason = "shared with the promises, which use all of it")]
mod process;
#[path = "../spec/service.rs"]
#[allow(dead_code, reason = "shared with the promises, which use all of it")]
mod service;
mod session;
#[path = "../spec/tailnet.rs"]
#[allow(dead_code, reason = "shared with the promises, which use all of it")]
mod tailnet;

use std::future::Future;
use std::time::Duration;

use http::Method;
use rustix::process::Signal;
use serde_json::Value;

use crate::disk::{Disk, journalled};
use crate::namespace::{may_mount, may_not_overrule};
use crate::service::{Service, Site};
use crate::session::{Ended, Node, Session};

/// What takes longer than this is broken.
const PATIENCE: Duration = Duration::from_secs(40);

/// Long enough that a frame that repeats the last ack is owed meanwhile: one comes every 5 s.
const STALL_LIMIT_SECONDS: u64 = 11;

/// The size of the disk that fills up.
const DISK_BYTES: u64 = 8 << 20;

/// How far a session may be ahead of its acks: its share of the buffer (64 KiB here), its HTTP/2 window, what was read and waits for its share, and
/// what the sender's own TCP and HTTP/2 hold.
const AHEAD_BYTES_MAX: u64 = 3 << 20;

/// More than the disk takes.
const STREAM_BYTES_MAX: usize = 8 << 20;

/// The future's output; panics if it does not come.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("{what}: not within {PATIENCE:?}"),
    }
}

async fn healthy(site: &Site) -> Result<(), String> {
    let output = site.output(&["health"]).await;
    match output.status.code() {
        Some(0) => Ok(()),
        _ => Err(String::from_utf8(output.stdout).unwrap()),
    }
}

async fn until_healthy(service: &mut Service) {
    service
        .until("health", |service| {
            let client = service.client.clone();
            async move { client.health().await.unwrap().healthy() }
        })
        .await;
}

/// Everything that could begin is refused with 503 and a reason that names `cause`.
async fn assert_refuses(node: &Node, cause: &str, site: &Site) {
    for (method, path) in [
        (Method::HEAD, "/v2/record"),
        (Method::POST, "/v2/record"),
        (Method::HEAD, "/v2/event"),
        (Method::POST, "/v2/event"),
    ] {
        let refusal = node.request(method.clone(), path).await;
        assert_eq!(refusal.status, 503, "{method} {path}");
        assert!(refusal.ended, "{method} {path}: END_STREAM comes with it");
        let reason = refusal.reason;
        assert!(reason.contains(cause), "{method} {path}: {reason}");
        assert_names_nothing_of_the_host(&reason, site);
    }
    let answer = node.old_session().await.unwrap_err();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains(cause), "{answer}");
}

/// Where the store is on the host is for its log and its operator, not for peers.
fn assert_names_nothing_of_the_host(told: &str, site: &Site) {
    let store = site.path("store");
    assert!(!told.contains(store.to_str().unwrap()), "{told}");
}

/// A session from begin to end is recorded, over both protocols, and an event.
async fn assert_records(node: &Node, site: &Site) {
    assert_eq!(node.request(Method::HEAD, "/v2/record").await.status, 200);
    let before = sealed(site).await.len();
    let mut session = Session::open(node, "after").await;
    session.send(64 << 10).await;
    let ended = session.end().await;
    assert_eq!(ended.failure, None);
    assert_eq!(ended.acked(), ended.sent.len() as u64);
    let mut old = node.old_session().await.unwrap();
    old.send_all(b"after, in the old way\n").await.unwrap();
    let answer = old.end().await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let event = node.event(b"{\"after\":true}").await;
    assert_eq!(event, 200);
    let stored = sealed(site).await;
    assert_eq!(stored.len(), before + 2);
    for sent in [ended.sent, b"after, in the old way\n".to_vec()] {
        assert!(stored.iter().any(|(_, stream)| *stream == sent));
    }
}

/// The line in `ls` and the stream of each sealed recording.
async fn sealed(site: &Site) -> Vec<(Value, Vec<u8>)> {
    let store = site.path("store");
    let store = store.to_str().unwrap();
    let listed = site.output(&["ls", "--json", "--store", store]).await;
    assert!(listed.status.success(), "{listed:?}");
    let mut found = Vec::new();
    for line in String::from_utf8(listed.stdout).unwrap().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let id = line["id"].as_str().unwrap();
        let read = site.output(&["cat", id, "--store", store]).await;
        assert!(read.status.success(), "{:?}", read.stderr);
        found.push((line, read.stdout));
    }
    found
}

/// Looks until `count` recordings are sealed.
async fn until_sealed(site: &Site, count: usize) -> Vec<(Value, Vec<u8>)> {
    soon("the seals", async {
        loop {
            let found = sealed(site).await;
            if found.len() >= count {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await
}

/// What is stored of a session that broke off: all that was acked, nothing that was not sent, and it says so.
fn assert_kept(stored: &[(Value, Vec<u8>)], sent: &[u8], acked: u64) -> u64 {
    let marker = session::marker(sent);
    let mut of_it = stored
        .iter()
        .filter(|(_, stream)| stream.starts_with(marker));
    let (line, stream) = of_it.next().expect("it is in the store");
    assert!(of_it.next().is_none(), "and once only");
    assert!(sent.starts_with(stream), "what is stored was sent");
    let kept = stream.len() as u64;
    assert!(kept >= acked, "{acked} bytes were acked, {kept} are stored");
    let flags = line["flags"].as_array().unwrap();
    assert!(flags.iter().any(|flag| flag == "incomplete"), "{line}");
    kept
}

/// The frames of an upload that met a stall: acks that never fall, then one error that names `cause`, then the end.
fn assert_told(ended: &Ended, cause: &str, site: &Site) {
    assert!(ended.acks.is_sorted(), "{:?}", ended.acks);
    let failure = ended.failure.as_deref().expect("an error frame");
    assert!(failure.contains(cause), "{failure}");
    assert_names_nothing_of_the_host(failure, site);
    assert_eq!(ended.frames_behind_failure, 0);
    assert!(ended.clean_end, "END_STREAM follows the error frame");
}

#[test]
fn a_full_disk_stops_acks_ends_uploads_in_time_and_records_again_when_there_is_room() {
    may_mount(
        "a_full_disk_stops_acks_ends_uploads_in_time_and_records_again_when_there_is_room",
        async {
            let site = Site::new(&format!(
                "disk_free_min = \"0\"\nstore_stall_limit = \"{STALL_LIMIT_SECONDS}s\"\nupload_buffer_bytes_max = \"64KiB\""
            ))
            .await;
            let disk = Disk::mount(&site.path("store"), DISK_BYTES);
            // Behind the end there must be room for what waits and for the seals, whose copies come before the journal is trimmed.
            let ballast = disk.ballast(DISK_BYTES / 8 * 6);
            let mut service = site.serve("log").await;
            let started_at = service.status().await.started_at;
            let node = Node::new(&site.uploader, service.address().await);

            let mut sessions = Vec::new();
            for number in 0..4 {
                let session = Session::open(&node, &format!("full-{number}")).await;
                sessions.push(session.stream(STREAM_BYTES_MAX));
            }
            let mut old = node.old_session().await.unwrap();
            old.send_all(b"marker of the old way\n").await.unwrap();
            service.until_logged("No space left on device").await;
            old.send_all(b"behind the end of the disk\n").await.unwrap();

            // Every upload is told; none is left waiting.
            let mut told = Vec::new();
            for session in sessions {
                told.push(soon("the end of an upload", session).await.unwrap());
            }
            let on_disk = journalled(&site.path("store"));
            let mut acked_in_all = 0;
            for ended in &told {
                assert_told(ended, "ENOSPC", &site);
                let durable = on_disk.contiguous_of(session::marker(&ended.sent));
                let acked = ended.acked();
                assert!(acked <= durable, "{acked} acked, {durable} on the disk");
                assert!(acked > 0 && (ended.sent.len() as u64) > acked);
                let ahead = ended.sent.len() as u64 - acked;
                assert!(ahead <= AHEAD_BYTES_MAX, "{ahead}: flow control closes");
                let repeats = ended.repeats_of_last_ack();
                assert!(repeats >= 1, "frames go on while it stalls: {repeats}");
                acked_in_all += acked;
            }
            assert_eq!(old.until_closed().await, "", "reset: no status follows");
            assert_refuses(&node, "ENOSPC", &site).await;
            let reasons = healthy(&site).await.unwrap_err();
            assert!(reasons.contains("ENOSPC"), "{reasons}");

            drop(ballast);
            until_healthy(&mut service).await;
            let stored = until_sealed(&site, told.len() + 1).await;
            let mut kept = 0;
            for ended in &told {
                kept += assert_kept(&stored, &ended.sent, ended.acked());
            }
            let old = b"marker of the old way\nbehind the end of the disk\n";
            assert_kept(&stored, old, 0);
            assert_records(&node, &site).await;
            healthy(&site).await.unwrap();
            assert_eq!(
                service.status().await.started_at,
                started_at,
                "without a restart"
            );
            println!("disk full: {acked_in_all} bytes acked, {kept} bytes kept, 0 lost");
            service.signal(Signal::TERM);
            assert_eq!(service.end().await.code(), Some(0), "{}", service.log());
        },
    );
}

#[test]
fn a_disk_that_is_nearly_full_takes_no_new_sessions_and_running_ones_go_on() {
    may_mount(
        "a_disk_that_is_nearly_full_takes_no_new_sessions_and_running_ones_go_on",
        async {
            let site = Site::new("disk_free_min = \"2MiB\"\nstore_stall_limit = \"3s\"").await;
            let disk = Disk::mount(&site.path("store"), DISK_BYTES);
            let mut service = site.serve("log").await;
            let node = Node::new(&site.uploader, service.address().await);
            let mut running = Session::open(&node, "running").await;
            running.send(16 << 10).await;

            let ballast = disk.ballast(disk.free_bytes() - (3 << 19));
            service
                .until("the refusal", |_| {
                    let head = node.request(Method::HEAD, "/v2/record");
                    async move { head.await.status == 503 }
                })
                .await;
            assert_refuses(&node, "disk_free_min", &site).await;
            let reasons = healthy(&site).await.unwrap_err();
            assert!(reasons.contains("disk_free_min"), "{reasons}");
            running.send(16 << 10).await;
            let ended = running.end().await;
            assert_eq!(ended.failure, None, "it runs to its end");
            assert_eq!(ended.acked(), ended.sent.len() as u64);
            let stored = until_sealed(&site, 1).await;
            assert!(stored[0].1 == ended.sent);
            assert!(disk.free_bytes() > 0, "the disk was never full");

            drop(ballast);
            until_healthy(&mut service).await;
            assert_records(&node, &site).await;
        },
    );
}

#[test]
fn a_read_only_disk_ends_uploads_and_records_again_when_it_is_writable() {
    may_mount(
        "a_read_only_disk_ends_uploads_and_records_again_when_it_is_writable",
        async {
            let site = Site::new("disk_free_min = \"0\"\nstore_stall_limit = \"3s\"").await;
            let disk = Disk::mount(&site.path("store"), DISK_BYTES);
            outage(&site, "EROFS", |forbidden| disk.remount(forbidden)).await;
        },
    );
}

#[test]
fn a_forbidden_directory_ends_uploads_and_records_again_when_it_is_permitted() {
    may_not_overrule(
        "a_forbidden_directory_ends_uploads_and_records_again_when_it_is_permitted",
        async {
            let site = Site::new("disk_free_min = \"0\"\nstore_stall_limit = \"3s\"").await;
            let store = site.path("store");
            outage(&site, "EACCES", |forbidden| {
                disk::forbid(&store, forbidden);
            })
            .await;
        },
    );
}

/// What happens to sessions while `forbid(true)` holds, and after `forbid(false)`.
async fn outage(site: &Site, cause: &str, forbid: impl Fn(bool)) {
    let mut service = site.serve("log").await;
    let started_at = service.status().await.started_at;
    let node = Node::new(&site.uploader, service.address().await);
    let mut session = Session::open(&node, "interrupted").await;
    session.send(16 << 10).await;
    session.until_acked().await;
    let durable = session.sent_bytes();
    let mut old = node.old_session().await.unwrap();
    old.send_all(b"marker of the old way\n").await.unwrap();

    forbid(true);
    session.send(16 << 10).await;
    let ended = session.until_ended().await;
    assert_told(&ended, cause, site);
    assert_eq!(ended.acked(), durable, "nothing is acked meanwhile");
    assert_eq!(old.until_closed().await, "", "reset: no status follows");
    assert_refuses(&node, cause, site).await;
    let reasons = healthy(site).await.unwrap_err();
    assert!(reasons.contains(cause), "{reasons}");

    forbid(false);
    until_healthy(&mut service).await;
    let stored = until_sealed(site, 2).await;
    assert_kept(&stored, &ended.sent, ended.acked());
    assert_kept(&stored, b"marker of the old way\n", 0);
    assert_records(&node, site).await;
    assert_eq!(
        service.status().await.started_at,
        started_at,
        "without a restart"
    );
}
