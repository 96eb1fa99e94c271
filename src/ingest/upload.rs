//! One upload from header to close; every endpoint drives this machine.
//!
//! ```text
//! Receiving ──clean end──► Sealing ──sealed──► Leaving: final ack, hold ──► Closed
//!     │ │ └──reset───────► Sealing, silent ──sealed──────────────────────► Closed
//!     │ └────shutdown────► Sealing ──sealed──► Leaving: error frame ─────► Closed
//!     └──────limit, terminated, store stalled or failed ──► Leaving: error frame ──► Closed
//! ```
//!
//! Invariants: acks obey [`ack`](super::ack) until the response ends, also while sealing; the final ack is the whole body; an error frame is last, and
//! waits for nothing but a shutdown's seal; no more than the limit is taken; content is not looked at. Driven by [`session`](super::session).

use std::time::{Duration, Instant};

use super::ack::{AckFrame, AckSchedule, Beat};
use crate::ids::StreamOffset;

/// The intervals of an upload.
#[derive(Debug, Clone, Copy)]
pub struct UploadConfig {
    /// Least time between two acks. 100 ms is below what a person notices and one frame for ten at full speed.
    pub ack_interval_min: Duration,
    /// Most time between two acks. Peers give up after 30 s; 5 s leaves room for four lost ones.
    pub ack_interval_max: Duration,
    /// When uploads that are idle send their acks: all together. [`Ingest`](super::Ingest) sets it where it is not set.
    pub idle_beat: Option<Beat>,
    /// How long the response stays open after the request body ended: a client that sees it end before it has closed the SSH channel (250–500 ms)
    /// reports a failure.
    pub end_stream_hold: Duration,
    /// How long the last frame waits for a peer that does not read.
    pub farewell_limit: Duration,
    /// The same once this recorder stops: who does not read is not to hold that up.
    pub farewell_limit_stopping: Duration,
    /// Bytes of one recording; one more ends the upload.
    pub recording_bytes_max: Option<u64>,
    /// How long one recording may go on.
    pub recording_duration_max: Option<Duration>,
}

impl Default for UploadConfig {
    fn default() -> Self {
        Self {
            ack_interval_min: Duration::from_millis(100),
            ack_interval_max: Duration::from_secs(5),
            idle_beat: None,
            end_stream_hold: Duration::from_millis(300),
            farewell_limit: Duration::from_secs(30),
            farewell_limit_stopping: Duration::from_secs(5),
            recording_bytes_max: None,
            recording_duration_max: None,
        }
    }
}

/// Why no more bytes come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UploadEnd {
    /// The body ended as the protocol says.
    Clean,
    /// The uploader reset the stream, or the connection is gone: nobody reads our frames any more.
    Reset(String),
    /// This recorder stops: the uploader hears why, once everything is sealed.
    Shutdown(String),
    /// An operator ends it: the uploader hears why at once.
    Terminated(String),
    /// More came than `recording_bytes_max`.
    TooLong,
}

/// What ended an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The whole body arrived.
    Complete,
    /// The uploader reset it, or is gone.
    Reset,
    /// This recorder stops.
    Shutdown,
    /// An operator.
    Terminated,
    /// `recording_bytes_max`.
    BytesLimit,
    /// `recording_duration_max`.
    DurationLimit,
    /// The store took nothing for too long.
    Stalled,
    /// The store gave the recording up.
    Failed,
}

impl Cause {
    /// The flag of a recording that ended so, if it gets one.
    #[must_use]
    pub const fn flag(self) -> Option<&'static str> {
        match self {
            Self::BytesLimit => Some("limit_bytes"),
            Self::DurationLimit => Some("limit_duration"),
            Self::Terminated => Some("terminated"),
            Self::Complete | Self::Reset | Self::Shutdown | Self::Stalled | Self::Failed => None,
        }
    }
}

/// How the recording is to be closed in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// What ended it; clean when [`Cause::Complete`].
    pub cause: Cause,
    /// Why, in words; empty when clean.
    pub reason: String,
}

impl Outcome {
    /// The whole body arrived.
    #[must_use]
    pub fn clean(&self) -> bool {
        self.cause == Cause::Complete
    }
}

/// The state machine of one upload.
///
/// Order of calls: [`handle_bytes`](Self::handle_bytes) and [`handle_durable`](Self::handle_durable) as things happen; once [`outcome`](Self::outcome)
/// says something, stop reading, seal, and tell [`handle_sealed`](Self::handle_sealed). After each call, and at [`poll_timeout`](Self::poll_timeout) after
/// [`handle_timeout`](Self::handle_timeout), take [`poll_frame`](Self::poll_frame) until it gives none; when [`is_closed`](Self::is_closed), end the response.
#[derive(Debug)]
pub struct Upload {
    config: UploadConfig,
    acks: AckSchedule,
    received_bytes: u64,
    ends_at: Option<Instant>,
    outcome: Option<Outcome>,
    state: State,
}

