//! The stage of `tailtape dev`: a devnet, a recorder tagged `tag:recorder`, a stand-in SSH node, a store on disk.
//!
//! Invariant: everything listens on loopback; the hash of what is stored is computed from the file on
//! the disk, not from what passed through memory. `dev` opens it, records on it and closes it.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use netstack::control::AuthKey;
use netstack::devnet::{AuthKeySpec, DevNet, DevNetConfig, DevSshRule};
use netstack::io::keystore::KeyStore;
use netstack::io::{Tailnet, TailnetConfig};
use netstack::tcpip::TcpConfig;
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::announce::Announcing;
use super::report::{DevReport, SessionFacts};
use super::screen::Screen;
use super::session::{SessionCommand, SessionPlan, record};
use super::{Stage, terminal_size};
use crate::asciicast::{CODE_OUTPUT, Header, encode_event, encode_header};
use crate::ingest::IngestConfig;
use crate::serve::{self, Recorder};
use crate::store::{SealedRecording, Store, StoreConfig, StoreUrl};

const RECORDER_TAG: &str = "tag:recorder";

/// The person who owns the stand-in node.
const USER: &str = "you@example.com";

/// Everything is on one machine: what takes longer than this is broken.
const JOIN_MAX: Duration = Duration::from_secs(20);

/// How long a seal may take after the session has ended.
const SEAL_MAX: Duration = Duration::from_secs(30);

/// How long the recorder may drain when the demonstration ends; nothing runs then.
const STOP_MAX: Duration = Duration::from_secs(5);

/// Pieces in which the stored file is read.
const READ_BYTES: usize = 64 * 1024;

/// Everything that one demonstration consists of.
#[derive(Debug)]
pub(super) struct LocalStage {
    recorder_node: Tailnet,
    recorder: Recorder,
    ssh_node: Tailnet,
    store: Store,
    store_root: PathBuf,
    sealed: mpsc::Receiver<SealedRecording>,
    join: Duration,
    /// Holds the lock on the state: one recorder identity, one process.
    _keys: KeyStore,
    /// Last, so that it is dropped after the nodes, which would complain.
    devnet: DevNet,
}

impl LocalStage {
    /// Sets everything up below `data` and shows each step.
    pub(super) async fn open<W: Write>(
        data: &Path,
        screen: &mut Screen<W>,
    ) -> anyhow::Result<Self> {
        let data = std::path::absolute(data)
            .with_context(|| format!("--data {}: not a usable path", data.display()))?;
        let devnet = DevNet::start(DevNetConfig::default())
            .await
            .context("cannot start the devnet")?;
        let user = devnet.add_user(USER);
        devnet.set_ssh_policy(vec![DevSshRule {
            recorder_tag: Some(RECORDER_TAG.to_owned()),
            enforce: true,
        }]);
        screen.step(&format!(
            "control server for one machine at {}",
            devnet.url()
        ))?;

        let mut keys = KeyStore::open(data.join("state").join("recorder"))
            .with_context(|| format!("cannot keep a recorder's state below {}", data.display()))?;
        let store_root = data.join("store");
        let url = StoreUrl::Local(store_root.clone());
        let log_key = serve::log_key(&mut keys)?;
        let store = Store::open(StoreConfig::new(url, log_key))
            .await
            .with_context(|| format!("cannot open the store in {}", store_root.display()))?;
        screen.step(&format!(
            "store in {}, proven by a probe",
            store_root.display()
        ))?;

        let admit = |tags: &[&str]| {
            let spec = AuthKeySpec {
                user,
                tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
                reusable: false,
                ephemeral: false,
            };
            devnet.auth_key(spec).context("cannot make an auth key")
        };
        // The devnet forgets its nodes when it ends, so node keys are not worth keeping.
        let begin = Instant::now();
        let recorder_node = join(&devnet, "recorder", &admit(&[RECORDER_TAG])?)
            .await
            .context("the recorder cannot join")?;
        let join_time = begin.elapsed();
        let (announcing, sealed) = Announcing::new(store.clone());
        let recorder = Recorder::start(&recorder_node, announcing, IngestConfig::default())?;
        screen.step(&joined("recorder", &recorder_node, join_time))?;

        let begin = Instant::now();
        let ssh_node = join(&devnet, "ssh-node", &admit(&[])?)
            .await
            .context("the SSH node cannot join")?;
        screen.step(&joined("stand-in SSH node", &ssh_node, begin.elapsed()))?;
        Ok(Self {
            recorder_node,
            recorder,
            ssh_node,
            store,
            store_root,
            sealed,
            join: join_time,
            _keys: keys,
            devnet,
        })
    }

    /// Ends what runs, in order: no new uploads, open ones sealed, the nodes gone, the store closed.
    pub(super) async fn close(self) -> anyhow::Result<()> {
        if !self.recorder.stop(STOP_MAX).await {
            tracing::warn!("uploads were still open when the recorder stopped");
        }
        self.ssh_node.close().await;
        self.recorder_node.close().await;
        self.devnet.shutdown().await;
        self.store.close().await.context("cannot close the store")
    }

    /// The recorders that the SSH policy names, once control has resolved their tag.
    async fn recorders(&self) -> anyhow::Result<Vec<SocketAddr>> {
        let mut watch = self.ssh_node.watch();
        let named = async {
            loop {
                let policy = self.ssh_node.ssh_policy().unwrap_or_default();
                let recorders: Vec<SocketAddr> = policy
                    .rules
                    .first()
                    .map(|rule| {
                        rule.action
                            .recorders
                            .iter()
                            .flat_map(|text| text.parse())
                            .collect()
                    })
                    .unwrap_or_default();
                if !recorders.is_empty() {
                    return Ok(recorders);
                }
                watch.changed().await.context("the SSH node has ended")?;
            }
        };
        tokio::time::timeout(JOIN_MAX, named)
            .await
            .context("the SSH policy names no recorder: control has not resolved its tag")?
    }

