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

/// Starts the log. `filter` has the form `level` or `room=level,room=level`: `info`, `warn,tailtape::capture=debug`.
///
/// # Errors
/// The filter cannot be read, or a log was started before.
pub fn start(filter: &str, format: LogFormat) -> Result<(), TelemetryError> {
    let parsed = EnvFilter::try_new(filter).map_err(|source| TelemetryError::Filter {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_cannot_be_read_is_named_in_the_error() {
        let error = start("tailtape=loud", LogFormat::Json).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot read the log filter \"tailtape=loud\""
        );
    }
}
