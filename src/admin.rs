//! The operator's commands beside a recorder: `status`, `health` and `drain` ask the one that runs.
//!
//! Invariant: stdout carries the answer alone; what is under way is told on stderr. `main` calls it.

mod output;

use std::io::{IsTerminal, Write};
use std::time::Duration;

use crate::capture::TerminalSize;
use crate::status::{Client, Phase, Status, StatusError};
use crate::tell::{printable, printable_json};

use output::say_besides;
pub use output::{Output, OutputError, say};

/// How often `drain --wait` asks.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// `tailtape status`.
///
/// # Errors
/// Nobody answers, or stdout cannot be written.
pub async fn status(client: &Client, as_json: bool) -> anyhow::Result<bool> {
    let status = client.status().await?;
    let text = match as_json {
        true => format!("{}\n", printable_json(&serde_json::to_string(&status)?)),
        false => status.to_text(columns()),
    };
    say(&text)?;
    Ok(true)
}

/// `tailtape health`: true if all is well.
///
/// # Errors
/// Nobody answers, or stdout cannot be written.
pub async fn health(client: &Client) -> anyhow::Result<bool> {
    let health = client.health().await?;
    if health.healthy() {
        say_besides("healthy\n")?;
        return Ok(true);
    }
    let reasons: Vec<String> = health
        .reasons
        .iter()
        .map(|why| format!("  {}\n", printable(why)))
        .collect();
    say_besides(&format!("not healthy:\n{}", reasons.concat()))?;
    Ok(false)
}

/// `tailtape drain`: true once the recorder drains or, with `wait`, has drained.
///
/// # Errors
/// Nobody answers, or stdout cannot be written.
pub async fn drain(client: &Client, wait: bool) -> anyhow::Result<bool> {
    client.drain().await?;
    if !wait {
        say_besides("draining: new uploads are refused\n")?;
        return Ok(true);
    }
    let mut progress = Progress::default();
    loop {
        let status = match client.status().await {
            Ok(status) => status,
            // It drained and ended between two questions.
            Err(StatusError::NotServed { .. } | StatusError::Http { .. }) => break,
            Err(error) => return Err(error.into()),
        };
        if status.phase == Phase::Drained {
            break;
        }
        progress.show(&status)?;
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    progress.end()?;
    say_besides("drained\n")?;
    Ok(true)
}

/// One line that is written over on a terminal, and one line per change elsewhere.
#[derive(Debug, Default)]
struct Progress {
    shown: Option<u64>,
}

impl Progress {
    fn show(&mut self, status: &Status) -> anyhow::Result<()> {
        let open = status.recordings_open;
        if self.shown == Some(open) {
            return Ok(());
        }
        self.shown = Some(open);
        let mut stderr = std::io::stderr();
        let line = format!("draining: {open} uploads still run");
        match stderr.is_terminal() {
            true => write!(stderr, "\r{line}\x1b[K")?,
            false => writeln!(stderr, "{line}")?,
        }
        Ok(stderr.flush()?)
    }

    fn end(&self) -> anyhow::Result<()> {
        let mut stderr = std::io::stderr();
        if self.shown.is_some() && stderr.is_terminal() {
            writeln!(stderr)?;
        }
        Ok(())
    }
}

/// The width of the terminal behind stdout, if it is one.
pub(crate) fn columns() -> Option<usize> {
    let size = TerminalSize::of(std::io::stdout())?;
    std::io::stdout()
        .is_terminal()
        .then_some(size.columns.into())
}
