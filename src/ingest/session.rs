//! The shell around one upload: reads the body, writes the store, sends what the machine owes.
//!
//! Invariants: the body is read only when the store took what came before (that is the back-pressure); frames go on whatever the task waits for; every
//! byte that arrived before a reset, or before we ended the upload, is appended before the recording is closed; once the answer is over, nothing of the connection is held while the
//! store still seals. Started by [`record_v1`](super::record_v1) and [`record_v2`](super::record_v2); decisions are [`upload`](super::upload)'s.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Sleep};

use super::ack::AckFrame;
use super::arrived::Arrived;
use super::claim::{self, Claim, ClaimReader, Directory};
use super::connection::{BodyEnd, Running};
use super::response::FrameSender;
use super::shares::Share;
use super::sink::RecordingWriter;
use super::stats::Counters;
use super::upload::{Cause, Upload, UploadEnd};
use super::uploads::Slot;
use crate::store::{Durable, End, StoreHealth};
use crate::tell::with_causes;

/// Timer of an upload that waits for nothing.
const FAR_FUTURE: Duration = Duration::from_secs(24 * 60 * 60);

/// Where the machine's frames go.
pub(super) enum Reply {
    /// Down the response body, as they are owed.
    Frames(FrameSender),
    /// Nowhere: one status at the end says it all. Nothing is sent when the recording did not end well.
    Status(mpsc::Sender<Stored>),
}

/// Everything that was sent is durable and sealed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stored;

/// What a session works with; the body and the writer are given to [`Session::run`].
pub(super) struct Parts {
    pub(super) upload: Upload,
    pub(super) reply: Reply,
    pub(super) durable: watch::Receiver<Durable>,
    pub(super) health: watch::Receiver<StoreHealth>,
    pub(super) slot: Slot,
    /// Grows with what had arrived when the upload was ended.
    pub(super) arrived: Share,
    pub(super) running: Running,
    pub(super) counters: Arc<Counters>,
    pub(super) directory: Option<Directory>,
    /// Resolves when a running upload may go on no longer.
    pub(super) drained: Pin<Box<dyn Future<Output = ()> + Send>>,
    pub(super) body_end: BodyEnd,
}

/// The shell around one [`Upload`]: what it hears, and where its frames go.
pub(super) struct Session {
    upload: Upload,
    /// `None` once the response is over, and with it what it holds of the connection.
    reply: Option<(Reply, Running)>,
    /// An error frame was the last word.
    told_error: bool,
    /// `None` once the store has said its last word.
    durable: Option<watch::Receiver<Durable>>,
    health: Option<watch::Receiver<StoreHealth>>,
    termination: Option<watch::Receiver<Option<String>>>,
    slot: Slot,
    /// What the store has not taken of the body by the time it is read no more.
    arrived: Arrived,
    counters: Arc<Counters>,
    timer: Pin<Box<Sleep>>,
    /// `None` once it has resolved.
    drained: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    body_end: BodyEnd,
    /// `None` once the header was read, or is not to be.
    claim: Option<(ClaimReader, Directory)>,
    flags: Vec<String>,
}

