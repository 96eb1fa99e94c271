//! Which offset may be acked, and when an ack is owed; and the frames that say so.
//!
//! ```text
//! {"ack":12345}\n          bytes of the request body that are durable, from its start
//! {"error":"disk full"}\n  the recording failed; always the last frame
//! ```
//!
//! Invariants: an ack is never above what was reported durable and never goes back; between two frames, and before the first, there are
//! at most `interval_max` (peers hang up after 30 s of silence, recording.md of the protocol: 10 s is the rule), and between two frames at least
//! `interval_min`. Uploads with the same [`Beat`] repeat themselves at the same instants. Driven by [`upload`](super::upload).

use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::ids::StreamOffset;

/// Longest text of an error frame; it is shown to a person on a terminal.
pub const ERROR_TEXT_BYTES_MAX: usize = 512;

/// One JSON object of the response body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AckFrame {
    /// Everything below this offset is durable.
    Ack(StreamOffset),
    /// The recording failed; nothing follows.
    Error(String),
}

impl AckFrame {
    /// The frame's bytes with a newline. The value 0 is written out; clients take it as they take `{}`.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        match self {
            Self::Ack(offset) => format!("{{\"ack\":{}}}\n", offset.0).into(),
            Self::Error(text) => {
                let end = text.floor_char_boundary(ERROR_TEXT_BYTES_MAX);
                let text = text.get(..end).filter(|text| !text.is_empty());
                let object = serde_json::json!({ "error": text.unwrap_or("recording failed") });
                format!("{object}\n").into()
            }
        }
    }
}

/// Instants that idle uploads have in common: a thousand of them wake the recorder once in a while, not each by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    origin: Instant,
    interval: Duration,
}

impl Beat {
    /// All whole intervals since `origin`.
    #[must_use]
    pub const fn new(origin: Instant, interval: Duration) -> Self {
        Self { origin, interval }
    }

    /// The last beat that is not after `at`; `at` itself before the origin, or without an interval.
    fn last_until(self, at: Instant) -> Instant {
        let since = at.saturating_duration_since(self.origin).as_nanos();
        let over = since.checked_rem(self.interval.as_nanos()).unwrap_or(0);
        let over = Duration::from_nanos(u64::try_from(over).unwrap_or(0));
        at.checked_sub(over).unwrap_or(at)
    }
}

/// How many beats an idle interval has at least: a frame is never early by more than a tenth of it.
const BEATS_PER_IDLE_INTERVAL_MIN: u32 = 10;

/// The ack schedule of one upload.
///
/// [`handle_durable`](Self::handle_durable) as the store reports; [`poll_ack`](Self::poll_ack) whenever a frame can be sent;
/// wake at [`poll_timeout`](Self::poll_timeout).
#[derive(Debug)]
pub struct AckSchedule {
    interval_min: Duration,
    interval_max: Duration,
    beat: Option<Beat>,
    durable: StreamOffset,
    sent: StreamOffset,
    /// When the last frame went out, or the response began.
    last: Instant,
    /// A frame has gone out: the first one need not keep a distance.
    started: bool,
}

impl AckSchedule {
    /// A schedule for a response that begins now.
    #[must_use]
    pub fn new(now: Instant, interval_min: Duration, interval_max: Duration) -> Self {
        Self {
            interval_min: interval_min.min(interval_max),
            interval_max,
            beat: None,
            durable: StreamOffset(0),
            sent: StreamOffset(0),
            last: now,
            started: false,
        }
    }

    /// The same, but frames that only repeat the last value go out on `beat`, a little early. A beat above a tenth of `interval_max` is
    /// not followed.
    #[must_use]
    pub fn on_beat(mut self, beat: Option<Beat>) -> Self {
        let slowest = self.interval_max / BEATS_PER_IDLE_INTERVAL_MIN;
        self.beat = beat.filter(|beat| beat.interval <= slowest);
        self
    }

    /// Everything below `offset` is durable. A smaller offset than before changes nothing.
    pub fn handle_durable(&mut self, offset: StreamOffset) {
        self.durable = self.durable.max(offset);
    }

    /// The value to send now, if a frame is owed; counts as sent.
    pub fn poll_ack(&mut self, now: Instant) -> Option<StreamOffset> {
        self.is_due(now).then(|| {
            self.sent = self.durable;
            self.last = now;
            self.started = true;
            self.sent
        })
    }

    /// Is a frame owed now?
    #[must_use]
    pub fn is_due(&self, now: Instant) -> bool {
        now >= self.poll_timeout()
    }

