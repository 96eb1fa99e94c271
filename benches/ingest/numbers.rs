//! Medians, ranks and rates.
//!
//! The invariant: no sample gives 0, never a division by zero. All rooms of this bench use it.

use std::time::Duration;

/// The middle of `values`; the mean of the two middle ones.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let half = values.len() / 2;
    let at = |index: usize| values.get(index).copied().unwrap_or_default();
    match values.len() % 2 {
        0 => f64::midpoint(at(half.saturating_sub(1)), at(half)),
        _ => at(half),
    }
}

/// The smallest sample that `percent` of all do not exceed.
pub(crate) fn rank(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted
        .get(rank.saturating_sub(1))
        .copied()
        .unwrap_or_default()
}

pub(crate) fn ratio(of: f64, to: f64) -> f64 {
    if to > 0.0 { of / to } else { 0.0 }
}

/// Gigabits in a second.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
pub(crate) fn gigabits(bytes: u64, seconds: f64) -> f64 {
    ratio(bytes as f64 * 8e-9, seconds)
}

pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
