//! One foreign process: started with bounded waits on what it prints, its output kept in a log file, killed by its id on drop.
//! Called by every module here that starts a program.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::bench::Bench;

/// A line that the process printed, without its end.
#[derive(Debug)]
pub(crate) enum Line {
    Stdout(String),
    Stderr(String),
}

/// A running process, its output split into lines.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    lines: Receiver<Line>,
    copiers: Vec<JoinHandle<()>>,
}

impl Process {
    /// Starts `command`; what it prints goes to `<name>.log` in the logs of `bench` and to [`Process::wait_for`].
    pub(crate) fn start(bench: &Bench, name: &str, mut command: Command) -> anyhow::Result<Self> {
        let log = Arc::new(Mutex::new(bench.create_log(name)?));
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .envs(QUIET_ENVIRONMENT)
            .spawn()
            .with_context(|| format!("starting {name}: {command:?}"))?;
        let (sender, lines) = mpsc::channel();
        let mut copiers = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            copiers.push(copy_lines(
                stdout,
                Arc::clone(&log),
                sender.clone(),
                Line::Stdout,
            ));
        }
        if let Some(stderr) = child.stderr.take() {
            copiers.push(copy_lines(stderr, log, sender, Line::Stderr));
        }
        Ok(Self {
            name: name.to_owned(),
            child,
            lines,
            copiers,
        })
    }

    /// Reads lines until `wanted` answers with a value, at most for `limit`. Fails when the process ends first.
    pub(crate) fn wait_for<T>(
        &self,
        what: &str,
        limit: Duration,
        mut wanted: impl FnMut(&Line) -> Option<T>,
    ) -> anyhow::Result<T> {
        let found = self.read_until(limit, |line| wanted(line))?;
        found.with_context(|| format!("{}: {what} did not come within {limit:?}", self.name))
    }

    /// Reads lines for `duration` and gives each to `seen`. Fails when the process ends first.
    pub(crate) fn watch(
        &self,
        duration: Duration,
        mut seen: impl FnMut(&Line),
    ) -> anyhow::Result<()> {
        let none: Option<()> = self.read_until(duration, |line| {
            seen(line);
            None
        })?;
        debug_assert!(none.is_none());
        Ok(())
    }

    /// `None`: the limit has passed.
    fn read_until<T>(
        &self,
        limit: Duration,
        mut wanted: impl FnMut(&Line) -> Option<T>,
    ) -> anyhow::Result<Option<T>> {
        let deadline = now() + limit;
        loop {
            let left = deadline.saturating_duration_since(now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    if let Some(value) = wanted(&line) {
                        return Ok(Some(value));
                    }
                }
                Err(RecvTimeoutError::Timeout) => return Ok(None),
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("{} ended too early; see its log", self.name)
                }
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if the process has ended already, which is what is wanted.
        self.child.kill().ok();
        self.child.wait().ok();
        for copier in self.copiers.drain(..) {
            copier.join().ok();
        }
    }
}

/// Runs a short-lived command to its end and returns its standard output. Fails on another exit code than 0.
pub(crate) fn output_of(mut command: Command) -> anyhow::Result<String> {
    let output = command
        .stdin(Stdio::null())
        .envs(QUIET_ENVIRONMENT)
        .output()
        .with_context(|| format!("running {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?} ended with {}: {}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The one clock of this harness, for bounded waits only.
#[expect(
    clippy::disallowed_methods,
    reason = "foreign processes live in real time"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Keeps stock peers on this machine: no log uploads, an abort should one ever talk to the vendor's control server, no port
/// mapping requests to a router.
const QUIET_ENVIRONMENT: [(&str, &str); 3] = [
    ("TS_NO_LOGS_NO_SUPPORT", "true"),
    ("TS_PANIC_IF_HIT_MAIN_CONTROL", "1"),
    ("TS_DISABLE_PORTMAPPER", "1"),
];

fn copy_lines(
    from: impl Read + Send + 'static,
    log: Arc<Mutex<File>>,
    to: mpsc::Sender<Line>,
    kind: fn(String) -> Line,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(from).split(b'\n') {
            let Ok(line) = line else { return };
            let line = String::from_utf8_lossy(&line).into_owned();
            if let Ok(mut log) = log.lock() {
                // A log that cannot be written must not stop the process whose pipe this drains.
                writeln!(log, "{line}").ok();
            }
            // Nobody waits any more once the receiver is gone; the log goes on.
            to.send(kind(line)).ok();
        }
    })
}
