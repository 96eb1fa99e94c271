//! The devnet's control server on the wire: `/key`, ts2021, register and map. Called by `devnet`.
//!
//! Invariant: a request inside the tunnel is always answered after its body was read, and the
//! connection stays: stock clients have one connection for everything. Limits on connections,
//! streams, heads and bodies are named below.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Frame, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rand_core::{OsRng, RngCore};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use zeroize::Zeroizing;

use super::tailnet::Registered;
use super::{Shared, random_hex};
use crate::io::control_conn::noise_stream::NoiseStream;
use crate::io::control_conn::{HANDSHAKE_HEADER, UPGRADE_PROTOCOL};
use crate::key::{MachinePrivate, MachinePublic};
use crate::noise::{NoiseError, RECORD_PLAIN_BYTES_MAX, Responder, encode_early_payload};
use crate::tailcfg::{KeepAlive, KeyResponse, MapRequest, MapResponse, NodeId, RegisterRequest};

/// Connections at one time: two for each of a good hundred nodes.
const CONNECTIONS_MAX: usize = 256;
/// How long a client may take for its head, and for the upgrade.
const HEAD_DURATION_MAX: Duration = Duration::from_secs(10);
/// Largest head of an HTTP/1.1 request.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Largest body of a request; a Hostinfo with many services has some kilobytes.
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Requests of one client at one time.
const STREAMS_MAX: u32 = 64;
/// Largest list of headers in an HTTP/2 request.
const HEADER_LIST_BYTES_MAX: u32 = 16 * 1024;
/// Clients give a stream up after 120 s of silence; servers speak every 50 to 60 s.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(55);
/// Map messages that wait for a slow client; changes meanwhile are coalesced.
const MESSAGES_WAITING_MAX: usize = 2;
/// Pause after a failed accept, which means that descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts until it is aborted; its connections end with it.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if connections.len() < CONNECTIONS_MAX => {
                    connections.spawn(connection(stream, Arc::clone(&shared)));
                }
                Ok(_) => tracing::warn!("devnet has too many connections"),
                Err(error) => {
                    tracing::warn!(%error, "devnet cannot accept");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// What an accepted upgrade needs once HTTP/1.1 has let go of the connection.
struct Upgrade {
    on_upgrade: OnUpgrade,
    responder: Responder,
}

async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    let slot = Arc::new(Mutex::new(None));
    let service = service_fn(|request| {
        let response = handle_outer(request, &shared, &slot);
        async move { Ok::<_, Infallible>(response) }
    });
    let served = stream.set_nodelay(true).map(|()| {
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_DURATION_MAX)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
    });
    let Ok(served) = served else {
        return;
    };
    if let Err(error) = served.await {
        tracing::debug!(%error, "devnet: connection ended");
    }
    let upgrade: Option<Upgrade> = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(upgrade) = upgrade
        && let Err(error) = tunnel(upgrade, shared).await
    {
        tracing::debug!(%error, "devnet: tunnel ended");
    }
}

/// Outside the tunnel there are two things: the server's key, and the way in.
fn handle_outer(
    mut request: Request<Incoming>,
    shared: &Shared,
    slot: &Mutex<Option<Upgrade>>,
) -> Response<DevBody> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/key") => {
            let query = request.uri().query().unwrap_or_default();
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            let version = pairs.find(|(name, _)| *name == "v");
            if version.is_none_or(|(_, value)| value.parse::<u16>().is_err()) {
                return text(StatusCode::BAD_REQUEST, "v is no capability version");
            }
            json(&KeyResponse {
                public_key: shared.key.public(),
                ..KeyResponse::default()
            })
        }
        (&Method::POST, "/ts2021") => {
            let on_upgrade = hyper::upgrade::on(&mut request);
            let responder = match handshake(request.headers(), &shared.key) {
                Ok(responder) => responder,
                Err(reason) => return text(StatusCode::BAD_REQUEST, reason),
            };
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(Upgrade {
                on_upgrade,
                responder,
            });
            let mut response = text(StatusCode::SWITCHING_PROTOCOLS, "");
            let headers = response.headers_mut();
            headers.clear();
            headers.insert(header::UPGRADE, HeaderValue::from_static(UPGRADE_PROTOCOL));
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            response
        }
        _ => text(StatusCode::NOT_FOUND, "not found"),
    }
}

fn handshake(headers: &HeaderMap, key: &MachinePrivate) -> Result<Responder, &'static str> {
    let protocol = headers.get(header::UPGRADE).map(HeaderValue::as_bytes);
    if !protocol.is_some_and(|value| value.eq_ignore_ascii_case(UPGRADE_PROTOCOL.as_bytes())) {
        return Err("missing or unknown Upgrade header");
    }
    let initiation = headers.get(HANDSHAKE_HEADER);
    let initiation = initiation.and_then(|value| BASE64.decode(value.as_bytes()).ok());
    let initiation = initiation.ok_or("missing or unreadable handshake header")?;
    let mut ephemeral = Zeroizing::new([0; 32]);
    OsRng.fill_bytes(ephemeral.as_mut());
    Responder::handle_initiation(key, &initiation, ephemeral)
        .map_err(|_| "the handshake does not authenticate")
}

