//! One connection to the devnet's relay: TLS, HTTP/1.1, the upgrade, and frames until it ends.
//!
//! Invariant: a client proves its key within [`HANDSHAKE_DURATION_MAX`] of being accepted, and reads what it is
//! sent within [`WRITE_DURATION_MAX`], or it is closed; reading never waits for writing. Called by
//! `derp_server`.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use rand_core::{OsRng, RngCore as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::Shared;
use super::client::Client;
use super::registry::CLIENTS_MAX;
use crate::derp::{ClientInfo, Decoder, DerpError, Frame};

/// From being accepted to ClientInfo; upstream's limit.
pub(super) const HANDSHAKE_DURATION_MAX: Duration = Duration::from_secs(10);
/// How long a client's socket may take nothing; upstream's limit.
const WRITE_DURATION_MAX: Duration = Duration::from_secs(2);
/// The interval between signs of life, without the jitter.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(60);
const KEEP_ALIVE_JITTER_MILLIS: u32 = 5000;
/// Largest head of a request.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// What one read and one write take at most; one frame more in the latter.
const READ_BYTES: usize = 16 * 1024;
const WRITE_BYTES: usize = 16 * 1024;
/// Pause after a failed accept, which means that descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts until it is aborted; its connections end with it.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if connections.len() < CLIENTS_MAX => {
                    connections.spawn(connection(stream, Arc::clone(&shared)));
                }
                Ok(_) => tracing::warn!("devnet's relay has too many connections"),
                Err(error) => {
                    tracing::warn!(%error, "devnet's relay cannot accept");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error("the client took too long to {what}")]
    Slow { what: &'static str },
    #[error("{what}")]
    Io {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("HTTP")]
    Http(#[source] hyper::Error),
    #[error("reading a frame")]
    Frame(#[from] DerpError),
    #[error("a frame of kind {kind:#04x} is not for clients, or not yet")]
    Order { kind: u8 },
    #[error("the relay restarts")]
    Restart,
    #[error("there are too many clients")]
    Full,
}

async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    let life = shared.faults.borrow().life;
    let mut faults = shared.faults.subscribe();
    let outcome = tokio::select! {
        outcome = accepted(stream, &shared) => outcome,
        _ = faults.wait_for(|faults| faults.life != life) => Err(SessionError::Restart),
    };
    if let Err(error) = outcome {
        tracing::debug!(
            error = &error as &dyn std::error::Error,
            "devnet's relay: connection ended"
        );
    }
}

async fn accepted(stream: TcpStream, shared: &Shared) -> Result<(), SessionError> {
    let deadline = Instant::now() + HANDSHAKE_DURATION_MAX;
    let slow = |what| move |_| SessionError::Slow { what };
    let io = |what| move |source| SessionError::Io { what, source };
    stream.set_nodelay(true).map_err(io("setting up TCP"))?;
    let stream = timeout_at(deadline, shared.acceptor.accept(stream)).await;
    let stream = stream
        .map_err(slow("finish TLS"))?
        .map_err(io("accepting TLS"))?;

    let slot = Mutex::new(None);
    let service = service_fn(|request| {
        let response = answer(request, shared, &slot);
        async move { Ok::<_, Infallible>(response) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE_DURATION_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await
        .map_err(SessionError::Http)?;
    let upgrade: Option<OnUpgrade> = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(upgrade) = upgrade else {
        return Ok(());
    };
    let upgraded = timeout_at(deadline, upgrade).await;
    let upgraded = upgraded
        .map_err(slow("upgrade"))?
        .map_err(SessionError::Http)?;
    relay(TokioIo::new(upgraded), deadline, shared).await
}

fn answer(
    mut request: Request<Incoming>,
    shared: &Shared,
    slot: &Mutex<Option<OnUpgrade>>,
) -> Response<Full<Bytes>> {
    let reading = matches!(*request.method(), Method::GET | Method::HEAD);
    match request.uri().path() {
        "/derp" if shared.faults.borrow().refusing => text(
            StatusCode::SERVICE_UNAVAILABLE,
            "the relay refuses, as it was told to",
        ),
        "/derp" => {
            let protocol = request.headers().get(header::UPGRADE);
            if !protocol.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"derp")) {
                return text(
                    StatusCode::UPGRADE_REQUIRED,
                    "DERP requires connection upgrade",
                );
            }
            let upgrade = hyper::upgrade::on(&mut request);
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(upgrade);
            let mut response = text(StatusCode::SWITCHING_PROTOCOLS, "");
            let headers = response.headers_mut();
            headers.clear();
            headers.insert(header::UPGRADE, HeaderValue::from_static("DERP"));
            headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(
                "Derp-Version",
                HeaderValue::from(crate::derp::PROTOCOL_VERSION),
            );
            let key = shared.key.public().to_string();
            let digits = key.rsplit(':').next().unwrap_or_default();
            if let Ok(value) = HeaderValue::from_str(digits) {
                headers.insert("Derp-Public-Key", value);
            }
            response
        }
        "/derp/probe" | "/derp/latency-check" if reading => {
            let mut response = text(StatusCode::OK, "");
            let anyone = HeaderValue::from_static("*");
            let headers = response.headers_mut();
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, anyone);
            response
        }
        "/derp/probe" | "/derp/latency-check" => {
            text(StatusCode::METHOD_NOT_ALLOWED, "bogus probe method")
        }
        "/generate_204" if reading => text(StatusCode::NO_CONTENT, ""),
        _ => text(StatusCode::NOT_FOUND, "not found"),
    }
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response
}

/// A client in the registry, for as long as its connection lives, however it ends.
struct Registered<'a> {
    shared: &'a Shared,
    client: Arc<Client>,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.shared.lock().remove(&self.client);
    }
}

