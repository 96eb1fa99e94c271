//! The one signal to stop: Ctrl-C or SIGTERM, as a token that every room can wait for.
//!
//! The invariant: the first signal asks, the second does not: then the process ends at once, with the exit code of a failure.
//! `main` calls it once, and hands the token to the command.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Starts to listen; from now on the signals no longer end the process by themselves. Needs a runtime.
///
/// # Errors
/// The system does not let signals be handled.
pub fn listen() -> io::Result<CancellationToken> {
    let mut signals = Signals {
        interrupt: signal(SignalKind::interrupt())?,
        terminate: signal(SignalKind::terminate())?,
    };
    let token = CancellationToken::new();
    let shutdown = token.clone();
    tokio::spawn(async move {
        signals.next().await;
        tracing::info!("stopping; a second signal ends the process at once");
        shutdown.cancel();
        signals.next().await;
        std::process::exit(1);
    });
    Ok(token)
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{Signal, getpid, kill_process};

    #[tokio::test]
    async fn a_signal_to_the_process_cancels_the_token() {
        let token = super::listen().unwrap();
        assert!(!token.is_cancelled());
        kill_process(getpid(), Signal::TERM).unwrap();
        token.cancelled().await;
    }
}
