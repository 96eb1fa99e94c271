//! The connection to control: `/key`, TCP, the upgrade to ts2021, Noise, and HTTP/2 inside.
//!
//! Invariant: the server's key is either given (pinned) or fetched once, over a channel that needs
//! no further trust: plain HTTP is spoken to loopback and private addresses only. Every step has a
//! time limit and every answer a size limit; the map stream alone is unlimited, and `control`
//! watches over it. Called by the driver.
//!
//! ```text
//! TCP ─ POST /ts2021, Upgrade: tailscale-control-protocol ─ 101 ─ Noise ─ [early payload] ─ HTTP/2
//! ```
//!
//! Sources: control.md §1.1, §2; tailscale.com `control/controlhttp`, `control/ts2021`.

mod error;
pub(crate) mod noise_stream;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rand_core::{OsRng, RngCore};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use zeroize::Zeroizing;

pub use self::error::ControlConnError;
use self::noise_stream::NoiseStream;
use crate::control::ControlRequest;
use crate::key::{MachinePrivate, MachinePublic};
use crate::noise::{Initiator, message_bytes};
use crate::tailcfg::KeyResponse;

/// Value of the `Upgrade` header on both sides.
pub(crate) const UPGRADE_PROTOCOL: &str = "tailscale-control-protocol";
/// The header that carries the first Noise message, in base64.
pub(crate) const HANDSHAKE_HEADER: &str = "X-Tailscale-Handshake";

/// For TCP, the key, the upgrade and the handshakes together; upstream's budget.
pub const CONNECT_DURATION_MAX: Duration = Duration::from_secs(10);
/// Largest answer to `/key` that is read; a real one has about 170 bytes.
const KEY_BYTES_MAX: usize = 64 * 1024;
/// Largest head of an HTTP/1.1 answer.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Largest list of headers in an HTTP/2 answer.
const HEADER_LIST_BYTES_MAX: u32 = 16 * 1024;
/// Largest body of an answer that is read whole; the register response's limit.
pub const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// Receive window of one stream, and of the connection: a large netmap must not wait for updates.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
/// Room in which the connection keeps what is to be sent.
const SEND_BYTES_MAX: usize = 256 * 1024;

/// One connection to control. All requests share it; dropping it closes it.
#[derive(Debug)]
pub struct ControlConn {
    sender: http2::SendRequest<Full<Bytes>>,
    authority: String,
    _task: AbortOnDrop,
}

impl ControlConn {
    /// Connects to `url` (`http://host[:port]`) as `machine`. `server_key` is the pinned key; without
    /// it the key is fetched from the server first. Returns the key that was used.
    ///
    /// # Errors
    /// Any [`ControlConnError`].
    pub async fn connect(
        url: &str,
        machine: &MachinePrivate,
        server_key: Option<MachinePublic>,
        version: u16,
    ) -> Result<(Self, MachinePublic), ControlConnError> {
        let target = Target::parse(url)?;
        let server = match server_key {
            Some(key) => key,
            None => within("fetching /key", fetch_key(&target, version)).await?,
        };
        let upgrade = upgrade(&target, machine, server, version);
        let (sender, task) = match within("the ts2021 handshake", upgrade).await {
            Ok(upgraded) => upgraded,
            Err(error) if server_key.is_some() && error.may_mean_another_key() => {
                return Err(explain(&target, server, version, error).await);
            }
            Err(error) => return Err(error),
        };
        let conn = Self {
            sender,
            authority: target.authority,
            _task: task,
        };
        Ok((conn, server))
    }

