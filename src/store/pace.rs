//! When the next commit is due.
//!
//! Invariant: commits start at least `interval` apart unless bytes force them, so their number does not depend on the
//! number of recordings; the first after idleness is due at once; nobody waits for the interval with a full buffer. Pure.
//! Called by the committer.

use std::time::{Duration, Instant};

/// What there is to commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wish {
    /// Bytes of recordings.
    pub(super) pending_bytes: usize,
    /// It does not wait for the interval: an upload has filled its buffer or is about to, or an event's sender waits.
    pub(super) at_once: bool,
}

/// The pace of one journal.
#[derive(Debug)]
pub(super) struct Pace {
    interval: Duration,
    bytes_max: usize,
    last_started: Option<Instant>,
    behind: bool,
}

impl Pace {
    pub(super) const fn new(interval: Duration, bytes_max: usize) -> Self {
        Self {
            interval,
            bytes_max,
            last_started: None,
            behind: false,
        }
    }

    /// A commit started; `left_behind` when the object was full and bytes had to stay.
    pub(super) fn handle_commit(&mut self, now: Instant, left_behind: bool) {
        self.last_started = Some(now);
        self.behind = left_behind;
    }

    /// When the wished commit is due; not later than `now` means at once.
    pub(super) fn due(&self, now: Instant, wish: Wish) -> Instant {
        if self.behind || wish.at_once || wish.pending_bytes >= self.bytes_max {
            return now;
        }
        let next = self
            .last_started
            .and_then(|started| started.checked_add(self.interval));
        next.unwrap_or(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn bytes(pending_bytes: usize) -> Wish {
        Wish {
            pending_bytes,
            at_once: false,
        }
    }

    #[test]
    fn the_first_commit_and_the_first_after_idleness_are_due_at_once() {
        let start = tokio::time::Instant::now().into_std();
        let mut pace = Pace::new(SECOND, 100);
        assert_eq!(pace.due(start, bytes(1)), start);
        pace.handle_commit(start, false);
        assert!(pace.due(start + 5 * SECOND, bytes(1)) <= start + 5 * SECOND);
    }

    #[test]
    fn a_busy_journal_commits_once_an_interval_until_bytes_force_it() {
        let start = tokio::time::Instant::now().into_std();
        let mut pace = Pace::new(SECOND, 100);
        pace.handle_commit(start, false);
        let now = start + SECOND / 10;
        assert_eq!(pace.due(now, bytes(99)), start + SECOND);
        assert_eq!(pace.due(now, bytes(100)), now);
    }

    #[test]
    fn an_upload_that_fills_its_buffer_does_not_wait_for_the_interval() {
        let start = tokio::time::Instant::now().into_std();
        let mut pace = Pace::new(SECOND, 100);
        pace.handle_commit(start, false);
        let wish = Wish {
            pending_bytes: 1,
            at_once: true,
        };
        assert_eq!(pace.due(start, wish), start);
    }

    #[test]
    fn what_did_not_fit_goes_next_without_waiting() {
        let start = tokio::time::Instant::now().into_std();
        let mut pace = Pace::new(SECOND, 100);
        pace.handle_commit(start, true);
        assert_eq!(pace.due(start, bytes(1)), start);
    }
}
