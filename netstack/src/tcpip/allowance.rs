//! So many a second, and no more: the answers to packets that belong to no connection.
//!
//! Invariant: whatever comes in, no more than the maximum leaves in any second that begins with the first answer. Owned by [`super::TcpIp`].

use smoltcp::time::{Duration, Instant};

const PERIOD: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Allowance {
    max: u32,
    spent: u32,
    renewed_at: Instant,
}

impl Allowance {
    pub(super) fn new(max: u32) -> Self {
        Self {
            max,
            spent: 0,
            renewed_at: Instant::ZERO,
        }
    }

    /// Whether one more may leave now; if so, it counts.
    pub(super) fn spend(&mut self, now: Instant) -> bool {
        if now >= self.renewed_at + PERIOD {
            self.renewed_at = now;
            self.spent = 0;
        }
        let permitted = self.spent < self.max;
        self.spent += u32::from(permitted);
        permitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_permits_the_maximum_and_the_next_one_again() {
        let mut allowance = Allowance::new(3);
        for second in 1..4 {
            let permitted = (0..10)
                .filter(|&n| allowance.spend(Instant::from_millis(second * 1_000 + n * 100)))
                .count();
            assert_eq!(permitted, 3);
        }
    }
}
