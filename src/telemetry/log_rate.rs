//! How many lines one callsite may write: the decision, line by line.
//!
//! ```text
//! open ──the 21st line within 10 s──► silent ──10 s after the last line that was written, and told──► open
//! ```
//!
//! A callsite is silent as a whole and not line by line, so a flood costs 20 lines and one about those withheld in any 10 s, whatever its pace.
//! Invariants: of one callsite at most [`LINES_MAX`] lines are admitted in any [`WINDOW`]; every line is admitted or told of exactly once; a callsite
//! opens only when its silence was told, so the telling comes before its next line. Memory is bounded by the callsites of the program, and 20 times each.
//! Order of calls: [`LogRate::handle_line`] with each line; at [`LogRate::poll_timeout`], [`LogRate::poll_withheld`] until there is no more.
//! Called by `limit.rs`.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// Lines of one callsite in any window: enough to see what goes on, and 50 MB a day if it never ends.
pub(super) const LINES_MAX: usize = 20;
/// The window.
pub(super) const WINDOW: Duration = Duration::from_secs(10);
/// Bytes of a message that are kept to tell which lines were withheld.
pub(super) const MESSAGE_BYTES_MAX: usize = 200;

/// Where in the program a line comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Callsite {
    /// The module.
    pub(super) target: &'static str,
    /// File and line.
    pub(super) name: &'static str,
}

/// What becomes of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// It is written.
    Admitted,
    /// It is only counted.
    Withheld {
        /// The silence begins with it: there is a new timeout.
        first: bool,
    },
}

/// Lines that were not written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Withheld {
    /// The module.
    pub(super) target: &'static str,
    /// The message of the first of them, cut to 200 bytes.
    pub(super) message: String,
    /// How many.
    pub(super) lines: u64,
    /// From the first of them until now.
    pub(super) lasted: Duration,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct LogRate {
    callsites: BTreeMap<Callsite, Pace>,
    lines_withheld: u64,
}

#[derive(Debug, Default)]
struct Pace {
    /// When lines were admitted within the last window, at most [`LINES_MAX`] of them.
    admitted: VecDeque<Instant>,
    silence: Option<Silence>,
}

#[derive(Debug)]
struct Silence {
    message: String,
    lines: u64,
    since: Instant,
    until: Instant,
}

impl LogRate {
    /// A line that would be written now.
    pub(super) fn handle_line(
        &mut self,
        now: Instant,
        callsite: Callsite,
        message: &str,
    ) -> Decision {
        let pace = self.callsites.entry(callsite).or_default();
        let first = match &mut pace.silence {
            Some(silence) => {
                silence.lines = silence.lines.saturating_add(1);
                false
            }
            None => {
                let over = |at: &Instant| now.saturating_duration_since(*at) >= WINDOW;
                while pace.admitted.front().is_some_and(over) {
                    pace.admitted.pop_front();
                }
                if pace.admitted.len() < LINES_MAX {
                    pace.admitted.push_back(now);
                    return Decision::Admitted;
                }
                let last = pace.admitted.back().copied().unwrap_or(now);
                pace.silence = Some(Silence {
                    message: cut(message).to_owned(),
                    lines: 1,
                    since: now,
                    until: last + WINDOW,
                });
                true
            }
        };
        self.lines_withheld = self.lines_withheld.saturating_add(1);
        Decision::Withheld { first }
    }

    /// When the next silence is over.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let silences = self.callsites.values().filter_map(|pace| {
            let silence = pace.silence.as_ref()?;
            Some(silence.until)
        });
        silences.min()
    }

    /// A silence that is over; its callsite is open again.
    pub(super) fn poll_withheld(&mut self, now: Instant) -> Option<Withheld> {
        self.take(now, |silence| silence.until <= now)
    }

    /// A silence, over or not, because the log ends; its callsite is open again.
    pub(super) fn poll_rest(&mut self, now: Instant) -> Option<Withheld> {
        self.take(now, |_| true)
    }

    /// Lines of all callsites that were withheld since the start.
    pub(super) fn lines_withheld(&self) -> u64 {
        self.lines_withheld
    }

    fn take(&mut self, now: Instant, is_over: impl Fn(&Silence) -> bool) -> Option<Withheld> {
        self.callsites.iter_mut().find_map(|(callsite, pace)| {
            let silence = pace.silence.take_if(|silence| is_over(silence))?;
            Some(Withheld {
                target: callsite.target,
                message: silence.message,
                lines: silence.lines,
                lasted: now.saturating_duration_since(silence.since),
            })
        })
    }
}

