//! Outgoing datagrams of one batch: those over UDP laid out for the kernel's segmentation offload, and those for relays.
//!
//! Invariant: datagrams leave in the order in which they were written, and a run shares one address
//! and one size (only its last may be shorter), so each run is one `sendmsg` with UDP_SEGMENT.
//! Filled by `node`, emptied by `io/driver.rs`.

use std::net::SocketAddr;

use bytes::Bytes;

use crate::key::NodePublic;
use crate::relay::RelayConn;

/// Segments of one run at the most; the kernel takes 64 (UDP_MAX_SEGMENTS), less leaves a margin.
const RUN_SEGMENTS_MAX: usize = 48;

/// Bytes of one run at the most: the largest UDP payload over IPv4.
const RUN_BYTES_MAX: usize = 65_507;

/// Bytes of one batch at the most; what does not fit is dropped and counted, as a full queue would.
const BATCH_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A run of datagrams to one address, to be sent with one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transmit<'a> {
    /// Where to.
    pub destination: SocketAddr,
    /// All datagrams of the run, back to back.
    pub contents: &'a [u8],
    /// Size of each datagram in bytes; the last may be shorter. Equal to the whole for a single one.
    pub segment_bytes: usize,
}

/// Datagrams of one batch that go through relays at the most; more are dropped, as the relay's own short queue would.
const RELAYED_MAX: usize = 4096;

/// A datagram that is to go through a relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relayed {
    /// Through which connection.
    pub conn: RelayConn,
    /// To whom.
    pub peer: NodePublic,
    /// The datagram.
    pub packet: Bytes,
}

#[derive(Debug, Clone, Copy)]
struct Run {
    destination: SocketAddr,
    start: usize,
    end: usize,
    segment_bytes: usize,
    segments: usize,
    /// A shorter datagram has ended the run.
    closed: bool,
}

/// The datagrams that one batch of work produced.
#[derive(Debug, Default)]
pub struct TransmitBatch {
    bytes: Vec<u8>,
    runs: Vec<Run>,
    relayed: Vec<Relayed>,
    dropped: u64,
}

impl TransmitBatch {
    /// Appends a datagram.
    pub fn push(&mut self, destination: SocketAddr, datagram: &[u8]) {
        self.write(destination, datagram.len(), |room| {
            room.copy_from_slice(datagram);
            Some(datagram.len())
        });
    }

    /// Lets `fill` write a datagram of up to `room_bytes` in place; `None` writes nothing.
    pub fn write(
        &mut self,
        destination: SocketAddr,
        room_bytes: usize,
        fill: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) {
        let start = self.bytes.len();
        if start + room_bytes > BATCH_BYTES_MAX {
            self.dropped += 1;
            return;
        }
        self.bytes.resize(start + room_bytes, 0);
        let written = self
            .bytes
            .get_mut(start..)
            .and_then(fill)
            .unwrap_or(0)
            .min(room_bytes);
        self.bytes.truncate(start + written);
        if written > 0 {
            self.add_to_runs(destination, start, written);
        }
    }

    fn add_to_runs(&mut self, destination: SocketAddr, start: usize, len: usize) {
        let end = start + len;
        if let Some(run) = self.runs.last_mut()
            && run.destination == destination
            && !run.closed
            && len <= run.segment_bytes
            && run.segments < RUN_SEGMENTS_MAX
            && end - run.start <= RUN_BYTES_MAX
        {
            run.end = end;
            run.segments += 1;
            run.closed = len < run.segment_bytes;
            return;
        }
        self.runs.push(Run {
            destination,
            start,
            end,
            segment_bytes: len,
            segments: 1,
            closed: false,
        });
    }

    /// The runs in order.
    pub fn iter(&self) -> impl Iterator<Item = Transmit<'_>> {
        self.runs.iter().filter_map(|run| {
            Some(Transmit {
                destination: run.destination,
                contents: self.bytes.get(run.start..run.end)?,
                segment_bytes: run.segment_bytes,
            })
        })
    }

    /// Appends a datagram that goes through a relay.
    pub fn push_relayed(&mut self, conn: RelayConn, peer: NodePublic, datagram: &[u8]) {
        if self.relayed.len() >= RELAYED_MAX {
            self.dropped += 1;
            return;
        }
        self.relayed.push(Relayed {
            conn,
            peer,
            packet: Bytes::copy_from_slice(datagram),
        });
    }

    /// Takes what goes through relays, oldest first.
    pub fn drain_relayed(&mut self) -> impl Iterator<Item = Relayed> + '_ {
        self.relayed.drain(..)
    }

    /// Whether there is nothing to send over UDP.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Forgets what was sent; keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.runs.clear();
        self.relayed.clear();
    }

    /// Datagrams that did not fit, since the batch was made.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn runs(batch: &TransmitBatch) -> Vec<(u16, usize, usize)> {
        batch
            .iter()
            .map(|t| (t.destination.port(), t.contents.len(), t.segment_bytes))
            .collect()
    }

    #[test]
    fn equal_sizes_to_one_address_share_a_run_and_a_shorter_one_ends_it() {
        let mut batch = TransmitBatch::default();
        for len in [100, 100, 40, 100, 100] {
            batch.push(addr(1), &vec![7; len]);
        }
        batch.push(addr(2), &[7; 100]);
        assert_eq!(runs(&batch), [(1, 240, 100), (1, 200, 100), (2, 100, 100)]);
    }

    #[test]
    fn a_longer_datagram_begins_a_new_run() {
        let mut batch = TransmitBatch::default();
        batch.push(addr(1), &[0; 40]);
        batch.push(addr(1), &[0; 41]);
        assert_eq!(runs(&batch), [(1, 40, 40), (1, 41, 41)]);
    }

    #[test]
    fn a_run_never_exceeds_what_the_kernel_takes() {
        let mut batch = TransmitBatch::default();
        for _ in 0..200 {
            batch.push(addr(1), &[0; 1312]);
        }
        for transmit in batch.iter() {
            assert!(transmit.contents.len() <= RUN_BYTES_MAX);
            assert!(transmit.contents.len().div_ceil(transmit.segment_bytes) <= RUN_SEGMENTS_MAX);
        }
        assert_eq!(
            batch.iter().map(|t| t.contents.len()).sum::<usize>(),
            200 * 1312
        );
    }

    #[test]
    fn nothing_is_added_when_the_writer_gives_nothing() {
        let mut batch = TransmitBatch::default();
        batch.write(addr(1), 1312, |_| None);
        assert!(batch.is_empty());
        assert_eq!(batch.iter().count(), 0);
    }

    #[test]
    fn a_full_batch_drops_and_counts() {
        let mut batch = TransmitBatch::default();
        let big = vec![0; 60_000];
        for _ in 0..400 {
            batch.push(addr(1), &big);
        }
        assert!(batch.dropped() > 0);
        batch.clear();
        assert!(batch.is_empty());
    }
}
