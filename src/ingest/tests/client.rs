//! Three uploaders for tests: hyper's HTTP/2 client, one that writes and reads raw frames, and one that writes HTTP/1.1.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::memory_sink::MemorySink;
use crate::access::Identity;
use crate::ingest::{Ingest, IngestConfig};

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const GOAWAY: u8 = 7;
pub(super) const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// A served connection: our end of the stream, the token that stops the server, and the server itself, which ends with the connection; if it is the
/// only one, when all is sealed.
pub(super) struct Served {
    pub(super) io: DuplexStream,
    pub(super) shutdown: CancellationToken,
    pub(super) server: JoinHandle<()>,
    pub(super) ingest: Ingest<MemorySink>,
}

pub(super) fn serve(sink: &MemorySink) -> Served {
    serve_with(sink, IngestConfig::default())
}

pub(super) fn serve_with(sink: &MemorySink, config: IngestConfig) -> Served {
    let mut served = serve_on(&Ingest::new(sink.clone(), config), "nServerCNTRL");
    let ingest = served.ingest.clone();
    let connection = AbortOnDropHandle::new(served.server);
    served.server = tokio::spawn(async move {
        connection.await.unwrap();
        ingest.finished().await;
    });
    served
}

/// One more connection, of the node with that StableID.
pub(super) fn serve_on(ingest: &Ingest<MemorySink>, stable_id: &str) -> Served {
    let (io, theirs) = tokio::io::duplex(64 * 1024);
    let shutdown = CancellationToken::new();
    let identity = identity(stable_id);
    let (serving, stop) = (ingest.clone(), shutdown.clone());
    let server =
        tokio::spawn(async move { serving.serve_connection(theirs, identity, stop).await });
    Served {
        io,
        shutdown,
        server,
        ingest: ingest.clone(),
    }
}

/// The node with that StableID.
pub(super) fn identity(stable_id: &str) -> Identity {
    Identity {
        stable_id: stable_id.to_owned(),
        node_name: "web.ts.net".to_owned(),
        user: None,
        tags: vec!["tag:prod".to_owned()],
        address: [100, 64, 0, 7].into(),
        capabilities: std::collections::BTreeMap::new(),
    }
}

/// The request body of an uploader; an `Err` resets the stream.
pub(super) struct Upstream(mpsc::Receiver<Result<Bytes, String>>);

impl Body for Upstream {
    type Data = Bytes;
    type Error = String;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, String>>> {
        self.0
            .poll_recv(context)
            .map(|bytes| bytes.map(|bytes| bytes.map(Frame::data)))
    }
}

/// A stock-like client over one connection.
pub(super) struct Client {
    requests: http2::SendRequest<Upstream>,
    pub(super) connection: JoinHandle<()>,
}

impl Client {
    pub(super) async fn connect(io: DuplexStream) -> Self {
        let (requests, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .handshake(TokioIo::new(io))
            .await
            .unwrap();
        let connection = tokio::spawn(async move { drop(connection.await) });
        Self {
            requests,
            connection,
        }
    }

    pub(super) async fn request(
        &mut self,
        method: Method,
        path: &str,
    ) -> (mpsc::Sender<Result<Bytes, String>>, Response<Incoming>) {
        let (sender, receiver) = mpsc::channel(1);
        let request = Request::builder()
            .method(method)
            .uri(format!("http://100.64.0.9:80{path}"))
            .body(Upstream(receiver))
            .unwrap();
        let response = self.requests.send_request(request).await.unwrap();
        (sender, response)
    }

    /// Sends an event whole, and gives the status.
    pub(super) async fn event(&mut self, body: &'static str) -> http::StatusCode {
        let (sender, receiver) = mpsc::channel(1);
        sender.send(Ok(body.into())).await.unwrap();
        drop(sender);
        let request = Request::builder()
            .method(Method::POST)
            .uri("http://100.64.0.9:80/v2/event")
            .body(Upstream(receiver))
            .unwrap();
        let response = self.requests.send_request(request).await.unwrap();
        response.status()
    }

    pub(super) async fn record(&mut self) -> Recording {
        let (body, response) = self.request(Method::POST, "/v2/record").await;
        assert_eq!(response.status(), 200);
        Recording {
            body: Some(body),
            frames: response.into_body(),
        }
    }
}

/// A running upload as its client sees it.
pub(super) struct Recording {
    body: Option<mpsc::Sender<Result<Bytes, String>>>,
    frames: Incoming,
}

impl Recording {
    pub(super) async fn send(&mut self, bytes: impl Into<Bytes>) {
        let body = self.body.as_ref().unwrap();
        body.send(Ok(bytes.into())).await.unwrap();
    }

