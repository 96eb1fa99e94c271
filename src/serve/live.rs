//! What the running recorder tells of itself, and the one thing it can be told: to drain.
//!
//! Invariant: health says "well" only when a session that begins now would be recorded. Filled by the run of `serve` as its parts come up; asked
//! by the Unix socket.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use netstack::io::Tailnet;
use netstack::node::{Named, NamedStats, NodeStats};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::access::Policy;
use crate::config::{Config, Group, SETTINGS};
use crate::ingest::{Ingest, IngestStats, UploadStatus};
use crate::status::{
    Admin, ControlReport, Health, NetworkReport, NodeReport, OpenRecording, Phase, Status,
    StoreReport,
};
use crate::store::{RecoveryState, Store, StoreHealth, StoreStats};
use crate::telemetry::LinesWithheld;

/// Open recordings that one answer lists.
const RECORDINGS_LISTED_MAX: usize = 1000;
/// A commit that takes longer is told as unhealthy; well below the stall limit, which ends sessions.
const COMMIT_PATIENCE: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug)]
pub(super) struct Live {
    store: OnceLock<Store>,
    ingest: OnceLock<Ingest<Store>>,
    tailnet: OnceLock<Tailnet>,
    phase: watch::Sender<Phase>,
    /// Set once somebody asked; never unset.
    drain: watch::Sender<bool>,
    trouble: Mutex<Option<String>>,
    policy: Mutex<(Policy, usize)>,
    started: Instant,
    started_at: Timestamp,
    control_url: String,
    store_url: String,
    limits: BTreeMap<String, String>,
    log_lines_withheld: LinesWithheld,
    commit_patience: Duration,
}

impl Live {
    pub(super) fn new(config: &Config, log_lines_withheld: LinesWithheld) -> Self {
        let limited = SETTINGS.iter().filter(|setting| match setting.group {
            Group::Store | Group::Limits | Group::Uploads => true,
            Group::Service => setting.name == "drain_limit",
        });
        let limits = limited.filter_map(|setting| {
            let given = config.effective.get(setting.name)?;
            Some((setting.name.to_owned(), given.value.to_string()))
        });
        let live = Self {
            store: OnceLock::new(),
            ingest: OnceLock::new(),
            tailnet: OnceLock::new(),
            phase: watch::Sender::new(Phase::Starting),
            drain: watch::Sender::new(false),
            trouble: Mutex::default(),
            policy: Mutex::default(),
            started: Instant::now(),
            started_at: Timestamp::now(),
            control_url: config.control_url.clone(),
            store_url: crate::tell::without_secrets(&config.store.to_string()),
            limits: limits.collect(),
            log_lines_withheld,
            commit_patience: COMMIT_PATIENCE.min(config.store_stall_limit),
        };
        live.set_policy(config);
        live
    }

    /// The store is open.
    pub(super) fn set_store(&self, store: &Store) {
        // Set once; a second one would be a second recorder.
        drop(self.store.set(store.clone()));
    }

    /// Uploads are taken.
    pub(super) fn set_ingest(&self, ingest: &Ingest<Store>) {
        drop(self.ingest.set(ingest.clone()));
    }

    /// The node has begun to join.
    pub(super) fn set_tailnet(&self, tailnet: &Tailnet) {
        drop(self.tailnet.set(tailnet.clone()));
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    /// What stands in the way before there is a node that could say so.
    pub(super) fn set_trouble(&self, trouble: Option<String>) {
        *held(&self.trouble) = trouble;
    }

    /// The access rules in force from now on.
    pub(super) fn set_policy(&self, config: &Config) {
        *held(&self.policy) = (Policy::new(config.access.clone()), config.access.len());
    }

    /// Changes to true when somebody asks to drain.
    pub(super) fn drain_asked(&self) -> watch::Receiver<bool> {
        self.drain.subscribe()
    }

    fn control(&self) -> ControlReport {
        let progress = self.tailnet.get().map(|tailnet| tailnet.watch());
        let progress = progress.map(|watch| watch.borrow().clone());
        let progress = progress.unwrap_or_default();
        let trouble = progress.trouble.map(|trouble| trouble.to_string());
        ControlReport {
            url: self.control_url.clone(),
            joined: progress.up,
            trouble: trouble.or_else(|| held(&self.trouble).clone()),
        }
    }

    fn node(&self) -> NodeReport {
        let Some(tailnet) = self.tailnet.get() else {
            return NodeReport::default();
        };
        let status = tailnet.status();
        NodeReport {
            name: status.name,
            stable_id: status.stable_id,
            addresses: status.addresses,
            tunnel: tailnet.endpoints().to_vec(),
            peers: count(status.peers.len()),
        }
    }

    fn network(&self) -> NetworkReport {
        let stats = self.tailnet.get().map(Tailnet::stats);
        network_report(&stats.unwrap_or_default())
    }

    fn store(&self) -> StoreReport {
        let stats = self.store.get().map(Store::stats).unwrap_or_default();
        let halted = self.store.get().and_then(Store::halted);
        let running = stats.commit_running_for.map(|time| time.as_millis());
        StoreReport {
            url: self.store_url.clone(),
            halted: halted.map(|error| error.with_causes()),
            commit_running_ms: running.map(|millis| u64::try_from(millis).unwrap_or(u64::MAX)),
            recovery: self.store.get().map(recovery),
            counters: counters(&stats),
        }
    }
}

impl Admin for Live {
    fn status(&self) -> Status {
        let ingest = self.ingest.get();
        let uploads = ingest.map(Ingest::uploads).unwrap_or_default();
        let recordings_open = count(uploads.len());
        let stats = ingest.map(Ingest::stats).unwrap_or_default();
        // Before the node: whoever reads "joined" finds its addresses beside it.
        let control = self.control();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            phase: *self.phase.borrow(),
            started_at: self.started_at,
            uptime_seconds: self.started.elapsed().as_secs(),
            node: self.node(),
            control,
            network: self.network(),
            recordings: oldest(uploads),
            recordings_open,
            ingest: ingest_counters(stats),
            store: self.store(),
            access_rules: count(held(&self.policy).1),
            log_lines_withheld: self.log_lines_withheld.count(),
            limits: self.limits.clone(),
        }
    }

