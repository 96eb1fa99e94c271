//! The way out: runs the connections that something happened to, each once, and draws the consequences of where they stand then.
//!
//! Only here do connections change phase, end and free their slot, so the order is always the same: send, promote or bury, tell, arm the next deadline.

use std::time::Instant;

use super::connection::{Connection, Phase, Standing};
use super::device::Emit;
use super::{Clock, CloseReason, TcpEvent, TcpIp};

impl TcpIp {
    /// Runs every connection that was touched or is due, once. Each outgoing IP packet (at most 1280 bytes) goes to `emit`.
    pub fn poll(&mut self, now: Instant, emit: &mut dyn FnMut(&[u8])) {
        let now = self.advance(now);
        self.outbox.flush(emit);
        let mut fired = std::mem::take(&mut self.fired);
        self.wheel.expire(
            u64::try_from(now.total_millis()).unwrap_or_default(),
            &mut fired,
        );
        for slot in fired.drain(..) {
            if self
                .table
                .at_mut(slot)
                .is_some_and(|connection| !connection.touched)
            {
                self.stats.timer_polls += 1;
                self.touch(slot);
            }
        }
        self.fired = fired;
        let mut batch = std::mem::take(&mut self.touched);
        for slot in batch.drain(..) {
            self.run(now, slot, emit);
        }
        // Keep the allocation; a run touches no connection but its own, and that one it settles itself.
        if self.touched.is_empty() {
            self.touched = batch;
        }
    }

    /// Puts a connection on the list of the next poll.
    pub(super) fn touch(&mut self, slot: u32) {
        if let Some(connection) = self.table.at_mut(slot)
            && !connection.touched
        {
            connection.touched = true;
            self.touched.push(slot);
        }
    }

    fn run(&mut self, now: Clock, slot: u32, emit: &mut Emit<'_>) {
        let Some(connection) = self.table.at_mut(slot) else {
            return;
        };
        connection.touched = false;
        self.stats.stack_polls += 1;
        connection.run(&mut self.engine, now, &self.patience, emit);
        // Nobody is left to read it, so the peer must learn that it is lost (RFC 9293 §3.6.1).
        if connection.phase == Phase::Released
            && connection.standing() == Standing::Alive
            && connection.unread_bytes() > 0
        {
            connection.abort(CloseReason::Aborted);
            connection.run(&mut self.engine, now, &self.patience, emit);
        }
        let Some((phase, standing)) = self.fitted(now, slot, emit) else {
            return;
        };
        let Some(connection) = self.table.at_mut(slot) else {
            return;
        };
        match (phase, standing) {
            (Phase::HalfOpen(_) | Phase::Connecting, Standing::Handshake) => self.arm(now, slot),
            (Phase::HalfOpen(_), Standing::Over) => self.bury_half_open(slot),
            (Phase::HalfOpen(_), Standing::Alive | Standing::Resting) => {
                self.promote(now, slot, emit)
            }
            (Phase::Unaccepted(_) | Phase::Released, Standing::Over) => self.bury(slot),
            (Phase::Connecting, Standing::Alive | Standing::Resting) => {
                connection.establish(Phase::Open);
                self.tell(slot, TcpEvent::Connected);
                self.attend(now, slot);
            }
            (Phase::Released, Standing::Resting) => self.lay_to_rest(now, slot),
            (Phase::Connecting | Phase::Open, Standing::Over) => self.end(slot),
            (
                Phase::Unaccepted(_) | Phase::Open | Phase::Released,
                Standing::Handshake | Standing::Alive,
            )
            | (Phase::Unaccepted(_) | Phase::Open, Standing::Resting) => {
                self.attend(now, slot);
            }
        }
    }

    /// Fits the rings and sends what comes of it; where the connection stands after that.
    fn fitted(&mut self, now: Clock, slot: u32, emit: &mut Emit<'_>) -> Option<(Phase, Standing)> {
        self.fit_to_idleness(now, slot);
        self.fit_to_pace(now, slot);
        self.outbox.flush(emit);
        let connection = self.table.at_mut(slot)?;
        Some((connection.phase, connection.standing()))
    }

    /// A handshake on a listening port is done.
    fn promote(&mut self, now: Clock, slot: u32, emit: &mut Emit<'_>) {
        self.handshake_over(slot);
        let (Some(conn), Some(connection)) = (self.table.id(slot), self.table.at_mut(slot)) else {
            return;
        };
        let Phase::HalfOpen(origin) = connection.phase else {
            return;
        };
        connection.establish(Phase::Unaccepted(origin));
        match self
            .listeners
            .get_mut(&origin.port)
            .filter(|listener| listener.serial == origin.serial)
        {
            Some(listener) => {
                listener.handshake_done(conn);
                self.events
                    .push_back(TcpEvent::Acceptable { port: origin.port });
                self.arm(now, slot);
            }
            // The port was closed meanwhile.
            None => {
                connection.abort(CloseReason::Aborted);
                connection.run(&mut self.engine, now, &self.patience, emit);
                self.bury(slot);
            }
        }
    }

