//! How fast a connection moves, and so how large its rings ought to be.
//!
//! Two speeds, far apart, so that nothing swings between them: whoever fills its receive ring within [`BULK_WITHIN`] gets a larger one;
//! whoever moves less than the smallest ring within [`LOOK_INTERVAL`] gives the larger ones back. Invariant: a connection
//! with the smallest rings has no deadline here. Owned by [`super::connection`], asked by [`super::fit`].

use smoltcp::time::{Duration, Instant};

use super::budget::{Buffers, LEAST};

/// A ring that is filled in this time is too small: 16 KiB a second is more than people read, and less than any link carries.
const BULK_WITHIN: Duration = Duration::from_secs(1);
/// Time between two looks at a connection with larger rings than the smallest.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// Each step is four times the one before: slow start doubles in every round trip, and a step lags by half a ring at most.
const STEP: usize = 4;

#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    since: Instant,
    /// Read since then.
    bytes: usize,
    /// Read and queued since the last look.
    moved_bytes: usize,
    look_at: Option<Instant>,
    /// A write found too little room, and a larger send ring would have had it.
    pub(super) is_cramped: bool,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: now,
            bytes: 0,
            moved_bytes: 0,
            look_at: None,
            is_cramped: false,
        }
    }

    pub(super) fn note_read(&mut self, now: Instant, bytes: usize) {
        if now > self.since + BULK_WITHIN {
            self.since = now;
            self.bytes = 0;
        }
        self.bytes = self.bytes.saturating_add(bytes);
        self.moved_bytes = self.moved_bytes.saturating_add(bytes);
    }

    pub(super) fn note_queued(&mut self, bytes: usize) {
        self.moved_bytes = self.moved_bytes.saturating_add(bytes);
    }

    /// The rings that would suit it better than those it has, `most` being all that it may have.
    pub(super) fn wish(&self, held: Buffers, most: Buffers) -> Option<Buffers> {
        let receive_bytes = if self.bytes >= held.receive_bytes {
            held.receive_bytes.saturating_mul(STEP)
        } else {
            held.receive_bytes
        };
        let send_bytes = if self.is_cramped {
            most.send_bytes
        } else {
            held.send_bytes
        };
        let wish = Buffers {
            receive_bytes: receive_bytes
                .min(most.receive_bytes)
                .max(held.receive_bytes),
            send_bytes: send_bytes.max(held.send_bytes),
        };
        (wish != held).then_some(wish)
    }

    /// Rings that hold `reach_bytes`, in as few steps as possible.
    pub(super) fn wish_for(reach_bytes: usize, held: Buffers, most: Buffers) -> Option<Buffers> {
        let mut receive_bytes = held.receive_bytes;
        while receive_bytes < reach_bytes.min(most.receive_bytes) {
            receive_bytes = receive_bytes.saturating_mul(STEP);
        }
        let wish = Buffers {
            receive_bytes: receive_bytes.min(most.receive_bytes),
            ..held
        };
        (wish.receive_bytes >= reach_bytes && wish != held).then_some(wish)
    }

    /// The rings are of another size now, or it was tried in vain: begins anew.
    pub(super) fn settle(&mut self, now: Instant, held: Buffers) {
        self.since = now;
        self.bytes = 0;
        self.is_cramped = false;
        self.moved_bytes = 0;
        self.look_at = (held != held.least()).then_some(now + LOOK_INTERVAL);
    }

    /// When to look whether it still needs its rings.
    pub(super) fn look_at(&self) -> Option<Instant> {
        self.look_at
    }

    /// Whether it is time for that, and the rings are too large by now.
    pub(super) fn looks(&mut self, now: Instant) -> bool {
        if self.look_at.is_none_or(|at| now < at) {
            return false;
        }
        let is_slow = self.moved_bytes < LEAST.receive_bytes;
        self.moved_bytes = 0;
        self.look_at = Some(now + LOOK_INTERVAL);
        is_slow
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Buffers = Buffers {
        receive_bytes: 256 << 10,
        send_bytes: 64 << 10,
    };

    fn at(millis: i64) -> Instant {
        Instant::from_millis(millis)
    }

    #[test]
    fn whoever_fills_its_ring_within_a_second_wants_a_larger_one_up_to_the_most() {
        let mut pace = Pace::new(at(0));
        let mut held = LEAST;
        let mut sizes = Vec::new();
        for now in 0..10 {
            pace.note_read(at(now), held.receive_bytes);
            if let Some(wish) = pace.wish(held, MOST) {
                held = wish;
                pace.settle(at(now), held);
            }
            sizes.push(held.receive_bytes >> 10);
        }
        assert_eq!(sizes[..3], [64, 256, 256]);
        assert_eq!(held.send_bytes, LEAST.send_bytes);
    }

    #[test]
    fn whoever_takes_longer_keeps_what_it_has() {
        let mut pace = Pace::new(at(0));
        for now in 0..1_000 {
            pace.note_read(at(now * 600), LEAST.receive_bytes / 3);
            assert_eq!(pace.wish(LEAST, MOST), None);
        }
        assert_eq!(pace.look_at(), None);
    }

    #[test]
    fn large_rings_are_looked_at_and_given_back_when_slow() {
        let mut pace = Pace::new(at(0));
        pace.settle(at(0), MOST);
        assert_eq!(pace.look_at(), Some(at(10_000)));
        assert!(!pace.looks(at(9_999)));
        pace.note_queued(LEAST.receive_bytes);
        assert!(!pace.looks(at(10_000)));
        pace.note_read(at(11_000), LEAST.receive_bytes - 1);
        assert!(pace.looks(at(20_000)));
        pace.settle(at(20_000), LEAST);
        assert_eq!(pace.look_at(), None);
    }

    #[test]
    fn a_reach_beyond_the_most_wants_nothing() {
        assert_eq!(Pace::wish_for(16 << 10, LEAST, MOST), None);
        let wish =
            |kib: usize| Pace::wish_for(kib << 10, LEAST, MOST).map(|b| b.receive_bytes >> 10);
        assert_eq!(
            (wish(17), wish(65), wish(256), wish(257)),
            (Some(64), Some(256), Some(256), None)
        );
    }
}