    fn header(&self, command: &SessionCommand) -> anyhow::Result<Vec<u8>> {
        let size = terminal_size();
        let status = self.ssh_node.status();
        let own = status
            .addresses
            .first()
            .and_then(|addr| self.ssh_node.whois(*addr, *addr));
        let user = own.and_then(|own| own.user);
        let header = Header {
            version: 2,
            width: size.columns.into(),
            height: size.rows.into(),
            timestamp: jiff::Timestamp::now().as_second(),
            command: command.header_text().unwrap_or_default(),
            // Whoever types here sits at this machine.
            src_node: status.name,
            src_node_id: status.stable_id,
            src_node_user_id: user.as_ref().map_or(0, |user| user.id),
            src_node_user: user.map(|user| user.login_name).unwrap_or_default(),
            ..Header::default()
        };
        Ok(encode_header(&header)?)
    }

    /// How the bytes travel, from the sender's point of view.
    fn transport(&self, recorder: SocketAddr) -> String {
        let status = self.ssh_node.status();
        let peer = status
            .peers
            .iter()
            .find(|peer| peer.addresses.contains(&recorder.ip()));
        match peer.and_then(|peer| peer.direct) {
            Some(addr) => format!("direct {addr}"),
            None => "none".to_owned(),
        }
    }

    /// The next sealed recording: sessions follow one another, so it is ours.
    async fn next_sealed(&mut self) -> anyhow::Result<SealedRecording> {
        let sealed = tokio::time::timeout(SEAL_MAX, self.sealed.recv()).await;
        sealed
            .context("the recording is not sealed yet; its bytes are in the journal")?
            .context("the recorder has ended")
    }
}

impl Stage for LocalStage {
    async fn record<W: Write>(
        &mut self,
        command: &SessionCommand,
        screen: &mut Screen<W>,
    ) -> anyhow::Result<DevReport> {
        let recorders = self.recorders().await?;
        let header = self.header(command)?;
        let plan = SessionPlan {
            command,
            size: terminal_size(),
            start: Instant::now(),
            recorders: &recorders,
            header: Bytes::from(header),
        };
        let node = self.ssh_node.clone();
        let dial = move |addr: SocketAddr| {
            let node = node.clone();
            async move { node.dial(addr).await }
        };
        let encode = |seconds: f64, data: &[u8]| encode_event(seconds, CODE_OUTPUT, data);
        let streamed = record(plan, &dial, encode, screen).await?;
        let uploaded = &streamed.uploaded;
        screen.step(&format!(
            "session ended ({}); {} bytes sent, all acked: {}",
            streamed.exit,
            uploaded.sent_bytes,
            uploaded.acked_bytes == uploaded.sent_bytes && uploaded.untrue_acks == 0
        ))?;
        let sealed = self.next_sealed().await?;
        let segment = sealed
            .segment_names
            .first()
            .context("the recording has no segment")?;
        let path = self.store_root.join(segment);
        let sha256_stored = file_sha256(&path).await?;
        screen.step(&format!("sealed as {}", sealed.manifest_name))?;
        let shown = std::env::current_dir().ok().and_then(|here| {
            path.strip_prefix(here)
                .ok()
                .map(|path| Path::new(".").join(path))
        });
        Ok(DevReport::new(SessionFacts {
            recording_id: sealed.id.to_string(),
            path: shown.unwrap_or(path).display().to_string(),
            bytes: uploaded.sent_bytes,
            events: streamed.events,
            sha256_sent: streamed.sha256_sent,
            sha256_stored,
            ack_latencies: uploaded.ack_latencies.clone(),
            join: self.join,
            transport: self.transport(uploaded.recorder),
        }))
    }
}

async fn join(devnet: &DevNet, hostname: &str, auth_key: &str) -> anyhow::Result<Tailnet> {
    let config = TailnetConfig {
        control_url: devnet.url(),
        hostname: hostname.to_owned(),
        auth_key: Some(AuthKey::new(auth_key)),
        ephemeral: false,
        app: "tailtape".to_owned(),
        version_text: env!("CARGO_PKG_VERSION").to_owned(),
        keys: KeyStore::ephemeral(),
        bind: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
        udp_offload: true,
        tcp: TcpConfig::default(),
    };
    Ok(Tailnet::join(config, JOIN_MAX).await?)
}

fn joined(who: &str, tailnet: &Tailnet, time: Duration) -> String {
    let addresses: Vec<String> = tailnet
        .status()
        .addresses
        .iter()
        .map(ToString::to_string)
        .collect();
    let endpoints: Vec<String> = tailnet
        .endpoints()
        .iter()
        .map(ToString::to_string)
        .collect();
    format!(
        "{who} joined in {:.0} ms as {}; tunnel on {}",
        time.as_secs_f64() * 1e3,
        addresses.join(", "),
        endpoints.join(", ")
    )
}

async fn file_sha256(path: &Path) -> anyhow::Result<[u8; 32]> {
    let context = || format!("cannot read the stored recording {} back", path.display());
    let mut file = tokio::fs::File::open(path).await.with_context(context)?;
    let mut hash = Sha256::new();
    let mut piece = vec![0; READ_BYTES];
    loop {
        let count = file.read(&mut piece).await.with_context(context)?;
        match piece.get(..count) {
            None | Some([]) => return Ok(hash.finalize().into()),
            Some(bytes) => hash.update(bytes),
        }
    }
}
