//! After a crash, closes what was open by the normal path: fence the dead epoch, read its journal, seal, trim.
//!
//! Invariant: nothing of an epoch is read as final before its fence is durable, and nothing of it is removed before a
//! durable marker says that all of it is sealed. Every step may fail or be the last: the next pass, or the next start, begins
//! again and finds what was done. A task of [`super::Store::open`]; uploads do not wait for it.

mod epoch;
mod epochs;
mod fencing;
mod index;
mod lock;
mod orphans;
mod tail;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::error::StoreError;
use super::{Shared, Store, events, layout, store_id};
use crate::ids::{EpochId, JournalNumber, RecorderId, RecordingId};
use epoch::Reading;
pub(super) use epoch::close_spent;
use epochs::Listed;
pub(super) use fencing::fence_object;
pub(super) use lock::{RecorderLock, hold_lock, is_held};
use tail::Tail;

/// How long one number of a foreign epoch must stand before its recorder is held for dead (store rule 11): three beats of
/// a fleet's recorder were missed and a fourth is late.
const TAKEOVER_AFTER: Duration = Duration::from_secs(90);
/// How often the next number of a foreign epoch is asked for: three times within [`TAKEOVER_AFTER`].
const WATCH_INTERVAL: Duration = Duration::from_secs(30);
/// How many absences of the next number must have been seen, the first included.
const ABSENCES_MIN: u32 = 4;
/// The pause before a pass that failed is repeated: at first, and at most.
const RETRY_PAUSE_MIN: Duration = Duration::from_secs(5);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(300);
/// How often it is looked whether epochs of other recorders came when none is watched: 144 small listings a day, and one more for each other
/// recorder that was ever there.
const NEWS_INTERVAL: Duration = Duration::from_secs(600);
/// Of how many other recorders one look lists the epochs. Those beyond are found by the daily pass.
const NEWS_RECORDERS_MAX: usize = 256;
/// How often unused segments are looked for, and every epoch is.
const SWEEP_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// How many epochs are watched at once; more are looked at when these are decided.
const WATCHED_MAX: usize = 256;

/// What recovery has come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecoveryState {
    /// It runs, or waits to see whether a foreign recorder lives.
    #[default]
    Running,
    /// Every dead epoch is closed and sealed.
    Done,
    /// The last pass failed; another follows.
    Failed,
}

/// What recovery has found and done since the store was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecoveryStats {
    /// Where it stands.
    pub state: RecoveryState,
    /// Dead epochs that had something left to do.
    pub epochs_found: u64,
    /// Of these, the ones that got their fence from us.
    pub epochs_fenced: u64,
    /// Of these, the ones that are closed: sealed, marked, trimmed.
    pub epochs_closed: u64,
    /// Epochs of other recorders that live, or may.
    pub epochs_foreign: u64,
    /// Unsealed recordings that their journals had.
    pub recordings_found: u64,
    /// Recordings that we sealed.
    pub recordings_sealed: u64,
    /// Recordings of which a manifest existed before we came to it.
    pub recordings_adopted: u64,
    /// Recordings that had been sealed before the crash and of which the journal had remains.
    pub recordings_dropped: u64,
    /// The plain bytes of what we sealed.
    pub bytes: u64,
    /// Journal objects that were lost or damaged, openers among them.
    pub objects_damaged: u64,
    /// Events that stood in their journals and in no object.
    pub events_rolled: u64,
    /// Long events of which the journal had the name, and whose object is lost or damaged.
    pub events_lost: u64,
}

/// What is watched: the counts, and why the last pass failed.
#[derive(Debug, Clone, Default)]
pub(super) struct Status {
    pub(super) stats: RecoveryStats,
    pub(super) failure: Option<Arc<StoreError>>,
}

impl Store {
    /// Waits until every epoch that was dead when the store opened is closed. Foreign epochs count once it is known whether
    /// their recorders live. Pending for ever while the backend fails, or after the store was closed: combine with a limit.
    pub async fn recovered(&self) -> RecoveryStats {
        let mut status = self.shared.recovery.subscribe();
        let done = status.wait_for(|status| status.stats.state == RecoveryState::Done);
        match done.await {
            Ok(status) => status.stats,
            // The sender lives in the store that we hold.
            Err(_) => std::future::pending().await,
        }
    }

