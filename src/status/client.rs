//! Asks a recorder over its Unix socket.
//!
//! Invariant: an answer is bounded in size and time. Called by the commands `status`, `health` and `drain`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::report::{Health, Status};
use super::{StatusError, text};

pub(super) const STATUS: &str = "/v1/status";
pub(super) const HEALTH: &str = "/v1/health";
pub(super) const DRAIN: &str = "/v1/drain";

/// How long one question may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest answer: a thousand recordings with 64 KiB of identity each would be more, and is no recorder of ours.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Where to ask.
#[derive(Debug, Clone)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// A client of the recorder at `path`; nothing is opened yet.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// A picture of the recorder.
    ///
    /// # Errors
    /// [`StatusError`].
    pub async fn status(&self) -> Result<Status, StatusError> {
        let (status, body) = self.ask(Method::GET, STATUS).await?;
        self.read(status, &body, &[StatusCode::OK])
    }

    /// Whether all is well.
    ///
    /// # Errors
    /// [`StatusError`].
    pub async fn health(&self) -> Result<Health, StatusError> {
        let (status, body) = self.ask(Method::GET, HEALTH).await?;
        let expected = [StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE];
        self.read(status, &body, &expected)
    }

    /// Asks the recorder to refuse new uploads from now on.
    ///
    /// # Errors
    /// [`StatusError`].
    pub async fn drain(&self) -> Result<(), StatusError> {
        let (status, body) = self.ask(Method::POST, DRAIN).await?;
        let read = self.read::<serde_json::Value>(status, &body, &[StatusCode::ACCEPTED]);
        read.map(drop)
    }

    fn read<T: DeserializeOwned>(
        &self,
        status: StatusCode,
        body: &[u8],
        expected: &[StatusCode],
    ) -> Result<T, StatusError> {
        let other = || StatusError::Answer {
            path: self.path.clone(),
            status: status.as_u16(),
        };
        if !expected.contains(&status) {
            return Err(other());
        }
        serde_json::from_slice(body).map_err(|_| other())
    }

    async fn ask(&self, method: Method, path: &str) -> Result<(StatusCode, Bytes), StatusError> {
        let asked = tokio::time::timeout(ANSWER_TIMEOUT, self.exchange(method, path));
        asked.await.unwrap_or_else(|_| {
            Err(StatusError::Unanswered {
                path: self.path.clone(),
                waited: ANSWER_TIMEOUT,
            })
        })
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
    ) -> Result<(StatusCode, Bytes), StatusError> {
        let stream = UnixStream::connect(&self.path).await;
        let stream = stream.map_err(|source| StatusError::NotServed {
            path: self.path.clone(),
            source,
        })?;
        let (mut requests, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(error))?;
        // How the connection ends is seen in the answer.
        let connection = tokio::spawn(async move { drop(connection.await) });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, "recorder")
            .body(Empty::<Bytes>::new())
            .map_err(|error| self.broken(error))?;
        let response = requests.send_request(request).await;
        let response = response.map_err(|error| self.broken(error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
        let body = body.collect().await.map_err(|error| self.broken(error))?;
        connection.abort();
        Ok((status, body.to_bytes()))
    }

    fn broken(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> StatusError {
        StatusError::Http {
            path: self.path.clone(),
            source: source.into(),
        }
    }
}

impl Status {
    /// For a person; lines are cut at `columns`, if there is such a width.
    #[must_use]
    pub fn to_text(&self, columns: Option<usize>) -> String {
        text::status(self, columns)
    }
}
