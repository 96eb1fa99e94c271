//! The limit in a real log: what is written, what is withheld, and what is told of it.

use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;

use super::super::log_rate::WINDOW;
use super::*;

/// A clock that stands still until it is set.
#[derive(Clone)]
struct Clock(Arc<Mutex<Instant>>);

impl Clock {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(now())))
    }

    fn now(&self) -> Instant {
        *self.0.lock().unwrap()
    }

    fn advance(&self, by: Duration) {
        *self.0.lock().unwrap() += by;
    }
}

/// Where the log is written: each line is sent.
#[derive(Clone)]
struct Lines(mpsc::Sender<Value>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.send(serde_json::from_slice(bytes).unwrap()).unwrap();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A log as `start` makes it, but with this clock and this writer.
fn log(limit: &Limit, clock: &Clock, filter: &str) -> (impl Subscriber, mpsc::Receiver<Value>) {
    let (sender, written) = mpsc::channel();
    let lines = Lines(sender);
    let clock = clock.clone();
    let log = tracing_subscriber::fmt()
        .with_writer(move || lines.clone())
        .json()
        .flatten_event(true)
        .with_env_filter(EnvFilter::new(filter))
        .finish()
        .with(limit.layer(move || clock.now()));
    (log, written)
}

fn having(lines: &[Value], message: &str) -> usize {
    let of = |line: &&Value| line["message"] == message;
    lines.iter().filter(of).count()
}

const TOLD: &str = "lines were withheld from the log: they came too often";

#[test]
fn a_callsite_that_logs_10_000_lines_at_once_writes_20_and_the_rest_is_told_before_the_next() {
    let (limit, clock) = (Limit::default(), Clock::new());
    let (log, written) = log(&limit, &clock, "info");
    tracing::subscriber::with_default(log, || {
        let turn_away = |n: u64| tracing::warn!(n, "turned {} away", "peers");
        (0..10_000).for_each(turn_away);
        tracing::warn!("something else");
        let lines: Vec<Value> = written.try_iter().collect();
        assert_eq!(having(&lines, "turned peers away"), 20);
        assert_eq!(having(&lines, "something else"), 1);
        assert_eq!(lines.len(), 21);

        clock.advance(WINDOW);
        turn_away(10_000);
        assert_eq!(written.try_iter().count(), 0, "it is not told yet");
        tell_due(&mut limit.rate(), clock.now());
        turn_away(10_001);
        let lines: Vec<Value> = written.try_iter().collect();
        let [told, next] = &lines[..] else {
            panic!("{lines:?}");
        };
        assert_eq!(told["message"], TOLD);
        assert_eq!(told["level"], "WARN");
        assert_eq!(told["lines"], 9_981);
        assert_eq!(told["like"], "turned peers away");
        assert_eq!(told["of"], module_path!());
        assert_eq!(told["seconds"], 10);
        assert_eq!(next["n"], 10_001);
        assert_eq!(limit.lines_withheld(), 9_981);
    });
}

#[test]
fn what_is_withheld_when_the_log_ends_is_told_to_the_last_line() {
    let (limit, clock) = (Limit::default(), Clock::new());
    let (log, written) = log(&limit, &clock, "warn");
    tracing::subscriber::with_default(log, || {
        (0..1000).for_each(|_| tracing::warn!("one"));
        (0..500).for_each(|_| tracing::warn!("two"));
        (0..20).for_each(|_| tracing::warn!("three"));
        limit.tell_rest(clock.now());
        limit.tell_rest(clock.now());
    });
    let lines: Vec<Value> = written.try_iter().collect();
    let told = lines.iter().filter(|line| line["message"] == TOLD);
    let mut told: Vec<_> = told.map(|line| (&line["like"], &line["lines"])).collect();
    told.sort_by_key(|(_, lines)| lines.as_u64());
    assert_eq!(
        told,
        [(&"two".into(), &480.into()), (&"one".into(), &980.into())]
    );
}

#[test]
fn errors_and_what_is_turned_on_to_be_read_are_never_withheld() {
    let (limit, clock) = (Limit::default(), Clock::new());
    let (log, written) = log(&limit, &clock, "trace");
    tracing::subscriber::with_default(log, || {
        for _ in 0..1000 {
            tracing::error!("error");
            tracing::info!(target: "tailtape::store::recovery::epoch", "recovered");
            tracing::info!(target: "tailtape::ingest::session", "sealed");
            tracing::debug!(target: "tailtape::ingest::routes", "debug");
            tracing::trace!(target: "tailtape::ingest", "trace");
        }
    });
    let lines: Vec<Value> = written.try_iter().collect();
    for message in ["error", "recovered", "sealed", "debug", "trace"] {
        assert_eq!(having(&lines, message), 1000, "{message}");
    }
    assert_eq!(limit.lines_withheld(), 0);
}

#[test]
fn warnings_and_what_peers_and_libraries_say_as_information_are_limited() {
    let (limit, clock) = (Limit::default(), Clock::new());
    let (log, written) = log(&limit, &clock, "trace");
    tracing::subscriber::with_default(log, || {
        for _ in 0..1000 {
            tracing::warn!(target: "netstack::io::driver", "warning");
            tracing::info!(target: "tailtape::ingest::routes", "refused");
            tracing::info!(target: "tailtape::ingest", "room");
            tracing::info!(target: "netstackish", "library");
        }
    });
    let lines: Vec<Value> = written.try_iter().collect();
    for message in ["warning", "refused", "room", "library"] {
        assert_eq!(having(&lines, message), 20, "{message}");
    }
    assert_eq!(limit.lines_withheld(), 4 * 980);
}

#[test]
fn a_line_that_the_filter_refuses_is_not_counted() {
    let (limit, clock) = (Limit::default(), Clock::new());
    let (log, written) = log(&limit, &clock, "error");
    tracing::subscriber::with_default(log, || {
        (0..1000).for_each(|_| tracing::warn!("not asked for"));
    });
    assert_eq!(written.try_iter().count(), 0);
    assert_eq!(limit.lines_withheld(), 0);
}

#[test]
fn the_thread_tells_when_a_silence_is_over_though_no_further_line_comes() {
    let (limit, clock) = (Limit::default(), Clock::new());
    let (log, written) = log(&limit, &clock, "warn");
    let dispatch = tracing::Dispatch::new(log);
    let (teller, telling) = (limit.clone(), dispatch.clone());
    std::thread::spawn(move || {
        tracing::dispatcher::with_default(&telling, || teller.tell_as_it_comes());
    });
    // The lines are of a window ago, so that the silence is over as soon as the thread hears of it.
    let Some(past) = now().checked_sub(WINDOW) else {
        panic!("the system has run for less than 10 s");
    };
    *clock.0.lock().unwrap() = past;
    tracing::dispatcher::with_default(&dispatch, || {
        (0..21).for_each(|_| tracing::warn!("flood"));
    });
    let patience = Duration::from_secs(60);
    let lines: Vec<Value> = (0..21)
        .map(|_| written.recv_timeout(patience).unwrap())
        .collect();
    assert_eq!(having(&lines, "flood"), 20);
    assert_eq!(lines[20]["message"], TOLD);
    assert_eq!(lines[20]["lines"], 1);
}

#[test]
fn the_only_information_that_an_upload_gives_unlimited_is_that_it_is_sealed() {
    let session = include_str!("../../ingest/session.rs");
    let said: Vec<&str> = session
        .match_indices("tracing::info!(")
        .map(|(at, _)| session[at..].lines().next().unwrap())
        .collect();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("\"recording sealed\""), "{said:?}");
}
