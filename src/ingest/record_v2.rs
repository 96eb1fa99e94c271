//! `POST /v2/record`: bytes up, ack frames down, in one task per upload.
//!
//! Invariants: the response head never waits for a byte of the body; the body is read only when the store took what came before (that is the
//! back-pressure); frames go on whatever the task waits for; every byte that arrived before a reset is appended before the recording is closed.
//! Started by the routes of [`ingest`](super); decisions are [`upload`](super::upload)'s.

use std::error::Error;
use std::pin::{Pin, pin};
use std::time::Duration;

use http::Response;
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::response::{self, FrameSender, ResponseBody};
use super::sink::RecordingWriter;
use super::upload::{Upload, UploadConfig, UploadEnd};
use crate::store::{Durable, End};

/// Timer of an upload that waits for nothing.
const FAR_FUTURE: Duration = Duration::from_secs(24 * 60 * 60);

/// Makes the response and the task that belongs to it.
pub(super) fn record<W: RecordingWriter>(
    body: Incoming,
    writer: W,
    config: UploadConfig,
    shutdown: CancellationToken,
    drain_limit: Duration,
) -> (
    Response<ResponseBody>,
    impl Future<Output = ()> + Send + 'static,
) {
    let (frames, response) = response::frames();
    let mut durable = writer.durable();
    // What the store said before this receiver existed counts too.
    durable.mark_changed();
    let session = Session {
        upload: Upload::new(now(), config),
        durable: Some(durable),
        frames: Some(frames),
        timer: Box::pin(tokio::time::sleep(FAR_FUTURE)),
        drain: Some(Box::pin(async move {
            shutdown.cancelled().await;
            tokio::time::sleep(drain_limit).await;
        })),
    };
    let span = tracing::info_span!("upload", recording = %writer.id());
    let task = session.run(body, writer).instrument(span);
    (response, task)
}

/// The shell around one [`Upload`]: what it hears, and where its frames go.
struct Session {
    upload: Upload,
    /// `None` once the store has said its last word.
    durable: Option<watch::Receiver<Durable>>,
    /// `None` once the response is over.
    frames: Option<FrameSender>,
    timer: Pin<Box<Sleep>>,
    /// Resolves when a running upload may go on no longer; `None` once it has.
    drain: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Session {
    async fn run<W: RecordingWriter>(mut self, mut body: Incoming, mut writer: W) {
        self.receive(&mut body, &mut writer).await;
        // What is still buffered of a body that nobody reads is let go.
        drop(body);
        let (clean, reason) = self
            .upload
            .outcome()
            .map_or((false, String::new()), |outcome| {
                (outcome.clean, outcome.reason.clone())
            });
        let end = End {
            clean,
            reason: reason.clone(),
            ended_at: jiff::Timestamp::now(),
            flags: Vec::new(),
        };
        match self.during(writer.finish(end)).await {
            Ok(sealed) => {
                tracing::info!(bytes = sealed.bytes, clean, reason, "recording sealed");
                self.upload.handle_sealed(now(), sealed.bytes);
            }
            Err(error) => {
                tracing::error!(
                    clean,
                    reason,
                    error = error.with_causes(),
                    "recording not sealed"
                );
                self.upload.handle_failed(now(), error.to_string());
            }
        }
        while self.frames.is_some() {
            self.step().await;
        }
    }

    /// Reads until the machine wants no more.
    async fn receive<W: RecordingWriter>(&mut self, body: &mut Incoming, writer: &mut W) {
        while self.upload.is_receiving() {
            let end = match self.while_receiving(body.frame()).await {
                None => return,
                Some(Some(Ok(frame))) => {
                    // Trailers mean nothing here.
                    if let Ok(bytes) = frame.into_data() {
                        self.upload.handle_bytes(now(), &bytes);
                        if let Some(Err(error)) = self.while_receiving(writer.append(bytes)).await {
                            self.upload.handle_failed(now(), error.to_string());
                        }
                    }
                    continue;
                }
                Some(Some(Err(error))) => UploadEnd::Reset(chain(&error)),
                // hyper shows a reset with NO_ERROR as an ordinary end of the body, and its own for a PING that was not answered.
                Some(None) if !body.is_end_stream() => UploadEnd::Reset(
                    "the stream ended without an error before the body did: the uploader reset it, or no longer answers"
                        .to_owned(),
                ),
                Some(None) => UploadEnd::Clean,
            };
            self.upload.handle_end(now(), end);
        }
    }

    /// Waits for `work` while frames go on; `None` when the machine wants no more bytes.
    async fn while_receiving<F: Future>(&mut self, work: F) -> Option<F::Output> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                () = self.step() => if !self.upload.is_receiving() {
                    return None;
                },
                output = &mut work => return Some(output),
            }
        }
    }

    /// Waits for `work` to the end while frames go on.
    async fn during<F: Future>(&mut self, work: F) -> F::Output {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                () = self.step() => {}
                output = &mut work => return output,
            }
        }
    }

    /// Waits for one thing to happen and tells the machine. Cancel-safe: what was not told has not happened yet.
    async fn step(&mut self) {
        self.upload.handle_timeout(now());
        if self.upload.is_closed()
            && let Some(frames) = self.frames.take()
        {
            frames.end();
            return;
        }
        let due = self.upload.is_frame_due(now());
        let wake = if due || self.frames.is_none() {
            None
        } else {
            self.upload.poll_timeout().map(Instant::from_std)
        };
        if let Some(wake) = wake
            && self.timer.deadline() != wake
        {
            self.timer.as_mut().reset(wake);
        }
        let unread = tokio::select! {
            biased;
            permit = next_permit(self.frames.as_ref()), if due => match permit {
                Some(permit) => {
                    if let Some(frame) = self.upload.poll_frame(now()) {
                        permit.send(frame.encode());
                    }
                    false
                }
                None => true,
            },
            durable = next_durable(&mut self.durable) => {
                self.upload.handle_durable(now(), durable.offset);
                if let Some(error) = durable.failed {
                    self.durable = None;
                    self.upload.handle_failed(now(), error.to_string());
                }
                false
            }
            () = drained(&mut self.drain) => {
                let reason = "the recorder is stopping".to_owned();
                self.upload.handle_end(now(), UploadEnd::Shutdown(reason));
                false
            }
            () = self.timer.as_mut(), if wake.is_some() => false,
        };
        if unread {
            // The stream was reset or the connection is gone; the body says so after its last bytes.
            self.frames = None;
        }
    }
}

async fn next_permit(
    frames: Option<&FrameSender>,
) -> Option<tokio::sync::mpsc::Permit<'_, bytes::Bytes>> {
    match frames {
        Some(frames) => frames.ready().await,
        None => std::future::pending().await,
    }
}

/// The next report of the store; its last one when it hangs up, and never another after that.
async fn next_durable(durable: &mut Option<watch::Receiver<Durable>>) -> Durable {
    match durable {
        None => std::future::pending().await,
        Some(receiver) => {
            let alive = receiver.changed().await.is_ok();
            let report = receiver.borrow_and_update().clone();
            if !alive {
                *durable = None;
            }
            report
        }
    }
}

async fn drained(drain: &mut Option<Pin<Box<dyn Future<Output = ()> + Send>>>) {
    match drain {
        None => std::future::pending().await,
        Some(future) => {
            future.await;
            *drain = None;
        }
    }
}

/// The clock of this shell; tokio's, so that tests can hold it.
fn now() -> std::time::Instant {
    Instant::now().into_std()
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
