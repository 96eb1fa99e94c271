//! `tailtape serve` as a child process, in a devnet of this test: its settings in files, its log in a file, its store in a directory.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use netstack::devnet::{AuthKeySpec, DevNet, DevNetConfig};
use netstack::io::Tailnet;
use rustix::process::{Pid, Signal, kill_process};
use tailtape::serve::RECORDER_PORT;
use tailtape::status::{Client, Phase, Status};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::process::{Sockets, sockets_of};
use crate::tailnet::settings;
use crate::{PATIENCE, soon};

/// Between two looks at something that another process does.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A devnet, a node that uploads, and a directory for one recorder.
pub(crate) struct Site {
    pub(crate) devnet: DevNet,
    pub(crate) uploader: Tailnet,
    directory: TempDir,
}

/// A running recorder; killed when dropped.
pub(crate) struct Service {
    child: Child,
    pub(crate) client: Client,
    log: PathBuf,
}

impl Site {
    /// Its settings have everything that a recorder needs, and `more`.
    pub(crate) async fn new(more: &str) -> Self {
        let devnet = DevNet::start(DevNetConfig::default()).await.unwrap();
        let uploader = settings(&devnet, "ssh-node", &[]);
        let uploader = Tailnet::join(uploader, PATIENCE).await.unwrap();
        let site = Self {
            devnet,
            uploader,
            directory: tempfile::tempdir().unwrap(),
        };
        fs::write(site.path("auth-key"), site.auth_key()).unwrap();
        site.write_settings(more);
        site
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A new key, good for one recorder.
    pub(crate) fn auth_key(&self) -> String {
        let spec = AuthKeySpec {
            user: self.devnet.add_user("you@example.com"),
            tags: vec!["tag:recorder".to_owned()],
            reusable: false,
            ephemeral: false,
        };
        self.devnet.auth_key(spec).unwrap()
    }

    pub(crate) fn write_settings(&self, more: &str) {
        let text = format!(
            "store = {:?}\ncontrol_url = {:?}\nauth_key_file = {:?}\nstate = {:?}\ncommit_interval = \"50ms\"\n{more}\n",
            self.path("store"),
            self.devnet.url(),
            self.path("auth-key"),
            self.path("state"),
        );
        fs::write(self.path("tailtape.toml"), text).unwrap();
    }

    /// The program, with nothing of this environment that could change what it does.
    pub(crate) fn tailtape(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tailtape"));
        command
            .env_clear()
            .env("HOME", self.directory.path())
            .env("TAILTAPE_STATE", self.path("state"))
            .stdin(Stdio::null())
            .args(arguments)
            .kill_on_drop(true);
        command
    }

    /// Runs the program to its end.
    pub(crate) async fn output(&self, arguments: &[&str]) -> Output {
        let output = self.tailtape(arguments).output();
        soon("the end of a command", output).await.unwrap()
    }

    /// `serve`, not ready yet.
    pub(crate) fn start(&self, log: &str) -> Service {
        let log = self.path(log);
        let settings = self.path("tailtape.toml");
        let mut command = self.tailtape(&["serve", "--config", settings.to_str().unwrap()]);
        let stderr = fs::File::create(&log).unwrap();
        let child = command
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .unwrap();
        Service {
            child,
            client: Client::new(&self.path("state").join("tailtape.sock")),
            log,
        }
    }

    /// `serve`, joined, healthy, and known to the uploader.
    pub(crate) async fn serve(&self, log: &str) -> Service {
        let mut service = self.start(log);
        service
            .until("health", |service| {
                let client = service.client.clone();
                async move { client.health().await.is_ok_and(|health| health.healthy()) }
            })
            .await;
        // Control tells each node by itself, so the recorder may know that it has joined before others do.
        let own = service.address().await.ip();
        let mut watch = self.uploader.watch();
        let is_known = || {
            let peers = self.uploader.status().peers;
            peers.iter().any(|peer| peer.addresses.contains(&own))
        };
        while !is_known() {
            soon("the recorder in the uploader's netmap", watch.changed())
                .await
                .unwrap();
        }
        service
    }
}

impl Service {
    pub(crate) async fn status(&self) -> Status {
        self.client.status().await.unwrap()
    }

    /// Where it takes uploads, on the tailnet.
    pub(crate) async fn address(&self) -> SocketAddr {
        SocketAddr::new(self.status().await.node.addresses[0], RECORDER_PORT)
    }

    /// Looks until it is so; panics with the log if it never is, or if the process ends.
    pub(crate) async fn until<F: Future<Output = bool>>(
        &mut self,
        what: &str,
        mut is_so: impl FnMut(&Self) -> F,
    ) {
        let seen = async {
            while !is_so(self).await {
                if let Some(status) = self.child.try_wait().unwrap() {
                    return Err(status);
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            Ok(())
        };
        let seen = tokio::time::timeout(PATIENCE, seen).await;
        assert!(
            matches!(seen, Ok(Ok(()))),
            "{what}: {seen:?}\n{}",
            self.log()
        );
    }

    /// Until the log has the text.
    pub(crate) async fn until_logged(&mut self, text: &str) {
        self.until(text, |service| {
            let logged = service.log().contains(text);
            async move { logged }
        })
        .await;
    }

    /// Until new uploads are refused.
    pub(crate) async fn until_draining(&mut self) {
        self.until("draining", |service| {
            let client = service.client.clone();
            async move { client.status().await.unwrap().phase == Phase::Draining }
        })
        .await;
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    pub(crate) fn process(&self) -> u32 {
        self.child.id().unwrap()
    }

    pub(crate) fn sockets(&self) -> Sockets {
        sockets_of(self.child.id().unwrap())
    }

    /// The most memory that it ever had resident (`VmHWM`).
    pub(crate) fn memory_peak_bytes(&self) -> u64 {
        let pid = self.child.id().unwrap();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:"));
        let kib: u64 = line
            .unwrap()
            .split_whitespace()
            .nth(1)
            .unwrap()
            .parse()
            .unwrap();
        kib << 10
    }

    pub(crate) async fn end(&mut self) -> ExitStatus {
        soon("the end of the recorder", self.child.wait())
            .await
            .unwrap()
    }
}

/// The names in a directory, sorted.
pub(crate) fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
