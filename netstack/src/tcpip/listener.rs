//! One listening port: who is shaking hands, and who waits to be accepted.
//!
//! Both together never exceed the backlog: a SYN beyond it is dropped, not refused, so that the peer tries again. Owned by [`super::TcpIp`].

use std::collections::VecDeque;

use super::ConnId;

#[derive(Debug)]
pub(super) struct Listener {
    /// Tells a listener from an earlier one on the same port.
    pub(super) serial: u64,
    backlog: usize,
    half_open: usize,
    ready: VecDeque<ConnId>,
}

impl Listener {
    pub(super) fn new(serial: u64, backlog: usize) -> Self {
        Self {
            serial,
            backlog: backlog.max(1),
            half_open: 0,
            ready: VecDeque::new(),
        }
    }

    /// How many more may shake hands.
    pub(super) fn room(&self) -> usize {
        self.backlog
            .saturating_sub(self.half_open + self.ready.len())
    }

    pub(super) fn handshake_began(&mut self) {
        self.half_open += 1;
    }

    pub(super) fn handshake_failed(&mut self) {
        self.half_open = self.half_open.saturating_sub(1);
    }

    pub(super) fn handshake_done(&mut self, conn: ConnId) {
        self.half_open = self.half_open.saturating_sub(1);
        self.ready.push_back(conn);
    }

    /// A connection died before anyone accepted it.
    pub(super) fn forget(&mut self, conn: ConnId) {
        self.ready.retain(|&waiting| waiting != conn);
    }

    pub(super) fn next(&mut self) -> Option<ConnId> {
        self.ready.pop_front()
    }
}
