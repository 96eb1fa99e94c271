//! What is measured: a devnet, a recorder and a client on loopback, and both ways from one to the other.
//!
//! The invariant: both ways end in the same `serve_connection` on the same runtime and begin in the same client on another runtime;
//! every measurement has a store of its own. The client is the product's own: HEAD, then POST, a TCP connection for each upload.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use netstack::control::AuthKey;
use netstack::devnet::{AuthKeySpec, DevNet, DevNetConfig};
use netstack::io::keystore::KeyStore;
use netstack::io::{Tailnet, TailnetConfig};
use netstack::tcpip::TcpConfig;
use tailtape::access::Identity;
use tailtape::capture::{Upload, connect};
use tailtape::ids::LogKey;
use tailtape::ingest::{IngestConfig, serve_connection};
use tailtape::serve::{RECORDER_PORT, Recorder};
use tailtape::store::{Store, StoreConfig, StoreUrl};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::latency::{self, Delays};
use super::numbers::{milliseconds, ratio};
use super::traffic::{self, Gauge, Goodput, Load, SEND_MAX};

const JOIN_MAX: Duration = Duration::from_secs(20);
/// For what should take a second; what takes longer is broken.
const STEP_MAX: Duration = Duration::from_secs(60);
/// The port that reads and forgets.
const DISCARD_PORT: u16 = 9;
/// Connections that are being opened at one time: below the listener's backlog.
const OPENING_MAX: usize = 32;
/// How often the count of durable bytes is looked at.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(2);
/// Buffer of the discarding reader.
const READ_BYTES: usize = 64 * 1024;

/// How the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// UDP on loopback, WireGuard, TCP within.
    Tunnel,
    /// TCP of the kernel on loopback.
    Plain,
}

/// How acks are paced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pacing {
    /// Commit and ack whenever something is there: shows the way, not the pace.
    AtOnce,
    /// The product's: a commit a second.
    Default,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct World {
    recorder_side: Runtime,
    client_side: Runtime,
    devnet: DevNet,
    recorder: Tailnet,
    client: Tailnet,
    lines: Arc<[Bytes]>,
    /// Where bytes are read and forgotten on the plain way.
    discarding: SocketAddr,
    discarded: Arc<AtomicU64>,
}

/// A recorder at both ends, until it is stopped.
struct Serving {
    recorder: Recorder,
    plain: SocketAddr,
    store: Store,
    _acceptor: AbortOnDropHandle<()>,
}

