//! Power loss at every fsync: what was acked before is there after, whatever the disk kept of the rest.
//!
//! A fixed workload needs K fsyncs. For every k up to K the k-th fails, or the power goes before or after it; the disk
//! then holds nothing, everything or any part of what was not fsynced. The store is opened on what is left, recovers,
//! and records on. Called by nobody else; the model is also the ground of the simulation.

mod amplification;
mod audit;
mod bent;
mod ledger;
mod model_disk;
mod model_store;
mod process;
mod same_calls;
mod signal;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use object_store::ObjectStore;
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};

use super::super::local_disk::DiskSync;
use super::super::{CompactionLimits, Store, StoreConfig, StoreError, StoreUrl};
use super::world::at;
use crate::ids::LogKey;
pub(super) use audit::Objects;
pub(super) use ledger::{Ledger, Sender};
pub(super) use model_disk::{Kept, ModelDisk, Names, Strike};
pub(super) use model_store::ModelStore;
pub(super) use process::{Life, Process};
pub(super) use signal::Signal;

/// The log keys of the recorder, and of the one that it is after it lost its state.
const FIRST_KEY: u8 = 7;
const SECOND_KEY: u8 = 8;
/// Small enough for a short recording to be put in parts, and in several segments.
const SEGMENT_BYTES: u64 = 60_000;
/// Small enough for a short life to be compacted.
const COMPACTION: CompactionLimits = CompactionLimits {
    objects: 4,
    interval: Duration::from_secs(300),
    slack_bytes: 32 * 1024,
    copy_bytes_max: 16 * 1024,
    // As of the standard limits, more than a recording can have in spans that are too large to be merged.
    spans_max: 512,
};
/// What one fsync takes: enough for other tasks to run meanwhile.
const FSYNC_TAKES: Duration = Duration::from_millis(2);
/// A recorder whose start fails is started again, as its service manager would.
const STARTS_MAX: u64 = 3;
/// A foreign epoch is watched for 90 s before it is taken over.
const RECOVERY_MAX: Duration = Duration::from_secs(600);
/// A life whose disk takes no more is ended from outside after this long.
const LIFE_MAX: Duration = Duration::from_secs(90);

/// What happens to a life.
#[derive(Debug, Clone, Copy)]
struct Case {
    /// At which fsync.
    at: u64,
    strike: Strike,
    /// What the disk keeps when the power goes at the end, if it has not gone before.
    kept: Kept,
    /// The power goes once more, at that fsync of the next life: while it recovers.
    again: Option<u64>,
    /// The state directory is lost with the power: the next life is another recorder.
    state_lost: bool,
}

/// What a run came to.
struct Run {
    fsyncs: u64,
    acked_bytes: u64,
}

fn processes(disk: &Arc<ModelDisk>) -> ModelStore {
    ModelStore::new(Arc::clone(disk), Arc::new(Process::new()), FSYNC_TAKES)
}

async fn start(
    disk: &Arc<ModelDisk>,
    segment_bytes: u64,
    log_key: u8,
    seed: u64,
) -> Result<Store, StoreError> {
    let log_key = LogKey::from_bytes([log_key; LogKey::BYTES]);
    let mut config = StoreConfig::new(StoreUrl::Memory, log_key);
    config.segment_bytes = segment_bytes;
    config.compaction = COMPACTION;
    let process = processes(disk);
    let objects: Arc<dyn ObjectStore> = Arc::new(process.clone());
    let disk: Arc<dyn DiskSync> = Arc::new(process);
    let rng = ChaCha20Rng::seed_from_u64(seed);
    Store::open_with(config, objects, Some(disk), rng, || {
        at("2026-11-20T10:20:00Z")
    })
    .await
}

/// What a first life does.
#[derive(Debug, Clone, Copy)]
enum Workload {
    /// Sessions of all kinds.
    Sessions,
    /// One recording so long that a part of it leaves the journal while it runs.
    Cut,
}

impl Workload {
    const fn segment_bytes(self) -> u64 {
        match self {
            Self::Sessions => SEGMENT_BYTES,
            Self::Cut => 8 * SEGMENT_BYTES,
        }
    }
}

/// The first life. Errors are what a struck disk gives; the senders go on as they would.
async fn first_life(workload: Workload, disk: &Arc<ModelDisk>, ledger: &Arc<Ledger>) {
    let mut opened = None;
    for seed in 0..STARTS_MAX {
        if let Ok(store) = start(disk, workload.segment_bytes(), FIRST_KEY, seed).await {
            opened = Some(store);
            break;
        }
    }
    // A disk that shut down at the start takes nobody.
    let Some(store) = opened else { return };
    match workload {
        Workload::Sessions => sessions(&store, ledger).await,
        Workload::Cut => long_session(&store, ledger).await,
    }
    drop(store.close().await);
}

