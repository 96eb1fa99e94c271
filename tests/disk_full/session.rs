//! Uploads that stream: each byte that was handed over and each frame that came back is remembered.
//!
//! Invariant: nothing of the recorder's answer is read twice or passed over. Called by the tests.

use std::convert::Infallible;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::{Body as _, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use netstack::io::{Tailnet, TcpStream};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use tailtape::capture::{AckDecoder, AckFrame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::soon;

type RequestBody = UnsyncBoxBody<Bytes, Infallible>;

/// What one write of a session carries.
const PIECE_BYTES: usize = 8 << 10;

/// The node that uploads, and where to.
pub(crate) struct Node {
    tailnet: Tailnet,
    recorder: SocketAddr,
}

/// What came instead of a 200.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) reason: String,
    /// The head was the end.
    pub(crate) ended: bool,
}

impl Node {
    pub(crate) fn new(tailnet: &Tailnet, recorder: SocketAddr) -> Self {
        Self {
            tailnet: tailnet.clone(),
            recorder,
        }
    }

    async fn dial(&self) -> TcpStream {
        soon("a dial", async {
            loop {
                match self.tailnet.dial(self.recorder).await {
                    Ok(stream) => return stream,
                    // Control has told the recorder of its address, and not yet this node.
                    Err(error) if error.kind() == ErrorKind::HostUnreachable => {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        })
        .await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: RequestBody,
    ) -> (http2::SendRequest<RequestBody>, Response<Incoming>) {
        let io = TokioIo::new(self.dial().await);
        let (mut requests, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        // How a connection ends is seen in its requests.
        tokio::spawn(async move { drop(connection.await) });
        let request = Request::builder()
            .method(method)
            .uri(format!("http://recorder{path}"))
            .body(body)
            .unwrap();
        let response = soon("a response head", requests.send_request(request)).await;
        (requests, response.unwrap())
    }

    /// A request with an empty body, on a connection of its own.
    pub(crate) async fn request(&self, method: Method, path: &str) -> Answer {
        let (_requests, response) = self.send(method, path, Empty::new().boxed_unsync()).await;
        let reason = response.headers().get("tailtape-reason");
        Answer {
            status: response.status().as_u16(),
            reason: reason.map_or_else(String::new, |text| text.to_str().unwrap().to_owned()),
            ended: response.body().is_end_stream(),
        }
    }

    /// The status that an event is answered with.
    pub(crate) async fn event(&self, body: &'static [u8]) -> u16 {
        let body = Full::new(Bytes::from_static(body)).boxed_unsync();
        let (_requests, response) = self.send(Method::POST, "/v2/event", body).await;
        response.status().as_u16()
    }

    /// `POST /record`, up to its 100; else what came instead.
    pub(crate) async fn old_session(&self) -> Result<OldSession, String> {
        let mut stream = self.dial().await;
        let head = "POST /record HTTP/1.1\r\nHost: recorder\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let byte = soon("an answer", stream.read_u8()).await.unwrap();
            answer.push(byte);
        }
        match answer.starts_with(b"HTTP/1.1 100 ") {
            true => Ok(OldSession(stream)),
            false => Err(String::from_utf8(answer).unwrap()),
        }
    }
}

/// A session in the way of `POST /record`.
#[derive(Debug)]
pub(crate) struct OldSession(TcpStream);

impl OldSession {
    pub(crate) async fn send_all(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let chunk = [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
        self.0.write_all(&chunk).await?;
        self.0.flush().await
    }

    /// Ends the body; the answer.
    pub(crate) async fn end(mut self) -> String {
        self.0.write_all(b"0\r\n\r\n").await.unwrap();
        self.until_closed().await
    }

    /// What comes until the recorder closes or resets the connection.
    pub(crate) async fn until_closed(mut self) -> String {
        let mut answer = Vec::new();
        // A reset ends what can be read as an end does.
        drop(soon("its end", self.0.read_to_end(&mut answer)).await);
        String::from_utf8(answer).unwrap()
    }
}

/// How a session went.
#[derive(Debug, Default)]
pub(crate) struct Ended {
    /// All that was handed over.
    pub(crate) sent: Vec<u8>,
    /// Every ack that came.
    pub(crate) acks: Vec<u64>,
    /// What the error frame said.
    pub(crate) failure: Option<String>,
    pub(crate) frames_behind_failure: usize,
    /// The answer ended with END_STREAM, not with a reset.
    pub(crate) clean_end: bool,
}

impl Ended {
    fn take(&mut self, frame: AckFrame) {
        if self.failure.is_some() {
            self.frames_behind_failure += 1;
        }
        match frame {
            AckFrame::Durable { acked_bytes } => self.acks.push(acked_bytes),
            AckFrame::Failed { message } => self.failure = Some(message),
        }
    }

    pub(crate) fn acked(&self) -> u64 {
        self.acks.last().copied().unwrap_or(0)
    }

    pub(crate) fn repeats_of_last_ack(&self) -> usize {
        let last = self.acked();
        let same = self.acks.iter().rev().take_while(|ack| **ack == last);
        same.count().saturating_sub(1)
    }
}

/// The line that a session's stream begins with.
pub(crate) fn marker(sent: &[u8]) -> &[u8] {
    let end = sent.iter().position(|byte| *byte == b'\n').unwrap();
    &sent[..=end]
}

/// A session in the way of `POST /v2/record`.
pub(crate) struct Session {
    _requests: http2::SendRequest<RequestBody>,
    body: Option<mpsc::Sender<Bytes>>,
    answer: Incoming,
    decoder: AckDecoder,
    noise: ChaCha8Rng,
    so_far: Ended,
    answer_is_over: bool,
}

impl Session {
    /// Begins with a line that holds `name`.
    pub(crate) async fn open(node: &Node, name: &str) -> Self {
        let (sender, receiver) = mpsc::channel(1);
        let parts = futures_util::stream::unfold(receiver, |mut receiver| async {
            let bytes = receiver.recv().await?;
            Some((Ok::<_, Infallible>(Frame::data(bytes)), receiver))
        });
        let body = StreamBody::new(parts).boxed_unsync();
        let (requests, response) = node.send(Method::POST, "/v2/record", body).await;
        assert_eq!(response.status(), 200);
        let mut session = Self {
            _requests: requests,
            body: Some(sender),
            answer: response.into_body(),
            decoder: AckDecoder::new(),
            noise: ChaCha8Rng::seed_from_u64(7),
            so_far: Ended::default(),
            answer_is_over: false,
        };
        let line = format!("session {name}\n");
        session.hand_over(line.into_bytes().into()).await;
        session
    }

    /// Hands over as many bytes of noise; frames are read meanwhile. False if the recorder takes no more.
    pub(crate) async fn send(&mut self, bytes: usize) -> bool {
        let mut left = bytes;
        while left > 0 {
            let mut piece = vec![0; left.min(PIECE_BYTES)];
            left -= piece.len();
            self.noise.fill_bytes(&mut piece);
            if !self.hand_over(piece.into()).await {
                return false;
            }
        }
        true
    }

    async fn hand_over(&mut self, bytes: Bytes) -> bool {
        let sender = self.body.clone().unwrap();
        let mut reserved = Box::pin(sender.reserve());
        loop {
            tokio::select! {
                permit = &mut reserved => {
                    let Ok(permit) = permit else { return false };
                    self.so_far.sent.extend_from_slice(&bytes);
                    permit.send(bytes);
                    return true;
                }
                more = self.read() => if !more {
                    return false;
                }
            }
        }
    }

    /// All that was handed over.
    pub(crate) fn sent_bytes(&self) -> u64 {
        self.so_far.sent.len() as u64
    }

    /// Reads until all that was handed over is acked.
    pub(crate) async fn until_acked(&mut self) {
        soon("the acks", async {
            while self.so_far.acked() < self.sent_bytes() {
                assert!(self.read().await, "{:?}", self.so_far.failure);
            }
        })
        .await;
    }

    /// Streams until the answer ends; what would be sent after `bytes_max` ends the body instead.
    pub(crate) fn stream(mut self, bytes_max: usize) -> JoinHandle<Ended> {
        tokio::spawn(async move {
            match self.send(bytes_max).await {
                true => self.end().await,
                // The rest of the answer is still to be read.
                false => self.until_ended().await,
            }
        })
    }

    /// Ends the body, and reads the answer to its end.
    pub(crate) async fn end(mut self) -> Ended {
        self.body = None;
        self.until_ended().await
    }

    /// Reads the answer to its end, without having ended the body.
    pub(crate) async fn until_ended(mut self) -> Ended {
        soon("the end of the answer", async {
            while self.read().await {}
        })
        .await;
        self.so_far
    }

    /// Takes what comes next of the answer; false at its end. Dropping the future loses nothing.
    async fn read(&mut self) -> bool {
        if self.answer_is_over {
            return false;
        }
        let so_far = &mut self.so_far;
        match self.answer.frame().await {
            None => so_far.clean_end = true,
            Some(Err(_)) => so_far.clean_end = false,
            Some(Ok(frame)) => {
                let bytes = frame.into_data().unwrap();
                let take = |frame| so_far.take(frame);
                self.decoder.handle_bytes(&bytes, take).unwrap();
                return true;
            }
        }
        self.answer_is_over = true;
        false
    }
}
