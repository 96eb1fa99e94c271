//! The store simulated: a seed makes recorders, sessions, faults, crashes, power cuts, zombies and takeovers.
//!
//! All of it runs on one thread and a clock that only moves when everybody waits, so the same seed repeats exactly. At the
//! end everything is recovered, and the auditor holds what is stored against what the senders know. For a soak:
//! `TAILTAPE_SIM_SEEDS=10000 cargo test -p tailtape --lib store::tests::sim::no_seed -- --nocapture`; a failure names
//! its seed, and `TAILTAPE_SIM_FIRST=<seed> TAILTAPE_SIM_SEEDS=1` runs it alone.

mod dice;
mod recorder;
mod wire;

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use jiff::{SignedDuration, Timestamp};
use object_store::ObjectStore;
use object_store::memory::InMemory;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::super::{CompactionLimits, StoreError};
use super::power::{Kept, Ledger, ModelDisk, ModelStore, Objects, Process, Signal};
use super::world::at;
use dice::Dice;
use recorder::{Recorder, host};

/// How many seeds `cargo test` runs.
const SEEDS: u64 = 200;
/// As many seeds hold at least one of every kind of trouble, wherever they begin: the rarest comes some ten times.
const SEEDS_WITH_EVERY_KIND: u64 = 100;
/// A minute before the simulation begins, since 1970.
const STORED_AT: Duration = Duration::from_secs(1_795_169_940);
/// How many of the last events a failure shows.
const EVENTS_SHOWN: usize = 80;
/// Longer than any play: whoever waits this long waits for ever.
const PLAY_MAX: Duration = Duration::from_secs(24 * 3600);
/// Everything must be recovered after this long without faults.
const RECOVERY_MAX: Duration = Duration::from_secs(2 * 3600);

/// More calls than there are objects in any play.
const CALLS_OF_AN_AUDIT_MAX: u32 = 1_000_000;

/// Compaction that has something to do in a simulation.
const SMALL: CompactionLimits = CompactionLimits {
    objects: 4,
    interval: Duration::from_secs(20),
    slack_bytes: 8 * 1024,
    copy_bytes_max: 16 * 1024,
    spans_max: 8,
};

/// What outlives every process.
#[derive(Debug)]
enum Ground {
    Disk(Arc<ModelDisk>),
    Remote(Arc<dyn ObjectStore>),
}

#[derive(Debug)]
struct World {
    ground: Ground,
    ledger: Arc<Ledger>,
    began: Instant,
    deadline: Instant,
    trouble_per_mille: u64,
    segment_bytes: u64,
    compaction: CompactionLimits,
    has_long_sessions: bool,
    calm: AtomicBool,
    aftermath: Signal<bool>,
    zombies: Mutex<JoinSet<()>>,
    /// Zombies that go on now: they live.
    revived: AtomicUsize,
    events: Mutex<Vec<String>>,
    tally: Mutex<Tally>,
}

/// What happened, in one seed or in all.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Tally {
    recordings: u64,
    complete: u64,
    recovered: u64,
    gaps_flagged: u64,
    cut: u64,
    events: u64,
    compactions: u64,
    stalls: u64,
    acked_bytes: u64,
    crashes: u64,
    power_cuts: u64,
    zombies: u64,
    takeovers: u64,
    audits_beside_the_living: u64,
}

/// A seed, run.
#[derive(Debug, PartialEq, Eq)]
struct Run {
    tally: Tally,
    events: Vec<String>,
    failure: Option<String>,
}

impl Run {
    /// Whoever waits for the store's health is woken in an order that tokio draws at random, so the events of one instant come in any order.
    fn in_order(mut self) -> Self {
        let instant = |event: &String| {
            event
                .split_once(": ")
                .map(|(at, _)| at.trim_start().split(' ').next().map(str::to_owned))
        };
        self.events
            .chunk_by_mut(|a, b| instant(a) == instant(b))
            .for_each(<[String]>::sort_unstable);
        self
    }
}

