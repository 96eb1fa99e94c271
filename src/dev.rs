//! The one-command demo: a tailnet on loopback, a recorder in it, and sessions that are recorded over it.
//!
//! The invariant: stdout carries the reports alone, one per session; everything else goes to stderr. The exit is good only if
//! every session is stored as it was sent. `main` calls it.

mod announce;
mod lines;
mod report;
mod screen;
mod session;
mod stage;

use std::future::Future;
use std::io::{IsTerminal, Write};

use anyhow::Context;
use tokio::io::{AsyncBufRead, BufReader};
use tokio_util::sync::CancellationToken;

pub use announce::Announcing;
pub use lines::{CommandLines, Typed};
pub use report::{DevReport, SessionFacts};
pub use screen::{Screen, ScreenStyle};
pub use session::{Encode, SessionCommand, SessionPlan, record};
use stage::LocalStage;

use crate::admin::{Output, OutputError};
use crate::capture::TerminalSize;
use crate::cli::DevArgs;

/// Where sessions take place: a devnet, a recorder and a stand-in SSH node, joined and ready.
pub trait Stage {
    /// Records one session, showing each step. Dropping the future ends the session, which is then incomplete.
    fn record<W: Write>(
        &mut self,
        command: &SessionCommand,
        screen: &mut Screen<W>,
    ) -> impl Future<Output = anyhow::Result<DevReport>>;
}

/// Runs `tailtape dev` until its sessions are over or `shutdown` is asked for. True if all that was sent is stored.
///
/// # Errors
/// The stage cannot be set up, or the one session of `--once` is not recorded.
pub async fn run(
    args: &DevArgs,
    color: bool,
    shutdown: &CancellationToken,
) -> anyhow::Result<bool> {
    let stderr = std::io::stderr();
    let style = ScreenStyle {
        terminal_columns: stderr.is_terminal().then(|| terminal_size().columns),
        color,
    };
    let mut screen = Screen::new(stderr, style);
    let open = LocalStage::open(&args.data, &mut screen);
    let Some(stage) = shutdown.run_until_cancelled(open).await else {
        return Ok(false);
    };
    let mut stage = stage?;
    let lines = CommandLines::new(BufReader::new(tokio::io::stdin()));
    let out = std::io::stdout();
    let recorded = sessions(&mut stage, args, lines, out, &mut screen, shutdown).await;
    let closed = stage.close().await;
    // A store that was fenced is why its uploads failed: it is told first.
    closed.and(recorded)
}

/// The size of the user's terminal, which the sessions get too; 80 by 24 where there is none.
#[must_use]
pub fn terminal_size() -> TerminalSize {
    TerminalSize::of(std::io::stderr())
        .or_else(|| TerminalSize::of(std::io::stdin()))
        .unwrap_or(TerminalSize::DEFAULT)
}

async fn sessions<S: Stage, W: Write>(
    stage: &mut S,
    args: &DevArgs,
    mut lines: CommandLines<impl AsyncBufRead + Unpin>,
    mut out: impl Write,
    screen: &mut Screen<W>,
    shutdown: &CancellationToken,
) -> anyhow::Result<bool> {
    let mut all_ok = true;
    let mut command = SessionCommand::from_words(args.command.clone());
    loop {
        match shutdown
            .run_until_cancelled(stage.record(&command, screen))
            .await
        {
            Some(Ok(report)) => {
                all_ok &= report.ok();
                print(&report, args.json, &mut out)?;
            }
            Some(Err(error)) if args.once => return Err(error),
            Some(Err(error)) => {
                all_ok = false;
                screen.fault(&format!("{error:#}"))?;
            }
            None => {
                screen.fault("stopped: the session did not end, and is incomplete")?;
                return Ok(false);
            }
        }
        if args.once {
            return Ok(all_ok);
        }
        screen.hint("type a command line to record it too; Ctrl-C ends")?;
        command = loop {
            let typed = match shutdown.run_until_cancelled(lines.next()).await {
                Some(typed) => typed.context("cannot read command lines from stdin")?,
                None => return Ok(all_ok),
            };
            match typed {
                Some(Typed::Line(line)) => break SessionCommand::from_line(&line),
                Some(Typed::Unusable) => screen.fault("that line is too long, or not text")?,
                None => return Ok(all_ok),
            }
        };
    }
}

fn print(report: &DevReport, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
    let text = match json {
        true => format!("{}\n", report.to_json()?),
        false => report.to_string(),
    };
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    Ok(written.map_err(|error| OutputError::of(&Output::Stdout, error))?)
}

#[cfg(test)]
mod tests;