async fn long_session(store: &Store, ledger: &Arc<Ledger>) {
    let mut long = send_until_cut(store, ledger).await;
    long.send(Bytes::from_static(b"behind the cut")).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    drop(long.finish().await);
}

/// Sends more than a segment and the longest line that is read.
async fn send_until_cut(store: &Store, ledger: &Arc<Ledger>) -> Sender {
    let mut long = Sender::begin(store, ledger).unwrap();
    for _ in 0..4 {
        long.send(noise(400_000)).await;
        tokio::time::sleep(Duration::from_millis(1200)).await;
    }
    // It is looked for at each append.
    long.send(Bytes::from_static(b"one more")).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    long
}

#[test]
fn a_part_of_the_long_session_leaves_the_journal_while_it_runs() {
    let (disk, ledger) = (Arc::new(ModelDisk::new()), Arc::default());
    life(async {
        let segment_bytes = Workload::Cut.segment_bytes();
        let store = start(&disk, segment_bytes, FIRST_KEY, 0).await.unwrap();
        let long = send_until_cut(&store, &ledger).await;
        let segments = disk.files_below("recordings");
        assert!(!segments.is_empty(), "nothing was cut");
        assert!(
            segments.iter().all(|(name, _)| name.ends_with(".cast")),
            "{segments:?}"
        );
        long.finish().await.unwrap();
    });
}

