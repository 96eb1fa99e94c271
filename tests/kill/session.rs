//! One session as a stock node uploads it, and what it has been told of its bytes.
//!
//! Invariants: bytes count as sent before they are, and as acked when the recorder has said so, so an ack that nobody read promises nothing;
//! trouble is kept, for only a recorder that was killed may make any. Started by the rounds, one task each.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Either, Empty, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use netstack::io::{Tailnet, TcpStream};
use tailtape::capture::{AckDecoder, AckFrame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use crate::content::{Content, Key};

/// More than a response head without a body has.
const HEAD_BYTES_MAX: usize = 4096;

/// Over which endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// `/v2/record`, with ack frames.
    V2,
    /// `/record`: one status at the end.
    V1,
}

/// What a session does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Script {
    pub(crate) key: Key,
    pub(crate) endpoint: Endpoint,
    /// After so many writes it ends in good order; without a number it goes on until it is stopped.
    pub(crate) writes: Option<u32>,
    pub(crate) pause: Duration,
}

/// What became of a session, as far as it knows.
#[derive(Debug, Clone, Default)]
pub(crate) struct Told {
    pub(crate) sent_bytes: u64,
    /// The highest ack that it ever saw.
    pub(crate) acked_bytes: u64,
    /// It has sent all that it had.
    pub(crate) ended: bool,
    /// It was told that all of it is stored.
    pub(crate) whole: bool,
}

/// How many sessions of a round have come how far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(crate) acked: usize,
    pub(crate) ended: usize,
}

/// A session under way.
#[derive(Clone)]
pub(crate) struct Session {
    pub(crate) script: Script,
    told: Arc<Mutex<Told>>,
    tally: watch::Sender<Tally>,
}

type Body = Either<Empty<Bytes>, StreamBody<BodyStream>>;
type BodyStream =
    std::pin::Pin<Box<dyn stream::Stream<Item = Result<Frame<Bytes>, Infallible>> + Send>>;

impl Session {
    pub(crate) fn new(script: Script, tally: watch::Sender<Tally>) -> Self {
        Self {
            script,
            told: Arc::default(),
            tally,
        }
    }

    pub(crate) fn told(&self) -> Told {
        self.told.lock().unwrap().clone()
    }

    /// Uploads until the script is over. Dropping the future cuts the session off.
    ///
    /// # Errors
    /// What went wrong, in words.
    pub(crate) async fn run(self, sender: Tailnet, recorder: SocketAddr) -> Result<(), String> {
        let dialled = sender.dial(recorder).await;
        let stream = dialled.map_err(|error| format!("dial: {error}"))?;
        match self.script.endpoint {
            Endpoint::V2 => self.over_http2(stream, recorder).await,
            Endpoint::V1 => self.over_http1(stream, recorder).await,
        }
    }

    async fn over_http2(&self, stream: TcpStream, recorder: SocketAddr) -> Result<(), String> {
        let io = TokioIo::new(stream);
        let (mut requests, connection) = http2::handshake(TokioExecutor::new(), io)
            .await
            .map_err(|error| format!("handshake: {error}"))?;
        // How it ends is seen in the answer.
        let _driver = AbortOnDropHandle::new(tokio::spawn(async move { drop(connection.await) }));
        let request = |method, body| {
            let uri = format!("http://{recorder}/v2/record");
            Request::builder()
                .method(method)
                .uri(uri)
                .body(body)
                .unwrap()
        };
        let probe = request(Method::HEAD, Body::Left(Empty::new()));
        let answered = requests.send_request(probe).await;
        accepted(answered.map_err(|error| format!("HEAD: {error}"))?.status())?;
        let (parts, mut queue) = mpsc::channel::<Bytes>(1);
        let body = stream::poll_fn(move |cx| {
            queue
                .poll_recv(cx)
                .map(|part| part.map(|bytes| Ok(Frame::data(bytes))))
        });
        let body: BodyStream = Box::pin(body);
        let upload = request(Method::POST, Body::Right(StreamBody::new(body)));
        let answered = requests.send_request(upload).await;
        let answer = answered.map_err(|error| format!("POST: {error}"))?;
        accepted(answer.status())?;
        tokio::try_join!(self.write_http2(parts), self.read_acks(answer.into_body()))?;
        Ok(())
    }

    async fn write_http2(&self, parts: mpsc::Sender<Bytes>) -> Result<(), String> {
        let mut content = Content::new(self.script.key);
        let mut writes = 0;
        while self.script.writes.is_none_or(|most| writes < most) {
            let write = content.next_write();
            self.note_sent(write.len());
            let sent = parts.send(write.into()).await;
            sent.map_err(|_| "the connection takes no more of the body".to_owned())?;
            writes += 1;
            tokio::time::sleep(self.script.pause).await;
        }
        self.note_end();
        Ok(())
    }

