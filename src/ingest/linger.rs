//! The end of a connection whose last answer arrives: behind the FIN what the peer still sends is read and dropped (RFC 9112 §9.6).
//!
//! Invariants: bytes that nobody read would make the close a reset, which can overtake the answer that explains it; so nothing is left unread
//! up to a number of bytes and a time, and beyond them the reset is what the peer gets. It is read when hyper is done, which would go on serving
//! what it has of a connection that takes its time to close. Before the FIN bytes pass untouched. Used by the [`connection`](super::connection).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

/// What is read of one connection behind its end. An event of the largest size that is refused unread, and a half more, is below it.
const DROPPED_BYTES_MAX: usize = 96 * 1024 * 1024;
/// What one read takes.
const READ_BYTES: usize = 16 * 1024;

/// A stream that comes back from whoever drops it, if it was shut down before.
#[derive(Debug)]
pub(super) struct Lent<IO> {
    /// `None` only while it is dropped.
    io: Option<IO>,
    was_shut_down: bool,
    back: Option<oneshot::Sender<IO>>,
}

/// Where a [`Lent`] stream comes back to.
#[derive(Debug)]
pub(super) struct Lender<IO>(oneshot::Receiver<IO>);

/// Lends a stream.
pub(super) fn lend<IO>(io: IO) -> (Lent<IO>, Lender<IO>) {
    let (back, lender) = oneshot::channel();
    let lent = Lent {
        io: Some(io),
        was_shut_down: false,
        back: Some(back),
    };
    (lent, Lender(lender))
}

impl<IO: AsyncRead + Unpin> Lender<IO> {
    /// Reads what the peer sends behind our FIN, to its own FIN or for as long as `limit`. At once over if there was no FIN of ours.
    pub(super) async fn linger(mut self, limit: Duration) {
        let Ok(mut io) = self.0.try_recv() else {
            return;
        };
        let reading = async {
            let mut bytes = vec![0; READ_BYTES];
            let mut left = DROPPED_BYTES_MAX;
            while left > 0 {
                match io.read(&mut bytes).await {
                    // The peer's end, or that of the connection: nothing is left unread.
                    Ok(0) | Err(_) => return,
                    Ok(count) => left = left.saturating_sub(count),
                }
                // A peer that never lets us wait is not to keep others waiting.
                tokio::task::consume_budget().await;
            }
        };
        if tokio::time::timeout(limit, reading).await.is_err() {
            tracing::debug!("the peer did not close a connection that has ended");
        }
    }
}

impl<IO: Unpin> Lent<IO> {
    fn io(&mut self) -> io::Result<Pin<&mut IO>> {
        let io = self.io.as_mut().map(Pin::new);
        io.ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }
}

impl<IO> Drop for Lent<IO> {
    fn drop(&mut self) {
        if let (Some(io), Some(back), true) = (self.io.take(), self.back.take(), self.was_shut_down)
        {
            // Nobody wants it back: then it ends here.
            drop(back.send(io));
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Lent<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.io()?.poll_read(context, buffer)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Lent<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.io()?.poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.io()?.poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io()?.poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.io()?.poll_shutdown(context))?;
        self.was_shut_down = true;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::time::Instant;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn the_fin_goes_out_at_once_and_what_the_peer_still_sends_is_taken_to_its_end() {
        let (near, mut far) = tokio::io::duplex(1024);
        let closing = tokio::spawn(async move {
            let (mut stream, lender) = lend(near);
            stream.write_all(b"the answer").await.unwrap();
            stream.shutdown().await.unwrap();
            drop(stream);
            lender.linger(LIMIT).await;
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
        let (mut stream, lender) = lend(near);
        stream.shutdown().await.unwrap();
        drop(stream);
        lender.linger(LIMIT).await;
        assert_eq!(start.elapsed().as_secs(), LIMIT.as_secs());
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
        let (mut stream, lender) = lend(near);
        stream.shutdown().await.unwrap();
        drop(stream);
        lender.linger(LIMIT).await;
        let sent = flooding.await.unwrap();
        assert!((DROPPED_BYTES_MAX..=DROPPED_BYTES_MAX + 2 * 1024 * 1024).contains(&sent));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_was_not_shut_down_is_gone_at_once() {
        let start = Instant::now();
        let (near, mut far) = tokio::io::duplex(1024);
        let (stream, lender) = lend(near);
        drop(stream);
        assert!(far.write_all(b"x").await.is_err());
        lender.linger(LIMIT).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
