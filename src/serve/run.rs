//! `tailtape serve`, from its first line to its last.
//!
//! ```text
//! state locked ──► socket ──► store open ──► control found ──► node joining, port 80 open ──► runs
//! control not found ──drain or SIGTERM──► drained
//! runs ──drain or SIGTERM──► draining: 503, running uploads go on ──► drained: 503 ──SIGTERM──► store closed ──► node gone
//! runs ──fenced──► uploads told ──► exit 75
//! ```
//!
//! Invariants: once the store is open one loop hears signals, the drain and the store, whatever else is waited for; the store closes after the last upload and
//! before the state's lock goes, so two recorders never share an identity; nothing listens on a host interface but the Unix socket. Called by `main`.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use netstack::io::keystore::KeyStore;
use netstack::io::{Progress, Tailnet, Trouble};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::live::Live;
use super::reload::reload;
use super::{Recorder, join, log_key, refused};
use crate::config::{Config, Environment, Flags};
use crate::status::{self, AdminSocket, Phase};
use crate::store::{Store, StoreUrl};
use crate::telemetry::Log;
use crate::tell;

/// How long seals may take once the last upload has ended.
const SEALS_MAX: Duration = Duration::from_secs(30);
/// How long uploads may take to hear that the recorder was fenced.
const FENCED_MAX: Duration = Duration::from_secs(3);
/// How often the store is asked whether it was fenced: uploads must be told within a second.
const FENCE_INTERVAL: Duration = Duration::from_millis(500);
/// The pause before control's name is looked up again.
const LOOKUP_PAUSE: Duration = Duration::from_secs(5);
/// What to do meanwhile.
const NOT_FOUND_REMEDY: &str = "see that control_url is right and that this host can resolve and reach it; it is tried again every 5 s";

/// What `serve` was started with.
#[derive(Debug)]
pub struct Start<'a> {
    /// For a reload.
    pub flags: &'a Flags,
    /// For a reload.
    pub environment: &'a Environment,
    /// The checked settings.
    pub config: Config,
    /// The log, whose level a reload changes.
    pub log: &'a Log,
}

/// Runs the recorder until `shutdown`, then drains it.
///
/// # Errors
/// The state, the socket or the store cannot be opened; control refused the node; the store was fenced
/// ([`StoreError::Fenced`](crate::store::StoreError::Fenced)) or could not be closed.
pub async fn run(start: Start<'_>, shutdown: &CancellationToken) -> anyhow::Result<bool> {
    let config = &start.config;
    let hangups = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
    note_settings(config);
    let keys = KeyStore::open(&config.state);
    let mut keys = keys.map_err(|error| refused::state(config, error))?;
    let log_key = log_key(&mut keys)?;
    let socket = AdminSocket::bind(&config.socket);
    let socket = socket.map_err(|error| refused::socket(config, error))?;
    let live = Arc::new(Live::new(config, start.log.lines_withheld()));
    let admin = AbortOnDrop(tokio::spawn(status::serve(socket, Arc::clone(&live))));

    let opening = Store::open(config.store_config(log_key));
    let Some(store) = shutdown.run_until_cancelled(opening).await else {
        return Ok(true);
    };
    let store = store.with_context(|| format!("cannot open the store {}", config.store))?;
    live.set_store(&store);
    let ended = with_store(&start, keys, &live, &store, hangups, shutdown).await;
    drop(admin);
    ended
}

fn note_settings(config: &Config) {
    for note in &config.notes {
        tracing::warn!("{note}");
    }
    if config.store == StoreUrl::Memory {
        tracing::warn!("the store is memory://: recordings are gone with the process");
    }
}

async fn with_store(
    start: &Start<'_>,
    keys: KeyStore,
    live: &Arc<Live>,
    store: &Store,
    hangups: Signal,
    shutdown: &CancellationToken,
) -> anyhow::Result<bool> {
    live.set_phase(Phase::Running);
    let mut running = Running {
        start,
        live: Arc::clone(live),
        store: store.clone(),
        hangups,
        keys: Some(keys),
        node: None,
        stage: Stage::Finding(addresses(&start.config, live).boxed()),
        stopping: false,
    };
    let ended = running.until_over(shutdown).await;
    // The lock on the state goes with the keys, or with the node that has them, so the store is closed first.
    let closed = store.close().await.context("cannot close the store");
    if let Some(node) = running.node {
        node.tailnet.close().await;
    }
    closed?;
    ended?;
    tracing::info!("recorder stopped");
    Ok(true)
}

