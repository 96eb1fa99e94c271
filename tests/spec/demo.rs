//! `tailtape dev` keeps its word: one object on stdout whose hashes are true, and nothing that others could reach.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::process::{DevProcess, dev};
use crate::soon;

/// Keys that are promised to programs, and whether the value is a number.
const PROMISED_KEYS: [(&str, bool); 10] = [
    ("recording_id", false),
    ("path", false),
    ("bytes", true),
    ("events", true),
    ("sha256_sent", false),
    ("sha256_stored", false),
    ("ack_p50_ms", true),
    ("ack_p99_ms", true),
    ("join_ms", true),
    ("transport", false),
];

#[tokio::test]
async fn once_ends_with_one_object_on_stdout_whose_hashes_are_those_of_the_stored_file() {
    let data = tempfile::tempdir().unwrap();
    // The sleep outlasts a commit, so that an ack comes before the end.
    let output = dev(data.path())
        .args(["--once", "--", "sh", "-c", "echo one; sleep 0.3; echo two"])
        .stdin(Stdio::null())
        .output();
    let output = soon("the end", output).await.unwrap();
    assert!(output.status.success(), "{output:?}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    for (key, number) in PROMISED_KEYS {
        let value = &report[key];
        assert!(
            if number {
                value.is_number()
            } else {
                value.is_string()
            },
            "{key} in {report}"
        );
    }
    let cast = stored(&report);
    let text = String::from_utf8(cast).unwrap();
    assert!(text.starts_with(r#"{"version":2,"#));
    assert!(text.contains("one") && text.contains("two"));
    assert_eq!(report["events"], text.lines().count() - 1);
    let transport = report["transport"].as_str().unwrap();
    assert!(transport.starts_with("direct 127.0.0.1:"), "{transport}");
    assert!(!output.stderr.is_empty(), "the steps are told on stderr");
}

#[tokio::test]
async fn a_second_one_on_the_same_data_is_refused_while_the_first_runs() {
    let data = tempfile::tempdir().unwrap();
    let mut command = dev(data.path());
    command.args(["--", "true"]);
    let mut first = DevProcess::start(command);
    first.report().await;

    let second = || {
        let command = dev(data.path())
            .args(["--once", "--", "true"])
            .stdin(Stdio::null())
            .output();
        soon("the end of the second", command)
    };
    let refused = second().await.unwrap();
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let told = String::from_utf8(refused.stderr).unwrap();
    assert!(told.contains("in use"), "{told}");
    assert!(told.contains("to do: "), "{told}");

    let (status, _) = first.terminate().await;
    assert!(status.success(), "{status}");
    let later = second().await.unwrap();
    assert!(later.status.success(), "{later:?}");
}

#[tokio::test]
async fn while_it_runs_only_loopback_is_bound_and_each_line_typed_records_another_session() {
    let data = tempfile::tempdir().unwrap();
    let mut command = dev(data.path());
    command.args(["--", "sh", "-c", "echo first"]);
    let mut process = DevProcess::start(command);
    let mut reports = vec![process.report().await];

    let sockets = process.sockets();
    assert!(!sockets.tcp_listeners.is_empty(), "the devnet listens");
    assert!(sockets.udp.len() >= 2, "two nodes have a tunnel each");
    assert!(
        !sockets.tcp_connections.is_empty(),
        "the nodes follow control"
    );
    let all = [sockets.tcp_listeners, sockets.tcp_connections, sockets.udp].concat();
    assert!(
        all.iter().all(|address| address.ip().is_loopback()),
        "{all:?}"
    );

    process.type_line("echo second").await;
    reports.push(process.report().await);
    process.type_line("echo third").await;
    reports.push(process.report().await);
    let (status, more) = process.terminate().await;
    assert!(status.success(), "{status}");
    assert_eq!(more, None);

    let mut ids: Vec<&Value> = Vec::new();
    for (report, said) in reports.iter().zip(["first", "second", "third"]) {
        assert!(String::from_utf8(stored(report)).unwrap().contains(said));
        assert!(!ids.contains(&&report["recording_id"]));
        ids.push(&report["recording_id"]);
    }
}

/// The bytes of the file that a report names, after its size and both hashes were found true.
fn stored(report: &Value) -> Vec<u8> {
    let cast = fs::read(PathBuf::from(report["path"].as_str().unwrap())).unwrap();
    let sha256: String = Sha256::digest(&cast)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(report["sha256_stored"], *sha256);
    assert_eq!(report["sha256_sent"], *sha256);
    assert_eq!(report["bytes"], cast.len());
    cast
}
