//! Bytes in bulk: what a terminal puts out when a long file is printed, and how fast it goes through.
//!
//! The invariant: the same bytes, in the same pieces, on both ways. [`super::world`] runs it on either.

use std::time::Duration;

use bytes::Bytes;
use tailtape::asciicast::{CODE_OUTPUT, encode_event};
use tokio::time::Instant;

use super::numbers::{gigabits, ratio};

/// Different lines in a session; then they repeat, which is farther back than zstd looks at level 1 in one frame.
const LINES: usize = 256;

/// What one read of a terminal returns at the most, in bytes.
const READ_BYTES: usize = 4096;

/// How long one measurement sends at the most, so that a slow way does not take for ever.
pub(crate) const SEND_MAX: Duration = Duration::from_secs(6);

/// What is sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) streams: usize,
    pub(crate) stream_bytes: u64,
}

impl Load {
    pub(crate) fn new(streams: usize, all_bytes: u64) -> Self {
        let share = u64::try_from(streams).unwrap_or(1).max(1);
        Self {
            streams,
            stream_bytes: all_bytes / share,
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Goodput {
    pub(crate) gigabits_a_second: f64,
    pub(crate) gigabits_a_cpu_second: f64,
}

/// Samples of a growing count of bytes, and the processor time that it took.
#[derive(Debug)]
pub(crate) struct Gauge {
    begin: Instant,
    samples: Vec<(Duration, u64)>,
    cpu_begin: f64,
}

impl Gauge {
    pub(crate) fn start() -> Self {
        Self {
            begin: Instant::now(),
            samples: Vec::new(),
            cpu_begin: cpu_seconds(),
        }
    }

    pub(crate) fn sample(&mut self, bytes: u64) {
        self.samples.push((self.begin.elapsed(), bytes));
    }

    /// The rate between an eighth and seven eighths of the bytes: without the start, and without the end of the slowest stream.
    pub(crate) fn end(&self) -> Goodput {
        let cpu = cpu_seconds() - self.cpu_begin;
        let total = self.samples.last().map_or(0, |sample| sample.1);
        let at = |least: u64| {
            let found = self.samples.iter().find(|sample| sample.1 >= least);
            found.copied().unwrap_or_default()
        };
        let (from, to) = (at(total / 8), at(total - total / 8));
        let seconds = to.0.saturating_sub(from.0).as_secs_f64();
        Goodput {
            gigabits_a_second: gigabits(to.1.saturating_sub(from.1), seconds),
            gigabits_a_cpu_second: ratio(gigabits(total, 1.0), cpu),
        }
    }
}

/// Event lines, each one read of a terminal that prints a log file with colours.
pub(crate) fn lines() -> Vec<Bytes> {
    let words = [
        "accepted",
        "connection",
        "from",
        "worker",
        "finished",
        "request",
        "GET",
        "/api/v1/items",
        "status=200",
        "bytes",
        "cache",
        "miss",
        "retry",
        "timeout",
        "ms",
        "user",
        "session",
    ];
    // xorshift: terminal text that differs from line to line and is the same in every run.
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let mut seconds = 0.0;
    let mut all = Vec::with_capacity(LINES);
    for _ in 0..LINES {
        let mut data = String::with_capacity(READ_BYTES);
        while data.len() < READ_BYTES - 128 {
            data.push_str("\u{1b}[32m2026-11-20T10:");
            data.push_str(&(draw() % 1_000_000).to_string());
            data.push_str("\u{1b}[0m ");
            for _ in 0..6 {
                let word = usize::try_from(draw()).unwrap_or_default() % words.len();
                data.push_str(words.get(word).copied().unwrap_or_default());
                data.push(' ');
            }
            data.push_str(&format!("{:08x}\r\n", draw() & 0xffff_ffff));
        }
        seconds += 0.004_217;
        all.push(Bytes::from(encode_event(
            seconds,
            CODE_OUTPUT,
            data.as_bytes(),
        )));
    }
    all
}

/// User and system time of this process so far; Linux counts it in hundredths of a second.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name in parentheses may hold blanks; fields 14 and 15 are the 12th and 13th behind it.
    let behind = stat.rsplit_once(')').map_or("", |(_, behind)| behind);
    let ticks = behind.split_whitespace().skip(11).take(2);
    ticks.flat_map(str::parse::<f64>).sum::<f64>() / 100.0
}
