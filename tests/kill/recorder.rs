//! `tailtape serve` as a child process, on a store and a state of the run.
//!
//! Invariant: it is killed by its own pid, and never outlives its handle. Started and killed by the rounds.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tailtape::status::{Client, Status};
use tokio::process::{Child, Command};

use crate::raw::{Names, stays};
use crate::{quoted, soon};

/// Short, so that many commits, and acks, fit between a start and a kill.
const COMMIT_INTERVAL: &str = "50ms";
/// Between two looks at another process, which has no other way to say that something has come.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// Where a run keeps what it has on the disk.
pub(crate) struct Home(PathBuf);

pub(crate) struct Recorder {
    child: Child,
    status: Client,
    log: PathBuf,
}

impl Home {
    pub(crate) fn new(root: &Path, recorder_key: &str) -> Self {
        let home = Self(root.to_owned());
        fs::write(home.auth_key_file(), recorder_key).unwrap();
        home
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.0.join("store")
    }

    fn state(&self) -> PathBuf {
        self.0.join("state")
    }

    fn auth_key_file(&self) -> PathBuf {
        self.0.join("auth-key")
    }

    /// All that a recorder knew of itself is gone: its node, and the key of its log.
    pub(crate) fn lose_state(&self) {
        match fs::remove_dir_all(self.state()) {
            Ok(()) => {}
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}"),
        }
    }
}

impl Recorder {
    pub(crate) fn start(home: &Home, control_url: &str) -> Self {
        let log = home.0.join("log");
        let stderr = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        let store = format!("file://{}", home.store().display());
        let child = Command::new(env!("CARGO_BIN_EXE_tailtape"))
            .args(["serve", "--store", &store, "--control-url", control_url])
            .args([
                "--commit-interval",
                COMMIT_INTERVAL,
                "--disk-free-min",
                "1MiB",
            ])
            .arg("--state")
            .arg(home.state())
            .arg("--auth-key-file")
            .arg(home.auth_key_file())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self {
            child,
            status: Client::new(&home.state().join("tailtape.sock")),
            log,
        }
    }

    /// Its tailnet address, once it has joined.
    pub(crate) async fn joined(&mut self) -> IpAddr {
        let status = self.until("joined", |status| status.control.joined).await;
        status.node.addresses[0]
    }

    /// Its status, once that is as wanted.
    pub(crate) async fn until(&mut self, what: &str, wanted: impl Fn(&Status) -> bool) -> Status {
        let looking = async {
            loop {
                if let Some(status) = self.child.try_wait().unwrap() {
                    let log = fs::read_to_string(&self.log).unwrap_or_default();
                    panic!("the recorder ended by itself: {status}\n{}", quoted(&log));
                }
                // It does not answer before it has begun to listen.
                if let Ok(status) = self.status.status().await
                    && wanted(&status)
                {
                    return status;
                }
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        };
        soon(what, looking).await
    }

    /// Waits until it has closed what the recorders before it left: each of their epochs fenced, sealed and trimmed.
    pub(crate) async fn until_recovered(&mut self, home: &Home) {
        self.until("recovery", |status| {
            status.store.recovery.as_deref() == Some("done")
        })
        .await;
        assert!(
            recovered(&home.store()),
            "recovery says that it is done, and the journal has more than openers and fences"
        );
    }

    /// Waits until it has removed `orphans`, the segments of attempts to seal that nobody needs.
    pub(crate) async fn until_swept(&mut self, home: &Home, orphans: &BTreeSet<String>) {
        let store = home.store();
        let gone = |_: &Status| orphans.iter().all(|name| !store.join(name).exists());
        self.until("the sweep", gone).await;
    }

    /// SIGKILL. Panics if it had ended by itself before.
    pub(crate) async fn kill(mut self) {
        let by_itself = self.child.try_wait().unwrap();
        assert_eq!(by_itself, None, "the recorder ended by itself");
        self.child.kill().await.unwrap();
    }

    /// SIGTERM, and a good end.
    pub(crate) async fn stop(mut self) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
        let ended = soon("its end", self.child.wait()).await.unwrap();
        assert!(ended.success(), "after SIGTERM: {ended}");
    }
}

/// Whether the journal holds openers and fences alone, and no epoch but the running recorder's is without a fence.
fn recovered(store: &Path) -> bool {
    let names = Names::below(store).journal;
    let epochs: BTreeSet<&str> = names
        .iter()
        .filter_map(|name| Some(name.rsplit_once('/')?.0))
        .collect();
    // A file that goes while it is looked at is one that recovery removes.
    let objects = names
        .iter()
        .map(|name| fs::read(store.join(name)).unwrap_or_default());
    let kinds: Vec<bool> = objects.map(|object| stays(&object)).collect();
    kinds.iter().all(|stays| *stays) && kinds.len() + 1 >= 2 * epochs.len()
}