fn cut(message: &str) -> &str {
    let end = message.floor_char_boundary(MESSAGE_BYTES_MAX);
    message.get(..end).unwrap_or(message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ONE: Callsite = Callsite {
        target: "tailtape::ingest",
        name: "event src/ingest.rs:1",
    };
    const OTHER: Callsite = Callsite {
        name: "event src/ingest.rs:2",
        ..ONE
    };
    const MILLISECOND: Duration = Duration::from_millis(1);
    const FIRST: Decision = Decision::Withheld { first: true };
    const LATER: Decision = Decision::Withheld { first: false };

    fn start() -> Instant {
        #[expect(clippy::disallowed_methods, reason = "an instant to count from")]
        Instant::now()
    }

    /// A line each millisecond from `at` on.
    fn lines(rate: &mut LogRate, at: Instant, callsite: Callsite, lines: u32) -> Vec<Decision> {
        let line = |n| rate.handle_line(at + n * MILLISECOND, callsite, "it failed");
        (0..lines).map(line).collect()
    }

    #[test]
    fn twenty_lines_of_a_callsite_are_admitted_and_the_rest_is_told_10_s_after_the_last_of_them() {
        let (mut rate, t) = (LogRate::default(), start());
        assert_eq!(lines(&mut rate, t, ONE, 20), [Decision::Admitted; 20]);
        assert_eq!(rate.poll_timeout(), None, "nothing was withheld");
        let rest = lines(&mut rate, t + 20 * MILLISECOND, ONE, 100);
        assert_eq!(rest[0], FIRST);
        assert_eq!(rest[1..], [LATER; 99]);

        let over = t + 19 * MILLISECOND + WINDOW;
        assert_eq!(rate.poll_timeout(), Some(over));
        assert_eq!(rate.poll_withheld(over - MILLISECOND), None);
        let withheld = Withheld {
            target: "tailtape::ingest",
            message: "it failed".to_owned(),
            lines: 100,
            lasted: WINDOW - MILLISECOND,
        };
        assert_eq!(rate.poll_withheld(over), Some(withheld));
        assert_eq!(rate.poll_withheld(over), None, "it is told once");
        assert_eq!(rate.poll_timeout(), None);
        assert_eq!(rate.lines_withheld(), 100);
        assert_eq!(lines(&mut rate, over, ONE, 20), [Decision::Admitted; 20]);
    }

    #[test]
    fn a_silence_ends_for_no_line_before_it_was_told() {
        let (mut rate, t) = (LogRate::default(), start());
        lines(&mut rate, t, ONE, 21);
        assert_eq!(lines(&mut rate, t + 3 * WINDOW, ONE, 1), [LATER]);
        let told = rate.poll_withheld(t + 3 * WINDOW).unwrap();
        assert_eq!(told.lines, 2);
        assert_eq!(
            lines(&mut rate, t + 3 * WINDOW, ONE, 1),
            [Decision::Admitted]
        );
    }

    #[test]
    fn a_callsite_that_keeps_below_the_limit_is_never_silent() {
        let (mut rate, t) = (LogRate::default(), start());
        for n in 0..1000 {
            let now = t + n * (WINDOW / 20);
            assert_eq!(rate.handle_line(now, ONE, "slow"), Decision::Admitted);
        }
        assert_eq!(rate.lines_withheld(), 0);
    }

    #[test]
    fn a_silent_callsite_silences_no_other() {
        let (mut rate, t) = (LogRate::default(), start());
        lines(&mut rate, t, ONE, 10_000);
        assert_eq!(lines(&mut rate, t, OTHER, 20), [Decision::Admitted; 20]);
        assert_eq!(lines(&mut rate, t, OTHER, 1), [FIRST]);
        let told = [rate.poll_rest(t), rate.poll_rest(t), rate.poll_rest(t)];
        assert_eq!(
            told.map(|told| told.map(|told| told.lines)),
            [Some(9980), Some(1), None]
        );
    }

    #[test]
    fn a_long_message_is_cut_between_letters() {
        let (mut rate, t) = (LogRate::default(), start());
        let message = format!("x{}", "é".repeat(1000));
        for _ in 0..21 {
            rate.handle_line(t, ONE, &message);
        }
        let told = rate.poll_rest(t).unwrap();
        assert_eq!(told.message.len(), 199);
        assert!(message.starts_with(&told.message));
    }

    proptest! {
        #[test]
        fn whatever_the_pace_no_window_has_more_than_20_lines_and_one_telling_and_no_line_is_lost(
            pauses in proptest::collection::vec(
                prop_oneof![3 => 0_u64..30, 1 => 0_u64..1500, 1 => 0_u64..15_000],
                1..800,
            ),
        ) {
            let (mut rate, mut now) = (LogRate::default(), start());
            let (mut admitted, mut told, mut sum) = (Vec::new(), Vec::new(), 0);
            for pause in &pauses {
                let next = now + Duration::from_millis(*pause);
                if let Some(due) = rate.poll_timeout().filter(|due| *due <= next) {
                    sum += rate.poll_withheld(due).unwrap().lines;
                    told.push(due);
                }
                now = next;
                if rate.handle_line(now, ONE, "often") == Decision::Admitted {
                    admitted.push(now);
                }
            }
            prop_assert!(admitted.windows(LINES_MAX + 1).all(|run| run[LINES_MAX] - run[0] >= WINDOW));
            prop_assert!(told.windows(2).all(|two| two[1] - two[0] >= WINDOW));
            sum += rate.poll_rest(now).map_or(0, |rest| rest.lines);
            prop_assert_eq!(sum, rate.lines_withheld());
            prop_assert_eq!(admitted.len() as u64 + sum, pauses.len() as u64);
        }
    }
}
