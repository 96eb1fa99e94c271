//! `just bench`: the tunnel beside plain loopback TCP, into the same ingest and the same store, in one run.
//!
//! The invariant: what is compared runs in turn, in one process, with the same bytes, and a median of all rounds is shown. Absolute
//! figures belong to the machine; ratios are what counts. Nothing is asserted. `-- --quick` is a smoke run, `-- --write` puts the
//! table into docs/benchmarks.md, and further words keep the groups that they name.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a bench program: its output is the product"
)]

mod disk;
mod latency;
mod numbers;
mod report;
mod traffic;
mod world;

use std::time::Duration;

use anyhow::Context;

use numbers::median;
use report::{Report, Row};
use traffic::Load;
use world::{Pacing, Way, World};

/// How much is done.
#[derive(Debug, Clone, Copy)]
struct Effort {
    rounds: usize,
    raw_bytes: u64,
    upload_bytes: u64,
    ack_time: Duration,
    joins: usize,
    disk_commits: usize,
}

const FULL: Effort = Effort {
    rounds: 5,
    raw_bytes: 512 << 20,
    upload_bytes: 256 << 20,
    ack_time: Duration::from_secs(3),
    joins: 20,
    disk_commits: 300,
};

const QUICK: Effort = Effort {
    rounds: 1,
    raw_bytes: 128 << 20,
    upload_bytes: 64 << 20,
    ack_time: Duration::from_secs(1),
    joins: 5,
    disk_commits: 50,
};

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| words.iter().any(|word| word == flag);
    let effort = if has("--quick") { QUICK } else { FULL };
    let groups: Vec<&str> = words
        .iter()
        .map(String::as_str)
        .filter(|word| !word.starts_with('-'))
        .collect();
    let wants = |group: &str| groups.is_empty() || groups.contains(&group);
    let shown = words
        .iter()
        .map(String::as_str)
        .filter(|word| !["--bench", "--write"].contains(word));
    let command: Vec<&str> = std::iter::once("just bench").chain(shown).collect();
    let command = command.join(" ");

    let world = World::start()?;
    let mut report = Report::new(command);
    if wants("raw") {
        raw(&world, effort, &mut report)?;
    }
    if wants("upload") {
        upload(&world, effort, &mut report)?;
    }
    if wants("ack") {
        ack(&world, effort, &mut report)?;
    }
    if wants("disk") {
        file(&world, effort, &mut report)?;
    }
    if wants("join") {
        let mut times = world.joins(effort.joins)?;
        report.add(Row::alone("cold start to joined, ms", median(&mut times)));
    }
    println!("{report}");
    if has("--write") {
        report.write().context("cannot write the table")?;
    }
    world.stop();
    Ok(())
}

/// TCP alone: bytes that a task at the other end reads and forgets.
fn raw(world: &World, effort: Effort, report: &mut Report) -> anyhow::Result<()> {
    for streams in [1, 100] {
        let load = Load::new(streams, effort.raw_bytes);
        let measured = both(effort.rounds, |way| world.raw(way, load))?;
        let what = format!("TCP alone, {streams} {}", plural("stream", streams));
        report.add_loads(&what, &measured);
    }
    Ok(())
}

/// Whole uploads, as the recorder makes their bytes durable.
fn upload(world: &World, effort: Effort, report: &mut Report) -> anyhow::Result<()> {
    for streams in [1, 100] {
        let load = Load::new(streams, effort.upload_bytes);
        let measured = both(effort.rounds, |way| world.upload(way, load))?;
        let what = format!("upload, {streams} {}", plural("stream", streams));
        report.add_loads(&what, &measured);
    }
    Ok(())
}

fn ack(world: &World, effort: Effort, report: &mut Report) -> anyhow::Result<()> {
    for sessions in [1, 100, 1_000] {
        let pacing = Pacing::AtOnce;
        let measured = both(effort.rounds, |way| {
            world.acks(way, sessions, effort.ack_time, pacing, None)
        })?;
        let what = format!("ack, {sessions} {}, memory", plural("session", sessions));
        report.add_delays(&what, &measured);
    }
    Ok(())
}

/// Acks from a real disk, and what this disk needs for one durable file.
fn file(world: &World, effort: Effort, report: &mut Report) -> anyhow::Result<()> {
    let folder = tempfile::tempdir().context("cannot make a folder for the store")?;
    let syncs = disk::syncs(folder.path(), effort.disk_commits)?;
    report.add_disk("one fsync of 4 KiB", &syncs);
    let commits = disk::commits(folder.path(), effort.disk_commits)?;
    report.add_disk("create, fsync, rename, fsync", &commits);
    for sessions in [1, 100, 1_000] {
        let acks = |pacing, time| {
            both(effort.rounds, |way| {
                world.acks(way, sessions, time, pacing, Some(folder.path()))
            })
        };
        let what = format!("ack, {sessions} {}, file", plural("session", sessions));
        report.add_delays(&what, &acks(Pacing::AtOnce, effort.ack_time)?);
        let what = format!("{what}, default pace");
        let measured = acks(Pacing::Default, effort.ack_time * 2)?;
        report.add_delays(&what, &measured);
        report.add_puts(&what, &measured);
    }
    Ok(())
}

/// One list of results for the tunnel and one for plain loopback, measured in turn; the first of a round changes.
fn both<T>(
    rounds: usize,
    mut measure: impl FnMut(Way) -> anyhow::Result<T>,
) -> anyhow::Result<(Vec<T>, Vec<T>)> {
    let (mut tunnel, mut plain) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let order = match round % 2 {
            0 => [Way::Tunnel, Way::Plain],
            _ => [Way::Plain, Way::Tunnel],
        };
        for way in order {
            let result = measure(way)?;
            match way {
                Way::Tunnel => tunnel.push(result),
                Way::Plain => plain.push(result),
            }
        }
    }
    Ok((tunnel, plain))
}

fn plural(word: &str, count: usize) -> String {
    match count {
        1 => word.to_owned(),
        _ => format!("{word}s"),
    }
}
