//! The life of one connection: its protocols, its idleness, its end.
//!
//! Invariant: a connection that carries no upload ends in bounded time; one that does is never ended by us, but by its uploads' own ends. Driven by
//! [`Ingest::serve_connection`](super::Ingest::serve_connection); requests go to the [`routes`](super::routes).

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::Version;
use http_body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::config::IngestConfig;
use super::frame_watch::{Heads, Watched};
use super::linger::lend;
use super::routes::answer;
use super::sink::RecordingSink;
use crate::access::Identity;

/// Bytes of one upload that may be in flight; TCP below has no more. So few that lines of 15 bytes and more, a frame each, fill it before they
/// reach what the HTTP/2 library bears of small frames behind a full buffer: a terminal waits then, and its connection does not end.
pub(super) const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// Requests at once on a connection. A stock client has one or two.
const STREAMS_MAX: u32 = 8;
/// Room for every stream's window, so that a stalled upload cannot take another's; and half of it is what the library bears of small frames.
const CONNECTION_WINDOW_BYTES: u32 = 4 * STREAM_WINDOW_BYTES * STREAMS_MAX;
/// Fewer, larger frames than the default 16 KiB for uploads in bulk.
const FRAME_BYTES_MAX: u32 = 64 * 1024;
/// Fields in an HTTP/1.1 head.
const HEADERS_MAX: usize = 64;
/// Read buffer of HTTP/1.1.
const HTTP1_BUFFER_BYTES_MAX: usize = 64 * 1024;
/// Unsent response bytes of a stream; frames are tens of bytes.
const SEND_BUFFER_BYTES_MAX: usize = 16 * 1024;
/// Streams reset before we looked at them (rapid reset); hyper's own default.
const PENDING_RESET_STREAMS_MAX: usize = 20;

/// What the routes of one connection share.
pub(super) struct Connection<S> {
    pub(super) identity: Identity,
    pub(super) ingest: Arc<Shared<S>>,
    pub(super) shutdown: CancellationToken,
    activity: watch::Sender<Activity>,
    abandoned: Arc<AtomicBool>,
    heads: Arc<Heads>,
}

/// Tells whether a body that ended is whole.
#[derive(Debug, Clone)]
pub(super) enum BodyEnd {
    /// hyper says so; a reset with NO_ERROR, or a PING that was not answered, looks like an end otherwise.
    Http2,
    /// hyper reports a body that broke off as an error, unless the connection was dropped under it: then this is set, and the body looks whole.
    Http1 { abandoned: Arc<AtomicBool> },
}

impl BodyEnd {
    pub(super) fn is_whole(&self, body: &Incoming) -> bool {
        match self {
            Self::Http2 => body.is_end_stream(),
            Self::Http1 { abandoned } => !abandoned.load(Ordering::Acquire),
        }
    }
}

/// Says that the connection is dropped before hyper was done with it, unless it is told otherwise.
struct Abandonment {
    abandoned: Arc<AtomicBool>,
    done: bool,
}

impl Drop for Abandonment {
    fn drop(&mut self) {
        self.abandoned.store(!self.done, Ordering::Release);
    }
}

impl<S> Connection<S> {
    /// Counts what hyper, or the limit of the first head, ended without a word to the routes. HTTP/2 heads are the frame watch's.
    fn count_end(&self, error: Option<&hyper::Error>, activity: Activity, by_limit: bool) {
        let counters = &self.ingest.counters;
        if error.is_some_and(hyper::Error::is_parse_too_large) {
            counters.refused_head.increase();
            tracing::info!("request refused: its head has too many fields or bytes");
        }
        // The second limit is for a head that began and never ended while no request came before it.
        let late = error.is_some_and(hyper::Error::is_timeout)
            || (by_limit && matches!(activity, Activity::Silent(_)));
        if late && self.heads.begun.load(Ordering::Relaxed) {
            counters.slow_heads.increase();
            tracing::warn!("connection ended: an HTTP/1.1 request head was not complete in time");
        }
    }

    pub(super) fn body_end(&self, version: Version) -> BodyEnd {
        if version == Version::HTTP_2 {
            BodyEnd::Http2
        } else {
            BodyEnd::Http1 {
                abandoned: Arc::clone(&self.abandoned),
            }
        }
    }

    pub(super) fn heard_a_request(&self) {
        self.heads.begun.store(false, Ordering::Relaxed);
        self.activity
            .send_modify(|activity| *activity = activity.with_request());
    }

    /// Before the answer is on its way.
    pub(super) fn gave_an_answer(&self) {
        self.heads.answered.fetch_add(1, Ordering::Relaxed);
    }

    /// Keeps the connection open until it is dropped.
    pub(super) fn running(&self) -> Running {
        Running::new(self.activity.clone())
    }
}

/// Counts one upload as running for as long as it exists, also when its task panics.
#[derive(Debug)]
pub(super) struct Running(watch::Sender<Activity>);

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
pub(super) async fn drive<S, IO>(
    io: IO,
    identity: Identity,
    ingest: Arc<Shared<S>>,
    shutdown: CancellationToken,
) where
    S: RecordingSink,
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (activity, changes) = watch::channel(Activity::Silent(Instant::now()));
    let shared = Arc::new(Connection {
        identity,
        ingest,
        shutdown,
        activity,
        abandoned: Arc::default(),
        heads: Arc::default(),
    });
    let (io, lender) = lend(io);
    serve(io, &shared, changes).await;
    // hyper has let go of the stream; if it ended it in order, its last answer is to arrive.
    lender.linger(shared.ingest.config.close_limit).await;
}

/// The same up to the end of our own side.
async fn serve<S, IO>(io: IO, shared: &Arc<Connection<S>>, mut changes: watch::Receiver<Activity>)
where
    S: RecordingSink,
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let config = &shared.ingest.config;
    let io = Watched::new(
        io,
        config.header_read_timeout,
        Arc::clone(&shared.ingest.counters),
        Arc::clone(&shared.heads),
    );
    let io = TokioIo::new(io);
    let builder = builder(config);
    let service = service_fn(|request| answer(request, Arc::clone(shared)));
    let mut connection = pin!(builder.serve_connection(io, service));
    // Declared behind the connection, so dropped before it: bodies learn of it in time.
    let mut abandonment = Abandonment {
        abandoned: Arc::clone(&shared.abandoned),
        done: false,
    };
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
                abandonment.done = true;
                let error = ended.err();
                if let Some(error) = &error {
                    tracing::debug!(error = crate::tell::with_causes(error.as_ref()), "connection ended");
                }
                let of_hyper = error.as_deref().and_then(|error| error.downcast_ref());
                return shared.count_end(of_hyper, activity, close_at.is_some());
            }
            // The sender lives in `shared`, so this never fails.
            _ = changes.changed() => {}
            () = shared.shutdown.cancelled(), if !stopping => stopping = true,
            () = tokio::time::sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {
                if close_at.is_some() {
                    tracing::debug!("closing a connection that did not heed GOAWAY");
                    return shared.count_end(None, activity, true);
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
        .max_header_list_size(config.request_head_bytes_max)
        .max_send_buf_size(SEND_BUFFER_BYTES_MAX)
        .max_pending_accept_reset_streams(PENDING_RESET_STREAMS_MAX)
        .keep_alive_interval(config.keep_alive_interval)
        .keep_alive_timeout(config.keep_alive_timeout);
    builder
}
