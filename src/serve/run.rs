//! `tailtape serve`, from its first line to its last.
//!
//! ```text
//! state locked ──► socket ──► store open ──► node joining, port 80 open ──► runs
//! runs ──drain or SIGTERM──► draining: 503, running uploads go on ──► drained ──SIGTERM──► store closed ──► node gone
//! runs ──fenced──► uploads told ──► exit 75
//! ```
//!
//! Invariants: the store closes after the last upload and before the state's lock goes, so two recorders never share an identity; nothing listens on a host
//! interface but the Unix socket. Called by `main`.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use netstack::io::keystore::KeyStore;
use netstack::io::{Progress, Tailnet, Trouble};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::live::Live;
use super::reload::reload;
use super::{Recorder, join, log_key};
use crate::config::{Config, Effective, Environment, Flags};
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
    let state = config.state.display();
    let mut keys = KeyStore::open(&config.state)
        .with_context(|| format!("cannot keep the recorder's state in {state}"))?;
    let log_key = log_key(&mut keys)?;
    let socket =
        AdminSocket::bind(&config.socket).context("cannot serve status, health and drain")?;
    let live = Arc::new(Live::new(config));
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
    let finding = addresses(&start.config, live);
    let Some(addresses) = shutdown.run_until_cancelled(finding).await else {
        return close(store).await;
    };
    let joining = join::tailnet_config(&start.config, keys, &addresses);
    let tailnet = Tailnet::start(joining).context("cannot start the node of the tailnet")?;
    live.set_tailnet(&tailnet);
    let ingest = super::ingest(&tailnet, store.clone(), start.config.ingest_config());
    let recorder = Recorder::serve(&tailnet, &ingest)?;
    live.set_ingest(&ingest);
    live.set_phase(Phase::Running);
    tracing::info!(tunnel = ?tailnet.endpoints(), store = %start.config.store, "recorder started");

    let running = Running {
        live: Arc::clone(live),
        store: store.clone(),
        progress: tailnet.watch(),
        seen: Progress::default(),
        hangups,
        recorder: Some(recorder),
        draining: None,
        drain_limit: start.config.drain_limit,
        effective: start.config.effective.clone(),
    };
    let ended = running.until_over(start, shutdown).await;
    // The lock on the state goes with the node, so the store is closed first.
    let closed = close(store).await;
    tailnet.close().await;
    let closed = closed?;
    ended?;
    tracing::info!("recorder stopped");
    Ok(closed)
}

async fn close(store: &Store) -> anyhow::Result<bool> {
    store.close().await.context("cannot close the store")?;
    Ok(true)
}

/// Waits until control can be found: a recorder that starts before the network is patient.
async fn addresses(config: &Config, live: &Live) -> Vec<IpAddr> {
    loop {
        match join::tunnel_addresses(config).await {
            Ok(addresses) => {
                live.set_trouble(None);
                return addresses;
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(error, "not joined yet; it will be tried again");
                live.set_trouble(Some(error));
                tokio::time::sleep(LOOKUP_PAUSE).await;
            }
        }
    }
}

/// The recorder between start and close.
struct Running {
    live: Arc<Live>,
    store: Store,
    progress: watch::Receiver<Progress>,
    seen: Progress,
    hangups: Signal,
    /// Until it drains.
    recorder: Option<Recorder>,
    /// From then on; true when all uploads were done in time.
    draining: Option<JoinHandle<bool>>,
    drain_limit: Duration,
    effective: Effective,
}

impl Running {
    async fn until_over(
        mut self,
        start: &Start<'_>,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<()> {
        let mut drain_asked = self.live.drain_asked();
        let mut fence = tokio::time::interval(FENCE_INTERVAL);
        let mut stopping = false;
        loop {
            tokio::select! {
                () = shutdown.cancelled(), if !stopping => {
                    stopping = true;
                    self.drain(self.drain_limit);
                    if self.draining.is_none() {
                        return Ok(());
                    }
                }
                Ok(_) = drain_asked.wait_for(|asked| *asked), if self.recorder.is_some() => {
                    tracing::info!("draining, as asked over the Unix socket");
                    self.drain(self.drain_limit);
                }
                in_time = drained(&mut self.draining) => {
                    self.live.set_phase(Phase::Drained);
                    if !in_time {
                        tracing::warn!("recordings were not sealed in time: their bytes are in the journal");
                    }
                    if stopping {
                        return Ok(());
                    }
                    tracing::info!("drained; SIGTERM ends the recorder");
                }
                _ = self.hangups.recv() => self.reload(start),
                Ok(()) = self.progress.changed() => self.note_progress()?,
                _ = fence.tick() => if let Some(error) = self.store.halted() {
                    tracing::error!(error = error.with_causes(), "the store takes no more: uploads are ended");
                    if let Some(recorder) = self.recorder.take() {
                        recorder.stop(FENCED_MAX).await;
                    }
                    // A fenced store says so when it is closed, and that error counts first.
                    anyhow::bail!("the store takes no more: {}", error.with_causes());
                },
            }
        }
    }

    /// Once; again it changes nothing.
    fn drain(&mut self, limit: Duration) {
        if let Some(recorder) = self.recorder.take() {
            // Refused first, so that whoever reads "draining" can rely on it.
            recorder.refuse_new();
            self.live.set_phase(Phase::Draining);
            let stopping = recorder.stop(limit.saturating_add(SEALS_MAX));
            self.draining = Some(tokio::spawn(stopping));
        }
    }

    fn reload(&self, start: &Start<'_>) {
        match reload(start.flags, start.environment, &self.effective) {
            Err(error) => {
                let to_do = error.remedy();
                let error = tell::with_causes(&error);
                tracing::error!(error, to_do, "settings not reloaded; the old ones stay");
            }
            Ok(reloaded) => {
                if let Err(error) = start.log.set_filter(&reloaded.config.log) {
                    tracing::error!(%error, "the log's level stays");
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
        let progress = self.progress.borrow_and_update().clone();
        if progress.up && !self.seen.up {
            tracing::info!("joined the tailnet");
        }
        let refused = match &progress.trouble {
            Some(Trouble::Refused(reason)) if !progress.up => Some(reason.clone()),
            Some(Trouble::Refused(_) | Trouble::NeedsLogin(_) | Trouble::Unreachable(_)) | None => {
                None
            }
        };
        self.seen = progress;
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

async fn drained(draining: &mut Option<JoinHandle<bool>>) -> bool {
    match draining {
        None => std::future::pending().await,
        Some(task) => {
            let in_time = task.await.unwrap_or(false);
            *draining = None;
            in_time
        }
    }
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
