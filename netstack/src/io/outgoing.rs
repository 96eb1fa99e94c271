//! The batch that is being sent: datagrams leave in order, and a full kernel buffer only pauses it.
//!
//! Invariant: no datagram is sent twice or passed over, except one that the kernel refuses for another
//! reason than want of room, which is dropped, as a network would. Called by `io/driver.rs`.

use std::io;
use std::net::SocketAddr;

use crate::node::{Transmit, TransmitBatch};

/// A batch and how far it has been sent.
#[derive(Default)]
pub(super) struct Outgoing {
    pub(super) batch: TransmitBatch,
    /// Runs that are done.
    runs: usize,
    /// Bytes of the next run that are done.
    bytes: usize,
}

impl Outgoing {
    /// Whether all of it is sent, so that the next batch may take its place.
    pub(super) fn is_done(&self) -> bool {
        self.batch.is_empty()
    }

    /// Sends as much as goes: `send` takes a run, or the rest of one, says how many bytes of it went out
    /// and, if that is not all, why. Returns the address that has to wait for room, or `None` when all is sent.
    pub(super) fn advance(
        &mut self,
        mut send: impl FnMut(&Transmit<'_>) -> (usize, io::Result<()>),
    ) -> Option<SocketAddr> {
        for run in self.batch.iter().skip(self.runs) {
            let rest = Transmit {
                contents: run.contents.get(self.bytes..).unwrap_or_default(),
                ..run
            };
            let (sent, outcome) = send(&rest);
            match outcome {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.bytes += sent;
                    return Some(run.destination);
                }
                Err(error) => tracing::debug!(%error, to = %run.destination, "sending to a peer"),
                Ok(()) => {}
            }
            self.runs += 1;
            self.bytes = 0;
        }
        self.batch.clear();
        self.runs = 0;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_buffer_pauses_between_any_two_datagrams_and_nothing_is_lost_or_repeated() {
        let to = |port| SocketAddr::from(([127, 0, 0, 1], port));
        for room in 1..=7 {
            let mut out = Outgoing::default();
            for n in 0..7_u8 {
                out.batch.push(to(1 + u16::from(n / 3)), &[n; 10]);
            }
            let mut sent = Vec::new();
            for _ in 0..8 {
                let mut left = room;
                let blocked = out.advance(|run| {
                    let mut bytes = 0;
                    for datagram in run.contents.chunks(run.segment_bytes) {
                        if left == 0 {
                            return (bytes, Err(io::ErrorKind::WouldBlock.into()));
                        }
                        left -= 1;
                        bytes += datagram.len();
                        sent.push((run.destination, datagram[0]));
                    }
                    (bytes, Ok(()))
                });
                assert_eq!(blocked.is_none(), sent.len() == 7);
            }
            assert!(out.is_done());
            let wanted: Vec<_> = (0..7_u8).map(|n| (to(1 + u16::from(n / 3)), n)).collect();
            assert_eq!(sent, wanted, "room for {room}");
        }
    }

    #[test]
    fn what_the_kernel_refuses_is_dropped_and_the_rest_goes_out() {
        let mut out = Outgoing::default();
        out.batch.push(SocketAddr::from(([192, 0, 2, 1], 1)), &[1]);
        out.batch.push(SocketAddr::from(([127, 0, 0, 1], 1)), &[2]);
        let mut sent = Vec::new();
        let blocked = out.advance(|run| {
            if run.destination.ip().is_loopback() {
                sent.extend_from_slice(run.contents);
                return (run.contents.len(), Ok(()));
            }
            (0, Err(io::ErrorKind::NetworkUnreachable.into()))
        });
        assert_eq!((blocked, sent), (None, vec![2]));
        assert!(out.is_done());
    }
}