/// Waits until control can be found: a recorder that starts before the network is patient.
async fn addresses(config: &Config, live: &Live) -> Vec<IpAddr> {
    let mut told = None;
    live.set_trouble(Some(format!(
        "looking for the way to {}",
        config.control_url
    )));
    loop {
        match join::tunnel_addresses(config).await {
            Ok(addresses) => {
                live.set_trouble(None);
                return addresses;
            }
            Err(error) => {
                let error = format!("{error:#}");
                if told.as_ref() == Some(&error) {
                    tracing::debug!(error, "still not joined");
                } else {
                    let to_do = NOT_FOUND_REMEDY;
                    tracing::warn!(error, to_do, "not joined yet; it will be tried again");
                }
                live.set_trouble(Some(format!("{error}: {NOT_FOUND_REMEDY}")));
                told = Some(error);
                tokio::time::sleep(LOOKUP_PAUSE).await;
            }
        }
    }
}

/// The recorder between the opening of its store and the close.
struct Running<'a> {
    start: &'a Start<'a>,
    live: Arc<Live>,
    store: Store,
    hangups: Signal,
    /// Until the node has them.
    keys: Option<KeyStore>,
    /// Once control's address is known.
    node: Option<Member>,
    stage: Stage<'a>,
    /// A signal asked for the end.
    stopping: bool,
}

/// The node that joins, or has joined, the tailnet.
struct Member {
    tailnet: Tailnet,
    progress: watch::Receiver<Progress>,
    seen: Progress,
}

/// How far it is with taking uploads.
enum Stage<'a> {
    /// Control's address is looked for: nothing is taken yet.
    Finding(BoxFuture<'a, Vec<IpAddr>>),
    Taking(Recorder),
    Draining {
        recorder: Recorder,
        /// True when all uploads were done in time.
        task: JoinHandle<bool>,
    },
    /// The port, if there ever was one, stays open: who comes is refused in words.
    Drained(Option<Recorder>),
}

/// What ends a stage by itself.
enum Step {
    Found(Vec<IpAddr>),
    Drained { in_time: bool },
}

impl Stage<'_> {
    /// Cancel-safe. A stage is left as soon as this has completed.
    async fn ends(&mut self) -> Step {
        match self {
            Self::Finding(addresses) => Step::Found(addresses.await),
            Self::Draining { task, .. } => Step::Drained {
                in_time: task.await.unwrap_or(false),
            },
            Self::Taking(_) | Self::Drained(_) => std::future::pending().await,
        }
    }
}

