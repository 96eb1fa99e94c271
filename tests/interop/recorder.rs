//! The recorder under test: ours, in this process, on a devnet of ours, with its store on disk. What it stored is judged as an
//! outsider would: from the files, not from what passed through memory. Called by the test in `main.rs`.

use std::fs::{self, File};
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, ensure};
use netstack::control::AuthKey;
use netstack::io::keystore::KeyStore;
use netstack::io::{Tailnet, TailnetConfig};
use netstack::tcpip::TcpConfig;
use sha2::{Digest, Sha256};
use tailtape::ids::RecordingId;
use tailtape::ingest::IngestConfig;
use tailtape::recording::manifest::{FLAG_COMPLETE, Manifest};
use tailtape::recording::seal::HexDigest;
use tailtape::serve::{self, RECORDER_PORT, Recorder};
use tailtape::store::{Store, StoreConfig, StoreUrl};
use tokio::runtime::Runtime;

use crate::bench::Bench;
use crate::devnet::{OwnControl, USER};
use crate::recclient::{Report, Upload};

/// Everything is on one machine.
const JOIN_LIMIT: Duration = Duration::from_secs(20);
/// Nothing runs any more when it is stopped.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// Pieces in which a stored file is hashed.
const READ_BYTES: usize = 64 * 1024;

/// A running recorder.
#[derive(Debug)]
pub(crate) struct OwnRecorder {
    node: Tailnet,
    recorder: Recorder,
    store: Store,
    store_root: PathBuf,
    runtime: Runtime,
    log: PathBuf,
    /// What [`OwnRecorder::assert_stored`] has seen.
    judged: Vec<RecordingId>,
}

impl OwnRecorder {
    /// Joins `control` as its recorder and listens. Its log goes to `recorder.log`.
    pub(crate) fn start(bench: &Bench, control: &OwnControl) -> anyhow::Result<Self> {
        log_to(bench.create_log("recorder")?)?;
        Self::launch(bench, control)
    }

    /// Stops it and starts it anew with the same state and store.
    pub(crate) fn restart(self, bench: &Bench, control: &OwnControl) -> anyhow::Result<Self> {
        let judged = self.judged.clone();
        self.stop()?;
        Ok(Self {
            judged,
            ..Self::launch(bench, control)?
        })
    }

    fn launch(bench: &Bench, control: &OwnControl) -> anyhow::Result<Self> {
        let runtime = Runtime::new().context("starting a runtime")?;
        let store_root = bench.directory("store")?;
        let (node, recorder, store) = runtime.block_on(async {
            let mut keys = KeyStore::open(bench.directory("state")?)?;
            let log_key = serve::log_key(&mut keys)?;
            let url = StoreUrl::Local(store_root.clone());
            let store = Store::open(StoreConfig::new(url, log_key)).await?;
            let node = Tailnet::join(
                TailnetConfig {
                    control_url: control.url(),
                    hostname: "recorder".to_owned(),
                    auth_key: Some(AuthKey::new(control.recorder_key())),
                    ephemeral: false,
                    app: "tailtape".to_owned(),
                    version_text: env!("CARGO_PKG_VERSION").to_owned(),
                    keys,
                    bind: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
                    udp_offload: true,
                    tcp: TcpConfig::default(),
                },
                JOIN_LIMIT,
            )
            .await?;
            let recorder = Recorder::start(&node, store.clone(), IngestConfig::default())?;
            anyhow::Ok((node, recorder, store))
        })?;
        Ok(Self {
            node,
            recorder,
            store,
            store_root,
            runtime,
            log: bench.log("recorder"),
            judged: Vec::new(),
        })
    }

    /// Where it is in the tailnet, over IPv4 or IPv6.
    pub(crate) fn address(&self, ipv4: bool) -> anyhow::Result<SocketAddr> {
        let status = self.node.status();
        let address = status.addresses.iter().find(|ip| ip.is_ipv4() == ipv4);
        let ip = address.with_context(|| format!("no address: {status:?}"))?;
        Ok(SocketAddr::new(*ip, RECORDER_PORT))
    }

