//! Whom a measurement asks, how often, and with what pauses.
//!
//! Invariant: a matter of the map and of earlier latencies alone. A full plan asks every measurable
//! region, an incremental one the fastest three and the home. Called by `netcheck`.
//!
//! Source: tailscale.com `net/netcheck/netcheck.go`, `makeProbePlan`.

use std::time::Duration;

use super::regions::{Family, Place, Region, Regions};

/// Requests per region and family in a full plan.
const FULL_ATTEMPTS: usize = 3;
/// The pause between them.
const FULL_GAP: Duration = Duration::from_millis(100);
/// Regions of an incremental plan, the home aside.
const INCREMENTAL_REGIONS: usize = 3;
/// Of these, how many are asked twice.
const FASTEST: usize = 2;
/// Requests to the home: it must not seem lost for a lost datagram.
const HOME_ATTEMPTS: usize = 4;
/// The shortest pause of an incremental plan.
const INCREMENTAL_GAP_MIN: Duration = Duration::from_millis(200);
/// By how much each further pause is longer.
const INCREMENTAL_GAP_STEP: Duration = Duration::from_millis(50);

/// One measurement, before it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) full: bool,
    /// Regions to measure, most wanted first; some may have no STUN server.
    pub(super) regions: Vec<u32>,
    pub(super) series: Vec<Series>,
}

/// Requests to one region in one family; the first answer ends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Series {
    pub(super) region: u32,
    pub(super) family: Family,
    /// The pause before each request; the first has none.
    pub(super) gaps: Vec<Duration>,
}

/// What is known before a measurement.
#[derive(Debug)]
pub(super) struct Known<'a> {
    pub(super) regions: &'a Regions,
    pub(super) home: Option<u32>,
    /// Families for which there is a socket.
    pub(super) families: &'a [Family],
    /// Families that had an answer in the last report; none if nothing had.
    pub(super) answered: &'a [Family],
    /// Regions with a recent latency, fastest first, each with its last one.
    pub(super) fastest: &'a [(u32, Duration)],
}

/// Every measurable region, the home first.
pub(super) fn full(known: &Known<'_>) -> Plan {
    let mut regions: Vec<u32> = known
        .regions
        .to_measure(known.home)
        .map(|(id, _)| id)
        .collect();
    regions.sort_by_key(|id| known.home != Some(*id));
    let mut gaps = vec![FULL_GAP; FULL_ATTEMPTS];
    if let Some(first) = gaps.first_mut() {
        *first = Duration::ZERO;
    }
    let series = regions.iter().flat_map(|id| {
        let families = known.families.iter().copied();
        families.map(|family| Series {
            region: *id,
            family,
            gaps: gaps.clone(),
        })
    });
    let series = series
        .filter(|series| has_server(known.regions, series))
        .collect();
    Plan {
        full: true,
        regions,
        series,
    }
}

/// The home and the fastest regions. A family that had no answer last time is tried once.
pub(super) fn incremental(known: &Known<'_>) -> Plan {
    let measured = |id: &u32| {
        known
            .regions
            .to_measure(known.home)
            .any(|(found, _)| found == *id)
    };
    let fastest = known.fastest.iter().filter(|(id, _)| measured(id));
    let fastest: Vec<(u32, Option<Duration>)> = fastest
        .take(INCREMENTAL_REGIONS)
        .map(|(id, last)| (*id, Some(*last)))
        .collect();
    let mut chosen: Vec<(u32, Option<Duration>, usize)> = Vec::new();
    if let Some(home) = known.home.filter(measured) {
        let last = known.fastest.iter().find(|(id, _)| *id == home);
        chosen.push((home, last.map(|(_, last)| *last), HOME_ATTEMPTS));
    }
    for (rank, (id, last)) in fastest.into_iter().enumerate() {
        if known.home != Some(id) {
            chosen.push((id, last, if rank < FASTEST { 2 } else { 1 }));
        }
    }
    let series = chosen.iter().flat_map(|(id, last, attempts)| {
        known.families.iter().map(move |family| {
            let silent = !known.answered.is_empty() && !known.answered.contains(family);
            Series {
                region: *id,
                family: *family,
                gaps: (0..if silent { 1 } else { *attempts })
                    .map(|attempt| gap(attempt, *last))
                    .collect(),
            }
        })
    });
    Plan {
        full: false,
        series: series
            .filter(|series| has_server(known.regions, series))
            .collect(),
        regions: chosen.iter().map(|(id, _, _)| *id).collect(),
    }
}

/// The pause before an attempt, counted from 0: a fifth more than an answer took last time.
fn gap(attempt: usize, last: Option<Duration>) -> Duration {
    let Some(step) = u32::try_from(attempt).ok().filter(|attempt| *attempt > 0) else {
        return Duration::ZERO;
    };
    let base = last.unwrap_or_default().saturating_mul(6) / 5;
    base.max(INCREMENTAL_GAP_MIN) + INCREMENTAL_GAP_STEP.saturating_mul(step)
}

fn has_server(regions: &Regions, series: &Series) -> bool {
    let speaks = |region: &Region| {
        let mut servers = region.servers.iter();
        servers.any(|server| *server.place(series.family) != Place::Nowhere)
    };
    regions.by_id.get(&series.region).is_some_and(speaks)
}
