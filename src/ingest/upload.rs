//! One upload from header to close; every endpoint drives this machine.
//!
//! ```text
//! Receiving ──clean end──► Sealing ──sealed──► Leaving: final ack, hold ──► Closed
//!     │ │ └──reset───────► Sealing, silent ──sealed──────────────────────► Closed
//!     │ └────shutdown────► Sealing ──sealed──► Leaving: error frame ─────► Closed
//!     └──────store failed────────────────────► Leaving: error frame ─────► Closed
//! ```
//!
//! Invariants: acks obey [`ack`](super::ack) until the response ends, also while sealing; the final ack is the whole body; an error frame is last;
//! content is not looked at. Called by [`record_v2`](super::record_v2).

use std::time::{Duration, Instant};

use super::ack::{AckFrame, AckSchedule};
use crate::ids::StreamOffset;

/// The intervals of an upload.
#[derive(Debug, Clone, Copy)]
pub struct UploadConfig {
    /// Least time between two acks. 100 ms is below what a person notices and one frame for ten at full speed.
    pub ack_interval_min: Duration,
    /// Most time between two acks. Peers give up after 30 s; 5 s leaves room for four lost ones.
    pub ack_interval_max: Duration,
    /// How long the response stays open after the request body ended: a client that sees it end before it has closed the SSH channel (250–500 ms)
    /// reports a failure.
    pub end_stream_hold: Duration,
}

impl Default for UploadConfig {
    fn default() -> Self {
        Self {
            ack_interval_min: Duration::from_millis(100),
            ack_interval_max: Duration::from_secs(5),
            end_stream_hold: Duration::from_millis(300),
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
    /// This recorder stops: the uploader hears why.
    Shutdown(String),
}

/// How the recording is to be closed in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The whole body arrived.
    pub clean: bool,
    /// Why not; empty when clean.
    pub reason: String,
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
    Closed,
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
            acks: AckSchedule::new(now, config.ack_interval_min, config.ack_interval_max),
            received_bytes: 0,
            outcome: None,
            state: State::Receiving,
        }
    }

    /// The next bytes of the request body, before they are appended to the store.
    pub fn handle_bytes(&mut self, _now: Instant, bytes: &[u8]) {
        if matches!(self.state, State::Receiving) {
            // A usize has at most 64 bits on every supported target, so the conversion never saturates.
            let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            self.received_bytes = self.received_bytes.saturating_add(length);
        }
    }

    /// Everything below `offset` is durable.
    pub fn handle_durable(&mut self, _now: Instant, offset: StreamOffset) {
        // A store that claims more than it was given is wrong, and a client may one day check.
        self.acks
            .handle_durable(offset.min(StreamOffset(self.received_bytes)));
    }

    /// The store gave this recording up.
    pub fn handle_failed(&mut self, now: Instant, reason: String) {
        match self.state {
            State::Receiving => {
                self.outcome = Some(Outcome {
                    clean: false,
                    reason: reason.clone(),
                });
                self.leave(now, AckFrame::Error(reason), now);
            }
            State::Sealing {
                farewell: Farewell::FinalAck | Farewell::Error(_),
                ..
            } => self.leave(now, AckFrame::Error(reason), now),
            State::Sealing {
                farewell: Farewell::Silence,
                ..
            } => self.state = State::Closed,
            // Once sealed, the recording is safe whatever happens to the store.
            State::Leaving { .. } | State::Closed => {}
        }
    }

    /// No more bytes come.
    pub fn handle_end(&mut self, now: Instant, end: UploadEnd) {
        if !matches!(self.state, State::Receiving) {
            return;
        }
        let (clean, reason, farewell) = match end {
            UploadEnd::Clean => (true, String::new(), Farewell::FinalAck),
            UploadEnd::Reset(reason) => (false, reason, Farewell::Silence),
            UploadEnd::Shutdown(reason) => (false, reason.clone(), Farewell::Error(reason)),
        };
        self.outcome = Some(Outcome { clean, reason });
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
            Farewell::Silence => self.state = State::Closed,
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
            | State::Closed => None,
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
            | State::Closed => false,
            State::Leaving { frame, .. } => frame.is_some(),
        }
    }

    /// When to call [`handle_timeout`](Self::handle_timeout), if nothing else happens.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            State::Receiving
            | State::Sealing {
                farewell: Farewell::FinalAck | Farewell::Error(_),
                ..
            } => Some(self.acks.poll_timeout()),
            State::Sealing {
                farewell: Farewell::Silence,
                ..
            }
            | State::Closed => None,
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

    /// Time passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if let State::Leaving {
            frame: None,
            close_at,
            ..
        } = self.state
            && now >= close_at
        {
            self.state = State::Closed;
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
        matches!(self.state, State::Closed)
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