/// Why a tunnel ended.
#[derive(Debug, thiserror::Error)]
enum TunnelError {
    #[error("upgrading took too long")]
    Slow,
    #[error("upgrading")]
    Upgrade(#[source] hyper::Error),
    #[error("sealing the early payload")]
    Early(#[source] NoiseError),
    #[error("writing the handshake")]
    Write(#[source] std::io::Error),
    #[error("HTTP/2")]
    Http(#[source] hyper::Error),
}

async fn tunnel(upgrade: Upgrade, shared: Arc<Shared>) -> Result<(), TunnelError> {
    let Upgrade {
        on_upgrade,
        responder,
    } = upgrade;
    let upgraded = timeout(HEAD_DURATION_MAX, on_upgrade).await;
    let upgraded = upgraded
        .map_err(|_| TunnelError::Slow)?
        .map_err(TunnelError::Upgrade)?;
    let mut stream = TokioIo::new(upgraded);

    // One write, so that a client which waits for the early payload gets it at once.
    let mut first = responder.response.to_vec();
    let mut records = responder.records;
    let early = early_payload().map_err(TunnelError::Early)?;
    for plain in early.chunks(RECORD_PLAIN_BYTES_MAX) {
        records
            .seal(plain, &mut first)
            .map_err(TunnelError::Early)?;
    }
    let written = timeout(HEAD_DURATION_MAX, stream.write_all(&first)).await;
    written
        .map_err(|_| TunnelError::Slow)?
        .map_err(TunnelError::Write)?;

    let machine = responder.client;
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(handle_inner(request, machine, shared).await) }
    });
    http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .serve_connection(TokioIo::new(NoiseStream::server(stream, records)), service)
        .await
        .map_err(TunnelError::Http)
}

/// A challenge that no client answers; sent because production servers send it.
fn early_payload() -> Result<Vec<u8>, NoiseError> {
    let challenge = MachinePrivate::generate(&mut OsRng).public().to_string();
    let hex = challenge
        .strip_prefix(MachinePublic::PREFIX)
        .unwrap_or_default();
    encode_early_payload(format!(r#"{{"nodeKeyChallenge":"chalpub:{hex}"}}"#).as_bytes())
}

async fn handle_inner(
    request: Request<Incoming>,
    machine: MachinePublic,
    shared: Arc<Shared>,
) -> Response<DevBody> {
    let path = request.uri().path().to_owned();
    let is_post = request.method() == Method::POST;
    let body = Limited::new(request.into_body(), BODY_BYTES_MAX)
        .collect()
        .await;
    let Ok(body) = body.map(http_body_util::Collected::to_bytes) else {
        return text(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body too large or broken off",
        );
    };
    match path.as_str() {
        "/machine/register" if is_post => match serde_json::from_slice(&body) {
            Ok(request) => handle_register(request, machine, &shared).await,
            Err(error) => unreadable(&error),
        },
        "/machine/map" if is_post => match serde_json::from_slice(&body) {
            Ok(request) => handle_map(request, machine, shared),
            Err(error) => unreadable(&error),
        },
        "/machine/set-dns" if is_post => text(StatusCode::OK, "{}"),
        path if path.starts_with("/machine/") => {
            text(StatusCode::NOT_IMPLEMENTED, "devnet does not do this")
        }
        _ => text(StatusCode::NOT_FOUND, "not found"),
    }
}

async fn handle_register(
    request: RegisterRequest,
    machine: MachinePublic,
    shared: &Shared,
) -> Response<DevBody> {
    if request.version == 0 {
        return text(StatusCode::BAD_REQUEST, "unsupported client version");
    }
    let mut changes = shared.changed.subscribe();
    loop {
        changes.mark_unchanged();
        let token = random_hex();
        let registered = shared
            .lock()
            .register(machine, request.clone(), token, &shared.url);
        match registered {
            Registered::Answer(response) => {
                shared.bump();
                return json(&*response);
            }
            Registered::Wait => {
                if changes.changed().await.is_err() {
                    return text(StatusCode::SERVICE_UNAVAILABLE, "shutting down");
                }
            }
        }
    }
}

fn handle_map(
    request: MapRequest,
    machine: MachinePublic,
    shared: Arc<Shared>,
) -> Response<DevBody> {
    let Ok(node) = shared.lock().find(machine, request.node_key) else {
        return text(StatusCode::NOT_FOUND, "node not found");
    };
    let format = Format {
        zstd: request.compress == "zstd",
    };
    if request.stream {
        // Read-only by contract: what the node says of itself counts in lite updates only.
        let stream = shared.change(|tailnet| tailnet.begin_stream(node));
        let (sender, receiver) = mpsc::channel(MESSAGES_WAITING_MAX);
        tokio::spawn(follow(node, stream, format, sender, shared));
        return Response::new(DevBody::Messages(receiver));
    }
    let omit_peers = request.omit_peers;
    let changed = shared.lock().update(node, request);
    if changed {
        shared.bump();
    }
    if omit_peers {
        return Response::new(DevBody::Whole(None));
    }
    let snapshot = shared.lock().snapshot(node);
    match snapshot.and_then(|map| format.frame(&to_json(&map))) {
        Some(message) => Response::new(DevBody::Whole(Some(message))),
        None => text(StatusCode::NOT_FOUND, "node not found"),
    }
}

/// One map stream: a whole map at first and after every change that concerns it, keep-alives between.
async fn follow(
    node: NodeId,
    stream: u64,
    format: Format,
    sender: mpsc::Sender<Bytes>,
    shared: Arc<Shared>,
) {
    let mut changes = shared.changed.subscribe();
    let mut last_json = Vec::new();
    let mut had_peers = Vec::new();
    loop {
        changes.mark_unchanged();
        let Some(mut map) = current_map(node, stream, &shared) else {
            break;
        };
        let peers: Vec<NodeId> = map.peers.iter().map(|peer| peer.id).collect();
        if peers.is_empty() {
            // An empty list reads as "unchanged", so the last peers have to be removed by name.
            map.peers_removed = std::mem::take(&mut had_peers);
        }
        let json = to_json(&map);
        if json != last_json {
            let Some(message) = format.frame(&json) else {
                break;
            };
            if sender.send(message).await.is_err() {
                break;
            }
            last_json = json;
        }
        if !peers.is_empty() {
            had_peers = peers;
        }
        if !wait_for_change(&mut changes, &sender, format).await {
            break;
        }
    }
    shared.change(|tailnet| tailnet.end_stream(node, stream));
}

fn current_map(node: NodeId, stream: u64, shared: &Shared) -> Option<MapResponse> {
    let tailnet = shared.lock();
    tailnet.has_stream(node, stream).then_some(())?;
    tailnet.snapshot(node)
}

/// Sends keep-alives until something changes; false when the client or the devnet is gone.
async fn wait_for_change(
    changes: &mut tokio::sync::watch::Receiver<u64>,
    sender: &mpsc::Sender<Bytes>,
    format: Format,
) -> bool {
    loop {
        tokio::select! {
            changed = changes.changed() => return changed.is_ok(),
            () = sender.closed() => return false,
            () = sleep(KEEP_ALIVE_INTERVAL) => {
                let message = format.frame(&to_json(&KeepAlive { keep_alive: true }));
                let Some(message) = message else {
                    return false;
                };
                if sender.send(message).await.is_err() {
                    return false;
                }
            }
        }
    }
}

/// How a client wants its messages.
#[derive(Debug, Clone, Copy)]
struct Format {
    zstd: bool,
}

impl Format {
    /// Length (u32 LE) and message.
    fn frame(self, json: &[u8]) -> Option<Bytes> {
        let compressed;
        let message = if self.zstd {
            compressed = zstd::bulk::compress(json, 1).ok()?;
            compressed.as_slice()
        } else {
            json
        };
        let length = u32::try_from(message.len()).ok()?;
        Some([&length.to_le_bytes(), message].concat().into())
    }
}

/// A response's body.
enum DevBody {
    Whole(Option<Bytes>),
    Messages(mpsc::Receiver<Bytes>),
}

impl Body for DevBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Messages(receiver) => receiver
                .poll_recv(cx)
                .map(|message| message.map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }
}

fn text(status: StatusCode, text: &'static str) -> Response<DevBody> {
    let bytes = (!text.is_empty()).then(|| Bytes::from_static(text.as_bytes()));
    let mut response = Response::new(DevBody::Whole(bytes));
    *response.status_mut() = status;
    response
}

fn json(value: &impl serde::Serialize) -> Response<DevBody> {
    let mut response = Response::new(DevBody::Whole(Some(to_json(value).into())));
    let content_type = HeaderValue::from_static("application/json");
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    response
}

fn unreadable(error: &serde_json::Error) -> Response<DevBody> {
    tracing::warn!(%error, "devnet: a request is not readable");
    text(StatusCode::BAD_REQUEST, "unreadable request")
}

/// Plain data with string keys, which serde_json always writes.
fn to_json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain data with string keys always has a JSON form")
}
