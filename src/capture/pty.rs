//! Runs a command under a pseudo-terminal of its own, and gives what it puts out.
//!
//! The invariant: a terminal that is not read stops the command (nothing piles up here), and when the [`PtySession`] is dropped
//! the command is hung up on, killed if it does not go, and reaped: no process and no zombie stays while the runtime lives; if the
//! runtime ends first, the command is killed with it. [`stream`](super::stream()) reads it.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::process::ExitStatus;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use pty_process::{OwnedReadPty, OwnedWritePty};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Child;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;

/// The longest chunk: what one read of a terminal gives at most, and what one event of a stock node holds.
const CHUNK_BYTES_MAX: usize = 4096;

/// Chunks read ahead of whoever records them.
const CHUNKS_QUEUED_MAX: usize = 16;

/// Once the command has exited, a terminal that is silent for this long has given all. Only processes left behind keep it open.
const DRAIN_QUIET: Duration = Duration::from_millis(100);

/// What is read once the command has exited; more than a kernel holds for a terminal, so only processes left behind reach it.
const DRAIN_BYTES_MAX: usize = 256 * 1024;

/// From hanging up on a command to killing it.
const HANGUP_GRACE: Duration = Duration::from_millis(500);

/// Between one end-of-file and the next; short enough that a demo does not seem to hang.
const END_INPUT_INTERVAL: Duration = Duration::from_millis(500);

/// What a user types to end the input, Ctrl-D.
const END_OF_FILE: u8 = 0x04;

/// The terminal type, the one that stock nodes name whatever the user's is.
const TERM: &str = "xterm-256color";

/// Size of a terminal in character cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    /// Cells per row.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

/// Output of one read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// When it was read, since the session's start.
    pub at: Duration,
    /// 1 to [`CHUNK_BYTES_MAX`] bytes.
    pub bytes: Bytes,
}

