//! The two loops of a registered node: the long poll and the lite updates.
//!
//! Invariant: the stream is opened first, then the latest state is published, and again until
//! control has accepted exactly that state; nothing is taken from a stream before the message that
//! names ourselves; only a stream that lasted lets the next one be opened soon. Called by `control`.

use std::time::{Duration, Instant};

use rand_core::RngCore;

use super::backoff::{Backoff, after_429};
use super::frames::{FrameLengthError, FrameReader};
use super::{
    Answer, Control, ControlEvent, ControlRequest, REQUEST_DURATION_MAX, RequestId,
    STREAM_SILENCE_MAX, to_json,
};
use crate::tailcfg::MapResponse;

/// How long a stream must have been up for the waits to begin anew. A map alone proves nothing: a server
/// may send one and break off, for ever. It is longer than the longest wait, so that such a server gains
/// nothing by holding on a little, and shorter than what a proxy with a limit of minutes lets pass.
const STREAM_LASTED_MIN: Duration = Duration::from_secs(60);

/// The long poll's state.
#[derive(Debug)]
pub(super) struct Stream {
    in_flight: Option<RequestId>,
    /// The head has come and said 200.
    open: bool,
    /// When the message that names ourselves came.
    up_since: Option<Instant>,
    frames: FrameReader,
    /// When it counts as dead, or may be opened again.
    deadline: Instant,
    backoff: Backoff,
}

impl Stream {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            in_flight: None,
            open: false,
            up_since: None,
            frames: FrameReader::default(),
            deadline: now,
            backoff: Backoff::default(),
        }
    }

    pub(super) fn takes(&self, id: RequestId) -> bool {
        self.in_flight == Some(id)
    }

    pub(super) fn is_in_flight(&self) -> bool {
        self.in_flight.is_some()
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    pub(super) fn overdue(&self, now: Instant) -> Option<RequestId> {
        self.in_flight.filter(|_| now >= self.deadline)
    }

    /// The stream ends: if it has lasted, what went wrong before it is forgiven.
    fn forgive(&mut self, now: Instant) {
        let up_since = self.up_since.take();
        if up_since.is_some_and(|since| now.saturating_duration_since(since) >= STREAM_LASTED_MIN) {
            self.backoff.reset();
        }
    }
}

/// The lite updates' state: generations of what we have to say.
#[derive(Debug)]
pub(super) struct Update {
    current: u64,
    accepted: u64,
    in_flight: Option<(RequestId, u64)>,
    deadline: Instant,
    backoff: Backoff,
}

impl Update {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            current: 1,
            accepted: 0,
            in_flight: None,
            deadline: now,
            backoff: Backoff::default(),
        }
    }

    pub(super) fn takes(&self, id: RequestId) -> bool {
        self.in_flight.is_some_and(|(flying, _)| flying == id)
    }

    pub(super) fn is_accepted(&self) -> bool {
        self.accepted == self.current
    }

    pub(super) fn mark_changed(&mut self) {
        self.current += 1;
    }

    /// A new registration or a new stream may have met a server that lost its memory.
    pub(super) fn mark_unknown_to_control(&mut self) {
        self.accepted = 0;
    }

    /// Nothing is published without a stream, so nothing is due then either.
    pub(super) fn deadline(&self, has_stream: bool) -> Option<Instant> {
        let due = self.in_flight.is_some() || (has_stream && !self.is_accepted());
        due.then_some(self.deadline)
    }

    pub(super) fn overdue(&self, now: Instant) -> Option<RequestId> {
        self.in_flight
            .filter(|_| now >= self.deadline)
            .map(|(id, _)| id)
    }

    pub(super) fn retry(&mut self, now: Instant, wait: Option<Duration>, rng: &mut impl RngCore) {
        let wait = wait.unwrap_or_else(|| self.backoff.next(rng));
        self.in_flight = None;
        self.deadline = now + wait;
    }
}

fn cancel(id: RequestId, reconnect: bool) -> ControlEvent {
    ControlEvent::Cancel { id, reconnect }
}

/// Why a stream cannot go on.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error(transparent)]
    Length(#[from] FrameLengthError),
    #[error("map message is not readable: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the first map message does not name ourselves")]
    NoSelf,
}

impl Control {
    pub(super) fn poll_stream(&mut self, now: Instant) -> Option<ControlRequest> {
        if self.stream.in_flight.is_some() || now < self.stream.deadline {
            return None;
        }
        let mut request = self.map_request();
        request.stream = true;
        request.keep_alive = true;
        let id = self.take_id();
        self.stream.in_flight = Some(id);
        self.stream.open = false;
        self.stream.up_since = None;
        self.stream.frames = FrameReader::default();
        self.stream.deadline = now + STREAM_SILENCE_MAX;
        self.update.mark_unknown_to_control();
        Some(ControlRequest::MapStream {
            id,
            body: to_json(&request),
        })
    }