    fn health(&self) -> Health {
        let mut reasons = Vec::new();
        match *self.phase.borrow() {
            Phase::Starting => reasons.push("starting: the store is not open yet".to_owned()),
            Phase::Running => {}
            Phase::Draining => reasons.push("draining: new uploads are refused".to_owned()),
            Phase::Drained => reasons.push("drained: no uploads are taken".to_owned()),
        }
        let control = self.control();
        match (control.joined, control.trouble) {
            (true, _) => {}
            (false, Some(trouble)) => reasons.push(format!("not joined: {trouble}")),
            (false, None) => reasons.push("not joined: control has not answered yet".to_owned()),
        }
        // The word is copied: a borrow that lasts would hold up whoever says the next one.
        let said = self
            .store
            .get()
            .map(|store| store.health().borrow().clone());
        match said.unwrap_or_default() {
            StoreHealth::Ready => {}
            StoreHealth::Refusing(why) | StoreHealth::Stalled(why) => {
                reasons.push(format!("new recordings are refused: {}", why.with_causes()));
            }
            StoreHealth::Ended(why) => {
                reasons.push(format!("the store takes no more: {}", why.with_causes()));
            }
        }
        if let Some(why) = self.store.get().and_then(Store::seal_failure) {
            reasons.push(format!(
                "recordings that end are not sealed, and their uploads are told so: {why}"
            ));
        }
        let stats = self.store.get().map(Store::stats).unwrap_or_default();
        if let Some(running) = stats.commit_running_for
            && running >= self.commit_patience
        {
            let seconds = running.as_secs();
            reasons.push(format!("the store has taken no commit for {seconds} s"));
        }
        Health { reasons }
    }

    fn drain(&self) {
        self.drain.send_replace(true);
    }
}

/// The oldest uploads, at most as many as one answer lists.
fn oldest(mut uploads: Vec<UploadStatus>) -> Vec<OpenRecording> {
    uploads.sort_by_key(|upload| upload.since);
    let shown = uploads.into_iter().take(RECORDINGS_LISTED_MAX);
    let shown = shown.map(|upload| OpenRecording {
        id: upload.id,
        node: upload.uploader.node_name,
        stable_id: upload.uploader.stable_id,
        user: upload.uploader.user.map(|user| user.login),
        endpoint: upload.endpoint.to_owned(),
        since: upload.since,
        received_bytes: upload.received_bytes,
        durable_bytes: upload.durable_bytes,
        ended: upload.ended,
    });
    shown.collect()
}

fn network_report(stats: &NodeStats) -> NetworkReport {
    let NamedStats { dropped, counted } = stats.by_name();
    let owned = |(name, value): Named| (name.to_owned(), value);
    NetworkReport {
        dropped: dropped.into_iter().map(owned).collect(),
        counted: counted.into_iter().map(owned).collect(),
    }
}

fn ingest_counters(stats: IngestStats) -> BTreeMap<String, u64> {
    let counters = stats.counters().into_iter();
    counters
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// Where recovery stands, in a word that programs compare with, and why it failed.
fn recovery(store: &Store) -> String {
    match (store.stats().recovery.state, store.recovery_failure()) {
        (RecoveryState::Done, _) => "done".to_owned(),
        (RecoveryState::Running, _) | (RecoveryState::Failed, None) => "running".to_owned(),
        (RecoveryState::Failed, Some(why)) => format!("failed: {}", why.with_causes()),
    }
}

fn counters(stats: &StoreStats) -> BTreeMap<String, u64> {
    let counters = stats.counters().into_iter();
    counters
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// Held for a copy only, so a panic elsewhere leaves the value whole.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_for_operators_has_every_counter_of_the_network_and_no_other() {
        let document = include_str!("../../docs/operations.md");
        let (_, section) = document.split_once("## Counters of the network").unwrap();
        let (section, _) = section.split_once("\n## ").unwrap();
        let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
        let mut written: Vec<&str> = rows
            .filter_map(|row| Some(row.split_once('`')?.0))
            .collect();
        written.sort_unstable();
        let report = network_report(&NodeStats::default());
        let mut counted: Vec<&String> =
            report.dropped.keys().chain(report.counted.keys()).collect();
        counted.sort_unstable();
        assert_eq!(written, counted);
    }
}
