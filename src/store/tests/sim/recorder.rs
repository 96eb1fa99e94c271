//! One recorder from its start to its end, and the host that starts the next one.
//!
//! Invariant: when a process is dead, whatever its memory still holds has no way out: its backend answers nothing any more.
//! Called by `sim.rs`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinSet;

use super::super::super::local_disk::DiskSync;
use super::super::super::{Store, StoreConfig, StoreError, StoreUrl};
use super::super::power::{Kept, Life, ModelStore, Names, Process, Sender, Strike};
use super::dice::Dice;
use super::wire::Wire;
use super::{Ground, World, wall_clock};
use crate::ids::{JournalNumber, LogKey};

/// What one fsync of the model takes.
const FSYNC_TAKES: Duration = Duration::from_millis(3);
/// Below what the journal packs on a thread of its own: threads would make the order of events depend on the machine.
const BUFFER_BYTES: usize = 60 * 1024;

/// One process of a recorder.
#[derive(Debug, Clone)]
pub(super) struct Recorder {
    pub(super) world: Arc<World>,
    pub(super) name: String,
    pub(super) log_key: LogKey,
    pub(super) process: Arc<Process>,
}

/// How a host ends the process that it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Closes,
    Killed,
    KilledAtStep(u64),
    Frozen,
    FrozenAtStep(u64),
    PowerCut(Kept),
    Struck(u64, Strike),
}

impl Recorder {
    fn new(world: &Arc<World>, name: String, log_key: LogKey) -> Self {
        Self {
            world: Arc::clone(world),
            name,
            log_key,
            process: Arc::new(Process::new()),
        }
    }

    /// One that no epoch is of.
    pub(super) fn fresh(world: &Arc<World>, name: &str, dice: &mut Dice) -> Self {
        Self::new(world, name.into(), key(dice))
    }

    /// Opens a store of this process.
    pub(super) async fn open(&self, dice: &mut Dice) -> Result<Store, StoreError> {
        let mut config = StoreConfig::new(StoreUrl::Memory, self.log_key);
        config.buffer_bytes_max = BUFFER_BYTES;
        config.upload_buffer_bytes_max = BUFFER_BYTES / 2;
        config.commit_bytes = BUFFER_BYTES / 4;
        config.compaction = self.world.compaction;
        // Some look as on a disk, most as where requests are paid for: looks are most of what an idle hour of a simulation does.
        let looks_often = self.log_key.as_bytes()[0].is_multiple_of(4);
        config.fence_look_interval = Duration::from_millis(if looks_often { 500 } else { 10_000 });
        config.segment_bytes = self.world.segment_bytes;
        let (inner, disk): (_, Option<Arc<dyn DiskSync>>) = match &self.world.ground {
            Ground::Remote(objects) => (Arc::clone(objects), None),
            Ground::Disk(disk) => {
                let model =
                    ModelStore::new(Arc::clone(disk), Arc::clone(&self.process), FSYNC_TAKES);
                (Arc::new(model.clone()) as _, Some(Arc::new(model)))
            }
        };
        let wire = Wire::new(
            inner,
            Arc::clone(&self.world),
            Arc::clone(&self.process),
            &self.name,
            dice.fork(),
            disk.is_none(),
        );
        Store::open_with(config, Arc::new(wire), disk, dice.rng(), wall_clock).await
    }

    /// The whole life of the process; it closes after `lifetime` if nothing ended it before.
    async fn live(self, mut dice: Dice, lifetime: Duration, closes: bool) {
        let boot = self.world.boot();
        let opened = tokio::select! {
            biased;
            () = self.gone(boot) => return,
            opened = self.open(&mut dice) => opened,
        };
        let store = match opened {
            Ok(store) => store,
            Err(error) => {
                self.note(&format!("does not start: {}", error.with_causes()));
                return;
            }
        };
        self.note("started");
        let mut senders = JoinSet::new();
        tokio::select! {
            biased;
            () = self.gone(boot) => {}
            () = self.work(&store, &mut senders, &mut dice, lifetime, closes) => {}
        }
        self.note("ended");
        self.reap(store, senders).await;
    }

    async fn work(
        &self,
        store: &Store,
        senders: &mut JoinSet<()>,
        dice: &mut Dice,
        lifetime: Duration,
        closes: bool,
    ) {
        let end = tokio::time::Instant::now() + lifetime;
        loop {
            self.process.alive().await;
            for _ in 0..=dice.below(3) {
                senders.spawn(send(self.clone(), store.clone(), dice.fork()));
            }
            if dice.one_in(3) {
                senders.spawn(report(self.clone(), store.clone(), dice.fork()));
            }
            let pause = dice.millis(500, 30_000);
            let now = tokio::time::Instant::now();
            if closes && now + pause >= end {
                tokio::time::sleep_until(end).await;
                let closed = store.close().await;
                self.note(&format!(
                    "closed: {:?}",
                    closed.map_err(|error| error.to_string())
                ));
                return;
            }
            tokio::time::sleep(pause).await;
            while senders.try_join_next().is_some() {}
        }
    }

