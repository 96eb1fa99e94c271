//! The stand-in SSH node's part: one command, recorded as a stock node records a session.
//!
//! The invariant: a recorder has agreed before the command starts, so nothing runs unrecorded. `dev` calls it with the tailnet's
//! dial and the recorders of the SSH policy.

use std::ffi::OsString;
use std::io::Write;
use std::net::SocketAddr;

use bytes::Bytes;
use tokio::time::Instant;

use super::screen::Screen;
use crate::capture::{Dial, PtySession, Streamed, TerminalSize, connect, stream};

/// The session that is recorded when there is no command: shell script, below three seconds.
const DEFAULT_SCRIPT: &str = include_str!("session.sh");

/// A command to record: program and arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionCommand {
    words: Vec<OsString>,
    default: bool,
}

/// How asciicast is written: seconds since the start and terminal bytes in, one event line out.
pub trait Encode: FnMut(f64, &[u8]) -> Vec<u8> {}

impl<F: FnMut(f64, &[u8]) -> Vec<u8>> Encode for F {}

impl SessionCommand {
    /// The command of the command line, or the default one if that is empty.
    #[must_use]
    pub fn from_words(words: Vec<OsString>) -> Self {
        match words.is_empty() {
            false => Self {
                words,
                default: false,
            },
            true => Self {
                default: true,
                ..Self::from_line(DEFAULT_SCRIPT)
            },
        }
    }

    /// A line for the shell.
    #[must_use]
    pub fn from_line(line: &str) -> Self {
        Self {
            words: ["/bin/sh", "-c", line].map(OsString::from).to_vec(),
            default: false,
        }
    }

    /// Its words joined by one space, as a stock node writes them into the header; none for the default session, which is a shell.
    #[must_use]
    pub fn header_text(&self) -> Option<String> {
        let words = self.words.iter().map(|word| word.to_string_lossy());
        (!self.default).then(|| words.collect::<Vec<_>>().join(" "))
    }
}

/// What one session is made of.
#[derive(Debug)]
pub struct SessionPlan<'a> {
    /// What runs.
    pub command: &'a SessionCommand,
    /// The terminal that it runs under.
    pub size: TerminalSize,
    /// The recording's time 0, which the header names in wall time.
    pub start: Instant,
    /// The recorders of the SSH policy, in its order.
    pub recorders: &'a [SocketAddr],
    /// The asciicast header line.
    pub header: Bytes,
}

/// Runs the command and streams it to the first recorder that takes it, each event as `encode` writes it.
///
/// # Errors
/// No recorder takes the session, the command cannot be run, or the recording broke off.
pub async fn record<D: Dial, W: Write>(
    plan: SessionPlan<'_>,
    dial: &D,
    encode: impl Encode,
    screen: &mut Screen<W>,
) -> anyhow::Result<Streamed> {
    let upload = connect(plan.recorders, dial).await?;
    screen.step(&format!("recorder {} takes the session", upload.recorder()))?;
    let mut session = PtySession::spawn(&plan.command.words, plan.size, plan.start)?;
    // Nobody sits at this terminal: a command that reads it shall end, not wait.
    session.end_input();
    let streamed = stream(session, upload, plan.header, encode, |progress, events| {
        if let Err(error) = screen.live(Instant::now().into_std(), progress, events) {
            tracing::debug!(%error, "cannot draw the live line");
        }
    })
    .await;
    screen.end_live()?;
    Ok(streamed?)
}

#[cfg(test)]
mod tests;