impl Session {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts {
            mut durable,
            mut health,
            slot,
            ..
        } = parts;
        // What the store said before these receivers existed counts too.
        durable.mark_changed();
        health.mark_changed();
        Self {
            upload: parts.upload,
            reply: Some((parts.reply, parts.running)),
            told_error: false,
            durable: Some(durable),
            health: Some(health),
            termination: Some(slot.termination()),
            slot,
            arrived: Arrived::new(parts.arrived),
            counters: parts.counters,
            timer: Box::pin(tokio::time::sleep(FAR_FUTURE)),
            drained: Some(parts.drained),
            body_end: parts.body_end,
            claim: parts
                .directory
                .map(|directory| (ClaimReader::default(), directory)),
            flags: Vec::new(),
        }
    }

    /// Takes the body to its end and the recording to its seal.
    pub(super) async fn run<W: RecordingWriter>(mut self, mut body: Incoming, mut writer: W) {
        self.counters.recordings.increase();
        self.receive(&mut body, &mut writer).await;
        self.read_arrived(&mut body);
        // What is still buffered of a body that nobody reads is let go.
        drop(body);
        self.slot.ended();
        let ended_at = jiff::Timestamp::now();
        let (cause, mut reason) = self
            .upload
            .outcome()
            .map_or((Cause::Failed, String::new()), |outcome| {
                (outcome.cause, outcome.reason.clone())
            });
        count_end(&self.counters, cause);
        if cause == Cause::Reset {
            // Nobody is left to read the rest of the answer.
            self.reply = None;
        }
        self.flags.extend(cause.flag().map(str::to_owned));
        self.append_arrived(&mut writer).await;
        let lost_bytes = self.arrived.lost_bytes();
        if lost_bytes > 0 {
            tracing::warn!(
                lost_bytes,
                "too much of ended uploads waits for the store: this is not kept"
            );
            reason = format!(
                "{reason}; {lost_bytes} bytes that had arrived are not kept: arrived_bytes_max"
            );
        }
        let clean = cause == Cause::Complete;
        let end = End {
            clean,
            reason: reason.clone(),
            ended_at,
            flags: std::mem::take(&mut self.flags),
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
                self.upload.handle_failed(now(), error.for_peers());
            }
        }
        while self.reply.is_some() {
            self.step().await;
        }
    }

    /// Reads until the machine wants no more.
    async fn receive<W: RecordingWriter>(&mut self, body: &mut Incoming, writer: &mut W) {
        while self.upload.is_receiving() {
            let end = match self.while_receiving(body.frame()).await {
                None => return,
                Some(Some(Ok(frame))) => match frame.into_data() {
                    Ok(bytes) => match self.append(bytes, writer).await {
                        None => continue,
                        Some(end) => end,
                    },
                    // They mean nothing in HTTP/2, where the end of the stream says it all. No stock client sends any.
                    Err(_trailers) => match self.body_end {
                        BodyEnd::Http2 => continue,
                        BodyEnd::Http1 { .. } => {
                            UploadEnd::Reset("trailers follow the body".to_owned())
                        }
                    },
                },
                Some(Some(Err(error))) => UploadEnd::Reset(with_causes(&error)),
                Some(None) if self.body_end.is_whole(body) => UploadEnd::Clean,
                Some(None) => UploadEnd::Reset(
                    "the stream ended without an error before the body did: the uploader reset it, or no longer answers"
                        .to_owned(),
                ),
            };
            self.upload.handle_end(now(), end);
        }
    }

    /// Appends what the machine takes; says how the upload ends, if that was not all.
    async fn append<W: RecordingWriter>(
        &mut self,
        mut bytes: bytes::Bytes,
        writer: &mut W,
    ) -> Option<UploadEnd> {
        let taken = self.upload.handle_bytes(now(), &bytes);
        let whole = taken == bytes.len();
        bytes.truncate(taken);
        self.count_received(taken);
        match self.while_receiving(writer.append(bytes.clone())).await {
            Some(Ok(())) => self.read_claim(&bytes, writer),
            Some(Err(error)) => self.upload.handle_failed(now(), error.for_peers()),
            // The upload was ended while the store had no room: what is in our hands had come before.
            None => self.arrived.keep(&bytes),
        }
        (!whole).then_some(UploadEnd::TooLong)
    }

    fn count_received(&self, more: usize) {
        self.slot.received(self.upload.received_bytes());
        let more_bytes = u64::try_from(more).unwrap_or(u64::MAX);
        self.counters.recording_bytes.add(more_bytes);
    }

    /// What came before we ended the upload belongs to it, although the store has not asked for it yet.
    fn read_arrived(&mut self, body: &mut Incoming) {
        let upload = &mut self.upload;
        let before = upload.received_bytes();
        self.arrived
            .read(body, |bytes| upload.handle_arrived(bytes));
        let more = self.upload.received_bytes().saturating_sub(before);
        self.count_received(usize::try_from(more).unwrap_or(usize::MAX));
    }

    /// The store takes it when it has room again: behind a stall, when it is back. The uploader is told meanwhile.
    async fn append_arrived<W: RecordingWriter>(&mut self, writer: &mut W) {
        while let Some(bytes) = self.arrived.next() {
            match self.during(writer.append(bytes.clone())).await {
                Ok(()) => self.read_claim(&bytes, writer),
                // The recording has failed; its end says so too.
                Err(error) => return self.upload.handle_failed(now(), error.for_peers()),
            }
        }
    }

    /// Looks up the node that the header names, once it is there.
    fn read_claim<W: RecordingWriter>(&mut self, bytes: &[u8], writer: &mut W) {
        let Some((reader, directory)) = self.claim.take() else {
            return;
        };
        match reader.read(bytes) {
            Claim::Unfinished(reader) => self.claim = Some((reader, directory)),
            Claim::Nothing => {}
            Claim::Header(header) => {
                let Some(note) = claim::source_node(&header, &directory) else {
                    return;
                };
                if !note.mismatch.is_empty() {
                    tracing::warn!(fields = ?note.mismatch, "the header contradicts the tailnet");
                    self.flags.push(claim::MISMATCH_FLAG.to_owned());
                }
                writer.note(note);
            }
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
            && let Some((reply, _running)) = self.reply.take()
        {
            reply.end(self.told_error, self.upload.is_cut_short());
            return;
        }
        let due = self.upload.is_frame_due(now());
        let wake = match (&self.reply, due) {
            (None, _) | (Some(_), true) => self.upload.poll_limit(),
            (Some(_), false) => self.upload.poll_timeout(),
        };
        let wake = wake.map(Instant::from_std);
        if let Some(wake) = wake
            && self.timer.deadline() != wake
        {
            self.timer.as_mut().reset(wake);
        }
        let reply = self.reply.as_ref().map(|(reply, _running)| reply);
        let unread = tokio::select! {
            biased;
            permit = next_permit(reply), if due => match permit {
                Some(permit) => {
                    if let Some(frame) = self.upload.poll_frame(now()) {
                        self.told_error |= matches!(frame, AckFrame::Error(_));
                        permit.send(&frame);
                    }
                    false
                }
                None => true,
            },
            durable = next(&mut self.durable) => {
                self.upload.handle_durable(now(), durable.offset);
                self.slot.durable(durable.offset.0);
                if let Some(error) = durable.failed {
                    self.durable = None;
                    self.upload.handle_failed(now(), error.for_peers());
                }
                false
            }
            health = next(&mut self.health) => {
                match health {
                    StoreHealth::Ready | StoreHealth::Refusing(_) => {}
                    StoreHealth::Stalled(error) => {
                        let reason = format!("the recorder's store is stalled: {error}");
                        self.upload.handle_stalled(now(), reason);
                    }
                    StoreHealth::Ended(error) => {
                        self.upload.handle_failed(now(), error.for_peers());
                    }
                }
                false
            }
            order = next(&mut self.termination) => {
                if let Some(reason) = order {
                    self.upload.handle_end(now(), UploadEnd::Terminated(reason));
                }
                false
            }
            () = drained(&mut self.drained) => {
                let reason = "the recorder is stopping".to_owned();
                self.upload.handle_end(now(), UploadEnd::Shutdown(reason));
                false
            }
            () = hung_up(reply) => true,
            () = self.timer.as_mut(), if wake.is_some() => false,
        };
        if unread {
            // The stream was reset or the connection is gone; the body says so after its last bytes.
            self.reply = None;
        }
    }
}