#[derive(Debug)]
enum State {
    Receiving,
    Sealing {
        ended_at: Instant,
        farewell: Farewell,
    },
    Leaving {
        frame: Option<AckFrame>,
        owed_at: Instant,
        close_at: Instant,
    },
    Closed {
        told: bool,
    },
}

/// What the response says once the recording is sealed.
#[derive(Debug)]
enum Farewell {
    FinalAck,
    Error(String),
    Silence,
}

impl Upload {
    /// An upload whose response begins now.
    #[must_use]
    pub fn new(now: Instant, config: UploadConfig) -> Self {
        Self {
            config,
            acks: AckSchedule::new(now, config.ack_interval_min, config.ack_interval_max)
                .on_beat(config.idle_beat),
            received_bytes: 0,
            ends_at: config
                .recording_duration_max
                .and_then(|limit| now.checked_add(limit)),
            outcome: None,
            state: State::Receiving,
        }
    }

    /// The next bytes of the request body: how many of them, from the front, are to be appended to the store. When that is not all, append them and
    /// say [`UploadEnd::TooLong`].
    #[must_use]
    pub fn handle_bytes(&mut self, _now: Instant, bytes: &[u8]) -> usize {
        if matches!(self.state, State::Receiving) {
            self.take(bytes)
        } else {
            0
        }
    }

    /// Bytes that had arrived before we ended the upload, and are looked at behind its end; returns how many of them belong to the recording.
    pub fn handle_arrived(&mut self, bytes: &[u8]) -> usize {
        match self.outcome.as_ref().map(|outcome| outcome.cause) {
            Some(Cause::Stalled | Cause::Shutdown | Cause::Terminated | Cause::DurationLimit) => {
                self.take(bytes)
            }
            // The body was at its end, or the recording was.
            Some(Cause::Complete | Cause::Reset | Cause::BytesLimit | Cause::Failed) | None => 0,
        }
    }

    fn take(&mut self, bytes: &[u8]) -> usize {
        let limit = self.config.recording_bytes_max.unwrap_or(u64::MAX);
        let room = limit.saturating_sub(self.received_bytes);
        let taken = bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        // A usize has at most 64 bits on every supported target, so the conversion never saturates.
        let taken_bytes = u64::try_from(taken).unwrap_or(u64::MAX);
        self.received_bytes = self.received_bytes.saturating_add(taken_bytes);
        taken
    }

    /// Everything below `offset` is durable.
    pub fn handle_durable(&mut self, _now: Instant, offset: StreamOffset) {
        // A store that claims more than it was given is wrong, and a client may one day check.
        self.acks
            .handle_durable(offset.min(StreamOffset(self.received_bytes)));
    }

    /// The store gave this recording up.
    pub fn handle_failed(&mut self, now: Instant, reason: String) {
        self.break_off(now, Cause::Failed, reason);
    }

    /// The store took nothing for too long: the recording ends as far as it came, and is sealed when the store is back.
    pub fn handle_stalled(&mut self, now: Instant, reason: String) {
        self.break_off(now, Cause::Stalled, reason);
    }

    fn break_off(&mut self, now: Instant, cause: Cause, reason: String) {
        match self.state {
            State::Receiving => self.end_at_once(now, cause, reason),
            State::Sealing {
                farewell: Farewell::FinalAck | Farewell::Error(_),
                ..
            } => self.leave(now, AckFrame::Error(reason), now),
            State::Sealing {
                farewell: Farewell::Silence,
                ..
            } => self.state = State::Closed { told: true },
            // Once sealed, the recording is safe whatever happens to the store.
            State::Leaving { .. } | State::Closed { .. } => {}
        }
    }

    /// No more bytes come, or are taken.
    pub fn handle_end(&mut self, now: Instant, end: UploadEnd) {
        if !matches!(self.state, State::Receiving) {
            return;
        }
        let (cause, reason, farewell) = match end {
            UploadEnd::Clean => (Cause::Complete, String::new(), Farewell::FinalAck),
            UploadEnd::Reset(reason) => (Cause::Reset, reason, Farewell::Silence),
            UploadEnd::Shutdown(reason) => {
                let limits = &mut self.config;
                limits.farewell_limit = limits.farewell_limit.min(limits.farewell_limit_stopping);
                (Cause::Shutdown, reason.clone(), Farewell::Error(reason))
            }
            UploadEnd::Terminated(reason) => {
                return self.end_at_once(now, Cause::Terminated, reason);
            }
            UploadEnd::TooLong => {
                let reason = format!(
                    "the recording reached recording_bytes_max, {} bytes",
                    self.received_bytes
                );
                return self.end_at_once(now, Cause::BytesLimit, reason);
            }
        };
        self.outcome = Some(Outcome { cause, reason });
        self.state = State::Sealing {
            ended_at: now,
            farewell,
        };
    }

