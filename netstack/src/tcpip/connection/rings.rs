//! What a connection knows of its rings, and how it exchanges them.
//!
//! Invariant: an exchange keeps every number, every unread byte and every promise, or changes nothing. Called by [`super::super::fit`].

use smoltcp::socket::tcp::State;
use smoltcp::time::Instant;

use super::super::budget::Buffers;
use super::super::inbound::Segment;
use super::super::last_sent::LastSent;
use super::super::patience::Patience;
use super::super::rebuild::{Plan, rebuild};
use super::Connection;

impl Connection {
    /// The rings of its stack.
    pub(in crate::tcpip) fn rings(&self) -> Option<Buffers> {
        self.stack.as_ref().map(|stack| stack.buffers)
    }

    /// The largest rings that its peer can make use of.
    pub(in crate::tcpip) fn most(&self, most: Buffers) -> Buffers {
        Buffers {
            receive_bytes: self.ledger.ring_bytes_max(most.receive_bytes),
            ..most
        }
    }

    /// How many bytes the receive ring needs for the segment, if its sender was promised the room.
    pub(in crate::tcpip) fn reach(&self, segment: &Segment) -> Option<usize> {
        self.ledger.reach(segment)
    }

    /// Whether a time for other rings may come.
    pub(in crate::tcpip) fn may_be_fitted(&self) -> bool {
        self.reason.is_none()
            && self.socket().is_some_and(|socket| {
                matches!(socket.state(), State::Established | State::CloseWait)
            })
    }

    /// Whether that time is now: all that we sent is acknowledged, and what the peer sent has no gaps.
    pub(in crate::tcpip) fn is_calm(&self) -> bool {
        self.may_be_fitted() && self.is_flushed() && self.ledger.is_in_order(self.unread_bytes())
    }

    /// Exchanges the rings of a calm connection. Returns the ack that is due, if one is; outside, `None` if the stack stays as it was.
    pub(in crate::tcpip) fn fit(
        &mut self,
        buffers: Buffers,
        now: Instant,
        patience: &Patience,
        scratch: &mut Vec<u8>,
    ) -> Option<Option<Vec<u8>>> {
        let stack = self.stack.as_mut()?;
        let mut unread = vec![0; stack.socket().recv_queue()];
        let seen = stack.socket_mut().peek_slice(&mut unread).ok()?;
        let plan = Plan {
            flow: &self.flow,
            ledger: &self.ledger,
            buffers,
            unread: unread.get(..seen)?,
            is_finished: stack.socket().state() == State::CloseWait,
        };
        let (mut fitted, mut ack) = rebuild(plan, now, patience, scratch)?;
        if self.probing {
            fitted
                .socket_mut()
                .set_keep_alive(Some(patience.keep_alive_interval));
        }
        *stack = fitted;
        self.pace.settle(now, buffers);
        self.window_at_poll_bytes = buffers.receive_bytes - seen;
        self.unanswered = 0;
        let last = self.last_sent.replace(LastSent::read(&ack)?);
        let promises = self.ledger.note_out(&mut ack, buffers.receive_bytes);
        // A smaller window is not announced for its own sake: the peer was promised more, and may still use it.
        let acknowledges =
            last.map(LastSent::acknowledgement) != self.last_sent.map(LastSent::acknowledgement);
        if !promises && !acknowledges {
            self.last_sent = last;
            return Some(None);
        }
        self.last_sent = LastSent::read(&ack);
        Some(Some(ack))
    }
}
