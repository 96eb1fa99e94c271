//! The smoltcp interface that sets of sockets are polled with, and the two ways to poll it: one packet in, or all that is due out.
//!
//! Invariant: nothing of a connection stays here between two calls. Called by [`super::connection`] and [`super::TcpIp`].

use smoltcp::iface::{Interface, PollResult, SocketSet};
use smoltcp::time::Instant;

use super::device::{Build, Wire};

/// Packets that one pass may send. A full send buffer of 64 KiB is 1,366 of the smallest segments that smoltcp accepts to make.
const EGRESS_PACKETS_MAX: usize = 2_048;

/// The smoltcp interface that every connection's set is polled with. It has no state about a socket: addresses, a clock that each call sets, and the generator of
/// initial sequence numbers (neighbour cache, fragments and routes are for other media and features), so one serves them all.
pub(super) struct Engine {
    pub(super) iface: Interface,
    pub(super) scratch: Vec<u8>,
}

impl Engine {
    pub(super) fn take_in(
        &mut self,
        now: Instant,
        sockets: &mut SocketSet<'static>,
        packet: &[u8],
        emit: &mut Build<'_>,
    ) {
        let mut wire = Wire {
            inbound: Some(packet),
            scratch: &mut self.scratch,
            emit,
        };
        self.iface.poll_ingress_single(now, &mut wire, sockets);
    }

    pub(super) fn send_out(
        &mut self,
        now: Instant,
        sockets: &mut SocketSet<'static>,
        emit: &mut Build<'_>,
    ) {
        let mut wire = Wire {
            inbound: None,
            scratch: &mut self.scratch,
            emit,
        };
        for _ in 0..EGRESS_PACKETS_MAX {
            if self.iface.poll_egress(now, &mut wire, sockets) == PollResult::None {
                return;
            }
        }
    }
}