    pub(super) fn handle_stream_head(&mut self, now: Instant, answer: &Answer<'_>) {
        if answer.status == 200 {
            self.stream.open = true;
            self.stream.deadline = now + STREAM_SILENCE_MAX;
            if !answer.body.is_empty() {
                self.handle_stream_bytes(now, answer.body);
            }
            return;
        }
        let wait = answer.pause().map(|asked| after_429(asked, &mut self.rng));
        self.end_stream(now, answer.reason(), wait);
        if answer.status == 404 {
            self.register_again(now);
        } else if answer.is_version_refusal() {
            let reason = answer.reason();
            self.events.push_back(ControlEvent::Refused { reason });
        }
    }

    pub(super) fn handle_stream_bytes(&mut self, now: Instant, bytes: &[u8]) {
        if !self.stream.open {
            return;
        }
        let mut frames = std::mem::take(&mut self.stream.frames);
        let result = frames.handle_bytes(bytes, |message| self.handle_message(now, message));
        self.stream.frames = frames;
        let Some(id) = self.stream.in_flight else {
            return;
        };
        if let Err(error) = result {
            // The stream is still open on the wire; the driver has to drop it.
            self.events.push_back(cancel(id, false));
            self.end_stream(now, error.to_string(), None);
        }
    }

    fn handle_message(&mut self, now: Instant, message: &[u8]) -> Result<(), StreamError> {
        if !self.stream.open {
            return Ok(());
        }
        let map: MapResponse = serde_json::from_slice(message)?;
        self.stream.deadline = now + STREAM_SILENCE_MAX;
        if map.keep_alive {
            return Ok(());
        }
        if self.stream.up_since.is_none() {
            if map.node.is_none() {
                return Err(StreamError::NoSelf);
            }
            self.stream.up_since = Some(now);
            self.events.push_back(ControlEvent::StreamUp);
        }
        let expired = map.node.as_ref().is_some_and(|node| node.expired);
        self.events.push_back(ControlEvent::Map(Box::new(map)));
        if expired && let Some(id) = self.stream.in_flight {
            self.events.push_back(cancel(id, false));
            self.end_stream(now, "our node key has expired".to_owned(), None);
            self.registration.rotate(now);
            self.drop_update(now);
        }
        Ok(())
    }

    /// Ends the stream and says when it may be opened again.
    pub(super) fn end_stream(&mut self, now: Instant, reason: String, wait: Option<Duration>) {
        self.stream.forgive(now);
        let wait = wait.unwrap_or_else(|| self.stream.backoff.next(&mut self.rng));
        self.stream.in_flight = None;
        self.stream.open = false;
        self.stream.frames = FrameReader::default();
        self.stream.deadline = now + wait;
        self.events.push_back(ControlEvent::StreamDown { reason });
    }

    /// The netmap does not take what the stream said: the stream is given up, and the next one waits as
    /// after a refusal, because it would say the same.
    pub(crate) fn give_up_stream(&mut self, now: Instant, reason: String) {
        let Some(id) = self.stream.in_flight else {
            return;
        };
        self.events
            .retain(|event| !matches!(event, ControlEvent::StreamUp | ControlEvent::Map(_)));
        self.events.push_back(cancel(id, false));
        self.stream.forgive(now);
        let wait = self.stream.backoff.next_refused(&mut self.rng);
        self.end_stream(now, reason, Some(wait));
    }

    pub(super) fn poll_update(&mut self, now: Instant) -> Option<ControlRequest> {
        let update = &self.update;
        let idle = update.in_flight.is_none() && !update.is_accepted();
        // Without a stream there is a fault to be cured first; a lite update would only repeat it.
        if !idle || now < update.deadline || self.stream.in_flight.is_none() {
            return None;
        }
        let mut request = self.map_request();
        request.omit_peers = true;
        let id = self.take_id();
        self.update.in_flight = Some((id, self.update.current));
        self.update.deadline = now + REQUEST_DURATION_MAX;
        Some(ControlRequest::MapUpdate {
            id,
            body: to_json(&request),
        })
    }

    pub(super) fn handle_update_answer(&mut self, now: Instant, answer: &Answer<'_>) {
        let Some((_, generation)) = self.update.in_flight.take() else {
            return;
        };
        if answer.status == 200 {
            self.update.accepted = generation;
            self.update.backoff.reset();
            self.update.deadline = now;
            return;
        }
        tracing::info!(reason = ?answer.reason(), "lite update failed");
        let wait = answer.pause().map(|asked| after_429(asked, &mut self.rng));
        self.update.retry(now, wait, &mut self.rng);
        if answer.status == 404 {
            if let Some(id) = self.stream.in_flight {
                self.events.push_back(cancel(id, false));
                self.end_stream(now, answer.reason(), None);
            }
            self.register_again(now);
        }
    }

    /// Control does not know our node key: back to the beginning, not before the stream's backoff
    /// allows it, so that a server that says both yes and 404 is not asked without pause.
    fn register_again(&mut self, now: Instant) {
        let at = self.stream.deadline.max(now);
        self.registration.restart(true, at);
        self.drop_update(now);
    }

    fn drop_update(&mut self, now: Instant) {
        if let Some((id, _)) = self.update.in_flight.take() {
            self.events.push_back(cancel(id, false));
        }
        self.update.deadline = now;
    }
}