    /// Sends `body` to `path`; returns as soon as the answer's head is there.
    ///
    /// Cancel-safe: dropping the future, or the response, resets the HTTP/2 stream.
    ///
    /// # Errors
    /// [`ControlConnError::Http`] when the connection is gone.
    pub async fn post(
        &self,
        path: &str,
        body: Vec<u8>,
    ) -> Result<ControlResponse, ControlConnError> {
        let failed = |source| ControlConnError::Http {
            step: "sending a request to control",
            source,
        };
        let uri = Uri::builder()
            .scheme("https")
            .authority(self.authority.as_str())
            .path_and_query(path)
            .build();
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri.map_err(|_| ControlConnError::Url {
            url: path.to_owned(),
            reason: "is no path",
        })?;
        let content_type = HeaderValue::from_static("application/json");
        request
            .headers_mut()
            .insert(header::CONTENT_TYPE, content_type);
        let mut sender = self.sender.clone();
        sender.ready().await.map_err(failed)?;
        let response = sender.send_request(request).await.map_err(failed)?;
        Ok(ControlResponse::new(response))
    }

    /// Whether it can no longer carry requests.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

/// An answer whose body arrives piece by piece.
#[derive(Debug)]
pub struct ControlResponse {
    /// HTTP status.
    pub status: u16,
    /// `Retry-After` in seconds form; a date reads as `None`.
    pub retry_after: Option<Duration>,
    body: Incoming,
}

impl ControlResponse {
    fn new(response: Response<Incoming>) -> Self {
        Self {
            status: response.status().as_u16(),
            retry_after: retry_after(response.headers()),
            body: response.into_body(),
        }
    }

    /// The body's next piece; `None` at its end. Cancel-safe.
    ///
    /// # Errors
    /// [`ControlConnError::Http`] when the stream or the connection breaks.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, ControlConnError> {
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|source| ControlConnError::Http {
                step: "reading an answer of control",
                source,
            })?;
            if let Ok(data) = frame.into_data()
                && !data.is_empty()
            {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    /// The whole body, at most [`ANSWER_BYTES_MAX`].
    ///
    /// # Errors
    /// [`ControlConnError::Body`].
    pub async fn collect(self) -> Result<Bytes, ControlConnError> {
        collect(self.body, ANSWER_BYTES_MAX)
            .await
            .ok_or(ControlConnError::Body)
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    text.trim().parse().ok().map(Duration::from_secs)
}

/// Control as the driver sees it: connects when there is something to send, and anew when the
/// connection is gone. Clones share the connection.
#[derive(Debug, Clone)]
pub struct ControlClient {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    url: String,
    machine: MachinePrivate,
    version: u16,
    state: Mutex<ClientState>,
}

#[derive(Debug)]
struct ClientState {
    server_key: Option<MachinePublic>,
    conn: Option<Arc<ControlConn>>,
}

impl ControlClient {
    /// Connects to nothing yet. `pinned` is the stored server key, if there is one.
    pub fn new(
        url: &str,
        machine: MachinePrivate,
        pinned: Option<MachinePublic>,
        version: u16,
    ) -> Self {
        let state = Mutex::new(ClientState {
            server_key: pinned,
            conn: None,
        });
        Self {
            shared: Arc::new(Shared {
                url: url.to_owned(),
                machine,
                version,
                state,
            }),
        }
    }

    /// The server's key: pinned, or learned with the first connection. Store it then.
    pub async fn server_key(&self) -> Option<MachinePublic> {
        self.shared.state.lock().await.server_key
    }

    /// Gives the connection up; the next request makes a new one. Running streams end.
    pub async fn reset(&self) {
        self.shared.state.lock().await.conn = None;
    }

    /// Sends `body` to `path`, connecting first if need be; the response keeps its connection alive
    /// only as long as the client does.
    ///
    /// # Errors
    /// Any [`ControlConnError`]; the caller decides when to try again.
    pub async fn post(
        &self,
        path: &str,
        body: Vec<u8>,
    ) -> Result<ControlResponse, ControlConnError> {
        let conn = self.connection().await?;
        conn.post(path, body).await
    }

    /// Sends what `control` asks for.
    ///
    /// # Errors
    /// As [`ControlClient::post`].
    pub async fn send(&self, request: ControlRequest) -> Result<ControlResponse, ControlConnError> {
        let path = request.path();
        match request {
            ControlRequest::Register { body, .. }
            | ControlRequest::MapStream { body, .. }
            | ControlRequest::MapUpdate { body, .. } => self.post(path, body).await,
        }
    }

    async fn connection(&self) -> Result<Arc<ControlConn>, ControlConnError> {
        // Held while connecting, so that requests at the same time share one connection. The
        // connect has a time limit.
        let mut state = self.shared.state.lock().await;
        if let Some(conn) = state.conn.as_ref().filter(|conn| !conn.is_closed()) {
            return Ok(Arc::clone(conn));
        }
        state.conn = None;
        let shared = &self.shared;
        let (conn, server_key) = ControlConn::connect(
            &shared.url,
            &shared.machine,
            state.server_key,
            shared.version,
        )
        .await?;
        let conn = Arc::new(conn);
        state.server_key = Some(server_key);
        state.conn = Some(Arc::clone(&conn));
        Ok(conn)
    }
}

/// Where the control URL leads.
#[derive(Debug)]
struct Target {
    /// Host and port as in the URL, for the `Host` header.
    authority: String,
    host: String,
    port: u16,
}

impl Target {
    fn parse(url: &str) -> Result<Self, ControlConnError> {
        let bad = |reason| ControlConnError::Url {
            url: url.to_owned(),
            reason,
        };
        let uri: Uri = url.parse().map_err(|_| bad("is not a URL"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(bad("https is not supported by this version")),
            _ => return Err(bad("does not begin with http://")),
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(bad("must not have a path"));
        }
        let authority = uri.authority().ok_or_else(|| bad("has no host"))?;
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return Err(bad("must name a host, and no user"));
        }
        Ok(Self {
            authority: authority.to_string(),
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(80),
        })
    }

    async fn dial(&self) -> Result<TcpStream, ControlConnError> {
        let failed = |source| ControlConnError::Dial {
            authority: self.authority.clone(),
            source,
        };
        let addresses = tokio::net::lookup_host((self.host.as_str(), self.port)).await;
        let mut last = std::io::Error::from(std::io::ErrorKind::NotFound);
        for address in addresses.map_err(failed)? {
            if !permits_plain_http(address.ip()) {
                return Err(ControlConnError::NotPrivate { address });
            }
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    stream.set_nodelay(true).map_err(failed)?;
                    return Ok(stream);
                }
                Err(error) => last = error,
            }
        }
        Err(failed(last))
    }
}