thread_local! {
    /// When the simulation of this thread began: the store takes its wall clock as a bare function.
    static BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
}

fn wall_clock() -> Timestamp {
    let elapsed = BEGAN.get().map(|began| began.elapsed()).unwrap_or_default();
    at("2026-11-20T10:20:00Z") + SignedDuration::try_from(elapsed).unwrap()
}

impl World {
    fn new(dice: &mut Dice) -> Self {
        let began = Instant::now();
        BEGAN.set(Some(began));
        let ground = if dice.one_in(2) {
            Ground::Disk(Arc::new(ModelDisk::new()))
        } else {
            Ground::Remote(Arc::new(InMemory::new()))
        };
        Self {
            ground,
            ledger: Arc::new(Ledger::default()),
            began,
            deadline: began + dice.millis(30_000, 300_000),
            trouble_per_mille: dice.pick(&[0, 10, 50, 200]),
            segment_bytes: dice.pick(&[16 * 1024 * 1024, 60_000, 4_000]),
            compaction: dice.pick(&[CompactionLimits::STANDARD, SMALL]),
            has_long_sessions: dice.one_in(8),
            calm: AtomicBool::new(false),
            aftermath: Signal::new(false),
            zombies: Mutex::default(),
            revived: AtomicUsize::new(0),
            events: Mutex::default(),
            tally: Mutex::default(),
        }
    }

    fn note(&self, who: &str, text: &str) {
        let at = self.began.elapsed();
        let mut events = self.events.lock().unwrap();
        events.push(format!("{:>10.3} {who}: {text}", at.as_secs_f64()));
    }

    fn count(&self, count: impl FnOnce(&mut Tally)) {
        count(&mut self.tally.lock().unwrap());
    }

    fn trouble_per_mille(&self) -> u64 {
        if self.calm.load(Ordering::Relaxed) {
            0
        } else {
            self.trouble_per_mille
        }
    }

    fn disk(&self) -> Option<&Arc<ModelDisk>> {
        match &self.ground {
            Ground::Disk(disk) => Some(disk),
            Ground::Remote(_) => None,
        }
    }

    fn boot(&self) -> u64 {
        self.disk().map_or(0, |disk| disk.boot().get())
    }

    async fn power_lost(&self, since: u64) {
        match self.disk() {
            None => std::future::pending().await,
            Some(disk) => {
                disk.boot().wait_for(|boot| boot != since).await;
            }
        }
    }

    fn cut(&self, kept: Kept) {
        self.note("power", &format!("is cut: {kept:?}"));
        self.disk().unwrap().cut(kept);
    }

    async fn wait_for_aftermath(&self) {
        self.aftermath.wait_for(|aftermath| aftermath).await;
    }

    /// True at every moment, whoever lives: what was acked is sealed or in the journal.
    fn hold_what_was_acked(&self, when: &str) -> Result<(), String> {
        // The model yields at each call, and nobody else runs at it: nobody moves a byte, or acks one, meanwhile.
        let mut reading = std::pin::pin!(self.objects());
        let mut calls = 0..CALLS_OF_AN_AUDIT_MAX;
        let objects = loop {
            if let Some(objects) = reading.as_mut().now_or_never() {
                break objects;
            }
            calls.next().ok_or("the audit had to wait")?;
        };
        let held = objects.hold_what_was_acked(&self.ledger);
        held.map_err(|error| format!("{when}: {error}"))
    }

    /// Everything that is stored, read past all faults.
    async fn objects(&self) -> Objects {
        match &self.ground {
            Ground::Remote(objects) => Objects::read(&**objects).await,
            Ground::Disk(disk) => {
                let process = Arc::new(Process::new());
                let store = ModelStore::new(Arc::clone(disk), process, Duration::ZERO);
                Objects::read(&store).await
            }
        }
    }
}

