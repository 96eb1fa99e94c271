//! Which trouble with control is worth a line in the log.
//!
//! Invariant: a trouble is told when it is another than the last one, and a repeated one at most once in [`TOLD_AGAIN_MIN`], also when all seemed well in
//! between: a server that accepts and breaks off again has as many recoveries as failures. Asked by `driver.rs`.

use std::time::{Duration, Instant};

use super::driver::Trouble;

/// Between two lines about the same trouble; far above the longest wait between two attempts.
const TOLD_AGAIN_MIN: Duration = Duration::from_secs(300);

/// What was told last, and when.
#[derive(Debug, Default)]
pub(super) struct Told {
    last: Option<(Trouble, Instant)>,
}

impl Told {
    /// Whether to tell it now; if so, it counts as told.
    pub(super) fn is_due(&mut self, now: Instant, trouble: &Trouble) -> bool {
        let fresh = self.last.as_ref().is_some_and(|(last, at)| {
            last == trouble && now.saturating_duration_since(*at) < TOLD_AGAIN_MIN
        });
        if !fresh {
            self.last = Some((trouble.clone(), now));
        }
        !fresh
    }
}

#[cfg(test)]
mod tests {
    use super::super::driver::now;
    use super::*;

    #[test]
    fn the_same_trouble_in_every_second_of_an_hour_is_told_twelve_times_and_another_one_at_once() {
        let begin = now();
        let mut told = Told::default();
        let ended = Trouble::Unreachable("control ended the map stream".to_owned());
        let seconds = (0..3600).map(|second| begin + Duration::from_secs(second));
        let lines = seconds.filter(|now| told.is_due(*now, &ended)).count();
        assert_eq!(lines, 12);
        let end = begin + Duration::from_secs(3600);
        let refused = Trouble::Refused("no".to_owned());
        assert!(told.is_due(end, &refused));
        assert!(!told.is_due(end, &refused));
        assert!(told.is_due(end, &ended), "it changed back");
    }
}
