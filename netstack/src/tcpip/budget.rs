//! How big the buffers of the next connection may be, so that all of them together never exceed the budget.
//!
//! smoltcp's buffers cannot grow or shrink, and the window scale is fixed by the SYN: the size is decided once, before the connection exists.

use super::TcpConfig;

/// Buffers of the connections that come once half of the budget is spent, in bytes: receive, send.
const MIDDLE_BYTES: (usize, usize) = (64 << 10, 16 << 10);
/// Buffers of the connections that come once seven eighths are spent, in bytes: eight full segments of 1240 bytes still fit in flight.
const LEAST_BYTES: (usize, usize) = (16 << 10, 4 << 10);

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
    wish: (usize, usize),
}

impl Budget {
    pub(super) fn new(config: &TcpConfig) -> Self {
        // smoltcp panics on buffers above 1 GiB; one byte is the least that can make progress.
        let sane = |bytes: usize| bytes.clamp(1, 1 << 30);
        Self {
            total_bytes: config.buffer_budget_bytes,
            used_bytes: 0,
            wish: (
                sane(config.receive_buffer_bytes),
                sane(config.send_buffer_bytes),
            ),
        }
    }

    /// Takes the largest pair of buffers that is affordable now; `None` when not even the smallest is.
    pub(super) fn take(&mut self) -> Option<Buffers> {
        let half = self.total_bytes / 2;
        let most = self.total_bytes - self.total_bytes / 8;
        let tiers = [
            (self.wish, half),
            (MIDDLE_BYTES, most),
            (LEAST_BYTES, self.total_bytes),
        ];
        for ((receive, send), ceiling) in tiers {
            let buffers = Buffers {
                receive_bytes: receive.min(self.wish.0),
                send_bytes: send.min(self.wish.1),
            };
            let after = self.used_bytes.saturating_add(buffers.total());
            if after <= ceiling {
                self.used_bytes = after;
                return Some(buffers);
            }
        }
        None
    }

    /// Returns what [`Budget::take`] gave.
    pub(super) fn give_back(&mut self, buffers: Buffers) {
        self.used_bytes = self.used_bytes.saturating_sub(buffers.total());
    }

    pub(super) fn used_bytes(&self) -> usize {
        self.used_bytes
    }
}

impl Buffers {
    fn total(self) -> usize {
        self.receive_bytes.saturating_add(self.send_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(total_bytes: usize) -> Budget {
        Budget::new(&TcpConfig {
            buffer_budget_bytes: total_bytes,
            ..TcpConfig::default()
        })
    }

    #[test]
    fn buffers_shrink_as_the_budget_fills_and_end_with_it() {
        let mut budget = budget(4 << 20);
        let mut sizes = Vec::new();
        while let Some(buffers) = budget.take() {
            sizes.push(buffers.receive_bytes >> 10);
            assert!(budget.used_bytes() <= 4 << 20);
        }
        let count = |kib: usize| sizes.iter().filter(|&&size| size == kib).count();
        assert_eq!((count(256), count(64), count(16)), (6, 20, 28));
        assert!(sizes.is_sorted_by(|a, b| a >= b));
    }

    #[test]
    fn what_is_given_back_can_be_taken_again() {
        let mut budget = budget(20 << 10);
        let first = budget.take().unwrap();
        assert_eq!(
            first,
            Buffers {
                receive_bytes: 16 << 10,
                send_bytes: 4 << 10
            }
        );
        assert_eq!(budget.take(), None);
        budget.give_back(first);
        assert_eq!(budget.take(), Some(first));
    }

    #[test]
    fn no_tier_exceeds_the_wish() {
        let config = TcpConfig {
            receive_buffer_bytes: 8 << 10,
            send_buffer_bytes: 2 << 10,
            ..TcpConfig::default()
        };
        let buffers = Budget::new(&config).take().unwrap();
        assert_eq!(
            buffers,
            Buffers {
                receive_bytes: 8 << 10,
                send_bytes: 2 << 10
            }
        );
    }
}
