//! Holds back the lines that others could fill the log with, and tells how many there were.
//!
//! Limited is each callsite by itself (`log_rate.rs`), and by its level:
//!
//! ```text
//! ERROR         never: it wakes someone
//! WARN          always: any of them can repeat, and most of ingest's come as often as a peer likes
//! INFO          of the rooms that peers talk to, and of libraries; elsewhere it is said once, or once per recording (as by recovery)
//! DEBUG, TRACE  never: who turns them on wants all of them
//! ```
//!
//! Invariant: what is withheld is told, on a thread that sleeps unless something is: an idle recorder may have no next line for hours, and a line cannot log
//! another one while it is being logged. Started by `telemetry.rs`.

use std::fmt::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::log_rate::{Callsite, Decision, LogRate, MESSAGE_BYTES_MAX, Withheld};

/// Where peers talk to.
const PEERS_ROOM: &str = "tailtape::ingest";
/// One INFO line per sealed recording: a peer can cause no more of them than manifests, which are larger and stay, and the store has limits of its own.
const SEALS: &str = "tailtape::ingest::session";
/// The crates whose INFO lines are known.
const OURS: [&str; 2] = ["tailtape", "netstack"];

/// The limit, shared by the log, the thread that tells, and whoever counts.
#[derive(Debug, Clone, Default)]
pub(super) struct Limit(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    rate: Mutex<LogRate>,
    /// A silence has begun.
    begun: Condvar,
}

/// The limit as a layer of the log; `clock` says when a line comes.
pub(super) struct LimitLayer<C> {
    limit: Limit,
    clock: C,
}

impl Limit {
    pub(super) fn layer<C: Fn() -> Instant>(&self, clock: C) -> LimitLayer<C> {
        LimitLayer {
            limit: self.clone(),
            clock,
        }
    }

    /// Starts the thread that tells.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(super) fn start_telling(&self) -> std::io::Result<()> {
        let limit = self.clone();
        let thread = std::thread::Builder::new().name("log".to_owned());
        thread.spawn(move || limit.tell_as_it_comes())?;
        Ok(())
    }

    /// Tells what is still withheld.
    pub(super) fn tell_rest(&self, now: Instant) {
        let mut rate = self.rate();
        while let Some(withheld) = rate.poll_rest(now) {
            tell(&withheld);
        }
    }

    /// How many lines were withheld since the start.
    pub(super) fn lines_withheld(&self) -> u64 {
        self.rate().lines_withheld()
    }

    fn tell_as_it_comes(&self) {
        let mut rate = self.rate();
        loop {
            rate = match rate.poll_timeout() {
                None => {
                    let woken = self.0.begun.wait(rate);
                    woken.unwrap_or_else(PoisonError::into_inner)
                }
                Some(due) => {
                    let left = due.saturating_duration_since(now());
                    let woken = self.0.begun.wait_timeout(rate, left);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
            };
            tell_due(&mut rate, now());
        }
    }

    fn rate(&self) -> MutexGuard<'_, LogRate> {
        self.0.rate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The time by the system's clock.
pub(super) fn now() -> Instant {
    #[expect(
        clippy::disallowed_methods,
        reason = "the log's own clock: the rate is given the time"
    )]
    Instant::now()
}

/// The rate is held meanwhile, so that no line of an opened callsite comes before it is told.
fn tell_due(rate: &mut LogRate, now: Instant) {
    while let Some(withheld) = rate.poll_withheld(now) {
        tell(&withheld);
    }
}

fn tell(withheld: &Withheld) {
    let Withheld {
        target,
        message,
        lines,
        lasted,
    } = withheld;
    let begun = u64::from(lasted.subsec_nanos() > 0);
    let seconds = lasted.as_secs().saturating_add(begun);
    tracing::warn!(
        lines,
        like = message,
        of = target,
        seconds,
        "lines were withheld from the log: they came too often"
    );
}

impl<S: Subscriber, C: Fn() -> Instant + Send + Sync + 'static> Layer<S> for LimitLayer<C> {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if !is_limited(metadata) {
            return true;
        }
        let callsite = Callsite {
            target: metadata.target(),
            name: metadata.name(),
        };
        // Read before the rate is held: formatting runs code of the line's values.
        let mut message = Message::default();
        event.record(&mut message);
        let decision = self
            .limit
            .rate()
            .handle_line((self.clock)(), callsite, &message.0);
        match decision {
            Decision::Admitted => true,
            Decision::Withheld { first } => {
                if first {
                    self.limit.0.begun.notify_one();
                }
                false
            }
        }
    }
}

fn is_limited(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    // What is told of withheld lines: limiting it would wait for itself.
    if target == module_path!() {
        return false;
    }
    let within = |room: &str| {
        let rest = target.strip_prefix(room);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    match *metadata.level() {
        Level::WARN => true,
        Level::INFO => {
            (within(PEERS_ROOM) && target != SEALS) || !OURS.iter().any(|ours| within(ours))
        }
        _ => false,
    }
}

/// The message of an event, as far as it is needed.
#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            // It fails where the message is longer than needed.
            write!(self, "{value:?}").unwrap_or_default();
        }
    }
}

impl Write for Message {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let left = MESSAGE_BYTES_MAX.saturating_sub(self.0.len());
        let end = text.floor_char_boundary(left);
        self.0.push_str(text.get(..end).unwrap_or_default());
        match end < text.len() {
            true => Err(fmt::Error),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