    /// Takes the memory of a dead process away without letting it act.
    async fn reap(&self, store: Store, mut senders: JoinSet<()>) {
        self.process.turn(Life::Dead);
        let stats = store.stats();
        self.world.count(|tally| {
            tally.compactions += stats.compactions;
            tally.stalls += stats.stalls;
        });
        // Seals that wait would wait for ever; fenced, they end at once.
        let number = JournalNumber(0);
        let shared = Arc::clone(&store.shared);
        shared
            .state()
            .halt(StoreError::Fenced { number }, &shared.space);
        senders.shutdown().await;
        store.committer.stop.cancel();
        store.committer.roller.abort();
        let committer = store.committer.committer.lock().await.take();
        if let Some(task) = committer {
            task.abort();
        }
    }

    async fn gone(&self, boot: u64) {
        tokio::select! {
            biased;
            _ = self.process.life().wait_for(|life| life == Life::Dead) => {}
            () = self.world.power_lost(boot) => {}
        }
    }

    pub(super) fn note(&self, text: &str) {
        self.world.note(&self.name, text);
    }
}

/// One upload: random bytes at random times, and one of all ends.
async fn send(recorder: Recorder, store: Store, mut dice: Dice) {
    tokio::time::sleep(dice.millis(0, 3_000)).await;
    let Ok(mut sender) = Sender::begin(&store, &recorder.world.ledger) else {
        return;
    };
    let id = sender.handle.id();
    recorder.note(&format!("recording {id} begins"));
    let is_long = recorder.world.has_long_sessions && dice.one_in(6);
    let pieces = if is_long { 60 } else { dice.below(12) };
    for _ in 0..pieces {
        let bytes = match dice.below(8) {
            // More than the longest line that is read, so that the recording is cut while it runs.
            _ if is_long => 20_000,
            0 => dice.below(20_000),
            1 | 2 => dice.below(2_000),
            _ => 1 + dice.below(100),
        };
        let bytes = dice.bytes(bytes);
        if !sender.send(bytes.into()).await {
            break;
        }
        let pause = if is_long {
            dice.millis(0, 500)
        } else if dice.one_in(10) {
            dice.millis(5_000, 100_000)
        } else {
            dice.millis(0, 2_000)
        };
        tokio::time::sleep(pause).await;
    }
    match dice.below(6) {
        0 => {
            recorder.note(&format!("recording {id} is dropped"));
            drop(sender);
        }
        1 => {
            recorder.note(&format!("recording {id} idles"));
            tokio::time::sleep(dice.millis(30_000, 200_000)).await;
            drop(sender);
        }
        _ => {
            let sealed = sender.finish().await;
            let told = sealed.map(|sealed| sealed.bytes);
            let told = told.map_err(|error| error.with_causes());
            recorder.note(&format!("recording {id} finished: {told:?}"));
        }
    }
}

/// One sender of events.
async fn report(recorder: Recorder, store: Store, mut dice: Dice) {
    for _ in 0..=dice.below(8) {
        tokio::time::sleep(dice.millis(0, 5_000)).await;
        let number = dice.next();
        let padding = "x".repeat(usize::try_from(dice.below(300)).unwrap());
        let body = format!("{{\"n\":{number},\"pad\":\"{padding}\"}}");
        let ledger = &recorder.world.ledger;
        match ledger.record_event(&store, body).await {
            Ok(id) => recorder.note(&format!("event {id} is acked")),
            Err(error) => recorder.note(&format!("event {number}: {}", error.with_causes())),
        }
    }
}

/// Starts one process after the other until the time is over.
pub(super) async fn host(world: Arc<World>, index: u8, mut dice: Dice) {
    let mut log_key = key(&mut dice);
    let mut generation = 0;
    while tokio::time::Instant::now() < world.deadline {
        if generation > 0 && dice.one_in(4) {
            world.note(&format!("host {index}"), "loses its state");
            log_key = key(&mut dice);
        }
        let recorder = Recorder::new(&world, format!("{index}.{generation}"), log_key);
        generation += 1;
        let fate = fate(&mut dice, world.disk().is_some());
        run(&recorder, fate, &mut dice).await;
        let pause = if dice.one_in(5) {
            dice.millis(60_000, 200_000)
        } else {
            dice.millis(0, 10_000)
        };
        tokio::time::sleep(pause).await;
    }
}

