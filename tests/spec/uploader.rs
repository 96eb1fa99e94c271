//! An uploader that does nothing of itself: each byte of a body, its end and its reset are the test's. Its connections are witnessed: what the recorder
//! must never do to a stock client fails the test.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use netstack::io::Tailnet;
use tailtape::capture::{AckDecoder, AckFrame};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::soon;
use crate::witness::{Testimony, Witnessed};

/// One HTTP/2 connection. Dropping it closes the tunnel's stream under it, whatever still runs on it.
pub(crate) struct Uploader {
    requests: http2::SendRequest<RequestBody>,
    tasks: Tasks,
    testimony: Arc<Mutex<Testimony>>,
    judged: bool,
}

/// All that a connection has spawned, so that it can be ended: hyper lets it go on while a request does.
#[derive(Clone, Default)]
struct Tasks(Arc<Mutex<Vec<AbortHandle>>>);

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, task: F) {
        let task = tokio::spawn(task);
        self.0.lock().unwrap().push(task.abort_handle());
    }
}

impl Uploader {
    pub(crate) async fn connect(node: &Tailnet, recorder: SocketAddr) -> Self {
        let dialled = soon("a dial", async {
            loop {
                match node.dial(recorder).await {
                    // Control has told the recorder of its address, and not yet this node.
                    Err(error) if error.kind() == std::io::ErrorKind::HostUnreachable => {
                        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                    }
                    dialled => return dialled,
                }
            }
        });
        Self::over(dialled.await.unwrap()).await
    }

    /// The same over any stream.
    pub(crate) async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        let (stream, testimony) = Witnessed::new(stream);
        let tasks = Tasks::default();
        let (requests, connection) = http2::Builder::new(tasks.clone())
            .timer(TokioTimer::new())
            .handshake(TokioIo::new(stream))
            .await
            .unwrap();
        // How a connection ends is seen in its requests.
        hyper::rt::Executor::execute(&tasks, async move { drop(connection.await) });
        Self {
            requests,
            tasks,
            testimony,
            judged: true,
        }
    }

    /// Whatever the recorder does to this connection is no fault of it: it was killed, or its store was.
    #[allow(dead_code, reason = "for tests that kill the recorder")]
    pub(crate) fn forgive(&mut self) {
        self.judged = false;
    }

    /// A request without a body.
    pub(crate) async fn request(&mut self, method: Method, path: &str) -> Response<Incoming> {
        self.send(method, path, RequestBody(None)).await
    }

    /// `POST /v2/record`, up to the response head; not a byte of the body is sent.
    pub(crate) async fn record(&mut self) -> Upload {
        let (body, receiver) = mpsc::channel(1);
        let response = self
            .send(Method::POST, "/v2/record", RequestBody(Some(receiver)))
            .await;
        Upload {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: Some(body),
            answer: response.into_body(),
            decoder: AckDecoder::new(),
            frames: VecDeque::new(),
        }
    }

    /// An upload that has begun: `text` is acked.
    pub(crate) async fn begin(&mut self, text: &'static str) -> Upload {
        let mut upload = self.record().await;
        upload.send(text).await;
        upload.until_acked(text.len() as u64).await;
        upload
    }

    async fn send(&mut self, method: Method, path: &str, body: RequestBody) -> Response<Incoming> {
        let request = Request::builder()
            .method(method)
            .uri(format!("http://recorder{path}"))
            .body(body)
            .unwrap();
        soon("a response head", self.requests.send_request(request))
            .await
            .unwrap()
    }
}

impl Drop for Uploader {
    fn drop(&mut self) {
        let tasks = self.tasks.0.lock().unwrap();
        tasks.iter().for_each(AbortHandle::abort);
        let accusations = self.testimony.lock().unwrap().accusations();
        if self.judged && !std::thread::panicking() {
            assert!(accusations.is_empty(), "{accusations:?}");
        }
    }
}

/// An upload, and the frames that come back.
pub(crate) struct Upload {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    body: Option<mpsc::Sender<Result<Bytes, GivenUp>>>,
    answer: Incoming,
    decoder: AckDecoder,
    frames: VecDeque<AckFrame>,
}

impl Upload {
    pub(crate) async fn send(&mut self, bytes: impl Into<Bytes>) {
        let sent = self.body.as_ref().unwrap().send(Ok(bytes.into()));
        soon("room for a write", sent).await.unwrap();
    }

    /// The same, if there is still somebody who takes it.
    pub(crate) async fn try_send(&mut self, bytes: impl Into<Bytes>) {
        let sent = self.body.as_ref().unwrap().send(Ok(bytes.into()));
        drop(tokio::time::timeout(crate::PATIENCE, sent).await);
    }

    /// Ends the body as the protocol says.
    pub(crate) fn end(&mut self) {
        self.body = None;
    }

    /// Resets the stream.
    pub(crate) async fn reset(&mut self) {
        let sent = self.body.as_ref().unwrap().send(Err(GivenUp));
        soon("room for a reset", sent).await.unwrap();
    }

    /// The offset of the next ack frame; `None` at the clean end of the answer.
    pub(crate) async fn ack(&mut self) -> Option<u64> {
        match self.frame().await? {
            AckFrame::Durable { acked_bytes } => Some(acked_bytes),
            AckFrame::Failed { message } => panic!("the recording failed: {message}"),
        }
    }

    /// The next frame, whatever it says; `None` at the clean end of the answer.
    pub(crate) async fn frame(&mut self) -> Option<AckFrame> {
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return Some(frame);
            }
            let Some(part) = self.answer.frame().await else {
                self.decoder.handle_end().unwrap();
                return None;
            };
            let bytes = part.unwrap().into_data().unwrap();
            let frames = &mut self.frames;
            self.decoder
                .handle_bytes(&bytes, |frame| frames.push_back(frame))
                .unwrap();
        }
    }

    /// What the recorder says of its failure, once the answer ends; the body goes on until then.
    pub(crate) async fn failure(mut self) -> String {
        while let Some(frame) = self.answer.frame().await {
            let bytes = frame.unwrap().into_data().unwrap();
            let frames = &mut self.frames;
            self.decoder
                .handle_bytes(&bytes, |frame| frames.push_back(frame))
                .unwrap();
        }
        match self.frames.pop_back() {
            Some(AckFrame::Failed { message }) => message,
            last => panic!("the last frame is no failure: {last:?}"),
        }
    }

    /// The answer's body, unread.
    pub(crate) fn into_answer(self) -> Incoming {
        self.answer
    }

    /// Reads acks until one says `offset`; panics if one says more.
    pub(crate) async fn until_acked(&mut self, offset: u64) {
        soon("an ack", async {
            loop {
                let acked = self.ack().await.unwrap();
                assert!(acked <= offset, "{acked} of {offset} bytes are acked");
                if acked == offset {
                    return;
                }
            }
        })
        .await;
    }
}

/// The session broke off.
#[derive(Debug, thiserror::Error)]
#[error("given up")]
pub(crate) struct GivenUp;

/// Ends when its sender is dropped; an error resets the stream. Without a receiver there is no body.
pub(crate) struct RequestBody(Option<mpsc::Receiver<Result<Bytes, GivenUp>>>);

impl Body for RequestBody {
    type Data = Bytes;
    type Error = GivenUp;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, GivenUp>>> {
        match &mut self.0 {
            Some(receiver) => receiver
                .poll_recv(context)
                .map(|part| part.map(|part| part.map(Frame::data))),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }
}