impl World {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let recorder_side = Builder::new_multi_thread()
            .thread_name("recorder")
            .enable_all()
            .build()?;
        let client_side = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("client")
            .enable_all()
            .build()?;
        let devnet = recorder_side.block_on(DevNet::start(DevNetConfig::default()))?;
        let recorder = recorder_side.block_on(join(&devnet, "recorder"))?;
        let client = client_side.block_on(join(&devnet, "client"))?;
        let discarded = Arc::new(AtomicU64::new(0));
        let discarding = recorder_side.block_on(discarding(&recorder, &discarded))?;
        Ok(Self {
            recorder_side,
            client_side,
            devnet,
            recorder,
            client,
            lines: traffic::lines().into(),
            discarding,
            discarded,
        })
    }

    pub(crate) fn stop(self) {
        self.client_side.shutdown_background();
        self.recorder_side.shutdown_background();
    }

    /// Milliseconds from the call of `join` to being part of the tailnet.
    pub(crate) fn joins(&self, count: usize) -> anyhow::Result<Vec<f64>> {
        let mut times = Vec::new();
        for number in 0..count {
            let begin = Instant::now();
            let hostname = format!("joins-{number}");
            let node = self.recorder_side.block_on(join(&self.devnet, &hostname))?;
            times.push(milliseconds(begin.elapsed()));
            drop(node);
        }
        Ok(times)
    }

    /// Bytes that the other end reads and forgets.
    pub(crate) fn raw(&self, way: Way, load: Load) -> anyhow::Result<Goodput> {
        let counted = Arc::clone(&self.discarded);
        counted.store(0, Ordering::Relaxed);
        let to = match way {
            Way::Tunnel => SocketAddr::new(self.recorder_address()?, DISCARD_PORT),
            Way::Plain => self.discarding,
        };
        let total = load.stream_bytes * u64::try_from(load.streams)?;
        let mut gauge = Gauge::start();
        let (node, lines) = (self.client.clone(), Arc::clone(&self.lines));
        let sending = self.client_side.spawn(async move {
            let mut senders = JoinSet::new();
            for _ in 0..load.streams {
                match way {
                    Way::Tunnel => {
                        let stream = node.dial(to).await?;
                        senders.spawn(send_all(stream, Arc::clone(&lines), load.stream_bytes))
                    }
                    Way::Plain => {
                        let stream = TcpStream::connect(to).await?;
                        stream.set_nodelay(true)?;
                        senders.spawn(send_all(stream, Arc::clone(&lines), load.stream_bytes))
                    }
                };
            }
            while let Some(sent) = senders.join_next().await {
                sent??;
            }
            anyhow::Ok(())
        });
        self.recorder_side.block_on(async {
            let end = Instant::now() + STEP_MAX;
            while counted.load(Ordering::Relaxed) < total {
                if Instant::now() > end || sending.is_finished() && gauge_is_stuck(&counted).await {
                    break;
                }
                gauge.sample(counted.load(Ordering::Relaxed));
                tokio::time::sleep(SAMPLE_INTERVAL).await;
            }
            gauge.sample(counted.load(Ordering::Relaxed));
        });
        let goodput = gauge.end();
        self.client_side.block_on(sending)??;
        Ok(goodput)
    }

    /// Uploads in bulk, by the bytes that are durable in the store.
    pub(crate) fn upload(&self, way: Way, load: Load) -> anyhow::Result<Goodput> {
        let serving = self.serve(Pacing::Default, None)?;
        let to = self.target(way, &serving)?;
        let uploads = self.open(to, load.streams)?;
        let mut gauge = Gauge::start();
        let lines = Arc::clone(&self.lines);
        let sending = self.client_side.spawn(async move {
            let end = Instant::now() + SEND_MAX;
            let mut senders = JoinSet::new();
            for upload in uploads {
                senders.spawn(upload_all(
                    upload,
                    Arc::clone(&lines),
                    load.stream_bytes,
                    end,
                ));
            }
            let mut sent = 0;
            while let Some(bytes) = senders.join_next().await {
                sent += bytes??;
            }
            anyhow::Ok(sent)
        });
        let store = serving.store.clone();
        self.recorder_side.block_on(async {
            while !sending.is_finished() {
                gauge.sample(store.stats().plain_bytes);
                tokio::time::sleep(SAMPLE_INTERVAL).await;
            }
            gauge.sample(store.stats().plain_bytes);
        });
        let goodput = gauge.end();
        let sent = self.client_side.block_on(sending)??;
        if store.stats().plain_bytes < sent {
            bail!("{} of {sent} bytes are durable", store.stats().plain_bytes);
        }
        drop(store);
        self.end(serving)?;
        Ok(goodput)
    }

    /// Small lines of `sessions` sessions for `time` each.
    pub(crate) fn acks(
        &self,
        way: Way,
        sessions: usize,
        time: Duration,
        pacing: Pacing,
        folder: Option<&Path>,
    ) -> anyhow::Result<Delays> {
        let serving = self.serve(pacing, folder)?;
        let to = self.target(way, &serving)?;
        let uploads = self.open(to, sessions)?;
        let (begun, puts) = (Instant::now(), serving.store.stats().journal_puts);
        let samples = self.client_side.block_on(async {
            let start = Instant::now();
            let mut running = JoinSet::new();
            for (index, upload) in uploads.into_iter().enumerate() {
                let begin = latency::begin_of(index, sessions, start);
                running.spawn(latency::session(upload, begin, time));
            }
            let mut samples = Vec::new();
            while let Some(ended) = running.join_next().await {
                samples.extend(ended??);
            }
            anyhow::Ok(samples)
        })?;
        let puts = serving.store.stats().journal_puts - puts;
        let intervals = match pacing {
            Pacing::AtOnce => 0.0,
            // The first commit of an interval is at its start.
            Pacing::Default => begun.elapsed().as_secs_f64().floor() + 1.0,
        };
        self.end(serving)?;
        Ok(Delays::of(
            samples,
            ratio(f64::from(u32::try_from(puts)?), intervals),
        ))
    }

    fn serve(&self, pacing: Pacing, folder: Option<&Path>) -> anyhow::Result<Serving> {
        let url = match folder {
            Some(folder) => StoreUrl::Local(tempfile::tempdir_in(folder)?.keep()),
            None => StoreUrl::Memory,
        };
        let mut store = StoreConfig::new(url, LogKey::from_bytes([7; LogKey::BYTES]));
        let mut ingest = IngestConfig::default();
        if pacing == Pacing::AtOnce {
            store.commit_interval = Duration::ZERO;
            ingest.upload.ack_interval_min = Duration::ZERO;
        }
        let identity = self.client_identity()?;
        self.recorder_side.block_on(async {
            let store = Store::open(store).await?;
            let recorder = Recorder::start(&self.recorder, store.clone(), ingest.clone())?;
            let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
            let plain = listener.local_addr()?;
            let sink = store.clone();
            let acceptor = tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    if stream.set_nodelay(true).is_ok() {
                        tokio::spawn(serve_connection(
                            stream,
                            identity.clone(),
                            sink.clone(),
                            ingest.clone(),
                            CancellationToken::new(),
                        ));
                    }
                }
            });
            Ok(Serving {
                recorder,
                plain,
                store,
                _acceptor: AbortOnDropHandle::new(acceptor),
            })
        })
    }

    fn end(&self, serving: Serving) -> anyhow::Result<()> {
        let Serving {
            recorder, store, ..
        } = serving;
        self.recorder_side.block_on(async {
            if !recorder.stop(STEP_MAX).await {
                bail!("uploads are still open");
            }
            Ok(store.close().await?)
        })
    }

    fn target(&self, way: Way, serving: &Serving) -> anyhow::Result<(Way, SocketAddr)> {
        let address = match way {
            Way::Tunnel => SocketAddr::new(self.recorder_address()?, RECORDER_PORT),
            Way::Plain => serving.plain,
        };
        Ok((way, address))
    }

    fn open(&self, to: (Way, SocketAddr), count: usize) -> anyhow::Result<Vec<Upload>> {
        self.client_side.block_on(async {
            let mut opening = JoinSet::new();
            let mut uploads = Vec::with_capacity(count);
            for _ in 0..count {
                if opening.len() >= OPENING_MAX
                    && let Some(opened) = opening.join_next().await
                {
                    uploads.push(opened??);
                }
                opening.spawn(open(self.client.clone(), to));
            }
            while let Some(opened) = opening.join_next().await {
                uploads.push(opened??);
            }
            Ok(uploads)
        })
    }

    fn recorder_address(&self) -> anyhow::Result<std::net::IpAddr> {
        let status = self.recorder.status();
        let own = status.addresses.first().copied();
        own.context("the recorder has no address")
    }

    fn client_identity(&self) -> anyhow::Result<Identity> {
        let status = self.client.status();
        let address = status.addresses.first().copied();
        Ok(Identity {
            stable_id: status.stable_id,
            node_name: status.name,
            user: None,
            tags: Vec::new(),
            address: address.context("the client has no address")?,
            capabilities: Default::default(),
        })
    }
}

