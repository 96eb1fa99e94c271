//! One listener for HTTP/1.1 and HTTP/2 (h2c prior knowledge): routes, limits, and the life of a connection.
//!
//! ```text
//! HEAD /v2/record   HTTP/2   200: "record here"; over HTTP/1.1 it is 404, and the client falls back
//! POST /v2/record   HTTP/2   200 at once, then ack frames (record_v2)
//! anything else              404, no body
//! ```
//!
//! Invariants: a refusal has no body; time-outs apply to request heads and idle connections, never to a body; nothing a peer sends is held without a
//! limit. Called by the wiring with an accepted stream and the identity that the tailnet gave it; looks down at the store through [`RecordingSink`].

pub mod ack;
mod record_v2;
mod response;
pub mod sink;
pub mod upload;

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::Identity;
use crate::store::Opening;
use response::{ResponseBody, refusal};
pub use sink::{RecordingSink, RecordingWriter};
use upload::UploadConfig;

/// Path of session uploads with ack frames.
const RECORD_V2: &str = "/v2/record";
/// Bytes of one upload that may be in flight: enough for 0.37 Gbit/s at 10 ms.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
/// Requests at once on a connection. A stock client has one or two.
const STREAMS_MAX: u32 = 8;
/// Room for every stream's window, so that a stalled upload cannot take another's.
const CONNECTION_WINDOW_BYTES: u32 = STREAM_WINDOW_BYTES * STREAMS_MAX;
/// Fewer, larger frames than the default 16 KiB for uploads in bulk.
const FRAME_BYTES_MAX: u32 = 64 * 1024;
/// Decoded size of a request head; a stock client's is under 300 bytes.
const HEADER_LIST_BYTES_MAX: u32 = 16 * 1024;
/// Fields in an HTTP/1.1 head.
const HEADERS_MAX: usize = 64;
/// Read buffer of HTTP/1.1, which bounds its head too.
const HTTP1_BUFFER_BYTES_MAX: usize = 64 * 1024;
/// Unsent response bytes of a stream; frames are tens of bytes.
const SEND_BUFFER_BYTES_MAX: usize = 16 * 1024;
/// Streams reset before we looked at them (rapid reset); hyper's own default.
const PENDING_RESET_STREAMS_MAX: usize = 20;

/// Intervals and limits of ingest.
#[derive(Debug, Clone)]
pub struct IngestConfig {
    /// From accept to the end of the first request head, and for each later HTTP/1.1 head.
    pub header_read_timeout: Duration,
    /// How long a connection may stay without an upload after a request, such as a probe.
    pub idle_limit: Duration,
    /// How long a connection stays after its last upload; stock clients before 1.98.8 never close theirs.
    pub linger: Duration,
    /// From GOAWAY to closing the stream under it.
    pub close_limit: Duration,
    /// Between HTTP/2 PINGs.
    pub keep_alive_interval: Duration,
    /// How late the answer to a PING may be before the uploader counts as dead.
    pub keep_alive_timeout: Duration,
    /// How long running uploads may go on after the shutdown began; below the 30 s that Kubernetes gives.
    pub drain_limit: Duration,
    /// Intervals of one upload.
    pub upload: UploadConfig,
}

impl Default for IngestConfig {
    fn default() -> Self {
        Self {
            header_read_timeout: Duration::from_secs(10),
            idle_limit: Duration::from_secs(30),
            linger: Duration::from_secs(5),
            close_limit: Duration::from_secs(5),
            keep_alive_interval: Duration::from_secs(20),
            keep_alive_timeout: Duration::from_secs(20),
            drain_limit: Duration::from_secs(20),
            upload: UploadConfig::default(),
        }
    }
}

/// Serves one accepted stream of `identity` until it is closed and every recording that began on it is finished.
///
/// After `shutdown`, new uploads are refused with 503; running ones go on for at most `drain_limit`, then are sealed and told.
/// Dropping the future closes the stream; its uploads are then sealed as incomplete in the background.
pub async fn serve_connection<S, IO>(
    io: IO,
    identity: Identity,
    sink: S,
    config: IngestConfig,
    shutdown: CancellationToken,
) where
    S: RecordingSink,
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (activity, changes) = watch::channel(Activity::Silent(Instant::now()));
    let connection = Arc::new(Connection {
        identity,
        sink,
        config,
        shutdown,
        uploads: TaskTracker::new(),
        activity,
    });
    drive(io, &connection, changes).await;
    connection.uploads.close();
    connection.uploads.wait().await;
}

/// What the routes of one connection share.
struct Connection<S> {
    identity: Identity,
    sink: S,
    config: IngestConfig,
    shutdown: CancellationToken,
    uploads: TaskTracker,
    activity: watch::Sender<Activity>,
}

/// What a connection is good for at the moment; decides when to close it.
#[derive(Debug, Clone, Copy)]
enum Activity {
    /// No request yet, since accept.
    Silent(Instant),
    /// Requests but no upload, since the last one.
    Probed(Instant),
    /// That many uploads run.
    Uploading(usize),
    /// All uploads have ended, since then.
    Done(Instant),
}

impl Activity {
    /// When to say GOAWAY, if nothing more happens.
    fn goaway_at(self, config: &IngestConfig, stopping: bool) -> Option<Instant> {
        match self {
            Self::Silent(since) => Some(since + config.header_read_timeout),
            Self::Uploading(_) => None,
            Self::Probed(since) | Self::Done(since) if stopping => Some(since),
            Self::Probed(since) => Some(since + config.idle_limit),
            Self::Done(since) => Some(since + config.linger),
        }
    }

