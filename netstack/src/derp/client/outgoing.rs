//! What goes to the relay: first what the protocol owes, then packets; and the rate that it allows.
//!
//! Invariant: both queues are bounded; when packets wait, the oldest is dropped, because a relay is a lossy
//! network and the newest packet is the most useful one. Called by `derp::client`.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;

use super::{PACKETS_MAX, ServerInfo};

/// Frames of the protocol that wait: upgrade, ClientInfo, preference, a ping, and pongs. A relay that pings
/// faster than it reads gets no more than these.
const OWED_MAX: usize = 8;

/// Frames that wait to be written.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    owed: VecDeque<Bytes>,
    packets: VecDeque<Bytes>,
    pub(super) sent_packets: u64,
    pub(super) dropped_packets: u64,
    pub(super) dropped_pongs: u64,
}

impl Outgoing {
    /// Queues what the protocol owes; drops it if too much is owed already.
    pub(super) fn owe(&mut self, frame: Bytes) {
        if self.owed.len() < OWED_MAX {
            self.owed.push_back(frame);
        } else {
            self.dropped_pongs += 1;
        }
    }

    /// Queues a packet's frame, and drops the oldest if there are too many.
    pub(super) fn push_packet(&mut self, frame: Bytes) {
        if self.packets.len() >= PACKETS_MAX {
            self.packets.pop_front();
            self.dropped_packets += 1;
        }
        self.packets.push_back(frame);
    }

    /// The next frame to write; packets only if `open`.
    pub(super) fn pop(&mut self, open: bool) -> Option<Bytes> {
        if let Some(owed) = self.owed.pop_front() {
            return Some(owed);
        }
        let packet = open.then(|| self.packets.pop_front()).flatten()?;
        self.sent_packets += 1;
        Some(packet)
    }

    /// Forgets all that waits.
    pub(super) fn clear(&mut self) {
        self.owed.clear();
        self.packets.clear();
    }
}

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// The rate that a relay allows, as a token bucket: a token is a byte of a SendPacket frame.
#[derive(Debug)]
pub(super) struct Bucket {
    bytes_per_second: u128,
    burst: u128,
    /// In billionths of a byte, so that nothing is lost to rounding.
    level: u128,
    at: Instant,
}

impl Bucket {
    /// A full one; `None` if the relay sets no rate.
    pub(super) fn new(now: Instant, info: &ServerInfo) -> Option<Self> {
        let bytes_per_second = u128::try_from(info.bytes_per_second).ok()?;
        let burst = u128::try_from(info.burst_bytes).unwrap_or(0) * NANOS_PER_SECOND;
        (bytes_per_second > 0).then_some(Self {
            bytes_per_second,
            burst,
            level: burst,
            at: now,
        })
    }

    /// Takes `bytes` out, if they are there.
    pub(super) fn take(&mut self, now: Instant, bytes: usize) -> bool {
        let elapsed = now.saturating_duration_since(self.at).as_nanos();
        self.at = self.at.max(now);
        let earned = elapsed.saturating_mul(self.bytes_per_second);
        self.level = self.level.saturating_add(earned).min(self.burst);
        let wanted = u128::try_from(bytes)
            .unwrap_or(u128::MAX)
            .saturating_mul(NANOS_PER_SECOND);
        let left = self.level.checked_sub(wanted);
        self.level = left.unwrap_or(self.level);
        left.is_some()
    }
}