/// Why a command has no terminal, or no known end.
#[derive(Debug, thiserror::Error)]
pub enum PtyError {
    /// There is no command to run.
    #[error("there is no command to run")]
    NoCommand,
    /// The system gives no terminal.
    #[error("cannot open a pseudo-terminal")]
    Open(#[source] io::Error),
    /// The command cannot be started under it.
    #[error("cannot run {}", .program.display())]
    Spawn {
        /// The command's first word.
        program: OsString,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The command's end cannot be learnt.
    #[error("cannot learn how {} ended", .program.display())]
    Wait {
        /// The command's first word.
        program: OsString,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A running command and its terminal.
#[derive(Debug)]
pub struct PtySession {
    program: OsString,
    chunks: mpsc::Receiver<Chunk>,
    input: Option<OwnedWritePty>,
    input_end: Option<AbortOnDropHandle<()>>,
    end: JoinHandle<io::Result<ExitStatus>>,
    _released: DropGuard,
}

impl TerminalSize {
    /// The size where none is known.
    pub const DEFAULT: Self = Self {
        columns: 80,
        rows: 24,
    };

    /// The size of the terminal behind `fd`; none if it is no terminal, or one that does not know its size.
    #[must_use]
    pub fn of(fd: impl AsFd) -> Option<Self> {
        let size = rustix::termios::tcgetwinsize(fd).ok()?;
        let (columns, rows) = (size.ws_col, size.ws_row);
        (columns > 0 && rows > 0).then_some(Self { columns, rows })
    }
}

impl PtySession {
    /// Runs `command` (program, then its arguments) under a new terminal; times count from `start`.
    ///
    /// # Errors
    /// There is no command, no terminal, or the command cannot be started.
    pub fn spawn(
        command: &[OsString],
        size: TerminalSize,
        start: Instant,
    ) -> Result<Self, PtyError> {
        let (program, arguments) = command.split_first().ok_or(PtyError::NoCommand)?;
        let (pty, pts) =
            pty_process::open().map_err(|error| PtyError::Open(system_error(error)))?;
        pty.resize(pty_process::Size::new(size.rows, size.columns))
            .map_err(|error| PtyError::Open(system_error(error)))?;
        let child = pty_process::Command::new(program)
            .args(arguments)
            .env("TERM", TERM)
            .kill_on_drop(true)
            .spawn(pts)
            .map_err(|error| PtyError::Spawn {
                program: program.clone(),
                source: system_error(error),
            })?;

        let (output, input) = pty.into_split();
        let (sender, chunks) = mpsc::channel(CHUNKS_QUEUED_MAX);
        let released = CancellationToken::new();
        let runner = Runner {
            child,
            output,
            chunks: sender,
            start,
            released: released.clone(),
        };
        Ok(Self {
            program: program.clone(),
            chunks,
            input: Some(input),
            input_end: None,
            end: tokio::spawn(runner.run()),
            _released: released.drop_guard(),
        })
    }

    /// The next output; none when the command has exited and all was given. Cancel-safe.
    pub async fn next_chunk(&mut self) -> Option<Chunk> {
        self.chunks.recv().await
    }

    /// From now on there is no user: types an end-of-file, again and again, so that a command which reads its terminal ends instead
    /// of waiting. Once is not enough: a shell that sets its terminal up after it was typed never sees it.
    pub fn end_input(&mut self) {
        if let Some(input) = self.input.take() {
            self.input_end = Some(AbortOnDropHandle::new(tokio::spawn(type_ends(input))));
        }
    }

    /// Waits for the command's end. Output not taken by then is lost.
    ///
    /// # Errors
    /// The system does not tell.
    pub async fn wait(mut self) -> Result<ExitStatus, PtyError> {
        self.chunks.close();
        let end = (&mut self.end)
            .await
            .unwrap_or_else(|error| Err(error.into()));
        end.map_err(|source| PtyError::Wait {
            program: self.program.clone(),
            source,
        })
    }
}

/// The task that reads the terminal. It outlives the session by the time that the command takes to go.
struct Runner {
    child: Child,
    output: OwnedReadPty,
    chunks: mpsc::Sender<Chunk>,
    start: Instant,
    released: CancellationToken,
}

impl Runner {
    async fn run(mut self) -> io::Result<ExitStatus> {
        let released = self.released.clone();
        let exit = tokio::select! {
            exit = self.read_to_exit() => Some(exit),
            () = released.cancelled() => None,
        };
        match exit {
            Some(exit) => exit,
            None => self.end_command().await,
        }
    }

    async fn read_to_exit(&mut self) -> io::Result<ExitStatus> {
        let mut buffer = BytesMut::new();
        let exit = loop {
            // A place for the chunk comes first: output that nobody takes stays in the terminal, and holds the command up.
            let Ok(place) = self.chunks.reserve().await else {
                return self.child.wait().await;
            };
            buffer.reserve(CHUNK_BYTES_MAX);
            tokio::select! {
                biased;
                read = read_chunk(&mut self.output, &mut buffer) => match read {
                    Some(bytes) => place.send(Chunk { at: self.start.elapsed(), bytes }),
                    None => return self.child.wait().await,
                },
                exit = self.child.wait() => break exit?,
            }
        };
        let mut left_bytes = DRAIN_BYTES_MAX;
        while left_bytes > 0 {
            let Ok(place) = self.chunks.reserve().await else {
                break;
            };
            buffer.reserve(CHUNK_BYTES_MAX);
            let read = timeout(DRAIN_QUIET, read_chunk(&mut self.output, &mut buffer));
            let Ok(Some(bytes)) = read.await else { break };
            left_bytes = left_bytes.saturating_sub(bytes.len());
            let at = self.start.elapsed();
            place.send(Chunk { at, bytes });
        }
        Ok(exit)
    }

    /// Hangs up, then kills. The command leads its own process group, and is signalled only while it is not reaped, so the
    /// number cannot have passed to another.
    async fn end_command(mut self) -> io::Result<ExitStatus> {
        drop(self.output);
        drop(self.chunks);
        signal_group(&self.child, Signal::HUP);
        tokio::select! {
            exit = self.child.wait() => return exit,
            () = sleep(HANGUP_GRACE) => {}
        }
        signal_group(&self.child, Signal::KILL);
        self.child.wait().await
    }
}

/// Stops when the terminal is gone; waits while it has as many ends as it takes.
async fn type_ends(mut input: OwnedWritePty) {
    while input.write_all(&[END_OF_FILE]).await.is_ok() {
        sleep(END_INPUT_INTERVAL).await;
    }
}

/// One read. The kernel says EIO when the last process has closed the terminal: that is its end of file.
async fn read_chunk(output: &mut OwnedReadPty, buffer: &mut BytesMut) -> Option<Bytes> {
    let mut limited = output.take(u64::try_from(CHUNK_BYTES_MAX).unwrap_or(u64::MAX));
    match limited.read_buf(buffer).await {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(buffer.split().freeze()),
    }
}

/// The crate's error repeats its source's text, so that a chain would tell it twice.
fn system_error(error: pty_process::Error) -> io::Error {
    match error {
        pty_process::Error::Io(error) => error,
        pty_process::Error::Rustix(error) => error.into(),
        other @ (pty_process::Error::TokioAsyncFd(_) | pty_process::Error::Unsplit(..)) => {
            io::Error::other(other.to_string())
        }
    }
}

fn signal_group(child: &Child, signal: Signal) {
    let id = child.id().and_then(|id| i32::try_from(id).ok());
    let Some(group) = id.and_then(Pid::from_raw) else {
        return;
    };
    if let Err(error) = kill_process_group(group, signal) {
        tracing::debug!(%error, ?signal, "the command's group took no signal");
    }
}

#[cfg(test)]
mod tests;
