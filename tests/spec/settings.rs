//! What the binary says of settings: nothing of a secret, and before a start all that the start would fail on.

use std::fs;
use std::net::UdpSocket;
use std::os::unix::net::UnixListener;

use rustix::process::Signal;
use serde_json::Value;

use crate::service::{Site, names};

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

async fn check(site: &Site, more: &[&str]) -> (Option<i32>, Value, String) {
    let settings = site.path("tailtape.toml");
    let fixed = ["serve", "--check", "--json", "--config"];
    let fixed = [&fixed[..], &[settings.to_str().unwrap()]].concat();
    let output = site.output(&[&fixed[..], more].concat()).await;
    let shown = serde_json::from_slice(&output.stdout).unwrap();
    (output.status.code(), shown, text(&output.stderr))
}

#[tokio::test]
async fn a_secret_in_the_wrong_place_is_on_neither_stdout_nor_stderr() {
    let site = Site::new("").await;
    let settings = site.path("tailtape.toml");
    let settings = settings.to_str().unwrap();
    let bare = fs::read_to_string(settings).unwrap();
    let none = |name: &str| {
        let kept = bare.lines().filter(|line| !line.starts_with(name));
        kept.map(|line| format!("{line}\n")).collect::<String>()
    };
    for (arguments, file) in [
        (
            vec!["--control-url", "http://op:s3cr3t@h:8080"],
            bare.clone(),
        ),
        (vec!["--auth-key-file", "tskey-auth-s3cr3t"], bare.clone()),
        (vec!["--auth-key-file=tskey-auth-s3cr3t"], bare.clone()),
        (vec!["--auth-key=tskey-auth-s3cr3t"], bare.clone()),
        (vec!["--auth-key", "tskey-auth-s3cr3t"], bare.clone()),
        (vec!["tskey-auth-s3cr3t"], bare.clone()),
        (
            vec!["--store", "s3://AKIA:s3cr3t@host/bucket"],
            bare.clone(),
        ),
        (
            vec!["--store", "s3://bucket?secret_key=s3cr3t"],
            bare.clone(),
        ),
        (vec!["--log", "tailtape=tskey-auth-s3cr3t"], bare.clone()),
        (
            vec![],
            none("auth_key_file") + "auth_key_file = \"tskey-auth-s3cr3t\n",
        ),
        (
            vec![],
            none("auth_key_file") + "auth_key = \"tskey-auth-s3cr3t\"\n",
        ),
        (
            vec![],
            none("control_url") + "control_url = \"http://op:s3cr3t@h\"\n",
        ),
        (vec![], none("store") + "store = \"gs://k:s3cr3t@b\"\n"),
    ] {
        fs::write(settings, file).unwrap();
        for mode in [&["--check"][..], &["--check", "--json"], &[]] {
            let all = [&["serve", "--config", settings], mode, &arguments].concat();
            let output = site.output(&all).await;
            assert_eq!(output.status.code(), Some(2), "{all:?}: {output:?}");
            let said = text(&output.stdout) + &text(&output.stderr);
            assert!(!said.contains("s3cr3t"), "{all:?}: {said}");
            assert!(!output.stderr.is_empty());
        }
    }
    for command in [
        vec!["ls", "--store", "s3://AKIA:s3cr3t@host/bucket"],
        vec!["cat", "tskey-auth-s3cr3t", "--store", "/nowhere"],
        vec!["ls", "--limit", "tskey-auth-s3cr3t"],
    ] {
        let output = site.output(&command).await;
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(!text(&output.stderr).contains("s3cr3t"), "{output:?}");
    }
}

#[tokio::test]
async fn an_auth_key_where_the_name_of_its_file_belongs_is_told_as_that() {
    let site = Site::new("").await;
    let settings = site.path("tailtape.toml");
    let key = ["--auth-key-file", "tskey-auth-s3cr3t"];
    let output = site
        .output(&[&["serve", "--config", settings.to_str().unwrap()][..], &key].concat())
        .await;
    assert_eq!(
        text(&output.stderr),
        "tailtape: auth_key_file = \"…\" (from --auth-key-file) cannot be used\n  to do: this looks like an auth key itself: write it into a \
         file and name the file here. Others may have seen it: make a new key\n"
    );
}

#[tokio::test]
async fn a_check_of_a_first_start_makes_nothing_and_says_how_the_node_will_join() {
    let site = Site::new("").await;
    let (code, shown, told) = check(&site, &[]).await;
    assert_eq!(code, Some(0), "{told}");
    let said = |of: &str| shown[of].as_str().unwrap_or_default().to_owned();
    assert!(
        said("state").contains("is made at the start; the node joins with the auth key"),
        "{shown}"
    );
    assert!(said("socket").ends_with("can be made"), "{shown}");
    assert!(
        said("tunnel").contains("127.0.0.1:0 can be bound"),
        "{shown}"
    );
    assert!(!site.path("state").exists());

    fs::remove_file(site.path("auth-key")).unwrap();
    let (code, shown, told) = check(&site, &[]).await;
    assert_eq!(code, Some(0), "{told}");
    assert!(
        shown["state"]
            .as_str()
            .unwrap()
            .contains("a person must visit"),
        "{shown}"
    );
}

