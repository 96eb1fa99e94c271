//! What waits to be written to one client of the relay.
//!
//! Invariant: each queue has its limit and gives way at its old end; disco never waits behind data. Filled by
//! `registry`, emptied by the client's `session`.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::derp::Frame;
use crate::disco::looks_like_disco;
use crate::key::NodePublic;

/// Data packets that wait, and as many of disco; upstream's values.
const PACKETS_MAX: usize = 32;
/// Frames of the relay's own that wait.
const OWN_FRAMES_MAX: usize = 64;
/// PeerGone for peers that are not here: so many at once, and one more every second.
const NOT_HERE_BURST: u32 = 3;
const NOT_HERE_INTERVAL: Duration = Duration::from_secs(1);

/// One connection of a client.
pub(super) struct Client {
    pub(super) id: u64,
    pub(super) key: NodePublic,
    queues: Mutex<Queues>,
    /// Something waits.
    pub(super) wake: Notify,
}

struct Queues {
    own: VecDeque<Bytes>,
    pong: Option<[u8; 8]>,
    disco: VecDeque<Bytes>,
    data: VecDeque<Bytes>,
    not_here_left: u32,
    not_here_at: Instant,
}

impl Client {
    pub(super) fn new(id: u64, key: NodePublic) -> Self {
        Self {
            id,
            key,
            queues: Mutex::new(Queues {
                own: VecDeque::new(),
                pong: None,
                disco: VecDeque::new(),
                data: VecDeque::new(),
                not_here_left: NOT_HERE_BURST,
                not_here_at: Instant::now(),
            }),
            wake: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a packet; whether an older one had to give way.
    pub(super) fn push_packet(&self, from: NodePublic, packet: Bytes) -> bool {
        let disco = looks_like_disco(&packet);
        // A packet that could be sent here is short enough to be sent on.
        let Ok(frame) = (Frame::RecvPacket { from, packet }).encode() else {
            return true;
        };
        let mut queues = self.lock();
        let queue = if disco {
            &mut queues.disco
        } else {
            &mut queues.data
        };
        let full = queue.len() >= PACKETS_MAX;
        if full {
            queue.pop_front();
        }
        queue.push_back(frame);
        drop(queues);
        self.wake.notify_one();
        full
    }

    /// Queues a frame of the relay's own; the oldest gives way.
    pub(super) fn push_own(&self, frame: Bytes) {
        let mut queues = self.lock();
        if queues.own.len() >= OWN_FRAMES_MAX {
            queues.own.pop_front();
        }
        queues.own.push_back(frame);
        drop(queues);
        self.wake.notify_one();
    }

    /// Owes a pong, unless one is owed already.
    pub(super) fn push_pong(&self, data: [u8; 8]) {
        self.lock().pong.get_or_insert(data);
        self.wake.notify_one();
    }

    /// Whether the client may be told once more that a peer is not here.
    pub(super) fn may_tell_not_here(&self) -> bool {
        let now = Instant::now();
        let mut queues = self.lock();
        while queues.not_here_left < NOT_HERE_BURST
            && now.saturating_duration_since(queues.not_here_at) >= NOT_HERE_INTERVAL
        {
            queues.not_here_left += 1;
            queues.not_here_at += NOT_HERE_INTERVAL;
        }
        if queues.not_here_left == NOT_HERE_BURST {
            queues.not_here_at = now;
        }
        let may = queues.not_here_left > 0;
        queues.not_here_left = queues.not_here_left.saturating_sub(1);
        may
    }

    /// The next frame to write.
    pub(super) fn pop(&self) -> Option<Bytes> {
        let mut queues = self.lock();
        if let Some(data) = queues.pong.take() {
            return Frame::Pong(data).encode().ok();
        }
        let own = queues.own.pop_front();
        own.or_else(|| queues.disco.pop_front())
            .or_else(|| queues.data.pop_front())
    }
}
