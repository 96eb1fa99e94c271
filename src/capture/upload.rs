//! One session on its way up to a recorder that took it: bytes up, ack frames down.
//!
//! The invariant: the recorder sees a clean end only through [`Upload::finish`]; a dropped or failed upload ends with a reset, and
//! is stored as incomplete. A recorder that gives no frame for [`SILENCE_MAX`] is dead. Whoever records a session holds one.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;

use super::ack_frames::{AckDecoder, AckFrame, AckFrameError};
use super::ack_latency::AckLatency;
use super::recorder_client::Connection;
use super::upload_body::BodyPart;

/// How long a recorder may be silent; the stock client's limit. Only a whole frame counts as a sign of life.
pub const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Why an upload ended without being whole.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The recorder said so.
    #[error("recorder {recorder} could not keep the recording: {message:?}")]
    Failed {
        /// Who said it.
        recorder: SocketAddr,
        /// Its words.
        message: String,
    },
    /// No frame for [`SILENCE_MAX`].
    #[error("recorder {recorder} gave no sign of life for {} s", SILENCE_MAX.as_secs())]
    Silent {
        /// Who was silent.
        recorder: SocketAddr,
    },
    /// What it sent are not ack frames.
    #[error("cannot read the acks of recorder {recorder}")]
    Acks {
        /// Who sent it.
        recorder: SocketAddr,
        /// What is wrong with it.
        #[source]
        source: AckFrameError,
    },
    /// The connection or the stream was lost.
    #[error("lost recorder {recorder}")]
    Lost {
        /// Who was lost.
        recorder: SocketAddr,
        /// How.
        #[source]
        source: hyper::Error,
    },
    /// The recorder ended its answer while the session went on.
    #[error("recorder {recorder} ended the recording before the session ended")]
    EndedEarly {
        /// Who ended it.
        recorder: SocketAddr,
    },
}

/// How far an upload is, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes handed over.
    pub sent_bytes: u64,
    /// Of these, bytes that the recorder called durable.
    pub acked_bytes: u64,
    /// From a write to its ack, the newest sample.
    pub last_ack: Option<Duration>,
}

/// What is known when the recorder has closed a whole upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uploaded {
    /// Who has it.
    pub recorder: SocketAddr,
    /// Bytes handed over.
    pub sent_bytes: u64,
    /// Bytes that the recorder called durable: fewer than were sent if its last ack came short.
    pub acked_bytes: u64,
    /// From each write to the ack that covered it, oldest first; only the newest if there were very many.
    pub ack_latencies: Vec<Duration>,
    /// Acks that ran ahead of the bytes sent, or fell back.
    pub untrue_acks: u64,
}

/// A session that a recorder has agreed to take. Cancel-safe: a call dropped halfway has either happened or not.
#[derive(Debug)]
pub struct Upload {
    recorder: SocketAddr,
    connection: Connection,
    body: mpsc::Sender<BodyPart>,
    latency: Arc<Mutex<AckLatency>>,
    answer: AbortOnDropHandle<Result<(), UploadError>>,
    answer_ended: CancellationToken,
    /// The answer's end was told once; the handle must not be polled again.
    answer_taken: bool,
}

impl Upload {
    pub(super) fn new(
        recorder: SocketAddr,
        connection: Connection,
        body: mpsc::Sender<BodyPart>,
        answer: Incoming,
    ) -> Self {
        let latency = Arc::new(Mutex::new(AckLatency::new()));
        let answer_ended = CancellationToken::new();
        let on_end = answer_ended.clone().drop_guard();
        let reader = read_acks(recorder, answer, Arc::clone(&latency), on_end);
        Self {
            recorder,
            connection,
            body,
            latency,
            answer: AbortOnDropHandle::new(tokio::spawn(reader)),
            answer_ended,
            answer_taken: false,
        }
    }

    /// Who takes the session.
    #[must_use]
    pub fn recorder(&self) -> SocketAddr {
        self.recorder
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let latency = lock(&self.latency);
        Progress {
            sent_bytes: latency.sent_bytes(),
            acked_bytes: latency.acked_bytes(),
            last_ack: latency.last(),
        }
    }

