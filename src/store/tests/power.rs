//! Power loss at every fsync: what was acked before is there after, whatever the disk kept of the rest.
//!
//! A fixed workload needs K fsyncs. For every k up to K the k-th fails, or the power goes before or after it; the disk
//! then holds nothing, everything or any part of what was not fsynced. The store is opened on what is left, recovers,
//! and records on. Called by nobody else; the model is also the ground of the simulation.

mod audit;
mod ledger;
mod model_disk;
mod model_store;
mod process;
mod same_calls;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::ObjectStore;
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};

use super::super::local_disk::DiskSync;
use super::super::{Store, StoreConfig, StoreError, StoreUrl};
use super::world::at;
use crate::ids::LogKey;
pub(super) use audit::Objects;
pub(super) use ledger::{Ledger, Sender};
pub(super) use model_disk::{Kept, ModelDisk, Names, Strike};
pub(super) use model_store::ModelStore;
pub(super) use process::{Life, Process};

/// What one fsync takes: enough for other tasks to run meanwhile.
const FSYNC_TAKES: Duration = Duration::from_millis(2);
/// A recorder whose start fails is started again, as its service manager would.
const STARTS_MAX: u64 = 3;
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
}

/// What a run came to.
struct Run {
    fsyncs: u64,
    acked_bytes: u64,
}

fn processes(disk: &Arc<ModelDisk>) -> ModelStore {
    ModelStore::new(Arc::clone(disk), Arc::new(Process::new()), FSYNC_TAKES)
}

async fn start(disk: &Arc<ModelDisk>, seed: u64) -> Result<Store, StoreError> {
    let config = StoreConfig::new(StoreUrl::Memory, LogKey::from_bytes([7; LogKey::BYTES]));
    let process = processes(disk);
    let objects: Arc<dyn ObjectStore> = Arc::new(process.clone());
    let disk: Arc<dyn DiskSync> = Arc::new(process);
    let rng = ChaCha20Rng::seed_from_u64(seed);
    Store::open_with(config, objects, Some(disk), rng, || {
        at("2026-11-20T10:20:00Z")
    })
    .await
}

/// The first life: sessions of all kinds. Errors are what a struck disk gives; the senders go on as they would.
async fn workload(disk: &Arc<ModelDisk>, ledger: &Arc<Ledger>) {
    let mut opened = None;
    for seed in 0..STARTS_MAX {
        if let Ok(store) = start(disk, seed).await {
            opened = Some(store);
            break;
        }
    }
    // A disk that shut down at the start takes nobody.
    let Some(store) = opened else { return };
    let pause = Duration::from_millis(1200);
    let mut long = Sender::begin(&store, ledger).unwrap();
    long.send(Bytes::from_static(b"{\"version\":2}\n")).await;
    let mut large = Sender::begin(&store, ledger).unwrap();
    large.send(noise(20_000)).await;
    tokio::time::sleep(pause).await;
    long.send(Bytes::from_static(b"[1,\"o\",\"small\"]\n"))
        .await;
    large.send(noise(70_000)).await;
    let mut dropped = Sender::begin(&store, ledger).unwrap();
    dropped.send(Bytes::from_static(b"cut off")).await;
    tokio::time::sleep(pause).await;
    drop(dropped);
    // How a finish ends is the ledger's to say.
    drop(large.finish().await);
    let mut left_open = Sender::begin(&store, ledger).unwrap();
    left_open.send(Bytes::from_static(b"never ended")).await;
    long.send(Bytes::from_static(b"[2,\"o\",\"last\"]\n")).await;
    tokio::time::sleep(pause).await;
    drop(long.finish().await);
    drop(store.close().await);
}

fn noise(bytes: usize) -> Bytes {
    let mut noise = vec![0; bytes];
    ChaCha20Rng::seed_from_u64(7).fill_bytes(&mut noise);
    noise.into()
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

fn run(case: Option<Case>) -> Result<Run, String> {
    let disk = Arc::new(ModelDisk::new());
    if let Some(case) = case {
        disk.strike(case.at, case.strike);
    }
    let ledger = Arc::new(Ledger::default());
    let went = life(async {
        let mut boot = disk.boot();
        tokio::select! {
            () = workload(&disk, &ledger) => false,
            () = tokio::time::sleep(LIFE_MAX) => false,
            went = boot.changed() => went.is_ok(),
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
    life(record_on(&disk, &ledger))?;
    Ok(Run {
        fsyncs,
        acked_bytes,
    })
}

/// The next life: it recovers, and a new session records.
async fn record_on(disk: &Arc<ModelDisk>, ledger: &Arc<Ledger>) -> Result<(), String> {
    let store = start(disk, 100)
        .await
        .map_err(|error| error.with_causes())?;
    let mut next = Sender::begin(&store, ledger).unwrap();
    next.send(Bytes::from_static(b"the next one\n")).await;
    let sealed = next.finish().await.map_err(|error| error.with_causes())?;
    assert_eq!(sealed.bytes, 13);
    store.close().await.map_err(|error| error.with_causes())?;
    Ok(())
}

#[test]
fn power_loss_at_any_fsync_loses_no_acked_byte() {
    let whole = run(None).unwrap();
    let mut runs = 0_u64;
    let mut failures = Vec::new();
    for at in 1..=whole.fsyncs {
        let seeded = Kept::Seeded(at);
        let cuts = [Kept::Nothing, Kept::Everything, seeded]
            .into_iter()
            .flat_map(|kept| {
                [Strike::CutBefore(kept), Strike::CutAfter(kept)].map(|strike| (strike, kept))
            });
        let fails = [Names::Stay, Names::Lost, Names::ShutDown]
            .map(|names| (Strike::Fails(names), Kept::Nothing));
        for (strike, kept) in cuts.chain(fails) {
            let case = Case { at, strike, kept };
            runs += 1;
            if let Err(why) = run(Some(case)) {
                failures.push(format!("{case:?}: {why}"));
            }
        }
    }
    println!(
        "power loss: {} fsyncs, {runs} runs, {} acked bytes in a whole one, {} failures",
        whole.fsyncs,
        whole.acked_bytes,
        failures.len()
    );
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
