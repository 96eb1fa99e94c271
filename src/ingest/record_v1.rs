//! `POST /record`: HTTP/1.1, a chunked body after `100 Continue`, and one status at its end.
//!
//! Invariants: the recording has begun before the first byte is asked for, so a refusal comes instead of `100 Continue`; the 200 says that the whole body is
//! durable and sealed, and comes no sooner than the hold after its end; a recording that does not end well gets no status, the connection is closed
//! under it. Begun by the [`routes`](super::routes); the upload itself is a [`session`](super::session). A body may be silent for days, so nothing but TCP
//! finds an uploader that is gone without a word.

use std::time::Duration;

use http::Response;
use hyper::body::Incoming;
use tokio::sync::mpsc;

use super::begin::Begun;
use super::response::{ResponseBody, accepted};
use super::session::{Reply, now};
use super::sink::RecordingWriter;
use super::upload::{Upload, UploadConfig};

/// Path of session uploads without ack frames.
pub(super) const PATH: &str = "/record";

/// There is nobody to send a frame to, so the machine need not wake for one.
const NO_FRAMES: Duration = Duration::from_secs(24 * 60 * 60);

/// The recording did not end well: the connection is closed without a status.
#[derive(Debug, thiserror::Error)]
#[error(
    "the recording ended before its body did, or is not stored: the connection is closed without a status"
)]
pub(super) struct NotStored;

/// Waits for the end of the upload. hyper sends `100 Continue` when the task first asks for the body.
///
/// # Errors
/// [`NotStored`]: hyper then closes the connection.
pub(super) async fn record<W: RecordingWriter>(
    body: Incoming,
    begun: Begun<W>,
) -> Result<Response<ResponseBody>, NotStored> {
    let (status, mut stored) = mpsc::channel(1);
    let config = UploadConfig {
        ack_interval_min: NO_FRAMES,
        ack_interval_max: NO_FRAMES,
        ..begun.config()
    };
    let upload = Upload::new(now(), config);
    begun.spawn(upload, Reply::Status(status), body);
    match stored.recv().await {
        Some(_stored) => Ok(accepted()),
        None => Err(NotStored),
    }
}