/// Whether `http://` is spoken to a control server at `ip`: loopback, private and link-local addresses only, because nothing proves who answers there.
#[must_use]
pub fn permits_plain_http(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_private() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

async fn fetch_key(target: &Target, version: u16) -> Result<MachinePublic, ControlConnError> {
    let step = "fetching /key";
    let request = Request::get(format!("/key?v={version}"));
    let (response, _task) = http1_request(target, request, step).await?;
    let status = response.status();
    if status != StatusCode::OK {
        return Err(ControlConnError::Answer { step, status });
    }
    let body = collect(response.into_body(), KEY_BYTES_MAX)
        .await
        .ok_or(ControlConnError::Body)?;
    let keys: KeyResponse =
        serde_json::from_slice(&body).map_err(|source| ControlConnError::Key { source })?;
    if keys.public_key.is_zero() {
        return Err(ControlConnError::NoKey);
    }
    Ok(keys.public_key)
}

/// The handshake failed with the pinned key: says so if the server shows another one by now. It is not
/// used, because nothing proves over plain HTTP whose it is.
async fn explain(
    target: &Target,
    pinned: MachinePublic,
    version: u16,
    failure: ControlConnError,
) -> ControlConnError {
    match within("fetching /key", fetch_key(target, version)).await {
        Ok(offered) if offered != pinned => ControlConnError::KeyChanged {
            authority: target.authority.clone(),
            pinned,
            offered,
        },
        Ok(_) | Err(_) => failure,
    }
}

async fn upgrade(
    target: &Target,
    machine: &MachinePrivate,
    server: MachinePublic,
    version: u16,
) -> Result<(http2::SendRequest<Full<Bytes>>, AbortOnDrop), ControlConnError> {
    let noise = |source| ControlConnError::Noise { server, source };
    let step = "upgrading to ts2021";
    let http = |source| ControlConnError::Http { step, source };

    let mut ephemeral = Zeroizing::new([0; 32]);
    OsRng.fill_bytes(ephemeral.as_mut());
    let (initiator, initiation) =
        Initiator::new(machine, server, version, ephemeral).map_err(noise)?;
    let request = Request::post("/ts2021")
        .header(header::UPGRADE, UPGRADE_PROTOCOL)
        .header(header::CONNECTION, "upgrade")
        .header(header::CONTENT_LENGTH, 0)
        .header(HANDSHAKE_HEADER, BASE64.encode(initiation));
    let (mut response, _task) = http1_request(target, request, step).await?;
    let status = response.status();
    let protocol = response.headers().get(header::UPGRADE);
    let agreed = protocol.is_some_and(|value| {
        value
            .as_bytes()
            .eq_ignore_ascii_case(UPGRADE_PROTOCOL.as_bytes())
    });
    if status != StatusCode::SWITCHING_PROTOCOLS || !agreed {
        return Err(ControlConnError::Answer { step, status });
    }
    // The upgraded connection begins with what HTTP/1.1 had read too far.
    let upgraded = hyper::upgrade::on(&mut response).await.map_err(http)?;
    let mut stream = TokioIo::new(upgraded);

    let mut message = Vec::new();
    let records = loop {
        let wanted = message_bytes(&message).map_err(noise)?.unwrap_or(3);
        if message.len() == wanted {
            break initiator.handle_response(&message).map_err(noise)?;
        }
        let missing = u64::try_from(wanted - message.len()).unwrap_or(u64::MAX);
        let mut limited = (&mut stream).take(missing);
        let read = limited.read_buf(&mut message).await;
        if read.map_err(ControlConnError::Read)? == 0 {
            return Err(ControlConnError::ClosedAfterUpgrade);
        }
    };

    let stream = TokioIo::new(NoiseStream::client(stream, records));
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_send_buf_size(SEND_BYTES_MAX)
        .handshake(stream)
        .await
        .map_err(|source| ControlConnError::Http {
            step: "beginning HTTP/2",
            source,
        })?;
    let task = tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "control connection ended");
        }
    });
    Ok((sender, AbortOnDrop(task)))
}

