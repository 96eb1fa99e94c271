//! An uploader of 2023: HTTP/1.1, `/record`, `Expect: 100-continue`. It fails the test when a status comes too early, as a client would fail its session.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use crate::soon;

/// What a Go client sends, byte for byte.
const REQUEST: &[u8] =
    b"POST /record HTTP/1.1\r\nHost: 100.64.0.9:80\r\nUser-Agent: Go-http-client/1.1\r\n\
    Transfer-Encoding: chunked\r\nAccept-Encoding: gzip\r\nExpect: 100-continue\r\n\r\n";

/// Sends `request` over HTTP/1.1; all that comes until the connection is closed.
pub(crate) async fn ask(mut io: impl AsyncRead + AsyncWrite + Unpin, request: &[u8]) -> String {
    io.write_all(request).await.unwrap();
    let mut answer = String::new();
    soon("an answer", io.read_to_string(&mut answer))
        .await
        .unwrap();
    answer
}

/// One connection, one upload.
pub(crate) struct OldUploader<IO> {
    io: IO,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> OldUploader<IO> {
    /// Up to the first answer: `Ok` if the recorder asks for the body, else the refusal.
    pub(crate) async fn record(mut io: IO) -> Result<Self, String> {
        io.write_all(REQUEST).await.unwrap();
        let mut uploader = Self { io };
        let head = uploader.head().await;
        assert!(
            !head.starts_with("HTTP/1.1 200"),
            "X11: 200 before 100: {head}"
        );
        if head == "HTTP/1.1 100 Continue\r\n\r\n" {
            Ok(uploader)
        } else {
            Err(head + &uploader.rest().await)
        }
    }

    /// One chunk, as a Go client makes of each write.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.hears_nothing().await;
        let size = format!("{:x}\r\n", bytes.len());
        let chunk = [size.as_bytes(), bytes, b"\r\n"].concat();
        soon("room for a chunk", self.io.write_all(&chunk))
            .await
            .unwrap();
    }

    /// Ends the body, and gives all that follows until the connection is closed.
    pub(crate) async fn end(mut self) -> String {
        self.hears_nothing().await;
        self.io.write_all(b"0\r\n\r\n").await.unwrap();
        soon("the status", self.rest()).await
    }

    /// All that comes until the connection is closed.
    pub(crate) async fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        // A reset is an end too.
        drop(self.io.read_to_end(&mut rest).await);
        String::from_utf8(rest).unwrap()
    }

    async fn head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let byte = soon("X13: an answer to the head", self.io.read_u8()).await;
            head.push(byte.unwrap());
        }
        String::from_utf8(head).unwrap()
    }

    async fn hears_nothing(&mut self) {
        let early = poll_fn(|context| {
            let mut byte = [0];
            let mut buffer = ReadBuf::new(&mut byte);
            let read = Pin::new(&mut self.io).poll_read(context, &mut buffer);
            Poll::Ready(read.is_ready())
        });
        assert!(
            !early.await,
            "X12: the recorder spoke before the body ended"
        );
    }
}
