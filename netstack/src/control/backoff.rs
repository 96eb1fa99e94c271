//! How long to wait after a failure. Called by the three loops of `control`, each with its own.
//!
//! Invariant: every wait is bounded, and two nodes that fail together do not come back together.

use std::time::Duration;

use rand_core::RngCore;

/// Longest plain wait before the jitter; upstream's value.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// First and longest wait after a refusal, which only a person can lift.
const REFUSED_WAIT_MIN: Duration = Duration::from_secs(5);
const REFUSED_WAIT_MAX: Duration = Duration::from_secs(300);
/// A server that asks for more than this is taken to be mistaken; upstream's value.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// Consecutive failures of one loop.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// It worked.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// The n-th failure waits min(n² · 10 ms, 30 s) × 0.5..1.5.
    pub(super) fn next(&mut self, rng: &mut impl RngCore) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let millis = u64::from(self.failures)
            .saturating_mul(u64::from(self.failures))
            .saturating_mul(10);
        jitter(Duration::from_millis(millis).min(WAIT_MAX), rng)
    }

    /// The n-th refusal waits min(5 s · 2^n, 5 min) × 0.5..1.5.
    pub(super) fn next_refused(&mut self, rng: &mut impl RngCore) -> Duration {
        let factor = 1_u32 << self.failures.min(6);
        self.failures = self.failures.saturating_add(1);
        jitter((REFUSED_WAIT_MIN * factor).min(REFUSED_WAIT_MAX), rng)
    }
}

/// What a 429 asks for; a value that makes no sense becomes 5 to 10 s.
pub(super) fn after_429(asked: Option<Duration>, rng: &mut impl RngCore) -> Duration {
    match asked {
        Some(wait) if !wait.is_zero() && wait <= RETRY_AFTER_MAX => wait,
        _ => Duration::from_millis(5000 + u64::from(rng.next_u32() % 5000)),
    }
}

fn jitter(wait: Duration, rng: &mut impl RngCore) -> Duration {
    wait * (500 + rng.next_u32() % 1000) / 1000
}