    async fn read_acks(&self, mut answer: Incoming) -> Result<(), String> {
        let mut decoder = AckDecoder::new();
        while let Some(part) = answer.frame().await {
            let part = part.map_err(|error| format!("answer: {error}"))?;
            let Ok(bytes) = part.into_data() else {
                continue;
            };
            let mut frames = Vec::new();
            let decoded = decoder.handle_bytes(&bytes, |frame| frames.push(frame));
            frames
                .into_iter()
                .try_for_each(|frame| self.note_frame(frame))?;
            decoded.map_err(|error| error.to_string())?;
        }
        decoder.handle_end().map_err(|error| error.to_string())?;
        let mut told = self.told.lock().unwrap();
        told.whole = told.ended && told.acked_bytes == told.sent_bytes;
        told.whole
            .then_some(())
            .ok_or_else(|| format!("the answer ended before the session: {told:?}"))
    }

    async fn over_http1(&self, stream: TcpStream, recorder: SocketAddr) -> Result<(), String> {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let head = format!(
            "POST /record HTTP/1.1\r\nHost: {recorder}\r\nUser-Agent: Go-http-client/1.1\r\n\
             Transfer-Encoding: chunked\r\nExpect: 100-continue\r\nAccept-Encoding: gzip\r\n\r\n"
        );
        let lost = |error: std::io::Error| format!("connection: {error}");
        writer.write_all(head.as_bytes()).await.map_err(lost)?;
        let mut received = Vec::new();
        if status(&mut reader, &mut received).await.map_err(lost)? != 100 {
            return Err(format!(
                "no 100 Continue but {}",
                String::from_utf8_lossy(&received)
            ));
        }
        received.clear();
        let writing = async {
            let mut content = Content::new(self.script.key);
            let mut writes = 0;
            while self.script.writes.is_none_or(|most| writes < most) {
                let write = content.next_write();
                self.note_sent(write.len());
                let mut chunk = format!("{:x}\r\n", write.len()).into_bytes();
                chunk.extend_from_slice(&write);
                chunk.extend_from_slice(b"\r\n");
                writer.write_all(&chunk).await.map_err(lost)?;
                writes += 1;
                tokio::time::sleep(self.script.pause).await;
            }
            writer.write_all(b"0\r\n\r\n").await.map_err(lost)?;
            self.note_end();
            Ok(())
        };
        let reading = async {
            let status = status(&mut reader, &mut received).await.map_err(lost)?;
            let mut told = self.told.lock().unwrap();
            if status != 200 || !told.ended {
                return Err(format!("{status} at the end of {told:?}"));
            }
            told.acked_bytes = told.sent_bytes;
            told.whole = true;
            Ok(())
        };
        tokio::try_join!(writing, reading)?;
        Ok(())
    }

    fn note_sent(&self, bytes: usize) {
        self.told.lock().unwrap().sent_bytes += u64::try_from(bytes).unwrap();
    }

    fn note_end(&self) {
        self.told.lock().unwrap().ended = true;
        self.tally.send_modify(|tally| tally.ended += 1);
    }

    fn note_frame(&self, frame: AckFrame) -> Result<(), String> {
        let acked = match frame {
            AckFrame::Durable { acked_bytes } => acked_bytes,
            AckFrame::Failed { message } => return Err(format!("failed: {message}")),
        };
        let mut told = self.told.lock().unwrap();
        if acked < told.acked_bytes || acked > told.sent_bytes {
            return Err(format!("an ack of {acked} bytes after {told:?}"));
        }
        if told.acked_bytes == 0 && acked > 0 {
            self.tally.send_modify(|tally| tally.acked += 1);
        }
        told.acked_bytes = acked;
        Ok(())
    }
}

/// Whether a status says that a request was taken.
pub(crate) fn accepted(status: StatusCode) -> Result<(), String> {
    let accepted = status == StatusCode::OK;
    accepted
        .then_some(())
        .ok_or_else(|| format!("refused: {status}"))
}

/// The status of the next response, after its head was read.
async fn status(
    reader: &mut (impl AsyncReadExt + Unpin),
    head: &mut Vec<u8>,
) -> std::io::Result<u16> {
    let bent = || std::io::Error::from(std::io::ErrorKind::InvalidData);
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > HEAD_BYTES_MAX {
            return Err(bent());
        }
        head.push(reader.read_u8().await?);
    }
    let text = std::str::from_utf8(head).map_err(|_| bent())?;
    let status = text
        .strip_prefix("HTTP/1.1 ")
        .and_then(|text| text.get(..3));
    status
        .and_then(|status| status.parse().ok())
        .ok_or_else(bent)
}