    /// The recording is sealed and durable with `stored_bytes` in all.
    pub fn handle_sealed(&mut self, now: Instant, stored_bytes: u64) {
        let State::Sealing { ended_at, farewell } = &mut self.state else {
            return;
        };
        let hold_until = *ended_at + self.config.end_stream_hold;
        match std::mem::replace(farewell, Farewell::Silence) {
            Farewell::FinalAck if stored_bytes == self.received_bytes => {
                let all = StreamOffset(self.received_bytes);
                self.acks.handle_durable(all);
                self.leave(now, AckFrame::Ack(all), hold_until);
            }
            Farewell::FinalAck => {
                let reason = format!("stored {stored_bytes} of {} bytes", self.received_bytes);
                self.leave(now, AckFrame::Error(reason), now);
            }
            Farewell::Error(reason) => self.leave(now, AckFrame::Error(reason), now),
            Farewell::Silence => self.state = State::Closed { told: true },
        }
    }

    /// The frame to send now, if one is owed; counts as sent.
    pub fn poll_frame(&mut self, now: Instant) -> Option<AckFrame> {
        match &mut self.state {
            State::Receiving
            | State::Sealing {
                farewell: Farewell::FinalAck | Farewell::Error(_),
                ..
            } => self.acks.poll_ack(now).map(AckFrame::Ack),
            State::Sealing {
                farewell: Farewell::Silence,
                ..
            }
            | State::Closed { .. } => None,
            State::Leaving { frame, .. } => {
                let frame = frame.take();
                self.handle_timeout(now);
                frame
            }
        }
    }

    /// Would [`poll_frame`](Self::poll_frame) give a frame now?
    #[must_use]
    pub fn is_frame_due(&self, now: Instant) -> bool {
        match &self.state {
            State::Receiving
            | State::Sealing {
                farewell: Farewell::FinalAck | Farewell::Error(_),
                ..
            } => self.acks.is_due(now),
            State::Sealing {
                farewell: Farewell::Silence,
                ..
            }
            | State::Closed { .. } => false,
            State::Leaving { frame, .. } => frame.is_some(),
        }
    }

    /// When to call [`handle_timeout`](Self::handle_timeout), if nothing else happens.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            State::Receiving => {
                let ack = self.acks.poll_timeout();
                Some(self.ends_at.map_or(ack, |end| end.min(ack)))
            }
            State::Sealing {
                farewell: Farewell::FinalAck | Farewell::Error(_),
                ..
            } => Some(self.acks.poll_timeout()),
            State::Sealing {
                farewell: Farewell::Silence,
                ..
            }
            | State::Closed { .. } => None,
            State::Leaving {
                frame: Some(_),
                owed_at,
                ..
            } => Some(*owed_at),
            State::Leaving {
                frame: None,
                close_at,
                ..
            } => Some(*close_at),
        }
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) although a frame is due that cannot be sent.
    #[must_use]
    pub fn poll_limit(&self) -> Option<Instant> {
        match &self.state {
            State::Receiving => self.ends_at,
            State::Leaving {
                frame: Some(_),
                owed_at,
                ..
            } => Some(*owed_at + self.config.farewell_limit),
            State::Sealing { .. } | State::Leaving { frame: None, .. } | State::Closed { .. } => {
                None
            }
        }
    }

    /// Time passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        let late = |at: Option<Instant>| at.is_some_and(|at| now >= at);
        match self.state {
            State::Receiving if late(self.ends_at) => {
                let limit = self.config.recording_duration_max.unwrap_or_default();
                let reason = format!("the recording reached recording_duration_max, {limit:?}");
                self.end_at_once(now, Cause::DurationLimit, reason);
            }
            State::Leaving {
                frame: None,
                close_at,
                ..
            } if now >= close_at => self.state = State::Closed { told: true },
            State::Leaving { frame: Some(_), .. } if late(self.poll_limit()) => {
                self.state = State::Closed { told: false };
            }
            State::Receiving
            | State::Sealing { .. }
            | State::Leaving { .. }
            | State::Closed { .. } => {}
        }
    }

    /// More of the request body is wanted.
    #[must_use]
    pub fn is_receiving(&self) -> bool {
        matches!(self.state, State::Receiving)
    }

    /// Nothing more is sent: the response ends.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed { .. })
    }

    /// The response ends without the frame that should have been its last: the peer did not read.
    #[must_use]
    pub fn is_cut_short(&self) -> bool {
        matches!(self.state, State::Closed { told: false })
    }

    /// How to close the recording, once no more bytes are taken.
    #[must_use]
    pub fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }

    /// Length of the body so far.
    #[must_use]
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes
    }

    /// Ends the upload with an error frame that waits for nothing; the seal goes on behind it.
    fn end_at_once(&mut self, now: Instant, cause: Cause, reason: String) {
        self.outcome = Some(Outcome {
            cause,
            reason: reason.clone(),
        });
        self.leave(now, AckFrame::Error(reason), now);
    }

    fn leave(&mut self, now: Instant, frame: AckFrame, close_at: Instant) {
        self.state = State::Leaving {
            frame: Some(frame),
            owed_at: now,
            close_at,
        };
    }
}

#[cfg(test)]
mod tests;