    /// Proves that each upload of `report`, and nothing else since the last call, is stored whole of that node, under the identity of the node that sent it. The manifest must be
    /// there already: it is written before the response ends.
    pub(crate) fn assert_stored(&mut self, report: &Report) -> anyhow::Result<()> {
        let mut manifests = manifests(&self.store_root.join("recordings"))?;
        manifests.retain(|manifest| {
            manifest.uploader.stable_id == report.stable_id
                && !self.judged.contains(&manifest.recording_id)
        });
        self.judged
            .extend(manifests.iter().map(|manifest| manifest.recording_id));
        ensure!(
            manifests.len() == report.uploads.len(),
            "{} recordings are stored of {report:?}",
            manifests.len()
        );
        for upload in &report.uploads {
            let manifest = manifests
                .iter()
                .find(|manifest| manifest.cast_sha256.to_string() == upload.sha256_sent)
                .with_context(|| format!("nothing stored has the hash of {upload:?}"))?;
            self.assert_whole(manifest, upload)?;
            let uploader = &manifest.uploader;
            let user = uploader.user.as_ref().map(|user| user.login.as_str());
            ensure!(
                report.addresses.contains(&uploader.address)
                    && user == Some(USER)
                    && uploader.tags.is_empty(),
                "{report:?} is stored as of {uploader:?}"
            );
        }
        Ok(())
    }

    fn assert_whole(&self, manifest: &Manifest, upload: &Upload) -> anyhow::Result<()> {
        let mut hash = Sha256::new();
        let mut bytes = 0_u64;
        for segment in &manifest.segments {
            bytes += hash_file(&self.store_root.join(&segment.name), &mut hash)?;
        }
        let digest = HexDigest(hash.finalize().into()).to_string();
        ensure!(
            digest == upload.sha256_sent && bytes == upload.bytes_sent,
            "{bytes} bytes with the hash {digest} are stored of {upload:?}"
        );
        ensure!(
            manifest.clean && manifest.flags == [FLAG_COMPLETE],
            "stored with flags {:?}, {:?}",
            manifest.flags,
            manifest.reason
        );
        // The clients write one line per event, after the header.
        ensure!(
            manifest.event_count + 1 == upload.lines_sent,
            "{} events of {upload:?}",
            manifest.event_count
        );
        Ok(())
    }

    /// Stops it in order: uploads first, the store last. It must have had nothing to complain about.
    pub(crate) fn stop(self) -> anyhow::Result<()> {
        let Self {
            node,
            recorder,
            store,
            runtime,
            log,
            ..
        } = self;
        runtime.block_on(async {
            ensure!(recorder.stop(STOP_LIMIT).await, "uploads were still open");
            drop(node);
            store.close().await.context("closing the store")
        })?;
        let log = fs::read_to_string(&log).with_context(|| format!("reading {}", log.display()))?;
        let is_complaint = |line: &&str| line.contains(" WARN ") || line.contains(" ERROR ");
        let complaints: Vec<&str> = log.lines().filter(is_complaint).collect();
        ensure!(complaints.is_empty(), "our own log: {complaints:#?}");
        Ok(())
    }
}

/// All manifests below `directory`.
fn manifests(directory: &Path) -> anyhow::Result<Vec<Manifest>> {
    let mut found = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        let entries = fs::read_dir(&directory);
        for entry in entries.with_context(|| format!("listing {}", directory.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                directories.push(path);
            } else if path
                .extension()
                .is_some_and(|extension| extension == "json")
            {
                let bytes = fs::read(&path)?;
                let manifest = Manifest::decode(&bytes);
                found.push(manifest.with_context(|| format!("reading {}", path.display()))?);
            }
        }
    }
    Ok(found)
}

/// Adds a file to `hash`; returns its length.
fn hash_file(path: &Path, hash: &mut Sha256) -> anyhow::Result<u64> {
    let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut piece = vec![0; READ_BYTES];
    let mut bytes = 0;
    loop {
        let count = match file.read(&mut piece) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).context("reading a stored file"),
        };
        match piece.get(..count) {
            None | Some([]) => return Ok(bytes),
            Some(read) => {
                hash.update(read);
                bytes += u64::try_from(count)?;
            }
        }
    }
}

/// Sends what this process logs to `log`. boringtun complains of every peer that left without a word, as all clients here do.
fn log_to(log: File) -> anyhow::Result<()> {
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_env_filter("info,netstack=debug,tailtape=debug,boringtun=off")
        .with_writer(Mutex::new(log))
        .finish();
    tracing::subscriber::set_global_default(subscriber)
        .context("one recorder per test run writes its log")
}
