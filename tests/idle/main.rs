//! A thousand idle sessions cost next to nothing: memory, journal objects and CPU of `tailtape serve`, read from the kernel and counted.
//!
//! The recorder is a child process; devnet and sender are here. Beside it, at the same time, a control process sends the same frames over the same tunnel
//! and does nothing else: what it takes is what frames alone cost. `TAILTAPE_IDLE_SESSIONS` asks for more sessions. Run by `just idle`, for it takes
//! more than a minute.
//!
//! Why the control is a fair measure: it is built from the same crates with the same profile, runs on the same runtime with as many threads, is a node of the
//! same devnet with the same sender, whose sessions open in turn with the recorder's, and idles in the same minute; the frames that both sent are counted at the
//! far end and must be equal in number and in size, PINGs too. What else a machine does meanwhile slows both; it moves the ratio only as far as the one that is
//! woken late sends more frames with one call, so the load average is printed. The control keeps no upload, no HTTP/2 state and no timer but one for each kind of
//! frame: the ratio is what a recorder adds to its frames, not what the tunnel takes, and a cheaper tunnel makes it larger. It sends to each session by that
//! session's own clock; that the recorder sends what only repeats itself on a beat common to all is the recorder's merit, and counts for it.
//!
//! What a session keeps, by a heap profile of a debug build: 20 KiB are its rings in the tunnel, 16 KiB the buffer in which h2 writes frames and 8 to 11 KiB the
//! one in which it reads them, 7 KiB the tasks of connection and upload; h2's tables, channels, timers and the store's entry are the rest.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test program: to panic is to fail, and it prints what it measured"
)]

mod control;
mod crowd;
mod process;
mod session;
mod world;

use std::future::Future;
use std::time::Duration;

use crate::crowd::{Crowd, Heard};
use crate::process::Control;
use crate::world::World;

/// What takes longer than this is broken.
const PATIENCE: Duration = Duration::from_secs(60);
/// Open before the first look at memory: what a recorder needs however few they are.
const SESSIONS_FIRST: usize = 10;
/// Without `TAILTAPE_IDLE_SESSIONS`.
const SESSIONS: usize = 1_000;
/// The idle minute, in parts in each of which every session must hear an ack frame.
const PARTS: usize = 6;
const PART: Duration = Duration::from_secs(10);
/// What an idle session may keep resident.
const SESSION_BYTES_MAX: u64 = 64 << 10;
/// What a recorder's CPU time may be, as a multiple of the control's.
const CPU_RATIO_MAX: f64 = 1.5;
/// How far the recorder's frames and the control's may differ in number; a session's last one may be a moment early or late.
const FRAMES_APART_PER_SESSION_MAX: u64 = 2;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some(process::CONTROL_WORD) {
        let url = arguments.next().unwrap();
        let key_file = arguments.next().unwrap();
        runtime.block_on(control::run(&url, key_file.as_ref()));
    } else {
        runtime.block_on(idle_sessions_cost_next_to_nothing());
    }
}

