//! TCP on the tunnel for async callers: ordinary `AsyncRead + AsyncWrite`, and a listener.
//!
//! Invariant: every operation is cancel-safe (state lives in the node, never in the future), `shutdown` is a
//! FIN and reading goes on after it. A dropped stream is released exactly once, as a kernel closes a
//! socket: what was written still arrives, then a FIN; but bytes that nobody read make it a reset.
//! Called by whoever holds a [`Tailnet`](super::Tailnet).

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::driver::Shared;
use crate::tcpip::{CloseReason, ConnId, TcpError};

/// Accepts connections to one port on all our tailnet addresses. Dropping it closes the port.
#[derive(Debug)]
pub struct TcpListener {
    shared: Arc<Shared>,
    port: u16,
}

impl TcpListener {
    pub(super) fn new(shared: Arc<Shared>, port: u16) -> Self {
        Self { shared, port }
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The next established connection.
    ///
    /// # Errors
    /// `NotConnected` when the node has shut down.
    pub async fn accept(&mut self) -> io::Result<TcpStream> {
        std::future::poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// See [`TcpListener::accept`].
    pub fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<TcpStream>> {
        let mut state = self.shared.lock();
        if state.closed {
            return Poll::Ready(Err(closed()));
        }
        if let Some(accepted) = state.node.tcp().accept(self.port) {
            drop(state);
            return Poll::Ready(Ok(TcpStream::new(
                Arc::clone(&self.shared),
                accepted.conn,
                accepted.local,
                accepted.remote,
            )));
        }
        state.wakers.accepting(self.port, cx.waker());
        Poll::Pending
    }
}

impl Drop for TcpListener {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.node.tcp().unlisten(self.port);
        state.wakers.forget_port(self.port);
        drop(state);
        self.shared.kick();
    }
}

/// One TCP connection on the tunnel.
#[derive(Debug)]
pub struct TcpStream {
    shared: Arc<Shared>,
    conn: ConnId,
    local: SocketAddr,
    remote: SocketAddr,
}

impl TcpStream {
    pub(super) fn new(
        shared: Arc<Shared>,
        conn: ConnId,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Self {
        Self {
            shared,
            conn,
            local,
            remote,
        }
    }

    /// Our end.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The peer's end. Its address is proven by the tunnel it came through.
    pub fn peer_addr(&self) -> SocketAddr {
        self.remote
    }

    /// Completes when the connection is established.
    pub(super) async fn connected(&self) -> io::Result<()> {
        std::future::poll_fn(|cx| {
            let mut state = self.shared.lock();
            if state.closed {
                return Poll::Ready(Err(closed()));
            }
            // Nothing can be written before the handshake is done, not even nothing.
            match state.node.tcp().send(self.conn, &[]) {
                Ok(_) => Poll::Ready(Ok(())),
                Err(TcpError::WouldBlock) => {
                    state.wakers.writing(self.conn, cx.waker());
                    Poll::Pending
                }
                Err(error) => Poll::Ready(Err(io_error(error))),
            }
        })
        .await
    }
}

impl AsyncRead for TcpStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.shared.lock();
        if state.closed {
            return Poll::Ready(Err(closed()));
        }
        match state.node.tcp().recv(self.conn, buf.initialize_unfilled()) {
            Ok(count) => {
                let kick = state.node.needs_flush();
                drop(state);
                buf.advance(count);
                if kick {
                    self.shared.kick();
                }
                Poll::Ready(Ok(()))
            }
            Err(TcpError::WouldBlock) => {
                state.wakers.reading(self.conn, cx.waker());
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(io_error(error))),
        }
    }
}

impl AsyncWrite for TcpStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.shared.lock();
        if state.closed {
            return Poll::Ready(Err(closed()));
        }
        match state.node.tcp().send(self.conn, data) {
            Ok(count) => {
                drop(state);
                self.shared.kick();
                Poll::Ready(Ok(count))
            }
            Err(TcpError::WouldBlock) => {
                state.wakers.writing(self.conn, cx.waker());
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(io_error(error))),
        }
    }

    /// Written bytes are on their way already; what matters to callers is that this never blocks.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.shared.lock();
        let done = state.node.tcp().shutdown(self.conn);
        drop(state);
        self.shared.kick();
        Poll::Ready(match done {
            // Both sides had finished already.
            Ok(()) | Err(TcpError::Closed(CloseReason::Done)) => Ok(()),
            Err(error) => Err(io_error(error)),
        })
    }
}

impl Drop for TcpStream {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        let tcp = state.node.tcp();
        if let Err(error) = tcp.shutdown(self.conn) {
            tracing::trace!(%error, "dropping a stream that is over");
        }
        tcp.release(self.conn);
        state.wakers.forget(self.conn);
        drop(state);
        self.shared.kick();
    }
}

fn closed() -> io::Error {
    io::Error::new(
        io::ErrorKind::NotConnected,
        "the tailnet node has shut down",
    )
}

fn io_error(error: TcpError) -> io::Error {
    let kind = match &error {
        TcpError::WouldBlock => io::ErrorKind::WouldBlock,
        TcpError::Stale => io::ErrorKind::NotConnected,
        TcpError::ShutDown | TcpError::Closed(CloseReason::Done) => io::ErrorKind::BrokenPipe,
        TcpError::Closed(CloseReason::Reset) => io::ErrorKind::ConnectionReset,
        TcpError::Closed(CloseReason::Aborted) => io::ErrorKind::ConnectionAborted,
        TcpError::Closed(CloseReason::Refused) => io::ErrorKind::ConnectionRefused,
        TcpError::Closed(CloseReason::TimedOut) => io::ErrorKind::TimedOut,
    };
    io::Error::new(kind, error)
}
