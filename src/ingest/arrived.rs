//! What had arrived of a body when its upload was ended, and the store has not taken yet.
//!
//! Invariants: nothing is waited for, so this is what the uploader had sent and we had acknowledged to its flow control, at most one window; it is held
//! apart from the connection and against a limit that all uploads share; what does not fit is the end of the recording, never a gap in it. Gathered by
//! the [`session`](super::session) of an upload that a stalled store, an operator, a limit in time or the end of this recorder has ended.

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::connection::STREAM_WINDOW_BYTES;
use super::shares::Share;

/// What one append takes of it: as much as a frame of the body has.
const PIECE_BYTES: usize = 64 * 1024;

/// The bytes, in order, and the share of memory that they hold.
pub(super) struct Arrived {
    share: Share,
    held: BytesMut,
    /// Bytes that came behind them and found no room.
    lost_bytes: u64,
}

impl Arrived {
    /// Nothing yet; `share` grows with what is held.
    pub(super) fn new(share: Share) -> Self {
        Self {
            share,
            held: BytesMut::new(),
            lost_bytes: 0,
        }
    }

    /// Keeps `bytes` if there is room for all of them and nothing before them was lost.
    pub(super) fn keep(&mut self, bytes: &[u8]) {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if self.lost_bytes == 0 && self.share.grow(length).is_ok() {
            self.held.extend_from_slice(bytes);
        } else {
            self.lost_bytes = self.lost_bytes.saturating_add(length);
        }
    }

    /// Reads what is there of `body`, without waiting for more; `take` says how much of each part belongs to the recording.
    pub(super) fn read(&mut self, body: &mut Incoming, mut take: impl FnMut(&[u8]) -> usize) {
        let window_bytes = usize::try_from(STREAM_WINDOW_BYTES).unwrap_or(usize::MAX);
        let mut read_bytes = 0_usize;
        // Reading opens the window again, and who fills it at once is not to keep us here.
        while read_bytes < window_bytes {
            let Some(Some(Ok(frame))) = body.frame().now_or_never() else {
                return;
            };
            let Ok(bytes) = frame.into_data() else {
                return;
            };
            read_bytes = read_bytes.saturating_add(bytes.len());
            let taken = take(&bytes);
            self.keep(bytes.get(..taken).unwrap_or(&bytes));
            if taken < bytes.len() {
                return;
            }
        }
    }

    /// The next piece for the store.
    pub(super) fn next(&mut self) -> Option<Bytes> {
        let length = self.held.len().min(PIECE_BYTES);
        (length > 0).then(|| self.held.split_to(length).freeze())
    }

    /// How many bytes are not kept, because too many of other uploads wait too.
    pub(super) fn lost_bytes(&self) -> u64 {
        self.lost_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::shares::Shares;

    #[test]
    fn what_is_kept_comes_back_in_order_and_ends_where_the_room_did() {
        let shares = Shares::new(100_000, 100_000);
        let mut arrived = Arrived::new(shares.take("n1", 0).unwrap());
        arrived.keep(&[1; 70_000]);
        arrived.keep(&[2; 20_000]);
        arrived.keep(&[3; 20_000]);
        // It would fit, but behind a gap it belongs to nothing.
        arrived.keep(&[4; 1]);
        assert_eq!(shares.taken(), 90_000);
        assert_eq!(arrived.lost_bytes(), 20_001);
        let pieces: Vec<_> = std::iter::from_fn(|| arrived.next()).collect();
        assert!(pieces.iter().all(|piece| piece.len() <= PIECE_BYTES));
        assert_eq!(pieces.concat(), [vec![1; 70_000], vec![2; 20_000]].concat());
        drop(arrived);
        assert_eq!(shares.taken(), 0);
    }
}
