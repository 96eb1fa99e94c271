//! A stream that is closed so that its last bytes arrive: after the FIN what the peer still sends is read and dropped (RFC 9112 §9.6).
//!
//! Invariants: bytes that nobody read would make the close a reset, which can overtake the answer that explains it; so nothing is left unread
//! up to a number of bytes and a time, and beyond them the reset is what the peer gets. Before the close bytes pass untouched. Wrapped around
//! each stream by the [`connection`](super::connection).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// What is read of one connection behind its end. An event of the largest size that is refused unread, and a half more, is below it.
const DROPPED_BYTES_MAX: usize = 96 * 1024 * 1024;
/// What one read takes.
const READ_BYTES: usize = 16 * 1024;
/// How many reads are made before others have their turn.
const READS_AT_ONCE_MAX: usize = 16;

/// A stream whose `shutdown` is over when the peer has closed its side too, or was given enough of a chance to.
#[derive(Debug)]
pub(super) struct Lingering<IO> {
    io: IO,
    limit: Duration,
    /// From the FIN on: until when, and how many bytes more.
    rest: Option<Rest>,
}

#[derive(Debug)]
struct Rest {
    timer: Pin<Box<Sleep>>,
    bytes_left: usize,
}

impl<IO> Lingering<IO> {
    /// `limit` is how long a peer may take, after our FIN, to send its own.
    pub(super) fn new(io: IO, limit: Duration) -> Self {
        Self {
            io,
            limit,
            rest: None,
        }
    }
}

impl<IO: AsyncRead + Unpin> Lingering<IO> {
    /// Reads behind the end; ready when there is to be no more of it.
    fn poll_rest(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(rest) = &mut self.rest else {
            return Poll::Ready(());
        };
        for _ in 0..READS_AT_ONCE_MAX {
            let mut bytes = [std::mem::MaybeUninit::uninit(); READ_BYTES];
            let mut buffer = ReadBuf::uninit(&mut bytes);
            match Pin::new(&mut self.io).poll_read(context, &mut buffer) {
                Poll::Pending => return rest.timer.as_mut().poll(context),
                // The peer's end, or that of the connection: nothing is left unread.
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => return Poll::Ready(()),
                Poll::Ready(Ok(())) => {}
            }
            rest.bytes_left = rest.bytes_left.saturating_sub(buffer.filled().len());
            if rest.bytes_left == 0 {
                return Poll::Ready(());
            }
        }
        self.poll_limit(context)
    }

    /// Ready when the time is over; else comes back after the others.
    fn poll_limit(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let timer = self.rest.as_mut().map(|rest| rest.timer.as_mut());
        let over = timer.is_none_or(|timer| timer.poll(context).is_ready());
        if over {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Lingering<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lingering<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.rest.is_none() {
            ready!(Pin::new(&mut self.io).poll_shutdown(context))?;
            let timer = Box::pin(tokio::time::sleep(self.limit));
            self.rest = Some(Rest {
                timer,
                bytes_left: DROPPED_BYTES_MAX,
            });
        }
        self.poll_rest(context).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::Instant;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn the_fin_goes_out_at_once_and_what_the_peer_still_sends_is_taken_to_its_end() {
        let (near, mut far) = tokio::io::duplex(1024);
        let closing = tokio::spawn(async move {
            let mut stream = Lingering::new(near, LIMIT);
            stream.write_all(b"the answer").await.unwrap();
            stream.shutdown().await.unwrap();
        });
        let mut answer = String::new();
        far.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "the answer");
        assert!(!closing.is_finished());
        far.write_all(&vec![b'x'; 1_000_000]).await.unwrap();
        assert!(!closing.is_finished());
        far.shutdown().await.unwrap();
        let start = Instant::now();
        closing.await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_close_is_waited_for_no_longer_than_the_limit() {
        let start = Instant::now();
        let (near, mut far) = tokio::io::duplex(1024);
        let dripping = tokio::spawn(async move {
            while far.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(700)).await;
            }
        });
        let mut stream = Lingering::new(near, LIMIT);
        stream.shutdown().await.unwrap();
        assert_eq!(start.elapsed().as_secs(), LIMIT.as_secs());
        drop(stream);
        dripping.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_bytes_are_taken_than_the_limit() {
        let (near, mut far) = tokio::io::duplex(1024 * 1024);
        let flooding = tokio::spawn(async move {
            let piece = vec![0; 1024 * 1024];
            let mut sent = 0;
            while far.write_all(&piece).await.is_ok() {
                sent += piece.len();
            }
            sent
        });
        let mut stream = Lingering::new(near, LIMIT);
        stream.shutdown().await.unwrap();
        drop(stream);
        let sent = flooding.await.unwrap();
        assert!((DROPPED_BYTES_MAX..=DROPPED_BYTES_MAX + 2 * 1024 * 1024).contains(&sent));
    }
}