fn key(dice: &mut Dice) -> LogKey {
    let mut key = [0; LogKey::BYTES];
    key[..8].copy_from_slice(&dice.next().to_be_bytes());
    LogKey::from_bytes(key)
}

fn fate(dice: &mut Dice, on_disk: bool) -> Fate {
    let steps = if dice.one_in(2) { 60 } else { 600 };
    match dice.below(if on_disk { 9 } else { 6 }) {
        0 => Fate::Closes,
        1 => Fate::Killed,
        2 => Fate::KilledAtStep(dice.below(steps)),
        3 => Fate::Frozen,
        4 | 5 => Fate::FrozenAtStep(dice.below(steps)),
        6 => Fate::PowerCut(kept(dice)),
        7 => {
            let kept = kept(dice);
            let strike = if dice.one_in(2) {
                Strike::CutBefore(kept)
            } else {
                Strike::CutAfter(kept)
            };
            Fate::Struck(1 + dice.below(steps / 4), strike)
        }
        _ => {
            let names = dice.pick(&[Names::Stay, Names::Lost, Names::ShutDown]);
            Fate::Struck(1 + dice.below(steps / 4), Strike::Fails(names))
        }
    }
}

fn kept(dice: &mut Dice) -> Kept {
    match dice.below(3) {
        0 => Kept::Nothing,
        1 => Kept::Everything,
        _ => Kept::Seeded(dice.next()),
    }
}

/// One process, until it is over for its host.
async fn run(recorder: &Recorder, fate: Fate, dice: &mut Dice) {
    let (world, process) = (&recorder.world, &recorder.process);
    let boot = world.boot();
    recorder.note(&format!("starts; its fate: {fate:?}"));
    match fate {
        Fate::KilledAtStep(at) => process.turn_at(at, Life::Dead),
        Fate::FrozenAtStep(at) => process.turn_at(at, Life::Frozen),
        Fate::Struck(at, strike) => world.disk().unwrap().strike(at, strike),
        Fate::Closes | Fate::Killed | Fate::Frozen | Fate::PowerCut(_) => {}
    }
    let lifetime = dice.millis(2_000, 60_000);
    let closes = fate == Fate::Closes;
    let mut task = tokio::spawn(recorder.clone().live(dice.fork(), lifetime, closes));
    tokio::select! {
        biased;
        _ = process.life().wait_for(|life| life != Life::Running) => {}
        () = world.power_lost(boot) => {}
        over = &mut task => {
            over.unwrap();
            return;
        }
        () = tokio::time::sleep(lifetime), if !closes => {}
    }
    if world.boot() != boot {
        world.count(|tally| tally.crashes += 1);
        return task.await.unwrap();
    }
    match fate {
        Fate::Closes => task.await.unwrap(),
        Fate::Killed | Fate::KilledAtStep(_) => {
            recorder.note("is killed");
            world.count(|tally| tally.crashes += 1);
            process.turn(Life::Dead);
            task.await.unwrap();
        }
        Fate::Frozen | Fate::FrozenAtStep(_) => {
            recorder.note("freezes");
            world.count(|tally| tally.zombies += 1);
            process.turn(Life::Frozen);
            let thaw = thaw(recorder.clone(), task, dice.fork());
            world.zombies.lock().unwrap().spawn(thaw);
        }
        Fate::PowerCut(kept) => {
            world.cut(kept);
            task.await.unwrap();
        }
        Fate::Struck(_, strike) => {
            let struck = world.disk().unwrap().take_struck();
            recorder.note(&format!("struck: {struck}"));
            world.count(|tally| tally.crashes += 1);
            if strike == Strike::Fails(Names::ShutDown) && struck {
                world.cut(Kept::Nothing);
            }
            process.turn(Life::Dead);
            task.await.unwrap();
        }
    }
}

/// A process that looked dead goes on, sooner or later, for a while.
async fn thaw(recorder: Recorder, task: tokio::task::JoinHandle<()>, mut dice: Dice) {
    let world = Arc::clone(&recorder.world);
    if dice.one_in(2) {
        tokio::time::sleep(dice.millis(1_000, 300_000)).await;
    } else {
        // Only when everything has been taken over, sealed and trimmed.
        world.wait_for_aftermath().await;
    }
    recorder.note("goes on");
    world.revived.fetch_add(1, Ordering::Relaxed);
    recorder.process.turn(Life::Running);
    tokio::time::sleep(dice.millis(5_000, 100_000)).await;
    recorder.note("is killed at last");
    recorder.process.turn(Life::Dead);
    world.revived.fetch_sub(1, Ordering::Relaxed);
    task.await.unwrap();
}
