//! Small lines of many sessions, and how long each waits for the ack that covers it.
//!
//! The invariant: every session sends on its own clock, spread over the period, so that no burst of the bench's own making is measured.
//! [`super::world`] runs it on either way.

use std::time::Duration;

use bytes::Bytes;
use tailtape::asciicast::{CODE_OUTPUT, encode_event};
use tailtape::capture::Upload;
use tokio::time::{Instant, MissedTickBehavior};

use super::numbers::rank;

/// From one line of a session to its next: a person who types, or a command that reports progress.
const LINE_INTERVAL: Duration = Duration::from_millis(100);

/// What the writes of all sessions waited for their acks, and what the journal did meanwhile.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Delays {
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    /// Creates of journal objects for each commit interval that began meanwhile; 0 where commits have no interval.
    pub(crate) puts_per_interval: f64,
}

impl Delays {
    pub(crate) fn of(mut samples: Vec<Duration>, puts_per_interval: f64) -> Self {
        samples.sort_unstable();
        Self {
            p50: rank(&samples, 50),
            p99: rank(&samples, 99),
            puts_per_interval,
        }
    }
}

/// Sends a line each [`LINE_INTERVAL`] from `begin` on for `time`; gives the delays of this session, the first line's not.
pub(crate) async fn session(
    mut upload: Upload,
    begin: Instant,
    time: Duration,
) -> anyhow::Result<Vec<Duration>> {
    let mut ticks = tokio::time::interval_at(begin, LINE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = ticks.tick().await;
        let since = now.saturating_duration_since(begin);
        if since >= time {
            break;
        }
        let text = format!("~/src/tailtape $ ls -l {}\r\n", since.as_millis());
        let line = encode_event(since.as_secs_f64(), CODE_OUTPUT, text.as_bytes());
        upload.write(Bytes::from(line)).await?;
    }
    let uploaded = upload.finish().await?;
    Ok(uploaded.ack_latencies.into_iter().skip(1).collect())
}

/// When session `index` of `count` begins.
pub(crate) fn begin_of(index: usize, count: usize, start: Instant) -> Instant {
    let (index, count) = (u32::try_from(index), u32::try_from(count));
    start + LINE_INTERVAL * index.unwrap_or_default() / count.unwrap_or_default().max(1)
}