    fn with_request(self) -> Self {
        match self {
            Self::Silent(_) | Self::Probed(_) => Self::Probed(Instant::now()),
            Self::Uploading(_) | Self::Done(_) => self,
        }
    }

    fn with_upload(self) -> Self {
        match self {
            Self::Uploading(count) => Self::Uploading(count.saturating_add(1)),
            Self::Silent(_) | Self::Probed(_) | Self::Done(_) => Self::Uploading(1),
        }
    }

    fn without_upload(self) -> Self {
        match self {
            Self::Uploading(count) if count > 1 => Self::Uploading(count.saturating_sub(1)),
            Self::Uploading(_) | Self::Silent(_) | Self::Probed(_) | Self::Done(_) => {
                Self::Done(Instant::now())
            }
        }
    }
}

/// Moves bytes until the peer, an error or our own limits end the connection.
async fn drive<S, IO>(io: IO, shared: &Arc<Connection<S>>, mut changes: watch::Receiver<Activity>)
where
    S: RecordingSink,
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let config = &shared.config;
    let builder = builder(config);
    let service = service_fn(|request| {
        let response = answer(request, shared);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service));
    let mut stopping = false;
    let mut close_at: Option<Instant> = None;
    loop {
        let activity = *changes.borrow_and_update();
        let wake = match (close_at, activity) {
            (None, _) => activity.goaway_at(config, stopping),
            (Some(_), Activity::Uploading(_)) => None,
            // An upload that came just before GOAWAY has its last frames still to be sent.
            (Some(at), Activity::Done(since)) => Some(at.max(since + config.close_limit)),
            (Some(at), Activity::Silent(_) | Activity::Probed(_)) => Some(at),
        };
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "connection ended");
                }
                return;
            }
            // The sender lives in `shared`, so this never fails.
            _ = changes.changed() => {}
            () = shared.shutdown.cancelled(), if !stopping => stopping = true,
            () = tokio::time::sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {
                if close_at.is_some() {
                    tracing::debug!("closing a connection that did not heed GOAWAY");
                    return;
                }
                connection.as_mut().graceful_shutdown();
                close_at = Some(Instant::now() + config.close_limit);
            }
        }
    }
}

fn builder(config: &IngestConfig) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(config.header_read_timeout)
        .max_buf_size(HTTP1_BUFFER_BYTES_MAX)
        .max_headers(HEADERS_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_send_buf_size(SEND_BUFFER_BYTES_MAX)
        .max_pending_accept_reset_streams(PENDING_RESET_STREAMS_MAX)
        .keep_alive_interval(config.keep_alive_interval)
        .keep_alive_timeout(config.keep_alive_timeout);
    builder
}

/// The response to any request; a panic on the way is a refusal too.
fn answer<S: RecordingSink>(
    request: Request<Incoming>,
    shared: &Arc<Connection<S>>,
) -> Response<ResponseBody> {
    shared
        .activity
        .send_modify(|activity| *activity = activity.with_request());
    catch_unwind(AssertUnwindSafe(|| route(request, shared))).unwrap_or_else(|_| {
        tracing::error!("a request handler panicked");
        refusal(StatusCode::SERVICE_UNAVAILABLE, "internal error")
    })
}

fn route<S: RecordingSink>(
    request: Request<Incoming>,
    shared: &Arc<Connection<S>>,
) -> Response<ResponseBody> {
    let known = request.version() == Version::HTTP_2 && request.uri().path() == RECORD_V2;
    let probe = request.method() == Method::HEAD;
    if !known || !(probe || request.method() == Method::POST) {
        refusal(StatusCode::NOT_FOUND, "no such endpoint")
    } else if shared.shutdown.is_cancelled() {
        refusal(StatusCode::SERVICE_UNAVAILABLE, "draining")
    } else if probe {
        Response::new(ResponseBody::Empty)
    } else {
        begin_recording(request.into_body(), shared)
    }
}

fn begin_recording<S: RecordingSink>(
    body: Incoming,
    shared: &Arc<Connection<S>>,
) -> Response<ResponseBody> {
    let opening = Opening {
        uploader: shared.identity.clone(),
        endpoint: RECORD_V2,
        received_at: jiff::Timestamp::now(),
    };
    let writer = match shared.sink.begin(opening) {
        Ok(writer) => writer,
        Err(error) => {
            tracing::warn!(%error, "upload refused");
            return refusal(StatusCode::SERVICE_UNAVAILABLE, &error.to_string());
        }
    };
    let (response, upload) = record_v2::record(
        body,
        writer,
        shared.config.upload,
        shared.shutdown.clone(),
        shared.config.drain_limit,
    );
    let running = Running::new(shared.activity.clone());
    shared.uploads.spawn(async move {
        upload.await;
        drop(running);
    });
    response
}

/// Counts one upload as running for as long as it exists, also when its task panics.
struct Running(watch::Sender<Activity>);

impl Running {
    fn new(activity: watch::Sender<Activity>) -> Self {
        activity.send_modify(|activity| *activity = activity.with_upload());
        Self(activity)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0
            .send_modify(|activity| *activity = activity.without_upload());
    }
}

#[cfg(test)]
mod tests;