    /// Why the last pass of recovery failed, if it did; it is tried again.
    pub fn recovery_failure(&self) -> Option<Arc<StoreError>> {
        self.shared.recovery.borrow().failure.clone()
    }
}

/// One run of recovery: what it remembers between two passes.
pub(super) struct Recovery {
    shared: Arc<Shared>,
    /// Epochs with nothing left to do.
    closed: BTreeSet<EpochId>,
    /// Foreign epochs that have no fence.
    watched: BTreeMap<EpochId, Watched>,
    /// Recordings that we sealed in epochs that are not closed yet: a second pass meets their manifests.
    sealed: BTreeSet<RecordingId>,
    found: BTreeSet<EpochId>,
    swept: Option<Instant>,
}

struct Watched {
    number: JournalNumber,
    since: Instant,
    absences: u32,
    /// It moved, or its lock is held.
    lives: bool,
}

/// An epoch whose recorder is dead.
struct DeadEpoch {
    listed: Listed,
    /// Held until it is closed. One serves all epochs of the recorder.
    lock: Option<RecorderLock>,
}

/// What is known of a recorder.
enum Holder {
    /// Its epoch may be fenced. On a disk its lock is held meanwhile, so that others let it be.
    Dead(Option<RecorderLock>),
    Lives,
    /// Not known yet.
    Watched,
    /// Its epoch is closed, whether it lives or not.
    Closed,
}

