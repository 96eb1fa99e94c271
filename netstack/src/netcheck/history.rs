//! Latencies of the reports of the last five minutes.
//!
//! Invariant: at most [`REPORTS_MAX`] reports, none older than [`AGE_MAX`] when read. Called by
//! `netcheck`.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// How long a latency speaks for its region.
pub(super) const AGE_MAX: Duration = Duration::from_secs(5 * 60);

/// Reports kept: at the usual period twenty fill five minutes; the rest is for a restless network.
const REPORTS_MAX: usize = 64;

/// Region id to latency.
pub(super) type Latencies = BTreeMap<u32, Duration>;

/// Reports, oldest first.
#[derive(Debug, Default)]
pub(super) struct History(VecDeque<(Instant, Latencies)>);

impl History {
    pub(super) fn push(&mut self, now: Instant, latencies: Latencies) {
        self.0.push_back((now, latencies));
        if self.0.len() > REPORTS_MAX {
            self.0.pop_front();
        }
    }

    /// Latencies of another network say nothing about this one.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The lowest latency of each region.
    pub(super) fn best(&self, now: Instant) -> Latencies {
        let mut best = Latencies::new();
        for (id, latency) in self.recent(now) {
            let lowest = best.entry(id).or_insert(latency);
            *lowest = latency.min(*lowest);
        }
        best
    }

    /// Regions by their lowest latency, fastest first, each with its last one.
    pub(super) fn fastest(&self, now: Instant) -> Vec<(u32, Duration)> {
        let last: Latencies = self.recent(now).collect();
        let mut ranked: Vec<(Duration, u32)> = self
            .best(now)
            .into_iter()
            .map(|(id, best)| (best, id))
            .collect();
        ranked.sort_unstable();
        let with_last = ranked
            .iter()
            .filter_map(|(_, id)| Some((*id, *last.get(id)?)));
        with_last.collect()
    }

    /// All samples, oldest first.
    fn recent(&self, now: Instant) -> impl Iterator<Item = (u32, Duration)> {
        let young = move |at: Instant| now.saturating_duration_since(at) <= AGE_MAX;
        let reports = self.0.iter().filter(move |(at, _)| young(*at));
        reports.flat_map(|(_, latencies)| latencies.iter().map(|(id, latency)| (*id, *latency)))
    }
}