fn simulate(seed: u64) -> Run {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let mut dice = Dice::of_seed(seed);
    let (world, outcome) = runtime.block_on(async {
        let world = Arc::new(World::new(&mut dice));
        let outcome = match tokio::time::timeout(PLAY_MAX, play(&world, dice)).await {
            Ok(outcome) => outcome,
            Err(_) => Err("something waits for ever".into()),
        };
        (world, outcome)
    });
    runtime.shutdown_background();
    let mut tally = *world.tally.lock().unwrap();
    tally.acked_bytes = world.ledger.acked_bytes();
    if let Some(disk) = world.disk() {
        tally.power_cuts = disk.boot().get();
    }
    let events = std::mem::take(&mut *world.events.lock().unwrap());
    Run {
        tally,
        events,
        failure: outcome.err(),
    }
}

async fn play(world: &Arc<World>, mut dice: Dice) -> Result<(), String> {
    let mut hosts = JoinSet::new();
    for index in 0..=dice.below(3) {
        let index = u8::try_from(index).unwrap();
        hosts.spawn(host(Arc::clone(world), index, dice.fork()));
    }
    while let Some(ended) = hosts.join_next().await {
        ended.map_err(|error| format!("a host failed: {error}"))?;
    }
    // From here on the world is kind: what is lost now was lost before.
    world.calm.store(true, Ordering::Relaxed);
    if let Some(disk) = world.disk() {
        disk.take_struck();
        if disk.is_shut_down() {
            world.cut(Kept::Nothing);
        }
    }
    world.hold_what_was_acked("when the hosts are gone")?;
    recover(world, &mut dice, "the last").await?;
    world.hold_what_was_acked("when it is recovered")?;
    // What one that lives again has acked is its own to seal, until it dies.
    if world.revived.load(Ordering::Relaxed) == 0 {
        let objects = world.objects().await;
        objects.seal_what_was_acked(&world.ledger)?;
    } else {
        world.count(|tally| tally.audits_beside_the_living += 1);
    }

    world.note("world", "aftermath");
    world.aftermath.change(|aftermath| *aftermath = true);
    let mut zombies = std::mem::take(&mut *world.zombies.lock().unwrap());
    while let Some(ended) = zombies.join_next().await {
        ended.map_err(|error| format!("a zombie failed: {error}"))?;
    }
    // What the zombies claimed anew, if anything, is a dead epoch like any other.
    recover(world, &mut dice, "the very last").await?;
    let objects = world.objects().await;
    let sealed = objects.seal_what_was_acked(&world.ledger)?;
    objects.have_a_trimmed_journal()?;
    world.count(|tally| {
        tally.recordings = sealed.recordings;
        tally.complete = sealed.complete;
        tally.recovered = sealed.recovered;
        tally.gaps_flagged = sealed.gaps_flagged;
        tally.cut = sealed.cut;
        tally.events = sealed.events;
    });
    Ok(())
}