async fn join(devnet: &DevNet, hostname: &str) -> anyhow::Result<Tailnet> {
    let user = devnet.add_user("you@example.com");
    let key = devnet.auth_key(AuthKeySpec {
        user,
        tags: Vec::new(),
        reusable: false,
        ephemeral: false,
    })?;
    let config = TailnetConfig {
        control_url: devnet.url(),
        hostname: hostname.to_owned(),
        auth_key: Some(AuthKey::new(&key)),
        ephemeral: false,
        app: "tailtape".to_owned(),
        version_text: "bench".to_owned(),
        keys: KeyStore::ephemeral(),
        bind: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
        udp_offload: true,
        tcp: TcpConfig::default(),
    };
    Ok(Tailnet::join(config, JOIN_MAX).await?)
}

async fn open(node: Tailnet, (way, to): (Way, SocketAddr)) -> anyhow::Result<Upload> {
    let opened = match way {
        Way::Tunnel => {
            let dial = move |to| {
                let node = node.clone();
                async move { node.dial(to).await }
            };
            connect(&[to], &dial).await
        }
        Way::Plain => {
            let dial = |to: SocketAddr| async move {
                let stream = TcpStream::connect(to).await?;
                stream.set_nodelay(true)?;
                Ok(stream)
            };
            connect(&[to], &dial).await
        }
    };
    Ok(opened?)
}

async fn upload_all(
    mut upload: Upload,
    lines: Arc<[Bytes]>,
    bytes: u64,
    end: Instant,
) -> anyhow::Result<u64> {
    let mut sent = 0;
    for line in lines.iter().cycle() {
        if sent >= bytes || Instant::now() > end {
            break;
        }
        sent += u64::try_from(line.len())?;
        upload.write(line.clone()).await?;
    }
    Ok(upload.finish().await?.acked_bytes)
}

async fn send_all(
    mut stream: impl AsyncWrite + Unpin,
    lines: Arc<[Bytes]>,
    bytes: u64,
) -> anyhow::Result<()> {
    let mut left = usize::try_from(bytes)?;
    for line in lines.iter().cycle() {
        let piece = line.get(..left.min(line.len())).unwrap_or_default();
        stream.write_all(piece).await?;
        left -= piece.len();
        if left == 0 {
            break;
        }
    }
    Ok(stream.shutdown().await?)
}

/// Listens on both ways for bytes to forget; returns the plain address.
async fn discarding(node: &Tailnet, counted: &Arc<AtomicU64>) -> anyhow::Result<SocketAddr> {
    let plain = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = plain.local_addr()?;
    let mut tunnel = node.listen(DISCARD_PORT, 2 * OPENING_MAX)?;
    let counted = Arc::clone(counted);
    tokio::spawn(async move {
        loop {
            let counted = Arc::clone(&counted);
            tokio::select! {
                Ok((stream, _)) = plain.accept() => tokio::spawn(discard(stream, counted)),
                Ok(stream) = tunnel.accept() => tokio::spawn(discard(stream, counted)),
                else => return,
            };
        }
    });
    Ok(address)
}

async fn discard(mut stream: impl AsyncRead + Unpin, counted: Arc<AtomicU64>) {
    let mut buffer = vec![0; READ_BYTES];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        counted.fetch_add(u64::try_from(count).unwrap_or_default(), Ordering::Relaxed);
    }
}

/// True if no byte has come for a while.
async fn gauge_is_stuck(counted: &AtomicU64) -> bool {
    let before = counted.load(Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(1)).await;
    counted.load(Ordering::Relaxed) == before
}
