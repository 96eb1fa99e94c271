//! Responses: refusals without a body, and the channel body that carries ack frames.
//!
//! Invariant: a refusal is a head with END_STREAM and zero body bytes, since a body makes stock clients wait forever. Made by the
//! [`routes`](super::routes) and the endpoints.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;

/// The header that says why a request was refused.
pub(super) const REASON: HeaderName = HeaderName::from_static("tailtape-reason");
/// Longest reason; it is one header of a peer with a limit of its own.
const REASON_BYTES_MAX: usize = 200;
/// Ack frames that wait for the peer's flow control. They replace each other, so a longer queue would only be staler.
const FRAMES_MAX: usize = 2;

/// The body of every response of this room.
#[derive(Debug)]
pub(super) enum ResponseBody {
    Empty,
    Frames(FrameBody),
}

/// Frames until the sender ends them; a sender that is dropped without doing so resets the stream.
#[derive(Debug)]
pub(super) struct FrameBody {
    frames: mpsc::Receiver<Bytes>,
    ended: Arc<AtomicBool>,
}

/// The sending side of a [`FrameBody`].
#[derive(Debug)]
pub(super) struct FrameSender {
    frames: mpsc::Sender<Bytes>,
    ended: Arc<AtomicBool>,
}

/// The task that sends frames is gone without having ended the response.
#[derive(Debug, thiserror::Error)]
#[error("sending ack frames: the upload was given up")]
pub(super) struct Abandoned;

/// A request that is not taken: the status and why.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    reason: String,
}

pub(super) fn refusal(status: StatusCode, reason: &str) -> Refusal {
    Refusal {
        status,
        reason: reason.to_owned(),
    }
}

impl Refusal {
    /// Status and END_STREAM; the reason goes into a header, cut to printable ASCII.
    pub(super) fn response(self) -> Response<ResponseBody> {
        let reason: String = self
            .reason
            .chars()
            .map(|character| match character {
                ' '..='~' => character,
                _ => '?',
            })
            .take(REASON_BYTES_MAX)
            .collect();
        let mut response = Response::new(ResponseBody::Empty);
        *response.status_mut() = self.status;
        if let Ok(value) = HeaderValue::try_from(reason) {
            response.headers_mut().insert(REASON, value);
        }
        response
    }
}

/// A 200 that says all there is to say.
pub(super) fn accepted() -> Response<ResponseBody> {
    Response::new(ResponseBody::Empty)
}

/// A 200 whose head goes out at once and whose body is written through the sender.
pub(super) fn frames() -> (FrameSender, Response<ResponseBody>) {
    let (sender, receiver) = mpsc::channel(FRAMES_MAX);
    let ended = Arc::new(AtomicBool::new(false));
    let body = FrameBody {
        frames: receiver,
        ended: Arc::clone(&ended),
    };
    let sender = FrameSender {
        frames: sender,
        ended,
    };
    (sender, Response::new(ResponseBody::Frames(body)))
}

impl FrameSender {
    /// Waits until a frame can be sent; `None` when nobody reads frames any more.
    pub(super) async fn ready(&self) -> Option<mpsc::Permit<'_, Bytes>> {
        self.frames.reserve().await.ok()
    }

    /// Ends the response with END_STREAM, after the frames already sent.
    pub(super) fn end(self) {
        self.ended.store(true, Ordering::Release);
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Abandoned;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Abandoned>>> {
        let Self::Frames(body) = self.get_mut() else {
            return Poll::Ready(None);
        };
        body.frames.poll_recv(context).map(|frame| match frame {
            Some(bytes) => Some(Ok(Frame::data(bytes))),
            None if body.ended.load(Ordering::Acquire) => None,
            None => Some(Err(Abandoned)),
        })
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Empty)
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Frames(_) => SizeHint::default(),
        }
    }
}
