//! Which offset may be acked, and when an ack is owed; and the frames that say so.
//!
//! ```text
//! {"ack":12345}\n          bytes of the request body that are durable, from its start
//! {"error":"disk full"}\n  the recording failed; always the last frame
//! ```
//!
//! Invariants: an ack is never above what was reported durable and never goes back; between two frames, and before the first, there are
//! at most `interval_max` (peers hang up after 30 s of silence, recording.md of the protocol: 10 s is the rule), and between two frames at least
//! `interval_min`. Driven by [`upload`](super::upload).

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

/// The ack schedule of one upload.
///
/// [`handle_durable`](Self::handle_durable) as the store reports; [`poll_ack`](Self::poll_ack) whenever a frame can be sent;
/// wake at [`poll_timeout`](Self::poll_timeout).
#[derive(Debug)]
pub struct AckSchedule {
    interval_min: Duration,
    interval_max: Duration,
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
            durable: StreamOffset(0),
            sent: StreamOffset(0),
            last: now,
            started: false,
        }
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
        let wait = if self.durable == self.sent {
            self.interval_max
        } else if self.started {
            self.interval_min
        } else {
            Duration::ZERO
        };
        self.last + wait
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

    #[expect(
        clippy::disallowed_methods,
        reason = "an origin for virtual time comes from no other place"
    )]
    fn origin() -> Instant {
        Instant::now()
    }
}
