//! Finds a recorder that takes a session: the uploader's side of `HEAD` and `POST /v2/record`, over HTTP/2 with prior knowledge.
//!
//! The invariant: recorders are tried strictly in list order, one at a time, each once, and none keeps the session waiting
//! longer than its limits; probe and upload share one connection, so an upload that lost it has ended. It runs over any byte
//! stream that a [`Dial`] gives it, and never opens a socket itself. `dev` calls it, and the agent for OpenSSH hosts will.

use std::error::Error as _;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::upload::Upload;
use super::upload_body::UploadBody;

/// How long one dial may take; the stock client's limit.
const DIAL_MAX: Duration = Duration::from_secs(5);

/// How long all dials together may take; the stock client's limit. When it is over, further dials fail at once.
const DIALS_MAX: Duration = Duration::from_secs(30);

/// How long dial and probe of one recorder may take; the stock client's limit.
const PROBE_MAX: Duration = Duration::from_secs(10);

/// How long a recorder may take to answer `POST /v2/record` with its response head. The stock client waits for ever here; a probe's
/// time is enough, because a recorder owes the head before it has seen a byte.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// How long a connection may take to say goodbye once its upload is over.
const CLOSE_MAX: Duration = Duration::from_secs(2);

/// What HTTP/2 holds of one upload that its windows do not let out yet; as much as a recorder buffers for one.
const UNSENT_BYTES_MAX: usize = 1 << 20;

const RECORD_PATH: &str = "/v2/record";

/// A way to reach a recorder: the tailnet's dial, or in tests a pipe. A closure from address to future is one.
pub trait Dial: Sync {
    /// The byte stream that it opens.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// Opens a stream to `recorder`. Dropping the future gives the dial up.
    fn dial(&self, recorder: SocketAddr) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl<F, Opening, Stream> Dial for F
where
    F: Fn(SocketAddr) -> Opening + Sync,
    Opening: Future<Output = io::Result<Stream>> + Send,
    Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    type Stream = Stream;

    fn dial(&self, recorder: SocketAddr) -> impl Future<Output = io::Result<Stream>> + Send {
        self(recorder)
    }
}

/// No recorder took the session; why each of them did not, in the order tried. Empty if there was none to try.
#[derive(Debug)]
pub struct ConnectError {
    /// One entry per recorder.
    pub attempts: Vec<(SocketAddr, AttemptError)>,
}