pub(super) async fn relay<S>(
    stream: S,
    deadline: Instant,
    shared: &Shared,
) -> Result<(), SessionError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut reader, mut writer) = tokio::io::split(stream);
    let key = shared.key.public();
    let first = Frame::ServerKey { key }.encode()?;
    write(&mut writer, &first).await?;

    let mut input = Input {
        decoder: Decoder::new(),
        buffer: vec![0; READ_BYTES],
    };
    let first = timeout_at(deadline, input.next(&mut reader)).await;
    let first = first.map_err(|_| SessionError::Slow {
        what: "say who it is",
    })??;
    let Some(Frame::ClientInfo { key, sealed }) = first else {
        let kind = first.map_or(0, |frame| frame.kind());
        return Err(SessionError::Order { kind });
    };
    ClientInfo::open(&sealed, &shared.key, &key)?;
    let client = shared.lock().add(key).ok_or(SessionError::Full)?;
    let registered = Registered { shared, client };
    let client = &*registered.client;

    let mut nonce = [0; 24];
    OsRng.fill_bytes(&mut nonce);
    let info = shared.info.seal(nonce, &shared.key, &key);
    client.push_own(info.encode()?);
    tokio::select! {
        outcome = read_frames(&mut input, &mut reader, client, shared) => outcome,
        outcome = write_frames(&mut writer, client, shared) => outcome,
        () = keep_alive(client) => Ok(()),
    }
}

/// Frames out of a stream.
struct Input {
    decoder: Decoder,
    buffer: Vec<u8>,
}

impl Input {
    /// The next frame; `None` at the end. Cancel-safe.
    async fn next(
        &mut self,
        reader: &mut (impl AsyncRead + Unpin),
    ) -> Result<Option<Frame>, SessionError> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(Some(frame));
            }
            let read = reader.read(&mut self.buffer).await;
            let read = read.map_err(|source| SessionError::Io {
                what: "reading",
                source,
            })?;
            if read == 0 {
                return Ok(None);
            }
            self.decoder
                .push(self.buffer.get(..read).unwrap_or_default());
        }
    }
}

async fn read_frames(
    input: &mut Input,
    reader: &mut (impl AsyncRead + Unpin),
    client: &Client,
    shared: &Shared,
) -> Result<(), SessionError> {
    while let Some(frame) = input.next(reader).await? {
        let mut registry = shared.lock();
        registry.touch(client);
        let kind = frame.kind();
        match frame {
            Frame::SendPacket { to, packet } => registry.relay(client, to, packet),
            Frame::NotePreferred { home } => registry.set_home(client, home),
            Frame::Ping(data) => client.push_pong(data),
            Frame::ForwardPacket { .. } | Frame::WatchConns | Frame::ClosePeer { .. } => {
                return Err(SessionError::Order { kind });
            }
            Frame::Pong(_)
            | Frame::ServerKey { .. }
            | Frame::ClientInfo { .. }
            | Frame::ServerInfo { .. }
            | Frame::RecvPacket { .. }
            | Frame::KeepAlive
            | Frame::PeerGone { .. }
            | Frame::PeerPresent { .. }
            | Frame::Health { .. }
            | Frame::Restarting { .. } => {}
        }
    }
    Ok(())
}

async fn write_frames(
    writer: &mut (impl AsyncWrite + Unpin),
    client: &Client,
    shared: &Shared,
) -> Result<(), SessionError> {
    let mut faults = shared.faults.subscribe();
    let mut batch = Vec::new();
    loop {
        // The sender outlives us, so this ends only by what it waits for.
        let silent = faults.wait_for(|faults| !faults.silent).await.is_err();
        batch.clear();
        while !silent
            && batch.len() < WRITE_BYTES
            && let Some(frame) = client.pop()
        {
            batch.extend_from_slice(&frame);
        }
        if batch.is_empty() {
            client.wake.notified().await;
        } else {
            write(writer, &batch).await?;
        }
    }
}

async fn write(writer: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<(), SessionError> {
    let written = timeout(WRITE_DURATION_MAX, async {
        writer.write_all(bytes).await?;
        writer.flush().await
    });
    let written = written.await.map_err(|_| SessionError::Slow {
        what: "read what it is sent",
    })?;
    written.map_err(|source| SessionError::Io {
        what: "writing",
        source,
    })
}

async fn keep_alive(client: &Client) {
    loop {
        let jitter = OsRng.next_u32() % KEEP_ALIVE_JITTER_MILLIS;
        sleep(KEEP_ALIVE_INTERVAL + Duration::from_millis(jitter.into())).await;
        // A frame without payload always encodes.
        if let Ok(frame) = Frame::KeepAlive.encode() {
            client.push_own(frame);
        }
    }
}
