//! Each command with wrong input, as its operator meets it: what failed, to what, why, what to do, and the exit code. No recorder runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use bytes::Bytes;
use tailtape::access::Identity;
use tailtape::ids::LogKey;
use tailtape::store::{End, Opening, Store, StoreConfig, StoreUrl};
use tempfile::TempDir;

/// A stream that claims somebody else's name, in signs that would deceive who reads it.
const CAST: &[u8] = b"{\"version\":2,\"width\":80,\"height\":24,\"srcNode\":\"laptop.tail.test.\",\"srcNodeUser\":\"root\\u202e@example.com\"}\n[0.1,\"o\",\"hi\\r\\n\"]\n";

/// A store with one recording.
struct Archive {
    directory: TempDir,
    id: String,
    segment: PathBuf,
}

impl Archive {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("store");
        let key = LogKey::from_bytes([7; LogKey::BYTES]);
        let url = StoreUrl::Local(root.clone());
        let store = Store::open(StoreConfig::new(url, key)).await.unwrap();
        let opening = Opening {
            uploader: Identity {
                stable_id: "nWeb".into(),
                node_name: "web.tail.test".into(),
                user: None,
                tags: vec!["tag:ssh".into()],
                address: "100.64.0.7".parse().unwrap(),
                capabilities: [].into(),
            },
            endpoint: "/v2/record",
            received_at: "2026-11-20T10:15:00Z".parse().unwrap(),
        };
        let mut handle = store.begin(opening).unwrap();
        let id = handle.id().to_string();
        handle.append(Bytes::from_static(CAST)).await.unwrap();
        let end = End {
            clean: true,
            reason: String::new(),
            ended_at: "2026-11-20T10:16:00Z".parse().unwrap(),
            flags: Vec::new(),
        };
        let sealed = handle.finish(end).await.unwrap();
        store.close().await.unwrap();
        let manifest = fs::read(root.join(sealed.manifest_name)).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        let segment = root.join(manifest["segments"][0]["name"].as_str().unwrap());
        Self {
            directory,
            id,
            segment,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn store(&self) -> String {
        self.path("store").to_str().unwrap().to_owned()
    }

    /// `tailtape ls` and `tailtape cat ID` of this store, and more.
    fn reads(&self, more: &[&str]) -> Command {
        let mut command = tailtape(more);
        command.env("TAILTAPE_STORE", self.store());
        command
    }
}

/// The program, with nothing of this environment that could change what it does.
fn tailtape(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tailtape"));
    command.env_clear().stdin(Stdio::null()).args(arguments);
    command
}

/// The exit code, and what was told on stderr.
fn told(output: &Output) -> (Option<i32>, String) {
    let told = String::from_utf8(output.stderr.clone()).unwrap();
    (output.status.code(), told)
}

fn into(path: &Path) -> Stdio {
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .unwrap()
        .into()
}

#[tokio::test]
async fn an_output_without_room_is_told_with_what_to_do() {
    let archive = Archive::new().await;
    let cat = ["cat", &archive.id];
    for arguments in [
        &["ls"][..],
        &["ls", "--json"],
        &cat,
        &["completions", "bash"],
    ] {
        let mut command = archive.reads(arguments);
        let output = command.stdout(into(Path::new("/dev/full"))).output();
        let (code, told) = told(&output.unwrap());
        assert_eq!(code, Some(1), "{arguments:?}: {told}");
        assert!(
            told.starts_with("tailtape: cannot write to stdout\n"),
            "{told}"
        );
        assert!(told.contains("to do: free some room"), "{told}");
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_made_is_told_with_what_to_do_and_a_device_keeps_its_name() {
    let archive = Archive::new().await;
    let absent = archive.path("absent").join("out.cast");
    let file = archive.path("file");
    fs::write(&file, "kept").unwrap();
    let below_a_file = file.join("out.cast");
    for (place, remedy) in [
        (absent.as_path(), "make the directory first"),
        (archive.directory.path(), "name a file"),
        (below_a_file.as_path(), "name a file"),
        (Path::new("/proc/out.cast"), "make the directory first"),
        (Path::new("/dev/full"), "free some room"),
    ] {
        let place = place.to_str().unwrap();
        let output = archive.reads(&["cat", &archive.id, "-o", place]).output();
        let (code, told) = told(&output.unwrap());
        assert_eq!(code, Some(1), "{place}: {told}");
        let expected = format!("tailtape: cannot write to {place}\n");
        assert!(told.starts_with(&expected), "{told}");
        assert!(
            told.contains(&format!("to do: {remedy}")),
            "{place}: {told}"
        );
    }
    assert_eq!(fs::read(&file).unwrap(), b"kept");
    for stdout in ["/dev/stdout", "-"] {
        let output = archive.reads(&["cat", &archive.id, "-o", stdout]).output();
        let output = output.unwrap();
        assert!(
            output.status.success() && output.stdout == CAST,
            "{output:?}"
        );
    }
}

#[tokio::test]
async fn who_closes_stdout_early_hears_nothing() {
    let archive = Archive::new().await;
    for arguments in [&["ls"][..], &["ls", "--json"], &["cat", &archive.id]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = archive.reads(arguments);
        let (code, told) = told(&command.stdout(writer).output().unwrap());
        // As a shell shows the death by SIGPIPE.
        assert_eq!((code, told.as_str()), (Some(141), ""), "{arguments:?}");
    }
}

#[tokio::test]
async fn a_segment_that_is_gone_or_cut_is_told_as_lost_and_to_be_restored() {
    let archive = Archive::new().await;
    fs::write(&archive.segment, &CAST[..10]).unwrap();
    let cat = ["cat", archive.id.as_str()];
    let (code, cut) = told(&archive.reads(&cat).output().unwrap());
    assert_eq!(code, Some(1));
    assert!(cut.contains("is not what the manifest says"), "{cut}");
    assert!(cut.contains("restore it from a copy"), "{cut}");

    fs::remove_file(&archive.segment).unwrap();
    let (code, lost) = told(&archive.reads(&cat).output().unwrap());
    assert_eq!(code, Some(1));
    assert!(lost.contains("is lost: the manifest names it"), "{lost}");
    assert!(
        lost.contains("to do: restore the object that is named from a copy"),
        "{lost}"
    );
}

#[tokio::test]
async fn what_is_proven_and_what_is_claimed_are_listed_apart_and_deceive_nobody() {
    let archive = Archive::new().await;
    let output = archive.reads(&["ls"]).output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Vec<&str>> = table
        .lines()
        .map(|line| {
            line.split("  ")
                .map(str::trim)
                .filter(|cell| !cell.is_empty())
                .collect()
        })
        .collect();
    let heads = ["NODE", "OWNER", "CLAIMED USER"];
    assert_eq!(lines[0][2..5], heads, "{table}");
    assert_eq!(
        lines[1][2..5],
        ["web.tail.test", "tag:ssh", "root·@example.com"]
    );

    let output = archive.reads(&["ls", "--json"]).output().unwrap();
    let json = String::from_utf8(output.stdout).unwrap();
    assert!(!json.contains('\u{202e}'), "{json}");
    let entry: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(entry["claimed"]["user"], "root\u{202e}@example.com");
    assert_eq!(entry["claimed"]["src_node"], "laptop.tail.test");
    assert_eq!(entry["tags"][0], "tag:ssh");
    assert!(entry["owner"].is_null() && entry.get("user").is_none());
    let help = tailtape(&["ls", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    assert!(
        help.contains("CLAIMED USER") && help.contains("nothing proves it"),
        "{help}"
    );
}

#[tokio::test]
async fn questions_that_nothing_can_answer_are_mistakes_of_usage() {
    let archive = Archive::new().await;
    for (arguments, remedy) in [
        (&["ls", "--limit", "0"][..], "a number, 1 or more"),
        (
            &["ls", "--since", "5m", "--until", "10m"],
            "give --since an earlier time",
        ),
        (
            &["ls", "--store", "memory://"],
            "a store that outlives its recorder",
        ),
        (&["ls", "--log", "loud"], "give --log a level"),
    ] {
        let (code, told) = told(&archive.reads(arguments).output().unwrap());
        assert_eq!(code, Some(2), "{told}");
        assert!(told.contains(remedy), "{told}");
    }
}

#[tokio::test]
async fn a_misspelt_variable_is_told_by_its_name_and_never_with_its_value() {
    let archive = Archive::new().await;
    let mut command = archive.reads(&["ls"]);
    command.env("TAILTAPE_STROE", "s3cr3t");
    let output = command.output().unwrap();
    let (code, told) = told(&output);
    assert_eq!(code, Some(0), "{told}");
    assert!(
        told.contains("TAILTAPE_STROE") && told.contains("perhaps TAILTAPE_STORE is meant"),
        "{told}"
    );
    assert!(!told.contains("s3cr3t"), "{told}");
}

#[test]
fn help_that_cannot_be_written_is_a_failure() {
    for what in ["--help", "--version"] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full");
        let output = tailtape(&[what]).stdout(full.unwrap()).output().unwrap();
        let (code, told) = told(&output);
        assert_eq!(code, Some(1), "{told}");
        assert!(told.contains("cannot write to stdout"), "{told}");
    }
}

/// What `serve --check` says of settings that everything else is right with.
fn check(directory: &TempDir, more: &[&str]) -> (Option<i32>, String) {
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let mut command = tailtape(&["serve", "--check", "--store", &path("store")]);
    command.env("HOME", directory.path());
    command.env("TAILTAPE_STATE", path("state"));
    command.env("TAILTAPE_CONTROL_URL", "http://127.0.0.1:1");
    told(&command.args(more).output().unwrap())
}

#[test]
fn a_check_finds_each_setting_that_a_start_would_fail_on_and_names_it() {
    let directory = tempfile::tempdir().unwrap();
    let (code, said) = check(&directory, &["--auth-key-file", "/nowhere"]);
    assert_eq!((code, said.as_str()), (Some(0), ""));
    assert_eq!(
        fs::read_dir(directory.path()).unwrap().count(),
        1,
        "but the store, nothing was made"
    );

    let key = directory.path().join("key");
    fs::write(&key, b"\xff\xfet\0s\0k\0").unwrap();
    let key = key.to_str().unwrap();
    for (flag, value, remedy) in [
        (
            "control_url",
            "http://8.8.8.8",
            "HTTPS is not in this version",
        ),
        (
            "state",
            "/proc/foo",
            "give --state a place that this user may write",
        ),
        (
            "socket",
            "/proc/foo.sock",
            "give --socket a place that this user may write",
        ),
        (
            "auth_key_file",
            key,
            "write the auth key into it, on one line",
        ),
    ] {
        let given = format!("--{}", flag.replace('_', "-"));
        let (code, said) = check(&directory, &[&given, value]);
        assert_eq!(code, Some(2), "{said}");
        let expected = format!("{flag} = {value:?} (from {given}) cannot be used");
        assert!(said.contains(&expected), "{said}");
        assert!(said.contains(remedy), "{said}");
    }
}