    /// Hands `bytes` over, as one DATA frame. Waits while the recorder's windows are closed: that is how a slow recorder slows the
    /// session. Nothing is sent for no bytes.
    ///
    /// # Errors
    /// The upload has ended.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), UploadError> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.send(BodyPart::Chunk(bytes)).await
    }

    /// Returns when the upload has ended before its time, and why; until then it waits. For sessions that have nothing to
    /// write, and must hear of it all the same.
    pub async fn ended(&mut self) -> UploadError {
        match self.answer_end().await {
            Ok(()) => UploadError::EndedEarly {
                recorder: self.recorder,
            },
            Err(error) => error,
        }
    }

    /// Ends the recording, waits until the recorder has closed it too, and closes the connection.
    ///
    /// # Errors
    /// The upload has ended before, or the recorder could not close it. A recorder that keeps acking may take its time.
    pub async fn finish(mut self) -> Result<Uploaded, UploadError> {
        self.send(BodyPart::End).await?;
        self.answer_end().await?;
        self.connection.close().await;
        let latency = lock(&self.latency);
        Ok(Uploaded {
            recorder: self.recorder,
            sent_bytes: latency.sent_bytes(),
            acked_bytes: latency.acked_bytes(),
            ack_latencies: latency.samples().collect(),
            untrue_acks: latency.untrue_acks(),
        })
    }

    async fn send(&mut self, part: BodyPart) -> Result<(), UploadError> {
        let sent = tokio::select! {
            biased;
            () = self.answer_ended.cancelled() => false,
            place = self.body.reserve() => match place {
                Ok(place) => {
                    self.time_write(&part);
                    place.send(part);
                    true
                }
                Err(_) => false,
            },
        };
        match sent {
            true => Ok(()),
            false => Err(self.ended().await),
        }
    }

    fn time_write(&self, part: &BodyPart) {
        if let BodyPart::Chunk(bytes) = part {
            let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            lock(&self.latency).handle_write(length, Instant::now().into_std());
        }
    }

    async fn answer_end(&mut self) -> Result<(), UploadError> {
        let recorder = self.recorder;
        if self.answer_taken {
            return Err(UploadError::EndedEarly { recorder });
        }
        let end = (&mut self.answer).await;
        self.answer_taken = true;
        // The task is aborted only when this handle is dropped. Were it to panic, nobody would know how the upload ended.
        end.unwrap_or(Err(UploadError::EndedEarly { recorder }))
    }
}

async fn read_acks(
    recorder: SocketAddr,
    mut answer: Incoming,
    latency: Arc<Mutex<AckLatency>>,
    _on_end: DropGuard,
) -> Result<(), UploadError> {
    let unreadable = |source| UploadError::Acks { recorder, source };
    let mut decoder = AckDecoder::new();
    let mut deadline = Instant::now() + SILENCE_MAX;
    loop {
        let Ok(part) = timeout_at(deadline, answer.frame()).await else {
            return Err(UploadError::Silent { recorder });
        };
        let part = match part {
            Some(Ok(part)) => part,
            Some(Err(source)) => return Err(UploadError::Lost { recorder, source }),
            None => return decoder.handle_end().map_err(unreadable),
        };
        let Ok(bytes) = part.into_data() else {
            continue; // Trailers say nothing here.
        };
        let now = Instant::now();
        let mut failure = None;
        let read = decoder.handle_bytes(&bytes, |frame| {
            deadline = now + SILENCE_MAX;
            match frame {
                AckFrame::Durable { acked_bytes: 0 } => {}
                AckFrame::Durable { acked_bytes } => {
                    lock(&latency).handle_ack(acked_bytes, now.into_std());
                }
                AckFrame::Failed { message } => failure = failure.take().or(Some(message)),
            }
        });
        if let Some(message) = failure {
            return Err(UploadError::Failed { recorder, message });
        }
        read.map_err(unreadable)?;
    }
}

fn lock(latency: &Mutex<AckLatency>) -> MutexGuard<'_, AckLatency> {
    latency.lock().unwrap_or_else(PoisonError::into_inner)
}
