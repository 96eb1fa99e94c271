//! Logs to stderr: for people on a terminal, one JSON object per line otherwise.
//!
//! The invariants: nothing but logs is set up here, and stdout is never written, because it belongs to the command's result; what peers can cause, or what
//! repeats, cannot fill the log (`telemetry/limit.rs`). `main` calls it once, before anything logs.

mod limit;
mod log_rate;
mod terminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

use limit::Limit;

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
    /// A word of the filter stands alone and is no level: it would silence the log, which is never what a misspelt level means. The operator's fault.
    #[error("cannot read the log filter {filter:?}: {word:?} is no level")]
    NoLevel {
        /// As given.
        filter: String,
        /// The word.
        word: String,
    },
    /// A word of the filter is about what logs nothing here: a misspelt room, which would stay silent. The operator's fault.
    #[error("cannot read the log filter {filter:?}: nothing here logs as {target:?}")]
    NoTarget {
        /// As given.
        filter: String,
        /// What it names.
        target: String,
    },
    /// Logs were set up before. A fault of ours.
    #[error("cannot start the log")]
    Start(#[source] tracing_subscriber::util::TryInitError),
    /// The system gives no thread for it.
    #[error("cannot start the log's thread")]
    Thread(#[source] std::io::Error),
    /// The running log could not be changed. A fault of ours.
    #[error("cannot change the log's filter")]
    Change(#[source] reload::Error),
}

/// The WireGuard library reports as warnings what anyone on the Internet can cause with one datagram; the
/// tunnel counts them instead. Who wants its lines names `boringtun` in the filter.
const QUIET: &str = "boringtun";
/// Who lets a room's lines through hears also how many of them were withheld.
const TELLING: &str = "tailtape::telemetry";

/// What may stand in a filter without a level: all lines of these.
const ROOMS: [&str; 2] = ["tailtape", "netstack"];
/// What else may log here: libraries, of which a person may want to hear or not.
const LIBRARIES: [&str; 8] = [
    QUIET,
    "h2",
    "hyper",
    "hyper_util",
    "jiff",
    "object_store",
    "rustls",
    "tokio",
];

/// The running log: what it lets through can be changed. Once it is dropped, as the process ends, it has told of every line that was withheld.
pub struct Log {
    set: Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>,
    limit: Limit,
}

/// Counts the lines that were withheld from a log, because they came too often.
#[derive(Debug, Clone, Default)]
pub struct LinesWithheld(Limit);

/// Starts the log. `filter` has the form `level` or `room=level,room=level`: `info`, `warn,tailtape::capture=debug`.
///
/// # Errors
/// The filter cannot be read, a log was started before, or the system gives no thread.
pub fn start(filter: &str, format: LogFormat) -> Result<Log, TelemetryError> {
    let parsed = parse(filter)?;
    let log = tracing_subscriber::fmt();
    let limit = Limit::default();
    let limiting = limit.layer(limit::now);
    let set: Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>;
    match format {
        LogFormat::Human { color } => {
            let log = log.with_writer(terminal::Terminal { color });
            let log = log.with_ansi(color).with_env_filter(parsed);
            let log = log.with_filter_reloading();
            let handle = log.reload_handle();
            set = Box::new(move |filter| handle.reload(filter));
            log.finish().with(limiting).try_init()
        }
        LogFormat::Json => {
            let log = log.with_writer(std::io::stderr);
            let log = log.json().flatten_event(true).with_env_filter(parsed);
            let log = log.with_filter_reloading();
            let handle = log.reload_handle();
            set = Box::new(move |filter| handle.reload(filter));
            log.finish().with(limiting).try_init()
        }
    }
    .map_err(TelemetryError::Start)?;
    limit.start_telling().map_err(TelemetryError::Thread)?;
    Ok(Log { set, limit })
}

/// Whether [`start`] and [`Log::set_filter`] would take the filter.
///
/// # Errors
/// It cannot be read.
pub fn check(filter: &str) -> Result<(), TelemetryError> {
    parse(filter).map(drop)
}

impl Log {
    /// From now on the log lets through what `filter` says.
    ///
    /// # Errors
    /// The filter cannot be read; the old one stays.
    pub fn set_filter(&self, filter: &str) -> Result<(), TelemetryError> {
        (self.set)(parse(filter)?).map_err(TelemetryError::Change)
    }

    /// How much of this log was withheld.
    #[must_use]
    pub fn lines_withheld(&self) -> LinesWithheld {
        LinesWithheld(self.limit.clone())
    }
}

impl LinesWithheld {
    /// Lines since the log was started.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.lines_withheld()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.limit.tell_rest(limit::now());
    }
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").finish_non_exhaustive()
    }
}

