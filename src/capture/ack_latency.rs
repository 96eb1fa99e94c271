//! How long the recorder takes to make bytes safe: the time from each write to the ack that covers it.
//!
//! The invariant: at most [`UNCOVERED_WRITES_MAX`] writes and [`SAMPLES_MAX`] samples are held, however long the session; a write
//! that finds no room is sent all the same, and only not timed. The recorder client keeps it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Writes that wait for their ack. At one line per 4 KiB read this is 16 MiB of terminal output, more than the windows of one
/// upload let out.
const UNCOVERED_WRITES_MAX: usize = 4096;

/// Samples kept, the newest; enough for a p99 of a thousand samples and more to be one of them.
const SAMPLES_MAX: usize = 65_536;

/// Matches acks to the writes that they cover.
#[derive(Debug, Default)]
pub struct AckLatency {
    sent_bytes: u64,
    acked_bytes: u64,
    uncovered: VecDeque<Write>,
    samples: VecDeque<Duration>,
    untimed_writes: u64,
    untrue_acks: u64,
}

#[derive(Debug)]
struct Write {
    end_bytes: u64,
    sent_at: Instant,
}

impl AckLatency {
    /// Nothing sent, nothing acked.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// `bytes` more go up. Call it before they can reach the recorder, so that no ack overtakes its write.
    pub fn handle_write(&mut self, bytes: u64, now: Instant) {
        self.sent_bytes = self.sent_bytes.saturating_add(bytes);
        if self.uncovered.len() == UNCOVERED_WRITES_MAX {
            self.untimed_writes += 1;
            return;
        }
        self.uncovered.push_back(Write {
            end_bytes: self.sent_bytes,
            sent_at: now,
        });
    }

    /// The recorder says that `acked_bytes`, cumulative, are safe. An offset that runs ahead of what was sent, or back, is counted
    /// in [`untrue_acks`](Self::untrue_acks) and believed only as far as it can be true.
    pub fn handle_ack(&mut self, acked_bytes: u64, now: Instant) {
        if acked_bytes > self.sent_bytes || acked_bytes < self.acked_bytes {
            self.untrue_acks += 1;
        }
        self.acked_bytes = acked_bytes.min(self.sent_bytes).max(self.acked_bytes);
        while let Some(write) = self.uncovered.front()
            && write.end_bytes <= self.acked_bytes
        {
            if self.samples.len() == SAMPLES_MAX {
                self.samples.pop_front();
            }
            self.samples
                .push_back(now.saturating_duration_since(write.sent_at));
            self.uncovered.pop_front();
        }
    }

    /// Bytes handed over so far.
    #[must_use]
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// Bytes that the recorder called safe; never more than were sent.
    #[must_use]
    pub fn acked_bytes(&self) -> u64 {
        self.acked_bytes
    }

    /// The newest sample: from a write to the ack that covered it.
    #[must_use]
    pub fn last(&self) -> Option<Duration> {
        self.samples.back().copied()
    }

    /// The samples, oldest first.
    pub fn samples(&self) -> impl Iterator<Item = Duration> {
        self.samples.iter().copied()
    }

    /// Writes that were not timed because too many waited for their ack.
    #[must_use]
    pub fn untimed_writes(&self) -> u64 {
        self.untimed_writes
    }

    /// Acks that ran ahead of the bytes sent, or fell behind an earlier ack. A recorder that keeps its promise causes none.
    #[must_use]
    pub fn untrue_acks(&self) -> u64 {
        self.untrue_acks
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[expect(
        clippy::disallowed_methods,
        reason = "any instant serves as the origin of a table"
    )]
    fn origin() -> Instant {
        Instant::now()
    }

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn an_ack_times_every_write_that_it_covers_and_no_other() {
        let t0 = origin();
        let mut latency = AckLatency::new();
        latency.handle_write(10, t0);
        latency.handle_write(10, t0 + ms(5));
        latency.handle_write(10, t0 + ms(6));
        latency.handle_ack(25, t0 + ms(9));
        assert_eq!(latency.samples().collect::<Vec<_>>(), [ms(9), ms(4)]);
        latency.handle_ack(25, t0 + ms(20));
        assert_eq!(
            latency.samples().count(),
            2,
            "a repeated value covers nothing new"
        );
        latency.handle_ack(30, t0 + ms(26));
        assert_eq!(latency.last(), Some(ms(20)));
        assert_eq!((latency.sent_bytes(), latency.acked_bytes()), (30, 30));
        assert_eq!(latency.untrue_acks(), 0);
    }

    #[test]
    fn an_ack_beyond_what_was_sent_or_behind_an_earlier_one_is_counted_as_untrue() {
        let t0 = origin();
        let mut latency = AckLatency::new();
        latency.handle_write(10, t0);
        latency.handle_ack(11, t0);
        assert_eq!((latency.acked_bytes(), latency.untrue_acks()), (10, 1));
        latency.handle_ack(9, t0);
        assert_eq!((latency.acked_bytes(), latency.untrue_acks()), (10, 2));
    }

    #[test]
    fn a_write_that_finds_no_room_is_counted_but_not_timed() {
        let t0 = origin();
        let mut latency = AckLatency::new();
        for _ in 0..=UNCOVERED_WRITES_MAX {
            latency.handle_write(1, t0);
        }
        assert_eq!(latency.untimed_writes(), 1);
        latency.handle_ack(latency.sent_bytes(), t0);
        assert_eq!(latency.samples().count(), UNCOVERED_WRITES_MAX);
    }

    #[test]
    fn only_the_newest_samples_are_kept() {
        let t0 = origin();
        let mut latency = AckLatency::new();
        for n in 0..=SAMPLES_MAX as u64 {
            latency.handle_write(1, t0);
            latency.handle_ack(n + 1, t0 + ms(n));
        }
        assert_eq!(latency.samples().count(), SAMPLES_MAX);
        assert_eq!(latency.samples().next(), Some(ms(1)));
    }

    proptest! {
        #[test]
        fn any_acks_leave_it_bounded_and_never_past_what_was_sent(
            steps in prop::collection::vec((any::<bool>(), any::<u64>()), 0..200),
        ) {
            let t0 = origin();
            let mut latency = AckLatency::new();
            let mut writes = 0;
            for (write, n) in steps {
                if write {
                    latency.handle_write(n % 5000, t0);
                    writes += 1;
                } else {
                    latency.handle_ack(n, t0);
                }
                prop_assert!(latency.acked_bytes() <= latency.sent_bytes());
            }
            prop_assert!(latency.samples().count() + latency.uncovered.len() <= writes);
        }
    }
}
