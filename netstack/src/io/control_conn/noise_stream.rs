//! A byte stream sealed by Noise: what HTTP/2 runs over, on both sides of ts2021.
//!
//! Invariant: writes never wait for a read (so not for the early payload either); after any failure
//! nothing is read any more; at most [`SEALED_BYTES_MAX`] and one read's plaintext are held.
//! Called by `io::control_conn` and devnet.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::noise::{EarlyPayloadReader, RECORD_PLAIN_BYTES_MAX, Records};

/// What one read takes from the connection: two full records.
const READ_BYTES: usize = 8192;
/// How much is sealed ahead of the connection: one HTTP/2 frame of the usual size.
const SEALED_BYTES_MAX: usize = 16 * 1024;

/// See the module.
pub(crate) struct NoiseStream<S> {
    inner: S,
    records: Records,
    /// Only a client has to expect an early payload.
    early: Option<EarlyPayloadReader>,
    /// Opened and not yet taken; `plain_at` bytes of it are taken.
    plain: Vec<u8>,
    plain_at: usize,
    /// Sealed and not yet written; `sealed_at` bytes of it are written.
    sealed: Vec<u8>,
    sealed_at: usize,
}

impl<S> std::fmt::Debug for NoiseStream<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NoiseStream(..)")
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> NoiseStream<S> {
    /// The client's end of `inner`, after the handshake.
    pub(crate) fn client(inner: S, records: Records) -> Self {
        Self::new(inner, records, Some(EarlyPayloadReader::default()))
    }

    /// The server's end of `inner`, after the handshake; the early payload is written to it first.
    #[cfg(any(feature = "devnet", test))]
    pub(crate) fn server(inner: S, records: Records) -> Self {
        Self::new(inner, records, None)
    }

    fn new(inner: S, records: Records, early: Option<EarlyPayloadReader>) -> Self {
        Self {
            inner,
            records,
            early,
            plain: Vec::new(),
            plain_at: 0,
            sealed: Vec::new(),
            sealed_at: 0,
        }
    }

    fn poll_write_sealed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let rest = self.sealed.get(self.sealed_at..).unwrap_or_default();
            if rest.is_empty() {
                self.sealed.clear();
                self.sealed_at = 0;
                return Poll::Ready(Ok(()));
            }
            let written = ready!(Pin::new(&mut self.inner).poll_write(cx, rest))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sealed_at += written;
        }
    }

    fn open(&mut self, received: &[u8]) -> io::Result<()> {
        let bad = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        self.plain.clear();
        self.plain_at = 0;
        let Some(early) = &mut self.early else {
            return self.records.open(received, &mut self.plain).map_err(bad);
        };
        let mut opened = Vec::new();
        self.records.open(received, &mut opened).map_err(bad)?;
        early.handle_plain(&opened, &mut self.plain).map_err(bad)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for NoiseStream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            let rest = this.plain.get(this.plain_at..).unwrap_or_default();
            if !rest.is_empty() || out.remaining() == 0 {
                let (taken, _) = rest.split_at(rest.len().min(out.remaining()));
                out.put_slice(taken);
                this.plain_at += taken.len();
                return Poll::Ready(Ok(()));
            }
            let mut bytes = [0; READ_BYTES];
            let mut buffer = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut buffer))?;
            if buffer.filled().is_empty() {
                return Poll::Ready(if this.records.is_mid_record() {
                    Err(io::ErrorKind::UnexpectedEof.into())
                } else {
                    Ok(())
                });
            }
            this.open(buffer.filled())?;
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for NoiseStream<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_write_sealed(cx))?;
        let mut taken = 0;
        for plain in bytes.chunks(RECORD_PLAIN_BYTES_MAX) {
            if this.sealed.len() >= SEALED_BYTES_MAX {
                break;
            }
            this.records
                .seal(plain, &mut this.sealed)
                .map_err(io::Error::other)?;
            taken += plain.len();
        }
        // What is sealed is accepted, whether or not the connection takes it at once.
        match this.poll_write_sealed(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(taken)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_write_sealed(cx))?;
        Pin::new(&mut this.inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_write_sealed(cx))?;
        Pin::new(&mut this.inner).poll_shutdown(cx)
    }
}