    /// Tells the caller what it waits for, and arms the next deadline.
    fn attend(&mut self, now: Clock, slot: u32) {
        let Some(connection) = self.table.at_mut(slot) else {
            return;
        };
        let (readable, writable) = connection.grant();
        if readable {
            self.tell(slot, TcpEvent::Readable);
        }
        if writable {
            self.tell(slot, TcpEvent::Writable);
        }
        if self
            .table
            .at_mut(slot)
            .is_some_and(|connection| connection.standing() == Standing::Resting)
        {
            self.report(slot, CloseReason::Done);
        }
        self.arm(now, slot);
    }

    /// The connection is over and the caller holds the handle: all but the bytes that were not read yet is freed.
    fn end(&mut self, slot: u32) {
        let Some(connection) = self.table.at_mut(slot) else {
            return;
        };
        let reason = connection.reason().unwrap_or(CloseReason::Aborted);
        let (readable, writable) = connection.grant();
        let drained = connection.unread_bytes() == 0;
        self.unmap(slot);
        self.wheel.schedule(slot, None);
        if drained {
            self.drop_stack(slot, reason);
        }
        if readable {
            self.tell(slot, TcpEvent::Readable);
        }
        if writable {
            self.tell(slot, TcpEvent::Writable);
        }
        self.report(slot, reason);
    }

    fn report(&mut self, slot: u32, reason: CloseReason) {
        if let Some(connection) = self.table.at_mut(slot)
            && !connection.reported
        {
            connection.reported = true;
            self.tell(slot, |conn| TcpEvent::Closed(conn, reason));
        }
    }

    fn tell(&mut self, slot: u32, event: impl FnOnce(super::ConnId) -> TcpEvent) {
        if let Some(conn) = self.table.id(slot) {
            self.events.push_back(event(conn));
        }
    }

    /// TIME-WAIT without a holder: a small record replaces the stack as soon as the last ack is out.
    fn lay_to_rest(&mut self, now: Clock, slot: u32) {
        let Some(connection) = self.table.at_mut(slot) else {
            return;
        };
        let deadline = connection.deadline(&mut self.engine, now, &self.patience);
        match connection.rests_with(now, deadline) {
            Some(last_sent) => {
                // A new connection may have taken the flow over already.
                if self.flows.get(&connection.flow) == Some(&slot) {
                    self.time_waits.insert(now, connection.flow, last_sent);
                }
                self.bury(slot);
            }
            None => self.arm(now, slot),
        }
    }

    fn bury_half_open(&mut self, slot: u32) {
        self.handshake_over(slot);
        self.stats.half_open_reaped += 1;
        if let Some(connection) = self.table.at_mut(slot)
            && let Phase::HalfOpen(origin) = connection.phase
            && let Some(listener) = self
                .listeners
                .get_mut(&origin.port)
                .filter(|listener| listener.serial == origin.serial)
        {
            listener.handshake_failed();
        }
        self.bury(slot);
    }

    /// Frees the slot and everything that refers to it.
    fn bury(&mut self, slot: u32) {
        self.unmap(slot);
        self.wheel.schedule(slot, None);
        self.drop_stack(slot, CloseReason::Done);
        let conn = self.table.id(slot);
        let Some(connection) = self.table.remove(slot) else {
            return;
        };
        self.stats.reaped += 1;
        if let (Phase::Unaccepted(origin), Some(conn)) = (connection.phase, conn)
            && let Some(listener) = self.listeners.get_mut(&origin.port)
        {
            listener.forget(conn);
        }
        let peer = connection.flow.peer();
        if let Some(count) = self.peers.get_mut(&peer) {
            count.connections = count.connections.saturating_sub(1);
            if count.connections == 0 {
                self.peers.remove(&peer);
            }
        }
    }

    /// Takes a half-open connection out of the counts.
    fn handshake_over(&mut self, slot: u32) {
        self.half_open = self.half_open.saturating_sub(1);
        if let Some(peer) = self
            .table
            .at_mut(slot)
            .map(|connection| connection.flow.peer())
            && let Some(count) = self.peers.get_mut(&peer)
        {
            count.half_open = count.half_open.saturating_sub(1);
        }
    }

    pub(super) fn drop_stack(&mut self, slot: u32, reason: CloseReason) {
        if let Some(buffers) = self
            .table
            .at_mut(slot)
            .and_then(|connection| connection.drop_stack(reason))
        {
            self.budget.give_back(buffers);
        }
    }

    /// Takes the connection off its flow, unless another one has it by now.
    fn unmap(&mut self, slot: u32) {
        if let Some(flow) = self
            .table
            .at_mut(slot)
            .map(|connection: &mut Connection| connection.flow)
            && self.flows.get(&flow) == Some(&slot)
        {
            self.flows.remove(&flow);
        }
    }

    fn arm(&mut self, now: Clock, slot: u32) {
        let Some(connection) = self.table.at_mut(slot) else {
            return;
        };
        let deadline = connection.deadline(&mut self.engine, now, &self.patience);
        // Rounded up: a poll at the tick must find the deadline passed.
        let tick = deadline.map(|at| {
            u64::try_from(at.total_micros())
                .unwrap_or_default()
                .div_ceil(1_000)
        });
        self.wheel.schedule(slot, tick);
    }
}
