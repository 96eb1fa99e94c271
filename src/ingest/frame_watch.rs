//! Ends a connection whose HTTP/2 frames are work and nothing else: floods of control frames, and request heads that never end.
//!
//! ```text
//!  0  3  length of the payload          24-byte preface first, then frames back to back
//!  3  1  type                           (RFC 9113 §4.1)
//!  4  1  flags
//!  5  4  stream
//! ```
//!
//! Invariants: nothing is held but the beginning of a frame; bytes pass unchanged; HTTP/1.1 is only recognised. hyper bounds what it keeps of such frames, but not how
//! many it answers. Wrapped around each stream by the [`connection`](super::connection).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::refused_heads::RefusedHeads;
use super::session::now;
use super::stats::Counters;

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEAD_BYTES: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Frames without content that may come at once. A stock client sends some ten in its life.
const BURST_FRAMES: u32 = 1000;
/// How many more may come each second.
const FRAMES_PER_SECOND: u32 = 100;

/// Why a connection is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Misbehaviour {
    #[error("HTTP/2 flood: more than {BURST_FRAMES} frames without content came at once")]
    Flood,
    #[error("an HTTP/2 request head was not complete in time")]
    SlowHead,
}

/// Reads frame heads as they pass. [`handle_bytes`](Self::handle_bytes) with all that arrives, [`handle_timeout`](Self::handle_timeout) at
/// [`poll_timeout`](Self::poll_timeout); an error is final.
#[derive(Debug)]
pub(super) struct FrameWatch {
    place: Place,
    head_limit: Duration,
    /// Since when a request head is under way.
    head_since: Option<Instant>,
    allowance: u32,
    /// Up to when the allowance has grown.
    grown_at: Instant,
}

#[derive(Debug)]
enum Place {
    /// That many bytes of the preface have come.
    Preface(usize),
    /// Not HTTP/2.
    Other,
    FrameHead {
        bytes: [u8; FRAME_HEAD_BYTES],
        filled: usize,
    },
    Payload {
        left: usize,
        ends_head: bool,
    },
}

const NEXT_FRAME: Place = Place::FrameHead {
    bytes: [0; FRAME_HEAD_BYTES],
    filled: 0,
};

impl FrameWatch {
    pub(super) fn new(now: Instant, head_limit: Duration) -> Self {
        Self {
            place: Place::Preface(0),
            head_limit,
            head_since: None,
            allowance: BURST_FRAMES,
            grown_at: now,
        }
    }