async fn idle_sessions_cost_next_to_nothing() {
    let sessions = sessions();
    let world = World::start().await;
    let mut recorder = world.recorder(sessions).await;
    let mut control = Control::start(&world).await;
    let mut recorded = Crowd::new(world.sender(), recorder.address);
    let mut echoed = Crowd::new(world.sender(), control.address);
    tokio::join!(
        recorded.grow_to(SESSIONS_FIRST),
        echoed.grow_to(SESSIONS_FIRST)
    );
    recorder.until_settled(&world, SESSIONS_FIRST).await;
    let first = recorder.process.memory();
    tokio::join!(recorded.grow_to(sessions), echoed.grow_to(sessions));
    recorder.until_settled(&world, sessions).await;
    let opened = recorder.process.memory();

    println!(
        "idle: the minute begins, load average {}",
        process::load_average()
    );
    let (names, counted) = (world.journal_names(), recorder.journal_puts().await);
    let (cpu, control_cpu) = (recorder.process.cpu(), control.process.cpu());
    let (before, control_before) = (recorded.heard(), echoed.heard());
    let mut silent = 0;
    for _ in 0..PARTS {
        let part = recorded.frames();
        tokio::time::sleep(PART).await;
        let now = recorded.frames();
        silent += part
            .iter()
            .zip(&now)
            .filter(|(old, new)| old == new)
            .count();
    }
    let (heard, control_heard) = (
        recorded.heard().since(before),
        echoed.heard().since(control_before),
    );
    let (cpu, control_cpu) = (
        recorder.process.cpu() - cpu,
        control.process.cpu() - control_cpu,
    );
    let idled = recorder.process.memory();
    let (names_after, counted_after) = (world.journal_names(), recorder.journal_puts().await);
    recorder.assert_alive();
    control.assert_alive();
    assert_eq!((recorded.ended(), echoed.ended()), (0, 0), "sessions ended");

    let each = |now: u64| now.saturating_sub(first.resident_bytes) / beyond_the_first(sessions);
    let ratio = cpu.as_secs_f64() / control_cpu.as_secs_f64();
    println!(
        "idle: {sessions} sessions, {} of them first",
        SESSIONS_FIRST
    );
    println!(
        "idle: resident {} KiB with the first, {} KiB with all, {} KiB after the minute: {:.1} KiB each (anonymous {:.1} KiB)",
        first.resident_bytes >> 10,
        opened.resident_bytes >> 10,
        idled.resident_bytes >> 10,
        kib(each(idled.resident_bytes)),
        kib(idled.anonymous_bytes.saturating_sub(first.anonymous_bytes)
            / beyond_the_first(sessions)),
    );
    println!(
        "idle: CPU in the minute {} ms, of the control {} ms: ratio {ratio:.2}; load average {}",
        cpu.as_millis(),
        control_cpu.as_millis(),
        process::load_average(),
    );
    println!(
        "idle: heard from the recorder {heard}; from the control {control_heard}; {silent} silences of {PART:?}"
    );
    println!(
        "idle: journal objects {} before, {} after; {counted} and {counted_after} puts",
        names.len(),
        names_after.len(),
    );
    judge(sessions, &heard, &control_heard);
    assert_eq!(silent, 0, "sessions heard no ack frame for {PART:?}");
    assert_eq!(
        names_after, names,
        "the journal changed while all were idle"
    );
    assert_eq!(
        counted_after, counted,
        "objects were put while all were idle"
    );
    let most = each(opened.resident_bytes.max(idled.resident_bytes));
    assert!(most <= SESSION_BYTES_MAX, "{most} bytes resident each");
    assert!(ratio <= CPU_RATIO_MAX, "{ratio:.2} times the control's CPU");
}

/// Without the same frames on both sides the comparison of CPU means nothing.
fn judge(sessions: usize, heard: &Heard, control: &Heard) {
    let slack = FRAMES_APART_PER_SESSION_MAX * u64::try_from(sessions).unwrap();
    assert!(
        heard.acks.abs_diff(control.acks) <= slack,
        "{heard}; {control}"
    );
    assert!(
        heard.pings.abs_diff(control.pings) <= slack,
        "{heard}; {control}"
    );
    // Rounded, for a frame may arrive between the reading of the two sums.
    let frame_bytes = |heard: &Heard| (heard.ack_bytes + heard.acks / 2) / heard.acks;
    assert_eq!(
        frame_bytes(heard),
        frame_bytes(control),
        "{heard}; {control}"
    );
}

fn beyond_the_first(sessions: usize) -> u64 {
    u64::try_from(sessions - SESSIONS_FIRST).unwrap()
}

#[allow(clippy::cast_precision_loss, reason = "shown to people")]
fn kib(bytes: u64) -> f64 {
    bytes as f64 / 1024.0
}

#[allow(clippy::disallowed_methods, reason = "how long to run is the caller's")]
fn sessions() -> usize {
    match std::env::var("TAILTAPE_IDLE_SESSIONS") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => SESSIONS,
    }
}

/// The future's output; panics if it does not come.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("{what}: not within {PATIENCE:?}"),
    }
}
