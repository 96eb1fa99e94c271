//! `POST /v2/record`: bytes up, ack frames down, in one task per upload.
//!
//! Invariant: the response head never waits for a byte of the body. Begun by the [`routes`](super::routes); the upload itself is a
//! [`session`](super::session).

use http::Response;
use hyper::body::Incoming;

use super::begin::Begun;
use super::response::{self, ResponseBody};
use super::session::{Reply, now};
use super::sink::RecordingWriter;
use super::upload::Upload;

/// Path of session uploads with ack frames.
pub(super) const PATH: &str = "/v2/record";

/// The answer, whose frames follow as the upload goes on in its task.
pub(super) fn record<W: RecordingWriter>(
    body: Incoming,
    begun: Begun<W>,
) -> Response<ResponseBody> {
    let (frames, response) = response::frames();
    let upload = Upload::new(now(), begun.config());
    begun.spawn(upload, Reply::Frames(frames), body);
    response
}
