//! What `tailtape dev` shows while it works, on stderr: a line per finished step, and on a terminal one live line below them.
//!
//! The invariant: a step is written once and stays; the live line is redrawn in place, never wider than the terminal, at most ten
//! times a second, and is gone before the next step. Where there is no terminal, no control byte is written, and the live
//! line is a plain line every few seconds. Control characters in a step's text are shown, never sent. `dev` owns one.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use crate::capture::Progress;

/// A screen redrawn faster than this is not read.
const REDRAW_INTERVAL: Duration = Duration::from_millis(100);

/// Between live lines in a log file.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);

/// What the other end of stderr can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScreenStyle {
    /// Columns of the terminal; none if it is no terminal.
    pub terminal_columns: Option<u16>,
    /// Whether colours are wanted. Only a terminal gets them.
    pub color: bool,
}

/// The screen, on any writer.
#[derive(Debug)]
pub struct Screen<W> {
    out: W,
    style: ScreenStyle,
    last: Option<Drawn>,
    live_shown: bool,
}

#[derive(Clone, Copy, Debug)]
struct Drawn {
    at: Instant,
    sent_bytes: u64,
}

impl<W: Write> Screen<W> {
    /// An empty screen.
    pub fn new(out: W, style: ScreenStyle) -> Self {
        Self {
            out,
            style,
            last: None,
            live_shown: false,
        }
    }

    /// A step is done: `joined in 212 ms as 100.64.0.2`.
    ///
    /// # Errors
    /// The writer fails.
    pub fn step(&mut self, text: &str) -> io::Result<()> {
        self.line("32", "✓", text)
    }

    /// Something went wrong, and the user should know.
    ///
    /// # Errors
    /// The writer fails.
    pub fn fault(&mut self, text: &str) -> io::Result<()> {
        self.line("31", "✗", text)
    }

    /// Something to read that is no step: what can be typed now.
    ///
    /// # Errors
    /// The writer fails.
    pub fn hint(&mut self, text: &str) -> io::Result<()> {
        self.line("2", "·", text)
    }

    /// How far the session is. Call it as often as you like.
    ///
    /// # Errors
    /// The writer fails.
    pub fn live(&mut self, now: Instant, progress: Progress, events: u64) -> io::Result<()> {
        let drawn = Drawn {
            at: now,
            sent_bytes: progress.sent_bytes,
        };
        let Some(last) = self.last else {
            // The first call is where the rate counts from.
            self.last = Some(drawn);
            return Ok(());
        };
        let interval = match self.style.terminal_columns {
            Some(_) => REDRAW_INTERVAL,
            None => PLAIN_INTERVAL,
        };
        let since = now.saturating_duration_since(last.at);
        if since < interval {
            return Ok(());
        }
        self.last = Some(drawn);
        let rate = rate(progress.sent_bytes.saturating_sub(last.sent_bytes), since);
        let text = live_text(progress, events, rate);
        match self.style.terminal_columns {
            None => writeln!(self.out, "  {text}")?,
            Some(columns) => {
                // One column stays free: a terminal may wrap when the last one is written.
                let room = usize::from(columns).saturating_sub(1);
                let fitting: String = format!("● {text}").chars().take(room).collect();
                write!(self.out, "\r\x1b[2K{fitting}")?;
                self.live_shown = true;
            }
        }
        self.out.flush()
    }

    /// The session is over: the live line goes.
    ///
    /// # Errors
    /// The writer fails.
    pub fn end_live(&mut self) -> io::Result<()> {
        self.last = None;
        if !std::mem::take(&mut self.live_shown) {
            return Ok(());
        }
        write!(self.out, "\r\x1b[2K")?;
        self.out.flush()
    }

    fn line(&mut self, color: &str, mark: &str, text: &str) -> io::Result<()> {
        self.end_live()?;
        let text = shown(text);
        match self.style.color && self.style.terminal_columns.is_some() {
            true => writeln!(self.out, "\x1b[{color}m{mark}\x1b[0m {text}")?,
            false => writeln!(self.out, "{mark} {text}")?,
        }
        self.out.flush()
    }
}

fn live_text(progress: Progress, events: u64, bytes_per_second: u64) -> String {
    let ack = match progress.last_ack {
        Some(latency) => format!("last ack {:.1} ms", latency.as_secs_f64() * 1e3),
        None => "no ack yet".to_owned(),
    };
    format!(
        "{} sent, {} durable, {events} events, {}/s, {ack}",
        size(progress.sent_bytes),
        size(progress.acked_bytes),
        size(bytes_per_second),
    )
}

/// Bytes per second; 0 over no time.
fn rate(bytes: u64, over: Duration) -> u64 {
    let per_second = u128::from(bytes) * 1000 / over.as_millis().max(1);
    u64::try_from(per_second).unwrap_or(u64::MAX)
}

/// A byte count with one decimal and a binary unit, as `12.5 KiB`.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut tenths = u128::from(bytes) * 10 / 1024;
    let mut units = UNITS.iter();
    let mut unit = units.next();
    while tenths >= 10_240
        && let Some(next) = units.next()
    {
        tenths /= 1024;
        unit = Some(next);
    }
    let unit = unit.unwrap_or(&"KiB");
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

/// Text with every control character made visible, so that a typed command cannot drive the terminal.
fn shown(text: &str) -> String {
    text.chars()
        .map(|character| match character.is_control() {
            true => '\u{FFFD}',
            false => character,
        })
        .collect()
}

#[cfg(test)]
mod tests;