/// A store that takes nobody is asked until the life is over.
async fn begin(store: &Store, ledger: &Arc<Ledger>) -> Sender {
    loop {
        if let Ok(sender) = Sender::begin(store, ledger) {
            return sender;
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

async fn sessions(store: &Store, ledger: &Arc<Ledger>) {
    let pause = Duration::from_millis(1200);
    let mut long = begin(store, ledger).await;
    long.send(Bytes::from_static(b"{\"version\":2}\n")).await;
    let mut large = begin(store, ledger).await;
    large.send(noise(20_000)).await;
    tokio::time::sleep(pause).await;
    // Whether an event is acked is the ledger's to say, too.
    drop(ledger.record_event(store, "{\"n\":1}".into()).await);
    long.send(Bytes::from_static(b"[1,\"o\",\"small\"]\n"))
        .await;
    large.send(noise(70_000)).await;
    let mut dropped = begin(store, ledger).await;
    dropped.send(Bytes::from_static(b"cut off")).await;
    tokio::time::sleep(pause).await;
    drop(dropped);
    // How a finish ends is the ledger's to say.
    drop(large.finish().await);
    drop(ledger.record_event(store, "{\"n\":2}".into()).await);
    let mut left_open = begin(store, ledger).await;
    left_open.send(Bytes::from_static(b"never ended")).await;
    long.send(Bytes::from_static(b"[2,\"o\",\"last\"]\n")).await;
    tokio::time::sleep(pause).await;
    drop(long.finish().await);
}

fn noise(bytes: usize) -> Bytes {
    static NOISE: OnceLock<Bytes> = OnceLock::new();
    let noise = NOISE.get_or_init(|| {
        let mut noise = vec![0; 400_000];
        ChaCha20Rng::seed_from_u64(7).fill_bytes(&mut noise);
        noise.into()
    });
    noise.slice(..bytes)
}

/// A process: when it is over, nothing of it is left but the disk.
fn life<T>(life: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let over = runtime.block_on(life);
    runtime.shutdown_timeout(Duration::from_secs(10));
    over
}

fn run(workload: Workload, case: Option<Case>) -> Result<Run, String> {
    let disk = Arc::new(ModelDisk::new());
    if let Some(case) = case {
        disk.strike(case.at, case.strike);
    }
    let ledger = Arc::new(Ledger::default());
    let went = life(async {
        tokio::select! {
            biased;
            () = first_life(workload, &disk, &ledger) => false,
            () = tokio::time::sleep(LIFE_MAX) => false,
            _ = disk.boot().wait_for(|boot| boot > 0) => true,
        }
    });
    let fsyncs = disk.fsyncs();
    if let Some(case) = case {
        if !disk.take_struck() {
            return Err(format!("there were only {fsyncs} fsyncs"));
        }
        if !went {
            disk.cut(case.kept);
        }
    }
    let acked_bytes = ledger.acked_bytes();
    life(async {
        let objects = Objects::read(&processes(&disk)).await;
        objects.hold_what_was_acked(&ledger)
    })?;
    let key = match case {
        Some(case) if case.state_lost => SECOND_KEY,
        _ => FIRST_KEY,
    };
    if let Some(at) = case.and_then(|case| case.again) {
        disk.strike(at, Strike::CutBefore(Kept::Seeded(at)));
        life(async {
            let boot = disk.boot().get();
            tokio::select! {
                biased;
                recorded = record_on(&disk, key, 101, &ledger) => recorded,
                _ = disk.boot().wait_for(|now| now != boot) => Ok(()),
            }
        })?;
        if !disk.take_struck() {
            disk.cut(Kept::Nothing);
        }
    }
    life(record_on(&disk, key, 102, &ledger))?;
    Ok(Run {
        fsyncs,
        acked_bytes,
    })
}

/// The next life: it recovers, and a new session records.
async fn record_on(
    disk: &Arc<ModelDisk>,
    key: u8,
    seed: u64,
    ledger: &Arc<Ledger>,
) -> Result<(), String> {
    let why = |error: &StoreError| error.with_causes();
    let store = start(disk, SEGMENT_BYTES, key, seed)
        .await
        .map_err(|error| why(&error))?;
    let mut next = Sender::begin(&store, ledger).unwrap();
    next.send(Bytes::from_static(b"the next one\n")).await;
    let sealed = next.finish().await.map_err(|error| why(&error))?;
    assert_eq!(sealed.bytes, 13);
    let recovered = tokio::time::timeout(RECOVERY_MAX, store.recovered()).await;
    let failure = store.recovery_failure().map(|error| why(&error));
    recovered.map_err(|_| format!("not recovered: {failure:?}"))?;
    store.close().await.map_err(|error| why(&error))?;
    let objects = Objects::read(&processes(disk)).await;
    objects.seal_what_was_acked(ledger)?;
    objects.have_a_trimmed_journal()
}

fn cases(at: u64) -> Vec<Case> {
    let seeded = Kept::Seeded(at);
    let case = |strike, kept| Case {
        at,
        strike,
        kept,
        again: None,
        state_lost: false,
    };
    let mut cases = Vec::new();
    for kept in [Kept::Nothing, Kept::Everything, seeded] {
        cases.push(case(Strike::CutBefore(kept), kept));
        cases.push(case(Strike::CutAfter(kept), kept));
    }
    for names in [Names::Stay, Names::Lost, Names::ShutDown] {
        cases.push(case(Strike::Fails(names), Kept::Nothing));
    }
    // Which fsync of recovery, varies with the case: its number is not known beforehand, the steps are some sixty.
    let again = Some(1 + at * 7 % 64);
    cases.push(Case {
        again,
        ..case(Strike::CutAfter(seeded), seeded)
    });
    cases.push(Case {
        again,
        state_lost: true,
        ..case(Strike::CutBefore(seeded), seeded)
    });
    cases
}

/// Runs every case of every fsync; says how many there were.
fn strike_everywhere(workload: Workload, cases: fn(u64) -> Vec<Case>) {
    let whole = run(workload, None).unwrap();
    let mut runs = 0_u64;
    let mut failures = Vec::new();
    for at in 1..=whole.fsyncs {
        for case in cases(at) {
            runs += 1;
            if let Err(why) = run(workload, Some(case)) {
                failures.push(format!("{case:?}: {why}"));
            }
        }
    }
    println!(
        "power loss: {workload:?}: {} fsyncs, {runs} runs, {} acked bytes in a whole one, {} failures",
        whole.fsyncs,
        whole.acked_bytes,
        failures.len()
    );
    let shown = failures.len().min(10);
    assert!(failures.is_empty(), "{}", failures[..shown].join("\n"));
}

#[test]
fn power_loss_at_any_fsync_loses_no_acked_byte() {
    strike_everywhere(Workload::Sessions, cases);
}

#[test]
fn power_loss_at_any_fsync_of_a_cut_loses_no_acked_byte() {
    strike_everywhere(Workload::Cut, |at| {
        let strikes = [
            Strike::CutBefore(Kept::Nothing),
            Strike::CutAfter(Kept::Seeded(at)),
            Strike::Fails(Names::Lost),
        ];
        let case = |strike| Case {
            at,
            strike,
            kept: Kept::Nothing,
            again: None,
            state_lost: false,
        };
        strikes.map(case).to_vec()
    });
}