/// One HTTP/1.1 request on a connection of its own, which lives as long as the returned guard.
async fn http1_request(
    target: &Target,
    request: http::request::Builder,
    step: &'static str,
) -> Result<(Response<Incoming>, AbortOnDrop), ControlConnError> {
    let http = |source| ControlConnError::Http { step, source };
    let request = request
        .header(header::HOST, target.authority.as_str())
        .body(Empty::<Bytes>::new())
        .map_err(|_| ControlConnError::Url {
            url: target.authority.clone(),
            reason: "makes no request",
        })?;
    let stream = target.dial().await?;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(http)?;
    let connection = connection.with_upgrades();
    let task = tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "control connection ended");
        }
    });
    let response = sender.send_request(request).await.map_err(http)?;
    Ok((response, AbortOnDrop(task)))
}

async fn collect(body: Incoming, bytes_max: usize) -> Option<Bytes> {
    let collected = Limited::new(body, bytes_max).collect().await;
    collected.ok().map(http_body_util::Collected::to_bytes)
}

async fn within<T>(
    step: &'static str,
    work: impl Future<Output = Result<T, ControlConnError>>,
) -> Result<T, ControlConnError> {
    match timeout(CONNECT_DURATION_MAX, work).await {
        Ok(result) => result,
        Err(_) => Err(ControlConnError::Slow { step }),
    }
}

/// A task that ends with its owner.
#[derive(Debug)]
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests;