impl Recovery {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            closed: BTreeSet::new(),
            watched: BTreeMap::new(),
            sealed: BTreeSet::new(),
            found: BTreeSet::new(),
            swept: None,
        }
    }

    /// Runs until the store is closed. To be stopped half-way was asked for and loses nothing, so it is no warning.
    pub(super) async fn run_until(self, stop: CancellationToken) {
        let shared = Arc::clone(&self.shared);
        match stop.run_until_cancelled(self.run()).await {
            Some(never) => match never {},
            None => tell_stopped(&shared.recovery.borrow().stats),
        }
    }

    /// Passes, one after the other: at once, again while one fails, and as often as foreign recorders are watched.
    async fn run(mut self) -> Infallible {
        let mut retry_pause = RETRY_PAUSE_MIN;
        loop {
            let pause = match self.pass().await {
                Ok(undecided) => {
                    retry_pause = RETRY_PAUSE_MIN;
                    self.report(undecided, None);
                    self.sweep_if_due(undecided).await;
                    if self.watched.is_empty() {
                        self.wait_for_news().await;
                        continue;
                    }
                    WATCH_INTERVAL
                }
                Err(error) => {
                    tracing::warn!(
                        error = error.with_causes(),
                        "recovery failed; it will be tried again"
                    );
                    self.report(true, Some(Arc::new(error)));
                    let pause = retry_pause;
                    retry_pause = pause.saturating_mul(2).min(RETRY_PAUSE_MAX);
                    pause
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Waits while nothing is watched: until another recorder has an epoch that no pass has met, or a day has passed.
    async fn wait_for_news(&self) {
        let began = Instant::now();
        while began.elapsed() < SWEEP_INTERVAL {
            tokio::time::sleep(NEWS_INTERVAL).await;
            match self.has_news().await {
                Ok(false) => {}
                // What fails here fails in the pass too, and is told there.
                Ok(true) | Err(_) => return,
            }
        }
    }

    async fn has_news(&self) -> Result<bool, StoreError> {
        let own = self.shared.config.recorder();
        let objects = &self.shared.objects;
        let recorders = store_id::names_in::<RecorderId>(objects, &layout::journal()).await?;
        let others = recorders.into_iter().filter(|recorder| *recorder != own);
        for recorder in others.take(NEWS_RECORDERS_MAX) {
            let below = layout::journal_of(&recorder);
            let epochs = store_id::names_in::<EpochId>(objects, &below).await?;
            for epoch in epochs {
                let is_new = !self.closed.contains(&epoch);
                if is_new && epochs::has_objects(&self.shared, &recorder, &epoch).await? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// One pass over all epochs; true when it is not known of some whether their recorders live. An epoch that fails does not
    /// hold up the others; its error is returned at the end.
    async fn pass(&mut self) -> Result<bool, StoreError> {
        let own = self.shared.config.recorder();
        let mut failure = None;
        let mut undecided = false;
        let mut dead = BTreeMap::<RecorderId, Vec<DeadEpoch>>::new();
        // Of these some epoch lives, or may: the others are left to them. The mark that says where an event of an older epoch went may stand in
        // the newest, and is not read while that lives.
        let mut alive = BTreeSet::new();
        for listed in epochs::list(&self.shared).await? {
            if self.closed.contains(&listed.epoch) || self.shared.is_own_epoch(&listed.epoch) {
                continue;
            }
            // A lock that we hold for one epoch of a recorder is no sign of life for the next.
            let ours = |dead: &Vec<DeadEpoch>| dead.iter().any(|dead| dead.lock.is_some());
            let locked = dead.get(&listed.recorder).is_some_and(ours);
            match self.look_at(&own, &listed, locked).await {
                Ok(Holder::Dead(lock)) => {
                    let dead = dead.entry(listed.recorder).or_default();
                    dead.push(DeadEpoch { listed, lock });
                    continue;
                }
                Ok(Holder::Closed) => {
                    // At most a trim is left.
                    self.watched.remove(&listed.epoch);
                    let alone = vec![DeadEpoch { listed, lock: None }];
                    failure = self.close_epochs(alone).await.err().or(failure);
                    continue;
                }
                Ok(Holder::Lives) => {}
                Ok(Holder::Watched) => undecided = true,
                Err(error) => failure = Some(error),
            }
            alive.insert(listed.recorder);
        }
        dead.retain(|recorder, _| !alive.contains(recorder));
        for dead in dead.values().flatten() {
            self.watched.remove(&dead.listed.epoch);
        }
        for epochs in dead.into_values() {
            failure = self.close_epochs(epochs).await.err().or(failure);
        }
        if failure.is_none() {
            // Nothing is left half done, so no manifest of ours is met again.
            self.sealed.clear();
        }
        failure.map_or(Ok(undecided), Err)
    }

    /// Whether the recorder of an epoch lives; `locked` if we hold its lock. Deciding wrongly costs a living recorder its epoch, and never a byte.
    async fn look_at(
        &mut self,
        own: &RecorderId,
        listed: &Listed,
        locked: bool,
    ) -> Result<Holder, StoreError> {
        // Whoever had our key before us is gone, or is to go.
        if locked || listed.recorder == *own {
            return Ok(Holder::Dead(None));
        }
        let known = self
            .watched
            .get(&listed.epoch)
            .map(|watched| watched.number);
        let from = known.map_or(listed.newest, |number| number.max(listed.newest));
        let tail = Tail::find(&self.shared, &listed.recorder, &listed.epoch, from).await?;
        match tail.fence {
            Some(fence) if fence.is_final() => return Ok(Holder::Closed),
            Some(_) => return Ok(Holder::Dead(None)),
            None => {}
        }
        match lock::try_lock(&self.shared, &listed.recorder).await {
            lock::Tried::Free(lock) => {
                return Ok(Holder::Dead(Some(lock)));
            }
            lock::Tried::Held => {
                self.watch(listed.epoch, tail.number).lives = true;
                return Ok(Holder::Lives);
            }
            lock::Tried::CannotTell => {}
        }
        if known.is_none() && self.watched.len() >= WATCHED_MAX {
            return Ok(Holder::Watched);
        }
        let watched = self.watch(listed.epoch, tail.number);
        if watched.absences >= ABSENCES_MIN && watched.since.elapsed() >= TAKEOVER_AFTER {
            return Ok(Holder::Dead(None));
        }
        Ok(if watched.lives {
            Holder::Lives
        } else {
            Holder::Watched
        })
    }

    /// The next number was absent once more.
    fn watch(&mut self, epoch: EpochId, number: JournalNumber) -> &mut Watched {
        let fresh = |lives| Watched {
            number,
            since: Instant::now(),
            absences: 0,
            lives,
        };
        let watched = self.watched.entry(epoch).or_insert_with(|| fresh(false));
        if watched.number != number {
            *watched = fresh(true);
        }
        watched.absences = watched.absences.saturating_add(1);
        watched
    }

    /// Closes the dead epochs of one recorder. Their events are rolled together: the mark that says where events went may stand in a
    /// later epoch than the events. The newest is closed first, and an older one only when that succeeded: without the older, nobody
    /// would know that events of the newer stand in an object that an event of the older gave its name.
    async fn close_epochs(&mut self, mut epochs: Vec<DeadEpoch>) -> Result<(), StoreError> {
        epochs.sort_by_key(|dead| dead.listed.epoch);
        let mut readings = Vec::new();
        // The newest is fenced first, too: a recorder that lives after all notices there, and does not go on while an older one is ours.
        for dead in epochs.iter().rev() {
            match epoch::open(&self.shared, &dead.listed, &mut self.found).await? {
                Some(reading) => readings.push((&dead.listed, reading)),
                None => {
                    self.closed.insert(dead.listed.epoch);
                }
            }
        }
        readings.reverse();
        for (listed, reading) in &readings {
            // If we stop here: the loss is declared, and will not be a second time.
            let (recorder, epoch) = (&listed.recorder, &listed.epoch);
            events::declare_lost_objects(&self.shared, recorder, epoch, reading.lost()).await?;
        }
        let indexes = readings.iter_mut();
        let indexes = indexes.map(|(_, reading)| reading.take_events());
        let events = events::roll_recovered(&self.shared, indexes.collect()).await?;
        // If we stop here: the events stand in objects and in the dead journals; the next pass meets the objects.
        self.shared.recovery.send_modify(|status| {
            let stats = &mut status.stats;
            stats.events_rolled = stats.events_rolled.saturating_add(events.rolled);
        });
        for (listed, reading) in readings.into_iter().rev() {
            // If we stop here: those that are left are the oldest, and their events are met under their own names.
            self.close_epoch(listed, reading).await?;
        }
        // Here, so that a pass that is repeated counts them once.
        self.shared.recovery.send_modify(|status| {
            let stats = &mut status.stats;
            stats.events_lost = stats.events_lost.saturating_add(events.lost);
        });
        Ok(())
    }

    async fn close_epoch(&mut self, listed: &Listed, reading: Reading) -> Result<(), StoreError> {
        let counts = epoch::close(&self.shared, listed, reading, &mut self.sealed).await?;
        self.closed.insert(listed.epoch);
        tracing::info!(
            recorder = %listed.recorder,
            epoch = %listed.epoch,
            recordings = counts.recordings_found,
            "a dead epoch is closed"
        );
        self.shared.recovery.send_modify(|status| {
            let stats = &mut status.stats;
            let add = |to: &mut u64, more: u64| *to = to.saturating_add(more);
            add(&mut stats.epochs_closed, 1);
            add(&mut stats.recordings_found, counts.recordings_found);
            add(&mut stats.recordings_adopted, counts.recordings_adopted);
            add(&mut stats.recordings_dropped, counts.recordings_dropped);
            add(&mut stats.objects_damaged, counts.objects_damaged);
        });
        Ok(())
    }

    fn report(&self, undecided: bool, failure: Option<Arc<StoreError>>) {
        let foreign = u64::try_from(self.watched.len()).unwrap_or_default();
        self.shared.recovery.send_modify(|status| {
            status.stats.epochs_foreign = foreign;
            status.stats.state = match (&failure, undecided) {
                (Some(_), _) => RecoveryState::Failed,
                (None, true) => RecoveryState::Running,
                (None, false) => RecoveryState::Done,
            };
            status.failure = failure;
        });
    }

    /// Unused segments cost room, not truth: a sweep that fails is for the log.
    async fn sweep_if_due(&mut self, undecided: bool) {
        let due = self
            .swept
            .is_none_or(|swept| swept.elapsed() >= SWEEP_INTERVAL);
        if undecided || !due {
            return;
        }
        self.swept = Some(Instant::now());
        // With a living recorder beside us, a segment without a manifest may be a cut of its.
        let alone = self.watched.is_empty();
        if let Err(error) = orphans::sweep(&self.shared, alone).await {
            tracing::warn!(error = error.with_causes(), "unused segments stay");
        }
    }
}

/// How far it came, if it was not at its end.
fn tell_stopped(stats: &RecoveryStats) {
    match stats.state {
        RecoveryState::Done => {}
        RecoveryState::Running | RecoveryState::Failed => tracing::info!(
            recordings_sealed = stats.recordings_sealed,
            events_rolled = stats.events_rolled,
            epochs_closed = stats.epochs_closed,
            epochs_found = stats.epochs_found,
            epochs_foreign = stats.epochs_foreign,
            "recovery stops half-way, as asked; the next start goes on with it"
        ),
    }
}

/// Where recovery says how it goes.
pub(super) fn status() -> watch::Sender<Status> {
    watch::Sender::new(Status::default())
}