#[tokio::test]
async fn a_check_finds_what_a_start_would_fail_on_and_tells_all_of_it() {
    let site = Site::new("").await;
    // A state that is a file, and a socket's place that is taken by another file.
    fs::write(site.path("state"), "").unwrap();
    fs::write(site.path("taken"), "").unwrap();
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let socket = site.path("taken");
    let more = [
        "--socket",
        socket.to_str().unwrap(),
        "--udp-address",
        "127.0.0.1",
        "--udp-port",
        &port,
    ];
    let (code, shown, told) = check(&site, &more).await;
    assert_eq!(code, Some(2), "{told}");
    assert_eq!(shown["store"], "proven");
    let error = |of: &str| shown[of]["error"].as_str().unwrap_or_default().to_owned();
    assert!(
        error("state").contains("cannot keep the recorder's state"),
        "{shown}"
    );
    assert!(error("socket").contains("is no socket"), "{shown}");
    assert!(
        error("tunnel").contains("as the tunnel's UDP address"),
        "{shown}"
    );
    assert!(
        told.contains("cannot keep the recorder's state") && told.contains("to do: "),
        "{told}"
    );

    // An address that is not this host's (RFC 5737), and a store whose id is none.
    fs::remove_file(site.path("state")).unwrap();
    let id = site.path("store").join("store").join("id");
    fs::create_dir_all(id.parent().unwrap()).unwrap();
    fs::write(&id, "somebody's else").unwrap();
    let (code, shown, told) = check(&site, &["--udp-address", "192.0.2.1"]).await;
    assert_eq!(code, Some(1), "{told}");
    let error = |of: &str| shown[of]["error"].as_str().unwrap_or_default().to_owned();
    assert!(error("tunnel").contains("192.0.2.1"), "{shown}");
    assert!(
        error("store").contains("is not what this store wrote there"),
        "{shown}"
    );
    assert_eq!(fs::read_to_string(&id).unwrap(), "somebody's else");
    let mut service = site.start("log");
    assert_eq!(
        service.end().await.code(),
        Some(1),
        "a start fails on it too"
    );
    assert!(
        service.log().contains("is not what this store wrote there"),
        "{}",
        service.log()
    );
}

#[tokio::test]
async fn a_check_beside_the_recorder_names_its_process_and_disturbs_nothing() {
    let site = Site::new("").await;
    let mut service = site.serve("log").await;
    let tunnel = service.status().await.node.tunnel[0];
    let before = names(&site.path("state"));
    let port = tunnel.port().to_string();
    let address = tunnel.ip().to_string();
    let (code, shown, told) = check(&site, &["--udp-address", &address, "--udp-port", &port]).await;
    assert_eq!(code, Some(0), "{told}");
    let process = format!("process {}", service.process());
    for of in ["state", "socket"] {
        assert!(shown[of].as_str().unwrap().contains(&process), "{shown}");
    }
    assert!(
        shown["tunnel"]
            .as_str()
            .unwrap()
            .contains("is that of the recorder that runs"),
        "{shown}"
    );
    assert_eq!(names(&site.path("state")), before);
    assert!(service.client.health().await.unwrap().healthy());

    // The same state, but a socket at which nobody answers: a second recorder that would not start.
    let elsewhere = site.path("other.sock");
    let (code, shown, _) = check(&site, &["--socket", elsewhere.to_str().unwrap()]).await;
    assert_eq!(code, Some(1));
    assert!(
        shown["state"]["error"].as_str().unwrap().contains("in use"),
        "{shown}"
    );

    // A copy of the state, as a careless move to another host leaves one.
    let copy = site.path("copy");
    fs::create_dir(&copy).unwrap();
    for name in &before {
        let from = site.path("state").join(name);
        if from.is_file() && !name.starts_with('.') {
            fs::copy(from, copy.join(name)).unwrap();
        }
    }
    let (code, shown, told) = check(&site, &["--state", copy.to_str().unwrap()]).await;
    assert_eq!(code, Some(0), "{told}");
    assert!(
        shown["state"]
            .as_str()
            .unwrap()
            .ends_with("a start would fence it"),
        "{shown}"
    );
    service.signal(Signal::TERM);
    assert!(service.end().await.success(), "{}", service.log());

    // The state is free, but another program answers at the socket.
    let other = UnixListener::bind(&elsewhere).unwrap();
    let (code, shown, _) = check(&site, &["--socket", elsewhere.to_str().unwrap()]).await;
    assert_eq!(code, Some(1));
    assert!(
        shown["socket"]["error"]
            .as_str()
            .unwrap()
            .contains("another recorder serves"),
        "{shown}"
    );
    assert!(
        shown["state"].as_str().unwrap().ends_with("has a node key"),
        "{shown}"
    );
    drop(other);
    // Nobody serves it any more: a start would replace it.
    let (code, shown, told) = check(&site, &["--socket", elsewhere.to_str().unwrap()]).await;
    assert_eq!(code, Some(0), "{told}");
    assert!(
        shown["socket"].as_str().unwrap().ends_with("can be made"),
        "{shown}"
    );
    assert!(elsewhere.exists(), "it is not removed by a look");
}

#[tokio::test]
async fn a_flag_whose_value_was_forgotten_does_not_take_the_next_one() {
    let site = Site::new("").await;
    let output = site.output(&["serve", "--store", "--check"]).await;
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let told = text(&output.stderr);
    assert!(told.contains("no value was given before it"), "{told}");
}
