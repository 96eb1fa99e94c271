//! Which DERP region is home: one function per rule, and the order of the rules.
//!
//! Invariant: a matter of the facts alone; never a region outside of `eligible`, save for a home
//! that control cannot be told to change. Called by `netcheck` when a measurement ends.
//!
//! Source: tailscale.com `net/netcheck/netcheck.go` (`addReportHistoryAndSetPreferredDERP`),
//! `wgengine/magicsock/derp.go` (`pickDERPFallback`).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::history::Latencies;

/// A gain of less than this is not worth a move.
const GAIN_MIN: Duration = Duration::from_millis(10);

/// A DERP frame this recent shows that the home can be reached.
const FRAME_SHOWS_ACCESS: Duration = Duration::from_secs(8);

/// A DERP frame this recent shows that the home lives, if no region answered at all.
const FRAME_SHOWS_LIFE: Duration = Duration::from_secs(120);

/// Why the home is what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HomeReason {
    /// No region may be home.
    NoRegion,
    /// No other region may be home.
    OnlyRegion,
    /// It has the lowest weighed latency of those that answered.
    Fastest,
    /// Another one is faster, but not by enough.
    FastEnough,
    /// No region answered; its connection delivered a frame in the last two minutes.
    Heard,
    /// No region answered, and nothing is known to be better.
    NothingBetter,
    /// No region answered and there was no home: drawn by lot, once for the whole process.
    Drawn,
    /// Control is out of reach, so nobody could learn of a new home.
    ControlAway,
}

/// What the choice rests on.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    pub(super) now: Instant,
    /// When the measurement began.
    pub(super) began: Instant,
    pub(super) current: Option<u32>,
    /// Regions that may be home, sorted by id.
    pub(super) eligible: &'a [u32],
    /// This measurement's latencies.
    pub(super) answered: &'a Latencies,
    /// The lowest latencies of the last five minutes, this measurement's among them.
    pub(super) best: &'a Latencies,
    /// Multipliers, finite and positive.
    pub(super) scores: &'a BTreeMap<u32, f64>,
    /// When the connection to the current home last delivered a frame.
    pub(super) heard: Option<Instant>,
    pub(super) control_connected: bool,
    /// Drawn once for the whole process.
    pub(super) lot: u64,
}

/// The home, and why.
pub(super) fn choose(facts: &Facts<'_>) -> (Option<u32>, HomeReason) {
    if facts.current.is_some() && !facts.control_connected {
        return (facts.current, HomeReason::ControlAway);
    }
    if let [only] = facts.eligible {
        return (Some(*only), HomeReason::OnlyRegion);
    }
    let current = facts.current.filter(|id| facts.eligible.contains(id));
    let candidate = candidate(facts.eligible, facts.answered, facts.best, facts.scores);
    let Some((fastest, latency)) = candidate else {
        return match current {
            Some(_) if shows_life(facts.now, facts.heard) => (current, HomeReason::Heard),
            Some(_) => (current, HomeReason::NothingBetter),
            None => match by_lot(facts.eligible, facts.lot) {
                Some(drawn) => (Some(drawn), HomeReason::Drawn),
                None => (None, HomeReason::NoRegion),
            },
        };
    };
    if let Some(home) = current.filter(|home| *home != fastest) {
        let sample = facts.answered.get(&home);
        let sample = sample.map(|latency| scaled(*latency, facts.scores.get(&home)));
        if accessible(sample, facts.now, facts.began, facts.heard)
            && is_fast_enough(sample, latency)
        {
            return (current, HomeReason::FastEnough);
        }
    }
    (Some(fastest), HomeReason::Fastest)
}

/// The answering region with the lowest weighed latency of the last five minutes, and that latency;
/// of equals the one with the lowest id.
fn candidate(
    eligible: &[u32],
    answered: &Latencies,
    best: &Latencies,
    scores: &BTreeMap<u32, f64>,
) -> Option<(u32, Duration)> {
    let answering = eligible.iter().filter_map(|id| {
        let now = answered.get(id)?;
        let best = best.get(id).unwrap_or(now);
        Some((*id, scaled(*best, scores.get(id))))
    });
    answering.min_by_key(|(id, latency)| (*latency, *id))
}

/// A latency times the region's score.
fn scaled(latency: Duration, score: Option<&f64>) -> Duration {
    let Some(score) = score else {
        return latency;
    };
    Duration::try_from_secs_f64(latency.as_secs_f64() * score).unwrap_or(Duration::MAX)
}

/// Whether the home can be reached: it answered now, or a DERP frame came lately or since `began`.
fn accessible(
    sample: Option<Duration>,
    now: Instant,
    began: Instant,
    heard: Option<Instant>,
) -> bool {
    let lately = |at: Instant| now.saturating_duration_since(at) <= FRAME_SHOWS_ACCESS;
    sample.is_some() || heard.is_some_and(|at| at >= began || lately(at))
}

/// Whether an accessible home stays, although a candidate is faster: the gain is under 10 ms, or
/// under a third. Without a sample there is no gain to be seen.
fn is_fast_enough(home: Option<Duration>, candidate: Duration) -> bool {
    let Some(home) = home else {
        return true;
    };
    home.saturating_sub(candidate) < GAIN_MIN
        || candidate.saturating_mul(3) > home.saturating_mul(2)
}

/// Whether the connection to the home was alive within the last two minutes.
fn shows_life(now: Instant, heard: Option<Instant>) -> bool {
    heard.is_some_and(|at| now.saturating_duration_since(at) <= FRAME_SHOWS_LIFE)
}

/// One of the sorted ids: the same for the whole process, spread over a fleet.
fn by_lot(eligible: &[u32], lot: u64) -> Option<u32> {
    let count = u64::try_from(eligible.len()).ok()?;
    let at = lot.checked_rem(count)?;
    eligible.get(usize::try_from(at).ok()?).copied()
}

#[cfg(test)]
mod tests;