    /// The next bytes that arrived.
    pub(super) fn handle_bytes(
        &mut self,
        now: Instant,
        mut bytes: &[u8],
    ) -> Result<(), Misbehaviour> {
        while let Some((first, after)) = bytes.split_first() {
            match &mut self.place {
                Place::Other => return Ok(()),
                Place::Preface(seen) => {
                    let expected = PREFACE.get(*seen);
                    *seen = seen.saturating_add(1);
                    if expected != Some(first) {
                        self.place = Place::Other;
                    } else if *seen == PREFACE.len() {
                        self.place = NEXT_FRAME;
                    }
                    bytes = after;
                }
                Place::FrameHead {
                    bytes: head,
                    filled,
                } => {
                    if let Some(byte) = head.get_mut(*filled) {
                        *byte = *first;
                    }
                    *filled = filled.saturating_add(1);
                    bytes = after;
                    if *filled == FRAME_HEAD_BYTES {
                        let head = *head;
                        self.handle_frame(now, head)?;
                    }
                }
                Place::Payload { left, ends_head } => {
                    let (passed, rest) = bytes.split_at(bytes.len().min(*left));
                    *left = left.saturating_sub(passed.len());
                    bytes = rest;
                    if *left == 0 {
                        let ends_head = *ends_head;
                        self.end_frame(ends_head);
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether what came last can only be part of an HTTP/1.1 head, or of its body.
    pub(super) const fn is_http_1(&self) -> bool {
        matches!(self.place, Place::Preface(1..) | Place::Other)
    }

    /// Whether what goes out are frames.
    const fn is_http_2(&self) -> bool {
        matches!(self.place, Place::FrameHead { .. } | Place::Payload { .. })
    }

    /// When a head must be complete, if one is under way.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.head_since
            .and_then(|since| since.checked_add(self.head_limit))
    }

    /// Time passed.
    pub(super) fn handle_timeout(&self, now: Instant) -> Result<(), Misbehaviour> {
        match self.poll_timeout() {
            Some(at) if now >= at => Err(Misbehaviour::SlowHead),
            Some(_) | None => Ok(()),
        }
    }

    fn handle_frame(
        &mut self,
        now: Instant,
        head: [u8; FRAME_HEAD_BYTES],
    ) -> Result<(), Misbehaviour> {
        let [high, middle, low, kind, flags, ..] = head;
        let length = u32::from_be_bytes([0, high, middle, low]);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let carries = kind == DATA && (length > 0 || flags & END_STREAM != 0);
        if !carries {
            self.spend(now)?;
        }
        let of_head = kind == HEADERS || kind == CONTINUATION;
        if of_head && self.head_since.is_none() {
            self.head_since = Some(now);
        }
        let ends_head = of_head && flags & END_HEADERS != 0;
        if length == 0 {
            self.end_frame(ends_head);
        } else {
            self.place = Place::Payload {
                left: length,
                ends_head,
            };
        }
        Ok(())
    }

    fn end_frame(&mut self, ends_head: bool) {
        if ends_head {
            self.head_since = None;
        }
        self.place = NEXT_FRAME;
    }

    fn spend(&mut self, now: Instant) -> Result<(), Misbehaviour> {
        let seconds = now.saturating_duration_since(self.grown_at).as_secs();
        if seconds > 0 {
            let grown = u32::try_from(seconds).unwrap_or(u32::MAX);
            let grown = grown.saturating_mul(FRAMES_PER_SECOND);
            self.allowance = self.allowance.saturating_add(grown).min(BURST_FRAMES);
            self.grown_at = now;
        }
        self.allowance = self.allowance.checked_sub(1).ok_or(Misbehaviour::Flood)?;
        Ok(())
    }
}

/// What the watch of a connection and those who answer its requests tell each other.
#[derive(Debug, Default)]
pub(super) struct Heads {
    /// Bytes of HTTP/1.1 have come; whoever hears a whole request takes it back.
    pub(super) begun: AtomicBool,
    /// How many answers were given; each has one head.
    pub(super) answered: AtomicU64,
}

/// A stream whose frames are watched.
#[derive(Debug)]
pub(super) struct Watched<IO> {
    io: IO,
    watch: FrameWatch,
    refused: RefusedHeads,
    counters: Arc<Counters>,
    heads: Arc<Heads>,
    /// Wakes a reader that waits for the rest of a head.
    head_timer: Option<Pin<Box<Sleep>>>,
}

impl<IO> Watched<IO> {
    pub(super) fn new(
        io: IO,
        head_limit: Duration,
        counters: Arc<Counters>,
        heads: Arc<Heads>,
    ) -> Self {
        Self {
            io,
            watch: FrameWatch::new(now(), head_limit),
            refused: RefusedHeads::default(),
            counters,
            heads,
            head_timer: None,
        }
    }

    /// Looks at what went out.
    fn note_sent(&mut self, bytes: &[u8]) {
        if !self.watch.is_http_2() {
            return;
        }
        let answered = self.heads.answered.load(Ordering::Relaxed);
        let told = self.refused.handle_bytes(bytes, answered);
        if told > 0 {
            self.counters.refused_head.add(told);
            tracing::info!("request refused: its head has too many fields or bytes");
        }
    }

    fn ended_by(&self, misbehaviour: Misbehaviour) -> io::Error {
        let (counter, kind) = match misbehaviour {
            Misbehaviour::Flood => (&self.counters.floods, io::ErrorKind::InvalidData),
            Misbehaviour::SlowHead => (&self.counters.slow_heads, io::ErrorKind::TimedOut),
        };
        counter.increase();
        tracing::warn!(error = %misbehaviour, "connection ended");
        io::Error::new(kind, misbehaviour)
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Watched<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.io).poll_read(context, buffer);
        if let Poll::Ready(result) = read {
            result?;
            let arrived = buffer.filled().get(before..).unwrap_or_default();
            let watched = this.watch.handle_bytes(now(), arrived);
            if !arrived.is_empty() {
                let begun = this.watch.is_http_1();
                this.heads.begun.store(begun, Ordering::Relaxed);
            }
            return Poll::Ready(watched.map_err(|misbehaviour| this.ended_by(misbehaviour)));
        }
        let Some(at) = this.watch.poll_timeout() else {
            this.head_timer = None;
            return Poll::Pending;
        };
        let at = tokio::time::Instant::from_std(at);
        let timer = this
            .head_timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        if timer.deadline() != at {
            timer.as_mut().reset(at);
        }
        ready!(timer.as_mut().poll(context));
        let late = this.watch.handle_timeout(now());
        Poll::Ready(late.map_err(|misbehaviour| this.ended_by(misbehaviour)))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Watched<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let sent = ready!(Pin::new(&mut self.io).poll_write(context, bytes))?;
        self.note_sent(bytes.get(..sent).unwrap_or(bytes));
        Poll::Ready(Ok(sent))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let sent = ready!(Pin::new(&mut self.io).poll_write_vectored(context, parts))?;
        let mut left = sent;
        for part in parts {
            let of_part = part.get(..left).unwrap_or(part);
            self.note_sent(of_part);
            left = left.saturating_sub(of_part.len());
        }
        Poll::Ready(Ok(sent))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests;
