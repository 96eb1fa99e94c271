//! Trouble that goes on, told in the log when it begins and then now and again.
//!
//! Invariant: pure; one trouble is told at once and after that at most once in [`TELL_INTERVAL`], however often it is tried again. Called by
//! whoever tries something until it succeeds.

use std::time::{Duration, Instant};

/// Often enough to be seen by somebody who begins to look, and no flood in a store that is down for days.
const TELL_INTERVAL: Duration = Duration::from_secs(60);

/// What was told of one trouble. [`handle_trouble`](Self::handle_trouble) each time it happens.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    /// When it began, and when it was told last.
    told: Option<(Instant, Instant)>,
}

impl Repeats {
    /// It happened (again): for how long it has gone on by now, if that is to be told.
    pub(super) fn handle_trouble(&mut self, now: Instant) -> Option<Duration> {
        let since = match self.told {
            None => now,
            Some((_, last)) if now.saturating_duration_since(last) < TELL_INTERVAL => return None,
            Some((since, _)) => since,
        };
        self.told = Some((since, now));
        Some(now.saturating_duration_since(since))
    }

    /// For how long it has gone on, if it happened at all.
    pub(super) fn lasted(&self, now: Instant) -> Option<Duration> {
        self.told
            .map(|(since, _)| now.saturating_duration_since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_told_when_it_begins_and_then_once_a_minute_with_how_long_it_has_gone_on() {
        let start = tokio::time::Instant::now().into_std();
        let mut repeats = Repeats::default();
        assert_eq!(repeats.lasted(start), None);
        let told: Vec<u64> = (0..200)
            .filter_map(|second| repeats.handle_trouble(start + Duration::from_secs(second)))
            .map(|so_far| so_far.as_secs())
            .collect();
        assert_eq!(told, [0, 60, 120, 180]);
        let end = start + Duration::from_secs(201);
        assert_eq!(repeats.lasted(end), Some(Duration::from_secs(201)));
    }
}
