//! The promise under SIGKILL: a recorder that is killed again and again, at any moment, loses no byte that it acked, and stores none twice.
//!
//! `TAILTAPE_KILL_ROUNDS` and `TAILTAPE_KILL_SEED` choose how long and which. The same seed draws the same sessions and moments; what meets a
//! moment is up to the machine. A run that fails says its seed and round, and leaves its store and the recorder's log.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test program: to panic is to fail"
)]

mod bent;
mod content;
mod judge;
mod raw;
mod recorder;
mod reporter;
mod round;
mod session;
mod tailnet;

use std::fmt::Write as _;
use std::future::Future;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use crate::content::plan_rng;
use crate::judge::{Verdict, judge};
use crate::raw::{age_segments, orphans};
use crate::recorder::{Home, Recorder};
use crate::round::{Run, SESSIONS};
use crate::tailnet::World;

/// What takes longer than this is broken.
const PATIENCE: Duration = Duration::from_secs(30);
/// Rounds without `TAILTAPE_KILL_ROUNDS`.
const ROUNDS: u32 = 20;
/// The seed without `TAILTAPE_KILL_SEED`.
const SEED: u64 = 1;
/// Faults and lines of a log that are worth printing.
const LINES_MAX: usize = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recorder_killed_at_any_moment_loses_no_acked_byte_and_stores_none_twice() {
    let rounds =
        setting("TAILTAPE_KILL_ROUNDS").map_or(ROUNDS, |rounds| u32::try_from(rounds).unwrap());
    let seed = setting("TAILTAPE_KILL_SEED").unwrap_or(SEED);
    let scene = Scene::new(seed);
    let (run, verdict) = play(&scene, seed, rounds).await;
    assert!(
        verdict.faults.is_empty(),
        "{}",
        quoted(&verdict.faults.join("\n"))
    );
    // A run in which nothing was at stake proves nothing.
    assert!(
        verdict.acked_bytes > 0
            && verdict.recovered > 0
            && verdict.whole > 0
            && verdict.acked_events > 0,
        "{verdict:?}"
    );
    say(&format!(
        "kill: {} kills, {} sessions told that they are whole, {} never heard, {} stored bytes, {} orphans swept",
        run.kills, verdict.whole, verdict.unheard, verdict.stored_bytes, run.orphans,
    ));
    say(&format!(
        "kill: {rounds} rounds, seed {seed}, {} sessions, {} acked bytes, {} lost, {} twice, {} recovered",
        rounds * SESSIONS,
        verdict.acked_bytes,
        verdict.lost,
        verdict.twice,
        verdict.recovered,
    ));
    say(&format!(
        "kill: {} acked events, {} lost, {} twice, {} stored whose answer was not heard",
        verdict.acked_events, verdict.lost_events, verdict.events_twice, verdict.unheard_events,
    ));
    scene.clear();
}

/// Plays the rounds, lets one more recorder finish what they left, and another, a day later, sweep; has the closed store judged.
async fn play(scene: &Scene, seed: u64, rounds: u32) -> (Run, Verdict) {
    let world = World::start().await;
    let home = Home::new(&scene.directory, world.recorder_key());
    let mut rng = plan_rng(seed);
    let mut run = Run::new(seed);
    for round in 0..rounds {
        scene.round.set(round);
        run.play_round(&mut rng, &world, &home).await;
    }
    let mut recorder = Recorder::start(&home, &world.control_url());
    recorder.until_recovered(&home).await;
    recorder.stop().await;
    let orphans = orphans(&home.store());
    run.orphans = orphans.len();
    age_segments(&home.store());
    let mut recorder = Recorder::start(&home, &world.control_url());
    recorder.until_recovered(&home).await;
    recorder.until_swept(&home, &orphans).await;
    recorder.stop().await;
    let verdict = judge(&home.store(), &run).await;
    (run, verdict)
}

/// Where a run is, told when it fails.
struct Scene {
    seed: u64,
    round: std::cell::Cell<u32>,
    directory: PathBuf,
}

impl Scene {
    fn new(seed: u64) -> Self {
        Self {
            seed,
            round: std::cell::Cell::new(0),
            directory: tempfile::Builder::new()
                .prefix("tailtape-kill-")
                .tempdir()
                .unwrap()
                .keep(),
        }
    }

    fn clear(self) {
        std::fs::remove_dir_all(&self.directory).unwrap();
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (seed, round) = (self.seed, self.round.get());
            let directory = self.directory.display();
            say(&format!(
                "kill: failed with seed {seed} in round {round}; store and log are left in {directory}"
            ));
        }
    }
}

/// The future's output; panics if it does not come.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("{what}: not within {PATIENCE:?}"),
    }
}

/// The last lines of a text, and how many stand before them.
fn quoted(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let before = lines.len().saturating_sub(LINES_MAX);
    let mut quoted = String::new();
    if before > 0 {
        writeln!(quoted, "({before} lines, then)").unwrap();
    }
    quoted + &lines[before..].join("\n")
}

/// Past the capture of a test's output: the closing line is for everyone.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").unwrap();
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long a soak is, is no setting of the recorder"
)]
fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text}: give a number")),
    )
}
