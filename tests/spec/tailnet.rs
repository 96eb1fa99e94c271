//! A tailnet of two nodes on loopback: a recorder with its store on a real disk, and a node that uploads to it over the tunnel.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use netstack::control::AuthKey;
use netstack::devnet::{AuthKeySpec, DevNet, DevNetConfig};
use netstack::io::keystore::KeyStore;
use netstack::io::{Tailnet, TailnetConfig, TcpStream};
use netstack::tcpip::TcpConfig;
use tailtape::dev::Announcing;
use tailtape::ids::LogKey;
use tailtape::ingest::IngestConfig;
use tailtape::recording::frame::FrameKind;
use tailtape::recording::journal_object::JournalObject;
use tailtape::recording::manifest::Manifest;
use tailtape::serve::{RECORDER_PORT, Recorder};
use tailtape::store::{SealedRecording, Store, StoreConfig, StoreUrl};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;

use crate::{PATIENCE, soon};

/// Short, so that many commits fit into a test; the order of things in each is the same.
const COMMIT_INTERVAL: Duration = Duration::from_millis(50);

/// A recorder at work and its uploader, both joined.
pub(crate) struct LoopbackTailnet {
    uploader: Tailnet,
    /// Drives the uploader alone; none once it has vanished.
    uploader_runtime: Option<Runtime>,
    /// Where the recorder takes uploads, on the tailnet.
    pub(crate) address: SocketAddr,
    /// None once a test has taken it, to stop it.
    recorder: Option<Recorder>,
    pub(crate) store: Store,
    sealed: mpsc::Receiver<SealedRecording>,
    directory: TempDir,
    _recorder_node: Tailnet,
    _devnet: DevNet,
}

impl LoopbackTailnet {
    pub(crate) async fn start(config: IngestConfig) -> Self {
        let devnet = DevNet::start(DevNetConfig::default()).await.unwrap();
        let recorder_node = settings(&devnet, "recorder", &["tag:recorder"]);
        let recorder_node = Tailnet::join(recorder_node, PATIENCE).await.unwrap();
        let uploader_runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let joining = settings(&devnet, "ssh-node", &[]);
        let joining = uploader_runtime.spawn(Tailnet::join(joining, PATIENCE));
        let uploader = joining.await.unwrap().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(StoreConfig {
            commit_interval: COMMIT_INTERVAL,
            ..StoreConfig::new(
                StoreUrl::Local(directory.path().to_owned()),
                LogKey::from_bytes([7; LogKey::BYTES]),
            )
        })
        .await
        .unwrap();
        let (sink, sealed) = Announcing::new(store.clone());
        let recorder = Recorder::start(&recorder_node, sink, config).unwrap();
        let address = SocketAddr::new(recorder_node.status().addresses[0], RECORDER_PORT);
        Self {
            uploader,
            uploader_runtime: Some(uploader_runtime),
            address,
            recorder: Some(recorder),
            store,
            sealed,
            directory,
            _recorder_node: recorder_node,
            _devnet: devnet,
        }
    }

    /// The node that uploads.
    pub(crate) fn uploader(&self) -> &Tailnet {
        &self.uploader
    }

    /// A connection from there to the recorder.
    pub(crate) async fn dial(&self) -> TcpStream {
        soon("a dial", self.uploader.dial(self.address))
            .await
            .unwrap()
    }

    /// Ends the node that uploads, in the middle of everything and without a word: nothing drives it any more.
    pub(crate) fn vanish(&mut self) {
        if let Some(runtime) = self.uploader_runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// The recorder, to be stopped.
    pub(crate) fn take_recorder(&mut self) -> Recorder {
        self.recorder.take().unwrap()
    }

    pub(crate) fn root(&self) -> &Path {
        self.directory.path()
    }

    /// The manifest of the next recording that is sealed.
    pub(crate) async fn next_manifest(&mut self) -> Manifest {
        let sealed = soon("a seal", self.sealed.recv()).await.unwrap();
        self.store.manifest(&sealed.manifest_name).await.unwrap()
    }

    /// The stream of a sealed recording, read from its files without the store.
    pub(crate) fn stored(&self, manifest: &Manifest) -> Vec<u8> {
        let segments = manifest.segments.iter();
        segments
            .flat_map(|segment| std::fs::read(self.root().join(&segment.name)).unwrap())
            .collect()
    }

    /// Where the recorder of this test commits: the directory of its one epoch.
    pub(crate) fn epoch_directory(&self) -> PathBuf {
        let only = |directory: PathBuf| {
            let mut entries = std::fs::read_dir(directory).unwrap();
            let entry = entries.next().unwrap().unwrap().path();
            assert!(entries.next().is_none());
            entry
        };
        only(only(self.root().join("journal")))
    }

    /// The bytes of the only recording in the journal, read from its files without the store.
    pub(crate) fn journalled(&self) -> Vec<u8> {
        let mut stream = Vec::new();
        for (offset, bytes) in self.frames(FrameKind::Data) {
            assert_eq!(offset, stream.len() as u64);
            stream.extend_from_slice(&bytes);
        }
        stream
    }

    /// The lines of the events in the journal, read in the same way.
    pub(crate) fn journalled_events(&self) -> Vec<String> {
        let lines = self.frames(FrameKind::Event).into_iter();
        lines
            .map(|(_, line)| String::from_utf8(line).unwrap())
            .collect()
    }

    /// Offset and plain bytes of all frames of a kind, in order.
    fn frames(&self, kind: FrameKind) -> Vec<(u64, Vec<u8>)> {
        let mut names: Vec<PathBuf> = std::fs::read_dir(self.epoch_directory())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        names.sort();
        let mut found = Vec::new();
        for name in names {
            if name.to_string_lossy().contains('#') {
                continue; // A commit under way: it counts from its link on.
            }
            let bytes = std::fs::read(&name).unwrap();
            for frame in JournalObject::decode(&bytes).unwrap().frames() {
                let frame = frame.unwrap();
                if frame.kind == kind {
                    found.push((frame.offset.0, frame.plain().unwrap().into_owned()));
                }
            }
        }
        found
    }
}

impl Drop for LoopbackTailnet {
    fn drop(&mut self) {
        self.vanish();
    }
}

/// A node that is to join `devnet`, on loopback and without a state.
pub(crate) fn settings(devnet: &DevNet, hostname: &str, tags: &[&str]) -> TailnetConfig {
    let spec = AuthKeySpec {
        user: devnet.add_user("you@example.com"),
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        reusable: false,
        ephemeral: false,
    };
    TailnetConfig {
        control_url: devnet.url(),
        hostname: hostname.to_owned(),
        auth_key: Some(AuthKey::new(&devnet.auth_key(spec).unwrap())),
        ephemeral: false,
        app: "tailtape".to_owned(),
        version_text: "spec".to_owned(),
        keys: KeyStore::ephemeral(),
        bind: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
        udp_offload: true,
        tcp: TcpConfig::default(),
    }
}