fn count_end(counters: &Counters, cause: Cause) {
    match cause {
        Cause::Complete => &counters.ended_complete,
        Cause::Reset => &counters.ended_reset,
        Cause::Shutdown => &counters.ended_shutdown,
        Cause::Terminated => &counters.ended_terminated,
        Cause::BytesLimit => &counters.ended_limit_bytes,
        Cause::DurationLimit => &counters.ended_limit_duration,
        Cause::Stalled => &counters.ended_stalled,
        Cause::Failed => &counters.ended_failed,
    }
    .increase();
}

/// Room for one frame.
enum FramePermit<'a> {
    Frame(mpsc::Permit<'a, bytes::Bytes>),
    Swallow,
}

impl FramePermit<'_> {
    fn send(self, frame: &AckFrame) {
        match self {
            Self::Frame(permit) => permit.send(frame.encode()),
            Self::Swallow => {}
        }
    }
}

impl Reply {
    /// Says the last word: a clean end after all frames, or the status if the recording ended well.
    fn end(self, told_error: bool, cut_short: bool) {
        match self {
            // A clean end without the error before it would be taken for a good one: dropped, the stream is reset.
            Self::Frames(frames) if cut_short => drop(frames),
            Self::Frames(frames) => frames.end(),
            Self::Status(status) if told_error || cut_short => drop(status),
            Self::Status(status) => {
                // Fails only when the connection is gone, and then nobody is left to be told.
                if status.try_send(Stored).is_err() {
                    tracing::debug!("nobody waited for the status");
                }
            }
        }
    }
}

async fn next_permit(reply: Option<&Reply>) -> Option<FramePermit<'_>> {
    match reply {
        Some(Reply::Frames(frames)) => frames.ready().await.map(FramePermit::Frame),
        Some(Reply::Status(_)) => Some(FramePermit::Swallow),
        None => std::future::pending().await,
    }
}

/// Completes when nobody waits for the status any more; frames notice by themselves.
async fn hung_up(reply: Option<&Reply>) {
    match reply {
        Some(Reply::Status(status)) => status.closed().await,
        Some(Reply::Frames(_)) | None => std::future::pending().await,
    }
}

/// The next report; the last one when its sender hangs up, and never another after that.
async fn next<T: Clone>(reports: &mut Option<watch::Receiver<T>>) -> T {
    match reports {
        None => std::future::pending().await,
        Some(receiver) => {
            let alive = receiver.changed().await.is_ok();
            let report = receiver.borrow_and_update().clone();
            if !alive {
                *reports = None;
            }
            report
        }
    }
}

async fn drained(drained: &mut Option<Pin<Box<dyn Future<Output = ()> + Send>>>) {
    match drained {
        None => std::future::pending().await,
        Some(future) => {
            future.await;
            *drained = None;
        }
    }
}

/// The clock of this shell; tokio's, so that tests can hold it.
pub(super) fn now() -> std::time::Instant {
    Instant::now().into_std()
}
