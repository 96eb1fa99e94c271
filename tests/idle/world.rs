//! Where it happens: a devnet, the node that sends, and a directory for the recorder.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use netstack::control::AuthKey;
use netstack::devnet::{AuthKeySpec, DevNet, DevNetConfig};
use netstack::io::keystore::KeyStore;
use netstack::io::{Tailnet, TailnetConfig};
use netstack::tcpip::TcpConfig;
use tailtape::status::Client;
use tempfile::TempDir;
use tokio::process::Command;

use crate::process::Recorder;
use crate::{PATIENCE, soon};

/// Above any number of sessions that a run may ask for, and the control's beside them.
const CONNECTIONS_MAX: usize = 32_768;

pub(crate) struct World {
    devnet: DevNet,
    sender: Tailnet,
    directory: TempDir,
}

impl World {
    pub(crate) async fn start() -> Self {
        let devnet = DevNet::start(DevNetConfig::default()).await.unwrap();
        let sender = settings(&devnet.url(), "ssh-node", &key(&devnet));
        let sender = Tailnet::join(sender, PATIENCE).await.unwrap();
        Self {
            devnet,
            sender,
            directory: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn sender(&self) -> &Tailnet {
        &self.sender
    }

    pub(crate) fn control_url(&self) -> String {
        self.devnet.url()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A file with a new auth key.
    pub(crate) fn key_file(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, key(&self.devnet)).unwrap();
        path
    }

    /// `tailtape serve` with defaults for all but how many sessions it takes.
    pub(crate) async fn recorder(&self, sessions: usize) -> Recorder {
        let settings = format!(
            "store = {:?}\ncontrol_url = {:?}\nauth_key_file = {:?}\nstate = {:?}\ndisk_free_min = \"1MiB\"\n\
             recordings_max = {sessions}\nrecordings_per_node_max = {sessions}\nconnections_per_peer_max = {}\n",
            self.path("store"),
            self.devnet.url(),
            self.key_file("auth-key"),
            self.path("state"),
            sessions + 1,
        );
        let file = self.path("tailtape.toml");
        fs::write(&file, settings).unwrap();
        let log = self.path("log");
        let mut command = Command::new(env!("CARGO_BIN_EXE_tailtape"));
        command
            .env_clear()
            .env("HOME", self.directory.path())
            .args(["serve", "--config"])
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).unwrap());
        let client = Client::new(&self.path("state").join("tailtape.sock"));
        let recorder = Recorder::start(command, client, log).await;
        self.until_reachable(recorder.address).await;
        recorder
    }

    /// Until the sender knows of the node at `address`.
    pub(crate) async fn until_reachable(&self, address: SocketAddr) {
        let mut progress = self.sender.watch();
        let known = || {
            let peers = self.sender.status().peers;
            peers
                .iter()
                .any(|peer| peer.addresses.contains(&address.ip()))
        };
        soon("the far end in the netmap", async {
            while !known() {
                progress.changed().await.unwrap();
            }
        })
        .await;
    }

    /// Every object of the journal, by its path.
    pub(crate) fn journal_names(&self) -> BTreeSet<PathBuf> {
        let mut names = BTreeSet::new();
        collect(&self.path("store").join("journal"), &mut names);
        names
    }
}

fn collect(directory: &Path, names: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, names);
        } else {
            names.insert(path);
        }
    }
}

fn key(devnet: &DevNet) -> String {
    let spec = AuthKeySpec {
        user: devnet.add_user("you@example.com"),
        tags: vec!["tag:recorder".to_owned()],
        reusable: false,
        ephemeral: false,
    };
    devnet.auth_key(spec).unwrap()
}

/// A node that is to join the devnet at `control_url`, on loopback and without a state.
pub(crate) fn settings(control_url: &str, hostname: &str, key: &str) -> TailnetConfig {
    TailnetConfig {
        control_url: control_url.to_owned(),
        hostname: hostname.to_owned(),
        auth_key: Some(AuthKey::new(key)),
        ephemeral: false,
        app: "tailtape".to_owned(),
        version_text: "idle".to_owned(),
        keys: KeyStore::ephemeral(),
        bind: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
        udp_offload: true,
        tcp: TcpConfig {
            connections_max: CONNECTIONS_MAX,
            connections_per_peer_max: CONNECTIONS_MAX,
            ..TcpConfig::default()
        },
    }
}