    /// When a frame is owed, if nothing else happens.
    #[must_use]
    pub fn poll_timeout(&self) -> Instant {
        if self.durable == self.sent {
            let latest = self.last + self.interval_max;
            self.beat.map_or(latest, |beat| beat.last_until(latest))
        } else if self.started {
            self.last + self.interval_min
        } else {
            self.last
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: Duration = Duration::from_millis(100);
    const MAX: Duration = Duration::from_secs(5);

    #[test]
    fn frames_are_json_objects_on_lines() {
        let table = [
            (AckFrame::Ack(StreamOffset(0)), "{\"ack\":0}\n"),
            (
                AckFrame::Ack(StreamOffset(u64::MAX)),
                "{\"ack\":18446744073709551615}\n",
            ),
            (
                AckFrame::Error("disk \"a\"\nfull".to_owned()),
                "{\"error\":\"disk \\\"a\\\"\\nfull\"}\n",
            ),
            (
                AckFrame::Error(String::new()),
                "{\"error\":\"recording failed\"}\n",
            ),
        ];
        for (frame, bytes) in table {
            assert_eq!(frame.encode(), bytes.as_bytes());
        }
    }

    #[test]
    fn an_error_text_is_cut_between_characters() {
        let frame = AckFrame::Error("ä".repeat(ERROR_TEXT_BYTES_MAX)).encode();
        let object: serde_json::Value = serde_json::from_slice(&frame).unwrap();
        assert_eq!(object["error"], "ä".repeat(ERROR_TEXT_BYTES_MAX / 2));
    }

    #[test]
    fn the_first_move_after_idleness_is_acked_at_once_and_later_ones_are_gathered() {
        let start = origin();
        let at = |millis| start + Duration::from_millis(millis);
        let mut acks = AckSchedule::new(start, MIN, MAX);
        assert_eq!(acks.poll_ack(start), None);
        acks.handle_durable(StreamOffset(10));
        assert_eq!(acks.poll_ack(at(1)), Some(StreamOffset(10)));
        acks.handle_durable(StreamOffset(20));
        assert_eq!(acks.poll_ack(at(2)), None);
        acks.handle_durable(StreamOffset(30));
        assert_eq!(acks.poll_timeout(), at(101));
        assert_eq!(acks.poll_ack(at(101)), Some(StreamOffset(30)));
        acks.handle_durable(StreamOffset(40));
        assert_eq!(acks.poll_ack(at(3000)), Some(StreamOffset(40)));
    }

    #[test]
    fn the_last_value_is_repeated_while_idle() {
        let start = origin();
        let mut acks = AckSchedule::new(start, MIN, MAX);
        assert_eq!(acks.poll_timeout(), start + MAX);
        assert_eq!(acks.poll_ack(start + MAX), Some(StreamOffset(0)));
        acks.handle_durable(StreamOffset(7));
        assert_eq!(acks.poll_ack(start + MAX + MIN), Some(StreamOffset(7)));
        acks.handle_durable(StreamOffset(3));
        assert_eq!(acks.poll_ack(start + MAX * 2), None);
        assert_eq!(acks.poll_ack(start + MAX * 2 + MIN), Some(StreamOffset(7)));
    }

    #[test]
    fn ten_thousand_idle_uploads_wake_the_recorder_once_a_beat_and_none_is_late() {
        let start = origin();
        let interval = Duration::from_millis(50);
        let beat = Beat::new(start, interval);
        let mut instants = std::collections::BTreeSet::new();
        for upload in 0..10_000 {
            // As they come: at any time of five seconds, to a microsecond.
            let began = start + Duration::from_micros(upload * 499);
            let mut acks = AckSchedule::new(began, MIN, MAX).on_beat(Some(beat));
            let (mut last, mut frames) = (began, 0);
            while last < start + Duration::from_secs(65) {
                let due = acks.poll_timeout();
                assert!(due <= last + MAX && due > last + MAX - interval);
                // A timer is late by up to a millisecond.
                last = due + Duration::from_micros(upload % 1_000);
                assert_eq!(acks.poll_ack(last), Some(StreamOffset(0)));
                instants.insert(due);
                frames += 1;
            }
            assert!((12..=14).contains(&frames), "{frames} frames");
        }
        // 70 seconds have 1,400 beats.
        assert!(instants.len() <= 1_400, "{} wakes", instants.len());
        assert!(instants.iter().all(|due| {
            (*due - start)
                .as_nanos()
                .is_multiple_of(interval.as_nanos())
        }));
    }

    #[test]
    fn a_beat_changes_nothing_for_values_that_are_new_and_nothing_when_it_is_slow() {
        let start = origin();
        let at = |millis| start + Duration::from_millis(millis);
        let mut acks = AckSchedule::new(at(7), MIN, MAX).on_beat(Some(Beat::new(start, MAX / 10)));
        assert_eq!(acks.poll_timeout(), at(5_000));
        acks.handle_durable(StreamOffset(1));
        assert_eq!(acks.poll_ack(at(13)), Some(StreamOffset(1)));
        acks.handle_durable(StreamOffset(2));
        assert_eq!(acks.poll_timeout(), at(113));
        let slow = Beat::new(start, MAX / 10 + Duration::from_nanos(1));
        let acks = AckSchedule::new(at(7), MIN, MAX).on_beat(Some(slow));
        assert_eq!(acks.poll_timeout(), at(5_007));
        let none = Beat::new(start, Duration::ZERO);
        let acks = AckSchedule::new(at(7), MIN, MAX).on_beat(Some(none));
        assert_eq!(acks.poll_timeout(), at(5_007));
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "an origin for virtual time comes from no other place"
    )]
    fn origin() -> Instant {
        Instant::now()
    }
}