fn parse(filter: &str) -> Result<EnvFilter, TelemetryError> {
    let shown = crate::tell::without_secrets;
    let words = words(filter);
    // A filter without a word silences everything, which `off` says.
    let misspelt = match words.is_empty() {
        true => Some(filter),
        false => words.iter().copied().find(|word| !has_level(word)),
    };
    if let Some(word) = misspelt {
        return Err(TelemetryError::NoLevel {
            filter: shown(filter),
            word: shown(word),
        });
    }
    if let Some(target) = words.iter().find_map(|word| unknown_target(word)) {
        return Err(TelemetryError::NoTarget {
            filter: shown(filter),
            target: shown(target),
        });
    }
    EnvFilter::try_new(with_defaults(filter)).map_err(|source| TelemetryError::Filter {
        filter: shown(filter),
        source,
    })
}

/// What stands between commas; the filter's own reader knows none within a span's brackets either.
fn words(filter: &str) -> Vec<&str> {
    let words = filter.split(',').map(str::trim);
    words.filter(|word| !word.is_empty()).collect()
}

/// The level of a word, which stands alone or behind a `=` that is in no span's brackets.
fn level_of(word: &str) -> Option<&str> {
    match word.rsplit_once('=') {
        Some((_, level)) if !level.contains(']') => Some(level),
        Some(_) | None => None,
    }
}

/// Whether it names a level, or is a room, of which all lines are then let through. What level it is, the filter itself reads.
fn has_level(word: &str) -> bool {
    match level_of(word) {
        Some(level) => !level.trim().is_empty(),
        None => {
            let room = word.split("::").next().unwrap_or_default();
            word.parse::<LevelFilter>().is_ok() || word.contains("::") || ROOMS.contains(&room)
        }
    }
}

/// What the word is about, if nothing here logs so. A span's brackets alone are about all.
fn unknown_target(word: &str) -> Option<&str> {
    let is_level = level_of(word).is_none() && word.parse::<LevelFilter>().is_ok();
    if is_level || word.starts_with('[') {
        return None;
    }
    let target = word.split(['[', '=']).next().unwrap_or_default().trim();
    let of = target.split("::").next().unwrap_or_default();
    let is_known = ROOMS.iter().chain(&LIBRARIES).any(|known| *known == of);
    (!is_known).then_some(target)
}

fn with_defaults(filter: &str) -> String {
    let mut filter = filter.trim().to_owned();
    for (name, level) in [(QUIET, "off"), (TELLING, "warn")] {
        if !filter.contains(name) {
            let separator = if filter.is_empty() { "" } else { "," };
            filter = format!("{filter}{separator}{name}={level}");
        }
    }
    filter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wireguard_library_is_silent_and_withheld_lines_are_told_unless_otherwise_asked_for() {
        for (given, used) in [
            ("warn", "warn,boringtun=off,tailtape::telemetry=warn"),
            ("", "boringtun=off,tailtape::telemetry=warn"),
            (
                "warn,boringtun=trace",
                "warn,boringtun=trace,tailtape::telemetry=warn",
            ),
            (
                "tailtape::telemetry=off",
                "tailtape::telemetry=off,boringtun=off",
            ),
        ] {
            assert_eq!(with_defaults(given), used);
            assert!(EnvFilter::try_new(used).is_ok());
        }
    }

    #[test]
    fn a_misspelt_level_is_an_error_and_no_silence() {
        for bad in [
            "loud",
            "wran",
            "warn,inof",
            "tailtape::ingest=debug,trace2",
            "",
            " ",
            ",",
            " , ",
            "tailtape=",
            "warn,tailtape= ",
            "[x]",
            "tailtape[x{a=1}]",
        ] {
            let error = check(bad).unwrap_err();
            assert!(matches!(error, TelemetryError::NoLevel { .. }), "{bad}");
        }
        for bad in [
            "tailtap=debug",
            "warn,tailtap::store",
            "=debug",
            "info,netstak[x]=warn",
        ] {
            let error = check(bad).unwrap_err();
            assert!(matches!(error, TelemetryError::NoTarget { .. }), "{bad}");
        }
        for good in [
            "warn,",
            "boringtun=debug",
            "[span{a=1}]=debug,warn",
            "tailtape[span]=debug",
            "warn",
            "INFO",
            "off",
            "3",
            "warn,tailtape::ingest=debug",
            "tailtape",
            "info,netstack",
            "hyper=off",
            "tailtape::store",
            "[span]=debug",
        ] {
            assert!(check(good).is_ok(), "{good}");
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
