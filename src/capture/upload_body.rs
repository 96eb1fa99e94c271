//! The request body of `POST /v2/record`: one chunk per write, each of which becomes one DATA frame and is flushed.
//!
//! The invariant: only [`BodyPart::End`] ends the body cleanly. A sender that is dropped without it resets the stream, so a
//! recording cut short is never taken for a complete one. The recorder client makes both halves.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;

/// Chunks between the session and the HTTP/2 windows. Small, so that a recorder that stops reading stops the session: what is
/// not accepted must not pile up here.
const CHUNKS_QUEUED_MAX: usize = 16;

/// What the sender puts into the body.
#[derive(Debug)]
pub(super) enum BodyPart {
    /// One DATA frame.
    Chunk(Bytes),
    /// END_STREAM: the recording is complete.
    End,
}

/// The body half that hyper polls; empty for requests that carry none.
#[derive(Debug)]
pub(super) struct UploadBody {
    parts: Option<mpsc::Receiver<BodyPart>>,
}

/// The sender was dropped before the end of the recording.
#[derive(Debug, thiserror::Error)]
#[error("the session was given up before its end")]
pub(super) struct Abandoned;

impl UploadBody {
    pub(super) fn empty() -> Self {
        Self { parts: None }
    }

    pub(super) fn channel() -> (mpsc::Sender<BodyPart>, Self) {
        let (sender, receiver) = mpsc::channel(CHUNKS_QUEUED_MAX);
        (
            sender,
            Self {
                parts: Some(receiver),
            },
        )
    }

    fn end(&mut self) -> Poll<Option<Result<Frame<Bytes>, Abandoned>>> {
        self.parts = None;
        Poll::Ready(None)
    }
}

impl Body for UploadBody {
    type Data = Bytes;
    type Error = Abandoned;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Abandoned>>> {
        let Some(parts) = &mut self.parts else {
            return Poll::Ready(None);
        };
        match std::task::ready!(parts.poll_recv(cx)) {
            Some(BodyPart::Chunk(bytes)) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            Some(BodyPart::End) => self.end(),
            None => Poll::Ready(Some(Err(Abandoned))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.parts.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match self.parts {
            Some(_) => SizeHint::default(),
            None => SizeHint::with_exact(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn a_body_ends_cleanly_only_after_its_end_part() {
        let (sender, mut body) = UploadBody::channel();
        sender
            .send(BodyPart::Chunk(Bytes::from_static(b"a")))
            .await
            .unwrap();
        sender.send(BodyPart::End).await.unwrap();
        drop(sender);
        assert_eq!(
            body.frame().await.unwrap().unwrap().into_data().unwrap(),
            "a"
        );
        assert!(body.frame().await.is_none());
        assert!(body.is_end_stream());
    }

    #[tokio::test]
    async fn a_body_whose_sender_is_dropped_fails() {
        let (sender, mut body) = UploadBody::channel();
        drop(sender);
        assert!(body.frame().await.unwrap().is_err());
    }

    #[test]
    fn an_empty_body_is_at_its_end() {
        assert!(UploadBody::empty().is_end_stream());
        assert_eq!(UploadBody::empty().size_hint().exact(), Some(0));
    }
}
