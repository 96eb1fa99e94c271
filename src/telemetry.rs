//! Logs to stderr: for people on a terminal, one JSON object per line otherwise.
//!
//! The invariant: nothing but logs is set up here, and stdout is never written, because it belongs to the command's result.
//! `main` calls it once, before anything logs.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For a person at a terminal.
    Human {
        /// With ANSI colours.
        color: bool,
    },
    /// One JSON object per line.
    Json,
}

/// Why there are no logs.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter cannot be read. The operator's fault.
    #[error("cannot read the log filter {filter:?}")]
    Filter {
        /// As given.
        filter: String,
        /// What is wrong with it.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// Logs were set up before. A fault of ours.
    #[error("cannot start the log")]
    Start(#[source] tracing_subscriber::util::TryInitError),
}

/// The WireGuard library reports as warnings what anyone on the Internet can cause with one datagram; the
/// tunnel counts them instead. Who wants its lines names `boringtun` in the filter.
const QUIET: &str = "boringtun";

/// Starts the log. `filter` has the form `level` or `room=level,room=level`: `info`, `warn,tailtape::capture=debug`.
///
/// # Errors
/// The filter cannot be read, or a log was started before.
pub fn start(filter: &str, format: LogFormat) -> Result<(), TelemetryError> {
    let parsed =
        EnvFilter::try_new(with_defaults(filter)).map_err(|source| TelemetryError::Filter {
            filter: filter.to_owned(),
            source,
        })?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(parsed)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Human { color } => log.with_ansi(color).finish().try_init(),
        LogFormat::Json => log.json().flatten_event(true).finish().try_init(),
    }
    .map_err(TelemetryError::Start)
}

fn with_defaults(filter: &str) -> String {
    if filter.contains(QUIET) {
        return filter.to_owned();
    }
    let separator = if filter.trim().is_empty() { "" } else { "," };
    format!("{filter}{separator}{QUIET}=off")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wireguard_library_is_silent_unless_it_is_asked_for() {
        for (given, used) in [
            ("warn", "warn,boringtun=off"),
            ("", "boringtun=off"),
            ("warn,boringtun=trace", "warn,boringtun=trace"),
        ] {
            assert_eq!(with_defaults(given), used);
            assert!(EnvFilter::try_new(used).is_ok());
        }
    }

    #[test]
    fn a_filter_that_cannot_be_read_is_named_in_the_error() {
        let error = start("tailtape=loud", LogFormat::Json).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot read the log filter \"tailtape=loud\""
        );
    }
}
