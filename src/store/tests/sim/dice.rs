//! The dice of a simulation: every draw follows from the seed.
//!
//! Invariant: each actor has dice of its own, so that one actor's draws do not shift another's. Called by the whole simulation.

use std::time::Duration;

use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};

#[derive(Debug)]
pub(super) struct Dice(ChaCha20Rng);

impl Dice {
    pub(super) fn of_seed(seed: u64) -> Self {
        Self(ChaCha20Rng::seed_from_u64(seed))
    }

    /// Dice for another actor.
    pub(super) fn fork(&mut self) -> Self {
        Self::of_seed(self.0.next_u64())
    }

    pub(super) fn rng(&mut self) -> ChaCha20Rng {
        ChaCha20Rng::seed_from_u64(self.0.next_u64())
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// From 0 to below `end`.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.0.next_u64() % end
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        let place = self.below(from.len() as u64);
        from[usize::try_from(place).unwrap()]
    }

    pub(super) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// From `low` to `high` milliseconds.
    pub(super) fn millis(&mut self, low: u64, high: u64) -> Duration {
        Duration::from_millis(low + self.below(high - low + 1))
    }

    pub(super) fn bytes(&mut self, count: u64) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(count).unwrap()];
        self.0.fill_bytes(&mut bytes);
        bytes
    }
}