impl Running<'_> {
    async fn until_over(&mut self, shutdown: &CancellationToken) -> anyhow::Result<()> {
        let mut drain_asked = self.live.drain_asked();
        let mut fence = tokio::time::interval(FENCE_INTERVAL);
        let mut draining = false;
        loop {
            tokio::select! {
                () = shutdown.cancelled(), if !self.stopping => {
                    self.stopping = true;
                    self.drain();
                }
                Ok(_) = drain_asked.wait_for(|asked| *asked), if !draining => {
                    draining = true;
                    tracing::info!("draining, as asked over the Unix socket");
                    self.drain();
                }
                step = self.stage.ends() => match step {
                    Step::Found(addresses) => self.join(&addresses)?,
                    Step::Drained { in_time } => {
                        if !in_time {
                            tracing::warn!("recordings were not sealed in time: their bytes are in the journal");
                        }
                        self.drained();
                    }
                },
                _ = self.hangups.recv() => self.reload(),
                () = news(&mut self.node) => self.note_progress()?,
                _ = fence.tick() => if let Some(error) = self.store.halted() {
                    tracing::error!(error = error.with_causes(), "the store takes no more: uploads are ended");
                    if let Stage::Taking(recorder) = std::mem::replace(&mut self.stage, Stage::Drained(None)) {
                        recorder.stop(FENCED_MAX).await;
                    }
                    // A fenced store says so when it is closed, and that error counts first.
                    return Err(anyhow::Error::new(error).context("the store takes no more"));
                },
            }
            if self.stopping && matches!(self.stage, Stage::Drained(_)) {
                return Ok(());
            }
        }
    }

    /// Control can be found: the node joins, and uploads are taken from then on.
    fn join(&mut self, addresses: &[IpAddr]) -> anyhow::Result<()> {
        // Left at once, because the search is over and must not be asked again.
        self.stage = Stage::Drained(None);
        let config = &self.start.config;
        let keys = self.keys.take().context("the node has its keys already")?;
        let joining = join::tailnet_config(config, keys, addresses);
        let tailnet = Tailnet::start(joining).context("cannot start the node of the tailnet")?;
        self.live.set_tailnet(&tailnet);
        let ingest = super::ingest(&tailnet, self.store.clone(), config.ingest_config());
        let recorder = Recorder::serve(&tailnet, &ingest)?;
        self.live.set_ingest(&ingest);
        let store = tell::without_secrets(&config.store.to_string());
        tracing::info!(tunnel = ?tailnet.endpoints(), store, "recorder started");
        self.stage = Stage::Taking(recorder);
        self.node = Some(Member {
            progress: tailnet.watch(),
            seen: Progress::default(),
            tailnet,
        });
        Ok(())
    }

    /// Once; again it changes nothing.
    fn drain(&mut self) {
        match std::mem::replace(&mut self.stage, Stage::Drained(None)) {
            // Nothing was ever taken, and a node that takes nothing need not join.
            Stage::Finding(_) => self.drained(),
            Stage::Taking(recorder) => {
                let limit = self.start.config.drain_limit.saturating_add(SEALS_MAX);
                // Refused first, so that whoever reads "draining" can rely on it.
                let task = tokio::spawn(recorder.drain(limit));
                self.live.set_phase(Phase::Draining);
                self.stage = Stage::Draining { recorder, task };
            }
            under_way @ (Stage::Draining { .. } | Stage::Drained(_)) => self.stage = under_way,
        }
    }

    fn drained(&mut self) {
        let recorder = match std::mem::replace(&mut self.stage, Stage::Drained(None)) {
            Stage::Taking(recorder) | Stage::Draining { recorder, .. } => Some(recorder),
            Stage::Drained(recorder) => recorder,
            Stage::Finding(_) => None,
        };
        self.stage = Stage::Drained(recorder);
        self.live.set_phase(Phase::Drained);
        if !self.stopping {
            tracing::info!("drained; SIGTERM ends the recorder");
        }
    }

    fn reload(&self) {
        let start = self.start;
        match reload(start.flags, start.environment, &start.config.effective) {
            Err(error) => {
                let to_do = error.remedy();
                let error = tell::with_causes(&error);
                tracing::error!(error, to_do, "settings not reloaded; the old ones stay");
            }
            Ok(reloaded) => {
                if let Err(error) = start.log.set_filter(&reloaded.config.log) {
                    tracing::error!(error = tell::with_causes(&error), "the log's level stays");
                }
                self.live.set_policy(&reloaded.config);
                let rules = reloaded.config.access.len();
                tracing::info!(rules, log = reloaded.config.log, "settings reloaded");
                if !reloaded.waiting.is_empty() {
                    let settings = reloaded.waiting.join(", ");
                    tracing::warn!(settings, "changed settings wait for a restart");
                }
            }
        }
    }

    /// Tells of joining; netstack itself tells of trouble with control.
    fn note_progress(&mut self) -> anyhow::Result<()> {
        let Some(node) = &mut self.node else {
            return Ok(());
        };
        let progress = node.progress.borrow_and_update().clone();
        if progress.up && !node.seen.up {
            tracing::info!("joined the tailnet");
        }
        let refused = match &progress.trouble {
            Some(Trouble::Refused(reason)) if !progress.up => Some(reason.clone()),
            Some(Trouble::Refused(_) | Trouble::NeedsLogin(_) | Trouble::Unreachable(_)) | None => {
                None
            }
        };
        node.seen = progress;
        match refused {
            Some(reason) => Err(anyhow::Error::new(Refused { reason })),
            None => Ok(()),
        }
    }
}

/// Control will not have the node: a restart with the same key would not help.
#[derive(Debug, thiserror::Error)]
#[error("control refused to let the recorder join: {reason}")]
pub struct Refused {
    reason: String,
}

/// Completes when the node has something new to tell; never before there is one, or after its end.
async fn news(node: &mut Option<Member>) {
    let changed = match node {
        Some(node) => node.progress.changed().await.is_ok(),
        None => false,
    };
    if !changed {
        std::future::pending().await
    }
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
