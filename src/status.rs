//! The Unix socket: status, health and drain, as HTTP/1.1 with JSON.
//!
//! ```text
//! GET  /v1/status   200, a Status
//! GET  /v1/health   200 or 503, a Health
//! POST /v1/drain    202; new uploads are refused from now on
//! ```
//!
//! Invariants: whoever may open the socket file (mode 0600) may ask, and nobody else can; requests, connections and their time are bounded; no body of a
//! request is read. Served for the wiring, which implements [`Admin`]; the commands of the same names are its [`Client`].

mod client;
mod harm;
mod report;
mod socket;
mod text;

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;

pub use client::Client;
pub use report::{
    ControlReport, Health, NetworkReport, NodeReport, OpenRecording, Phase, Status, StoreReport,
};
pub use socket::{AdminSocket, Found};
pub(crate) use text::time_text;

/// Connections at one time; each is one command.
const CONNECTIONS_MAX: usize = 32;
/// How long one connection may last.
const CONNECTION_DURATION_MAX: Duration = Duration::from_secs(10);
/// How long a request head may take.
const HEAD_DURATION_MAX: Duration = Duration::from_secs(5);
/// The least that hyper takes; a head of ours has a hundred bytes.
const BUFFER_BYTES_MAX: usize = 8 * 1024;
/// Fields of a head.
const HEADERS_MAX: usize = 16;
/// Pause after a failed accept, which means that descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the socket asks of the recorder. The calls are quick: they take no lock that is held over IO.
pub trait Admin: Send + Sync + 'static {
    /// A picture of now.
    fn status(&self) -> Status;

    /// Whether all is well, and what is not.
    fn health(&self) -> Health;

    /// Refuses new uploads from now on. More than once is the same as once.
    fn drain(&self);
}

/// Why the socket cannot be served or asked.
#[derive(Debug, Error)]
pub enum StatusError {
    /// Another recorder serves it.
    #[error("another recorder serves {}", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// What stands at the path is no socket.
    #[error("{} is no socket", path.display())]
    NoSocket {
        /// The path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("{step} {}", path.display())]
    System {
        /// What was tried.
        step: &'static str,
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Nobody serves it.
    #[error("no recorder answers at {}", path.display())]
    NotServed {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The answer broke off.
    #[error("ask the recorder at {}", path.display())]
    Http {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer in time.
    #[error("the recorder at {} did not answer within {waited:?}", path.display())]
    Unanswered {
        /// The socket.
        path: PathBuf,
        /// How long we waited.
        waited: Duration,
    },
    /// The answer is not what this version expects: the recorder is of another.
    #[error("the recorder at {} answered {status}, which this version does not understand", path.display())]
    Answer {
        /// The socket.
        path: PathBuf,
        /// The HTTP status.
        status: u16,
    },
}

/// Answers on the socket until the future is dropped.
pub async fn serve(socket: AdminSocket, admin: Arc<impl Admin>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match socket.accept().await {
            Ok(stream) => {
                let admin = Arc::clone(&admin);
                tokio::spawn(async move {
                    let answered = answer_all(stream, admin);
                    if tokio::time::timeout(CONNECTION_DURATION_MAX, answered)
                        .await
                        .is_err()
                    {
                        tracing::debug!("a connection to the Unix socket lasted too long");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the Unix socket cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn answer_all(stream: UnixStream, admin: Arc<impl Admin>) {
    let service = service_fn(|request| {
        let response = answer(&request, &*admin);
        async move { Ok::<_, Infallible>(response) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DURATION_MAX)
        .max_buf_size(BUFFER_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the Unix socket ended");
    }
}

fn answer(request: &Request<Incoming>, admin: &impl Admin) -> Response<Full<Bytes>> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, client::STATUS) => json(StatusCode::OK, &admin.status()),
        (&Method::GET, client::HEALTH) => {
            let health = admin.health();
            let status = match health.healthy() {
                true => StatusCode::OK,
                false => StatusCode::SERVICE_UNAVAILABLE,
            };
            json(status, &health)
        }
        (&Method::POST, client::DRAIN) => {
            admin.drain();
            json(StatusCode::ACCEPTED, &serde_json::json!({"draining": true}))
        }
        _ => json(
            StatusCode::NOT_FOUND,
            &serde_json::json!({"error": "no such endpoint"}),
        ),
    }
}

fn json(status: StatusCode, value: &impl Serialize) -> Response<Full<Bytes>> {
    let (status, body) = match serde_json::to_vec(value) {
        Ok(body) => (status, body),
        Err(error) => {
            tracing::error!(%error, "an answer has no JSON form");
            (StatusCode::INTERNAL_SERVER_ERROR, Vec::new())
        }
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    let kind = http::HeaderValue::from_static("application/json");
    headers.insert(header::CONTENT_TYPE, kind);
    // One command is one question.
    let close = http::HeaderValue::from_static("close");
    headers.insert(header::CONNECTION, close);
    response
}

#[cfg(test)]
mod tests;
