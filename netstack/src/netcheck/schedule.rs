//! When to measure.
//!
//! Invariant: never twice within [`PAUSE_MIN`]; periodically only while the node is in use, so an
//! idle one lets its NAT mappings expire. Called by `netcheck`.

use std::time::{Duration, Instant};

use rand_chacha::ChaCha20Rng;
use rand_core::RngCore as _;

/// The shortest period: below the 30 s for which common NATs keep a mapping.
pub(super) const PERIOD_MIN: Duration = Duration::from_secs(20);
/// What is drawn on top of it.
const PERIOD_SPREAD_MILLIS: u64 = 6000;
/// How long the node counts as in use after it sent something.
pub(super) const ACTIVE: Duration = Duration::from_secs(45);
/// A full measurement is due this long after the last one.
pub(super) const FULL_EVERY: Duration = Duration::from_secs(5 * 60);
/// Between the beginnings of two measurements: a relay that fails again and again asks for many.
pub(super) const PAUSE_MIN: Duration = Duration::from_secs(1);

/// What the next measurement depends on.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    /// The node has a key and peers.
    pub(super) wanted: bool,
    active_until: Option<Instant>,
    /// Somebody asked for one, since then.
    asked: Option<Instant>,
    full_asked: bool,
    periodic: Option<Instant>,
    last_begun: Option<Instant>,
    last_full: Option<Instant>,
}

impl Schedule {
    pub(super) fn ask(&mut self, now: Instant, full: bool) {
        self.asked.get_or_insert(now);
        self.full_asked |= full;
    }

    /// Forgets what is due: there is nobody to ask.
    pub(super) fn stop(&mut self) {
        self.asked = None;
        self.periodic = None;
    }

    pub(super) fn note_active(&mut self, now: Instant) {
        self.active_until = Some(now + ACTIVE);
    }

    /// When the next one is due, as far as is known.
    pub(super) fn due(&self) -> Option<Instant> {
        let active = |at: &Instant| self.wanted && self.active_until >= Some(*at);
        let periodic = self.periodic.filter(active);
        let at = match (self.asked, periodic) {
            (Some(asked), Some(periodic)) => asked.min(periodic),
            (asked, periodic) => asked.or(periodic)?,
        };
        Some(
            self.last_begun
                .map_or(at, |begun| at.max(begun + PAUSE_MIN)),
        )
    }

    /// One begins now. Whether it is to be full, short of there being nothing to build upon.
    pub(super) fn begin(&mut self, now: Instant) -> bool {
        let old = |at: Instant| now.saturating_duration_since(at) >= FULL_EVERY;
        let full = self.full_asked || self.last_full.is_none_or(old);
        self.asked = None;
        self.full_asked = false;
        self.periodic = None;
        self.last_begun = Some(now);
        full
    }

    /// One is done; the next period begins.
    pub(super) fn end(&mut self, now: Instant, full: bool, rng: &mut ChaCha20Rng) {
        if full {
            self.last_full = Some(now);
        }
        // The spread is no divisor of 2^64, which favours the low values by less than 2^-50.
        let drawn = Duration::from_millis(rng.next_u64() % PERIOD_SPREAD_MILLIS);
        self.periodic = Some(now + PERIOD_MIN + drawn);
    }
}