/// Why one recorder did not take the session.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    /// The dial failed.
    #[error("cannot dial it")]
    Dial(#[source] io::Error),
    /// The dial took longer than [`DIAL_MAX`], or what [`DIALS_MAX`] had left.
    #[error("it could not be dialled in time")]
    DialTimedOut,
    /// It does not speak HTTP/2, or went away.
    #[error("cannot speak HTTP/2 with it")]
    Http(#[source] hyper::Error),
    /// It did not answer the probe within [`PROBE_MAX`].
    #[error("it did not answer the probe within {} s", PROBE_MAX.as_secs())]
    ProbeTimedOut,
    /// It answered the probe with something other than 200.
    #[error("it does not take recordings: HEAD {RECORD_PATH} gave {status}")]
    ProbeRefused {
        /// Its answer.
        status: StatusCode,
    },
    /// It did not answer `POST` within [`ANSWER_MAX`].
    #[error("it did not answer POST {RECORD_PATH} within {} s", ANSWER_MAX.as_secs())]
    AnswerTimedOut,
    /// It answered `POST` with something other than 200.
    #[error("it refuses this recording: {status}{}", ReasonText(.reason.as_deref()))]
    Refused {
        /// Its answer.
        status: StatusCode,
        /// Its reason, from the header `tailtape-reason`; printable ASCII.
        reason: Option<String>,
    },
}

/// Connects to the first of `recorders` that takes a session.
///
/// # Errors
/// None does, or there is none.
pub async fn connect<D: Dial>(recorders: &[SocketAddr], dial: &D) -> Result<Upload, ConnectError> {
    let dials_end = Instant::now() + DIALS_MAX;
    let mut attempts = Vec::new();
    for &recorder in recorders {
        match attempt(recorder, dial, dials_end).await {
            Ok(upload) => return Ok(upload),
            Err(error) => {
                tracing::info!(%recorder, %error, "recorder does not take the session");
                attempts.push((recorder, error));
            }
        }
    }
    Err(ConnectError { attempts })
}

async fn attempt<D: Dial>(
    recorder: SocketAddr,
    dial: &D,
    dials_end: Instant,
) -> Result<Upload, AttemptError> {
    let begin = Instant::now();
    let stream = timeout_at(dials_end.min(begin + DIAL_MAX), dial.dial(recorder))
        .await
        .map_err(|_| AttemptError::DialTimedOut)?
        .map_err(AttemptError::Dial)?;

    let (mut connection, probe) = timeout_at(begin + PROBE_MAX, async {
        let mut connection = Connection::open(stream).await?;
        let probe = connection
            .send(recorder, Method::HEAD, UploadBody::empty())
            .await?;
        Ok((connection, probe))
    })
    .await
    .map_err(|_| AttemptError::ProbeTimedOut)?
    .map_err(AttemptError::Http)?;
    if probe.status() != StatusCode::OK {
        let status = probe.status();
        return Err(AttemptError::ProbeRefused { status });
    }

    let (sender, body) = UploadBody::channel();
    let answer = timeout(ANSWER_MAX, connection.send(recorder, Method::POST, body))
        .await
        .map_err(|_| AttemptError::AnswerTimedOut)?
        .map_err(AttemptError::Http)?;
    if answer.status() != StatusCode::OK {
        return Err(refusal(&answer));
    }
    Ok(Upload::new(
        recorder,
        connection,
        sender,
        answer.into_body(),
    ))
}

fn refusal(answer: &Response<Incoming>) -> AttemptError {
    let reason = answer.headers().get("tailtape-reason");
    AttemptError::Refused {
        status: answer.status(),
        reason: reason.and_then(|reason| reason.to_str().ok().map(str::to_owned)),
    }
}

/// One HTTP/2 connection. Dropping it lets the connection say goodbye for up to [`CLOSE_MAX`], and then cuts it.
#[derive(Debug)]
pub(super) struct Connection {
    requests: http2::SendRequest<UploadBody>,
    _released: DropGuard,
    driver: tokio::task::JoinHandle<()>,
}

impl Connection {
    async fn open<S>(stream: S) -> Result<Self, hyper::Error>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (requests, connection) = http2::Builder::new(TokioExecutor::new())
            .max_send_buf_size(UNSENT_BYTES_MAX)
            .handshake(TokioIo::new(stream))
            .await?;
        let released = CancellationToken::new();
        let on_release = released.clone();
        let driver = tokio::spawn(async move {
            let mut connection = std::pin::pin!(connection);
            let end = tokio::select! {
                end = &mut connection => Some(end),
                () = on_release.cancelled() => timeout(CLOSE_MAX, connection).await.ok(),
            };
            match end {
                Some(Ok(())) => tracing::debug!("connection to the recorder closed"),
                Some(Err(error)) => tracing::debug!(%error, "connection to the recorder lost"),
                None => tracing::debug!("connection to the recorder cut"),
            }
        });
        Ok(Self {
            requests,
            _released: released.drop_guard(),
            driver,
        })
    }

    async fn send(
        &mut self,
        recorder: SocketAddr,
        method: Method,
        body: UploadBody,
    ) -> Result<Response<Incoming>, hyper::Error> {
        self.requests.ready().await?;
        self.requests
            .send_request(request(recorder, method, body))
            .await
    }

    /// Lets go of the connection, and returns when it is closed: after at most [`CLOSE_MAX`].
    pub(super) async fn close(self) {
        let Self {
            requests,
            _released: released,
            driver,
        } = self;
        drop(requests);
        drop(released);
        if let Err(error) = driver.await {
            tracing::debug!(%error, "the connection's task ended early");
        }
    }
}

fn request(recorder: SocketAddr, method: Method, body: UploadBody) -> Request<UploadBody> {
    let mut request = Request::new(body);
    *request.method_mut() = method;
    // A socket address and a constant path always make a URI; were it not so, the recorder would answer 404 to "/".
    *request.uri_mut() = format!("http://{recorder}{RECORD_PATH}")
        .parse()
        .unwrap_or_default();
    request.headers_mut().insert(
        http::header::USER_AGENT,
        http::HeaderValue::from_static(concat!("tailtape/", env!("CARGO_PKG_VERSION"))),
    );
    request
}

struct ReasonText<'a>(Option<&'a str>);

impl fmt::Display for ReasonText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(reason) => write!(f, " ({})", reason.escape_debug()),
            None => Ok(()),
        }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.attempts.is_empty() {
            return write!(f, "there is no recorder to send the session to");
        }
        write!(f, "no recorder takes the session")?;
        for (recorder, error) in &self.attempts {
            write!(f, "; {recorder}: {error}")?;
            let mut cause = error.source();
            while let Some(source) = cause {
                write!(f, ": {source}")?;
                cause = source.source();
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConnectError {}

#[cfg(test)]
mod tests;
