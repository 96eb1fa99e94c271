//! How big the buffers of connections may be, so that all of them together never exceed the budget.
//!
//! A connection begins with the smallest pair and asks for more when it moves fast. The fuller the budget, the less is granted: new
//! connections always find room before old ones grow. Owned by [`super::TcpIp`].

use super::TcpConfig;

/// Buffers granted at most once half of the budget is spent.
const MIDDLE: Buffers = Buffers {
    receive_bytes: 64 << 10,
    send_bytes: 16 << 10,
};
/// Buffers of a connection that begins or idles, and all that is granted once seven eighths are spent: the first flight of a sender (ten
/// segments, RFC 6928) fits into the one, three segments into the other.
pub(super) const LEAST: Buffers = Buffers {
    receive_bytes: 16 << 10,
    send_bytes: 4 << 10,
};

/// The two buffers of one connection, in bytes. Given back with [`Budget::give_back`] when the connection's stack goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Buffers {
    pub(super) receive_bytes: usize,
    pub(super) send_bytes: usize,
}

/// What has been handed out of the budget.
#[derive(Debug)]
pub(super) struct Budget {
    total_bytes: usize,
    used_bytes: usize,
    most: Buffers,
}

impl Budget {
    pub(super) fn new(config: &TcpConfig) -> Self {
        // smoltcp panics on buffers above 1 GiB; one byte is the least that can make progress.
        let sane = |bytes: usize| bytes.clamp(1, 1 << 30);
        Self {
            total_bytes: config.buffer_budget_bytes,
            used_bytes: 0,
            most: Buffers {
                receive_bytes: sane(config.receive_buffer_bytes),
                send_bytes: sane(config.send_buffer_bytes),
            },
        }
    }

    /// The largest pair that any connection gets.
    pub(super) fn most(&self) -> Buffers {
        self.most
    }

    /// Takes the buffers of a connection that begins; `None` when not even those are affordable.
    pub(super) fn take(&mut self) -> Option<Buffers> {
        let buffers = LEAST.at_most(self.most);
        let after = self.used_bytes.saturating_add(buffers.total());
        (after <= self.total_bytes).then(|| {
            self.used_bytes = after;
            buffers
        })
    }

    /// Exchanges a pair for the wished one, or for the largest between the two that is affordable; `None` when that is the pair held.
    pub(super) fn exchange(&mut self, held: Buffers, wish: Buffers) -> Option<Buffers> {
        let wish = wish.at_most(self.most);
        let granted = [wish, wish.at_most(MIDDLE.at_least(held))]
            .into_iter()
            .find(|&buffers| self.affords(held, buffers))
            .filter(|&granted| granted != held)?;
        self.give_back(held);
        self.take_again(granted);
        Some(granted)
    }

    /// Whether a pair can be exchanged for another.
    pub(super) fn affords(&self, held: Buffers, wish: Buffers) -> bool {
        let after = self
            .used_bytes
            .saturating_sub(held.total())
            .saturating_add(wish.total());
        let ceiling = if wish.total() <= held.total() {
            usize::MAX
        } else if wish.at_most(MIDDLE) == wish {
            self.total_bytes - self.total_bytes / 8
        } else {
            self.total_bytes / 2
        };
        after <= ceiling
    }

    /// Takes a pair that was given back a moment ago.
    pub(super) fn take_again(&mut self, buffers: Buffers) {
        self.used_bytes = self.used_bytes.saturating_add(buffers.total());
    }

    /// Returns what [`Budget::take`] or [`Budget::exchange`] gave.
    pub(super) fn give_back(&mut self, buffers: Buffers) {
        self.used_bytes = self.used_bytes.saturating_sub(buffers.total());
    }

    pub(super) fn used_bytes(&self) -> usize {
        self.used_bytes
    }
}

impl Buffers {
    pub(super) fn total(self) -> usize {
        self.receive_bytes.saturating_add(self.send_bytes)
    }

    /// What an idle connection keeps of these.
    pub(super) fn least(self) -> Self {
        LEAST.at_most(self)
    }

    fn at_most(self, other: Self) -> Self {
        Self {
            receive_bytes: self.receive_bytes.min(other.receive_bytes),
            send_bytes: self.send_bytes.min(other.send_bytes),
        }
    }

    fn at_least(self, other: Self) -> Self {
        Self {
            receive_bytes: self.receive_bytes.max(other.receive_bytes),
            send_bytes: self.send_bytes.max(other.send_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Buffers = Buffers {
        receive_bytes: 256 << 10,
        send_bytes: 64 << 10,
    };

    fn budget(total_bytes: usize) -> Budget {
        Budget::new(&TcpConfig {
            buffer_budget_bytes: total_bytes,
            ..TcpConfig::default()
        })
    }

    #[test]
    fn what_is_granted_shrinks_as_the_budget_fills_and_newcomers_find_room_to_the_end() {
        let mut budget = budget(4 << 20);
        let mut sizes = Vec::new();
        while let Some(first) = budget.take() {
            assert_eq!(first, LEAST);
            let granted = budget.exchange(first, MOST).unwrap_or(first);
            sizes.push(granted.receive_bytes >> 10);
            assert!(budget.used_bytes() <= 4 << 20);
        }
        let count = |kib: usize| sizes.iter().filter(|&&size| size == kib).count();
        assert_eq!((count(256), count(64), count(16)), (6, 20, 28));
        assert!(sizes.is_sorted_by(|a, b| a >= b));
    }

    #[test]
    fn what_is_given_back_can_be_taken_again() {
        let mut budget = budget(20 << 10);
        assert_eq!(budget.take(), Some(LEAST));
        assert_eq!(budget.take(), None);
        budget.give_back(LEAST);
        assert_eq!(budget.take(), Some(LEAST));
    }

    #[test]
    fn giving_up_a_large_pair_for_a_small_one_always_succeeds() {
        let mut budget = budget(320 << 10);
        assert_eq!(budget.take(), Some(LEAST));
        assert_eq!(budget.exchange(LEAST, MOST), Some(MIDDLE));
        budget.total_bytes = 1;
        assert_eq!(budget.exchange(MIDDLE, LEAST), Some(LEAST));
        assert_eq!(budget.used_bytes(), LEAST.total());
    }

    #[test]
    fn no_pair_exceeds_the_most() {
        let config = TcpConfig {
            receive_buffer_bytes: 8 << 10,
            send_buffer_bytes: 2 << 10,
            ..TcpConfig::default()
        };
        let mut budget = Budget::new(&config);
        let buffers = budget.take().unwrap();
        assert_eq!(
            buffers,
            Buffers {
                receive_bytes: 8 << 10,
                send_bytes: 2 << 10
            }
        );
        assert_eq!(budget.exchange(buffers, MOST), None);
    }
}