    /// Ends the body with END_STREAM.
    pub(super) fn end(&mut self) {
        self.body = None;
    }

    pub(super) async fn reset(&mut self) {
        let body = self.body.as_ref().unwrap();
        body.send(Err("given up".to_owned())).await.unwrap();
    }

    /// The next frame; `None` at END_STREAM, `Some(Err)` at a reset.
    pub(super) async fn frame(&mut self) -> Option<Result<String, hyper::Error>> {
        loop {
            let frame = match self.frames.frame().await? {
                Ok(frame) => frame,
                Err(error) => return Some(Err(error)),
            };
            let bytes = frame.into_data().unwrap();
            // END_STREAM comes on an empty DATA frame.
            if !bytes.is_empty() {
                return Some(Ok(String::from_utf8(bytes.to_vec()).unwrap()));
            }
        }
    }

    pub(super) async fn text(&mut self) -> String {
        self.frame().await.unwrap().unwrap()
    }

    /// Frames up to END_STREAM.
    pub(super) async fn rest(&mut self) -> Vec<String> {
        let mut frames = Vec::new();
        while let Some(frame) = self.frame().await {
            frames.push(frame.unwrap());
        }
        frames
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct RawFrame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    pub(super) payload: Vec<u8>,
}

/// HTTP/2 by hand: what it does not write does not happen.
pub(super) struct RawClient(pub(super) DuplexStream);

impl RawClient {
    pub(super) async fn connect(mut io: DuplexStream) -> Self {
        io.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .await
            .unwrap();
        let mut client = Self(io);
        client.write(4, 0, 0, b"").await;
        client
    }

    pub(super) async fn write(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.0.write_all(&frame).await.unwrap();
    }

    /// HEADERS without END_STREAM: HPACK's static `:scheme http`, the rest as literals.
    pub(super) async fn post(&mut self, stream: u32, method: &str, path: &str) {
        let mut block = vec![0x86];
        for (name_index, value) in [(2, method), (4, path), (1, "100.64.0.9:80")] {
            block.extend([name_index, u8::try_from(value.len()).unwrap()]);
            block.extend(value.as_bytes());
        }
        self.write(HEADERS, END_HEADERS, stream, &block).await;
    }

    /// The next frame; `None` when the connection is closed.
    pub(super) async fn read(&mut self) -> Option<RawFrame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        self.0.read_exact(&mut payload).await.ok()?;
        Some(RawFrame {
            kind: head[3],
            flags: head[4],
            stream: u32::from_be_bytes([head[5], head[6], head[7], head[8]]),
            payload,
        })
    }

    /// All frames of one kind until the connection is closed.
    pub(super) async fn read_all(&mut self, kind: u8) -> Vec<RawFrame> {
        let mut frames = Vec::new();
        while let Some(frame) = self.read().await {
            if frame.kind == kind {
                frames.push(frame);
            }
        }
        frames
    }
}

/// HTTP/1.1 by hand.
pub(super) struct TextClient(pub(super) DuplexStream);

impl TextClient {
    /// A stock client's request for `/record`, up to the end of its head.
    pub(super) async fn record(io: DuplexStream) -> Self {
        let mut client = Self(io);
        client
            .write(
                b"POST /record HTTP/1.1\r\nHost: 100.64.0.9:80\r\nUser-Agent: Go-http-client/1.1\r\n\
                  Transfer-Encoding: chunked\r\nExpect: 100-continue\r\nAccept-Encoding: gzip\r\n\r\n",
            )
            .await;
        client
    }

    /// The same, up to `100 Continue`.
    pub(super) async fn begin(io: DuplexStream) -> Self {
        let mut client = Self::record(io).await;
        assert_eq!(client.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
        client
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    pub(super) async fn chunk(&mut self, bytes: &[u8]) {
        self.write(format!("{:x}\r\n", bytes.len()).as_bytes())
            .await;
        self.write(bytes).await;
        self.write(b"\r\n").await;
    }

    pub(super) async fn end(&mut self) {
        self.write(b"0\r\n\r\n").await;
    }

    /// The next response head.
    pub(super) async fn head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.0.read_u8().await.unwrap());
        }
        String::from_utf8(head).unwrap()
    }

    /// All that comes until the connection is closed.
    pub(super) async fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        // A reset is an end too.
        drop(self.0.read_to_end(&mut rest).await);
        String::from_utf8(rest).unwrap()
    }
}