/// A recorder of its own, that takes over whatever is left.
async fn recover(world: &Arc<World>, dice: &mut Dice, name: &str) -> Result<(), String> {
    let recorder = Recorder::fresh(world, name, dice);
    let opened = recorder.open(dice).await;
    let store = opened.map_err(|error| format!("{name}: {}", error.with_causes()))?;
    let recovered = tokio::time::timeout(RECOVERY_MAX, async {
        // A recorder that moved not long ago passes for living; it is looked at again until it is held for dead.
        while store.recovered().await.epochs_foreign > 0 {
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
    });
    let recovered = recovered.await;
    let stats = store.stats().recovery;
    world.note(name, &format!("recovered: {stats:?}"));
    recovered.map_err(|_| {
        let why = store.recovery_failure().map(|error| error.with_causes());
        format!("{name}: not recovered: {stats:?}: {why:?}")
    })?;
    world.count(|tally| tally.takeovers += stats.epochs_fenced);
    match store.close().await {
        // It idles beside a zombie that goes on: without a fleet's beats that one takes it for dead, and it notices.
        Err(StoreError::Fenced { .. }) => Ok(()),
        closed => closed.map_err(|error| format!("{name}: {}", error.with_causes())),
    }
}

fn from_environment(name: &str, default: u64) -> u64 {
    #[expect(clippy::disallowed_methods, reason = "a soak is told its seeds")]
    let told = std::env::var(name);
    told.map_or(default, |told| told.parse().unwrap())
}

#[test]
fn no_seed_loses_an_acked_byte() {
    let first = from_environment("TAILTAPE_SIM_FIRST", 1);
    let seeds = from_environment("TAILTAPE_SIM_SEEDS", SEEDS);
    let mut all = Tally::default();
    for seed in first..first + seeds {
        let run = simulate(seed);
        if let Some(failure) = run.failure {
            let from = run.events.len().saturating_sub(EVENTS_SHOWN);
            panic!("seed {seed}: {failure}\n{}", run.events[from..].join("\n"));
        }
        all.add(&run.tally);
    }
    println!(
        "simulation: {seeds} seeds, {} recordings, {} acked bytes, 0 lost, 0 gaps unflagged, {} complete, {} recovered, {} cut, {} gaps flagged, {} events, {} compactions, {} stalls, \
         {} crashes, {} power cuts, {} takeovers, {} zombies, {} audits beside a living one",
        all.recordings,
        all.acked_bytes,
        all.complete,
        all.recovered,
        all.cut,
        all.gaps_flagged,
        all.events,
        all.compactions,
        all.stalls,
        all.crashes,
        all.power_cuts,
        all.takeovers,
        all.zombies,
        all.audits_beside_the_living
    );
    assert!(seeds < 10 || all.acked_bytes > 0, "{all:?}");
    let missed = all.kinds_that_never_happened();
    assert!(
        seeds < SEEDS_WITH_EVERY_KIND || missed.is_empty(),
        "{missed:?} never happened: {all:?}"
    );
}

#[test]
fn a_seed_repeats_exactly() {
    for seed in 1..=8 {
        let (one, other) = (simulate(seed).in_order(), simulate(seed).in_order());
        let differs = one
            .events
            .iter()
            .zip(&other.events)
            .position(|(a, b)| a != b);
        assert_eq!(
            differs,
            None,
            "seed {seed}: {:?}",
            differs.map(|at| (&one.events[at], &other.events[at]))
        );
        assert_eq!(one, other);
    }
}

impl Tally {
    /// A simulation in which one of these never happens proves nothing about it. Gaps are none of them: nothing that was journalled is lost here.
    fn kinds_that_never_happened(&self) -> Vec<&'static str> {
        let kinds = [
            ("complete", self.complete),
            ("recovered", self.recovered),
            ("cuts", self.cut),
            ("events", self.events),
            ("compactions", self.compactions),
            ("stalls", self.stalls),
            ("crashes", self.crashes),
            ("power cuts", self.power_cuts),
            ("zombies", self.zombies),
            ("takeovers", self.takeovers),
            ("audits beside a living one", self.audits_beside_the_living),
        ];
        let never = kinds.into_iter().filter(|(_, times)| *times == 0);
        never.map(|(kind, _)| kind).collect()
    }

    fn add(&mut self, other: &Self) {
        self.recordings += other.recordings;
        self.complete += other.complete;
        self.recovered += other.recovered;
        self.cut += other.cut;
        self.events += other.events;
        self.compactions += other.compactions;
        self.stalls += other.stalls;
        self.gaps_flagged += other.gaps_flagged;
        self.acked_bytes += other.acked_bytes;
        self.crashes += other.crashes;
        self.power_cuts += other.power_cuts;
        self.zombies += other.zombies;
        self.takeovers += other.takeovers;
        self.audits_beside_the_living += other.audits_beside_the_living;
    }
}
