//! One connection: one smoltcp socket alone in its own set, and what the caller wants from it.
//!
//! Only a connection's own packets, its own timer and its own caller make its stack run; no other connection is looked at. The silence timeouts are ours, not smoltcp's:
//! smoltcp's single timeout counts from the last packet heard, so an idle day would end a connection at the first FIN. Called by [`super::TcpIp`].

mod rings;

use smoltcp::socket::tcp::{ConnectError, RecvError, Socket, State};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{IpEndpoint, IpListenEndpoint};

use super::budget::Buffers;
use super::device::Emit;
use super::engine::Engine;
use super::flow::Flow;
use super::inbound::Segment;
use super::last_sent::LastSent;
use super::ledger::Ledger;
use super::pace::Pace;
use super::patience::Patience;
use super::rebuild::{Stack, new_socket};
use super::{CloseReason, TcpError};

/// Segments taken in before an ack is owed: smoltcp senders grow their window by the count of acks. Measured: 3 % more CPU here, eight times the speed there.
const SEGMENTS_PER_ACK: u8 = 8;
/// Least room in the receive buffer worth telling the peer about, unless the buffer is smaller still: two segments (RFC 9293 §3.8.6.2.2).
const WINDOW_UPDATE_BYTES: usize = 2 * 1240;
/// RFC 5961 §7: challenge acks are rate limited.
const CHALLENGE_INTERVAL: Duration = Duration::from_secs(1);
/// Longer than smoltcp holds an ack back (10 ms); a connection in TIME-WAIT whose next deadline is farther off owes nothing any more.
const ACK_DELAY_MAX: Duration = Duration::from_millis(100);

/// Whose connection it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// A peer's handshake on a listening port is under way.
    HalfOpen(Origin),
    /// The handshake is done and nobody accepted it yet.
    Unaccepted(Origin),
    /// Our own handshake is under way.
    Connecting,
    /// In the caller's hands.
    Open,
    /// The caller let go; it closes in the background.
    Released,
}

/// The listener that a connection came in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) port: u16,
    pub(super) serial: u64,
}

/// Where the protocol stands, as far as the rest of the room cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Handshake,
    Alive,
    /// Done on both sides (TIME-WAIT).
    Resting,
    /// Nothing will be sent any more.
    Over,
}

/// What the caller waits for; each is granted once per wait.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Waits {
    read: bool,
    write: bool,
    flush: bool,
}

pub(super) struct Connection {
    pub(super) flow: Flow,
    pub(super) phase: Phase,
    /// In the list of connections that the next poll runs.
    pub(super) touched: bool,
    /// The end was told to the caller.
    pub(super) reported: bool,
    /// How fast it moves, which decides how large its rings are.
    pub(super) pace: Pace,
    stack: Option<Stack>,
    ledger: Ledger,
    reason: Option<CloseReason>,
    waits: Waits,
    /// When the peer was last heard, or when we last began to expect an answer.
    quiet_since: Instant,
    /// When it is given up whatever happens: handshakes and connections that nobody holds.
    expires_at: Option<Instant>,
    probing: bool,
    window_at_poll_bytes: usize,
    unanswered: u8,
    last_sent: Option<LastSent>,
    challenged_at: Option<Instant>,
}

impl Connection {
    /// A connection that waits for the SYN that the caller is about to hand in.
    pub(super) fn passive(
        flow: Flow,
        origin: Origin,
        buffers: Buffers,
        ledger: Ledger,
        now: Instant,
        patience: &Patience,
    ) -> Option<Self> {
        let mut socket = new_socket(buffers, patience);
        socket
            .listen(IpListenEndpoint::from(IpEndpoint::from(flow.local())))
            .ok()?;
        Some(Self::with_socket(
            socket,
            flow,
            Phase::HalfOpen(origin),
            (buffers, ledger),
            now,
            now + patience.half_open,
        ))
    }

    /// A connection whose SYN goes out at the next poll.
    pub(super) fn active(
        flow: Flow,
        buffers: Buffers,
        ledger: Ledger,
        now: Instant,
        patience: &Patience,
        engine: &mut Engine,
    ) -> Result<Self, ConnectError> {
        let mut socket = new_socket(buffers, patience);
        socket.connect(
            engine.iface.context(),
            IpEndpoint::from(flow.remote()),
            IpEndpoint::from(flow.local()),
        )?;
        Ok(Self::with_socket(
            socket,
            flow,
            Phase::Connecting,
            (buffers, ledger),
            now,
            now + patience.connect,
        ))
    }

    fn with_socket(
        socket: Socket<'static>,
        flow: Flow,
        phase: Phase,
        (buffers, ledger): (Buffers, Ledger),
        now: Instant,
        expires_at: Instant,
    ) -> Self {
        Self {
            flow,
            phase,
            touched: false,
            reported: false,
            pace: Pace::new(now),
            stack: Some(Stack::new(socket, buffers)),
            ledger,
            reason: None,
            waits: Waits::default(),
            quiet_since: now,
            expires_at: Some(expires_at),
            probing: false,
            window_at_poll_bytes: buffers.receive_bytes,
            unanswered: 0,
            last_sent: None,
            challenged_at: None,
        }
    }

    /// Takes in one packet of this flow. Answers that cannot wait, and an ack for every eighth segment, go to `emit`.
    pub(super) fn take_in(
        &mut self,
        engine: &mut Engine,
        now: Instant,
        packet: &[u8],
        segment: Segment,
        patience: &Patience,
        emit: &mut Emit<'_>,
    ) {
        let Some(stack) = &mut self.stack else { return };
        self.quiet_since = now;
        if self.probing {
            self.probing = false;
            stack.socket_mut().set_keep_alive(patience.keep_alive_idle);
        }
        let before = stack.socket().state();
        let ring_bytes = stack.buffers.receive_bytes;
        let opening = matches!(before, State::Listen | State::SynSent);
        self.ledger
            .note_in(opening, &self.flow, packet, &segment, ring_bytes);
        let (last_sent, ledger) = (&mut self.last_sent, &mut self.ledger);
        engine.take_in(now, &mut stack.sockets, packet, &mut |packet| {
            ledger.note_out(packet, ring_bytes);
            *last_sent = LastSent::read(packet).or(*last_sent);
            emit(packet);
        });
        if stack.socket().state() == State::Closed && before != State::Closed {
            self.reason.get_or_insert(match (segment.resets(), before) {
                (true, State::SynSent) => CloseReason::Refused,
                (true, _) => CloseReason::Reset,
                (false, _) => CloseReason::Done,
            });
        }
        self.unanswered += 1;
        if self.unanswered >= SEGMENTS_PER_ACK {
            self.send_out(engine, now, emit);
        }
    }

    /// Gives up what waited too long, then sends what is to be sent.
    pub(super) fn run(
        &mut self,
        engine: &mut Engine,
        now: Instant,
        patience: &Patience,
        emit: &mut Emit<'_>,
    ) {
        if self.gives_up_at(patience).is_some_and(|at| at <= now) {
            self.abort(CloseReason::TimedOut);
        }
        if let (Some(idle), Some(stack)) = (patience.keep_alive_idle, &mut self.stack)
            && !self.probing
            && self.quiet_since + idle <= now
        {
            // From the first question on they come at the shorter interval.
            self.probing = true;
            stack
                .socket_mut()
                .set_keep_alive(Some(patience.keep_alive_interval));
        }
        self.send_out(engine, now, emit);
    }

    fn send_out(&mut self, engine: &mut Engine, now: Instant, emit: &mut Emit<'_>) {
        let Some(stack) = &mut self.stack else { return };
        let before = stack.socket().state();
        let ring_bytes = stack.buffers.receive_bytes;
        let (last_sent, ledger) = (&mut self.last_sent, &mut self.ledger);
        engine.send_out(now, &mut stack.sockets, &mut |packet| {
            ledger.note_out(packet, ring_bytes);
            *last_sent = LastSent::read(packet).or(*last_sent);
            emit(packet);
        });
        self.unanswered = 0;
        let socket = stack.socket();
        self.window_at_poll_bytes = socket.recv_capacity() - socket.recv_queue();
        if socket.state() == State::Closed && before == State::TimeWait {
            self.reason.get_or_insert(CloseReason::Done);
        }
    }

    /// When it has to be run next, unless something happens to it.
    pub(super) fn deadline(
        &self,
        engine: &mut Engine,
        now: Instant,
        patience: &Patience,
    ) -> Option<Instant> {
        let stack = self.stack.as_ref()?;
        let protocol = engine.iface.poll_at(now, &stack.sockets);
        [protocol, self.gives_up_at(patience), self.pace.look_at()]
            .into_iter()
            .flatten()
            .min()
    }

    fn gives_up_at(&self, patience: &Patience) -> Option<Instant> {
        let socket = self.socket()?;
        let expecting = match socket.state() {
            State::SynSent
            | State::SynReceived
            | State::FinWait1
            | State::Closing
            | State::LastAck => true,
            State::Established | State::FinWait2 | State::CloseWait => socket.send_queue() > 0,
            State::Closed | State::Listen | State::TimeWait => return self.expires_at,
        };
        let silence = match self.phase {
            Phase::Released => Some(patience.closing),
            Phase::HalfOpen(_) | Phase::Unaccepted(_) | Phase::Connecting | Phase::Open
                if expecting =>
            {
                Some(patience.unacknowledged)
            }
            Phase::HalfOpen(_) | Phase::Unaccepted(_) | Phase::Connecting | Phase::Open => {
                patience.dead
            }
        };
        [
            self.expires_at,
            silence.map(|silence| self.quiet_since + silence),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The ack for a SYN that came while this connection lives, at most one a second: a peer that restarted answers it with the reset that frees the flow.
    pub(super) fn challenge_ack(&mut self, now: Instant) -> Option<Vec<u8>> {
        if self
            .challenged_at
            .is_some_and(|at| now < at + CHALLENGE_INTERVAL)
        {
            return None;
        }
        self.challenged_at = Some(now);
        Some(self.last_sent?.bare_ack(&self.flow))
    }

    /// The handshake is over; only silence ends the connection now.
    pub(super) fn establish(&mut self, phase: Phase) {
        self.phase = phase;
        self.expires_at = None;
    }

    /// Reads what has arrived, in order. `Ok(0)` is the end of the peer's bytes.
    pub(super) fn recv(&mut self, buf: &mut [u8], now: Instant) -> Result<usize, TcpError> {
        let ended = self.reason;
        let Some(stack) = &mut self.stack else {
            return end_of_reading(ended);
        };
        match stack.socket_mut().recv_slice(buf) {
            Ok(0) if !buf.is_empty() => {}
            Ok(length) => {
                self.ledger.take(length);
                self.pace.note_read(now, length);
                return Ok(length);
            }
            Err(RecvError::Finished) => return Ok(0),
            Err(RecvError::InvalidState) if ended.is_some() => return end_of_reading(ended),
            Err(RecvError::InvalidState) => {}
        }
        self.waits.read = true;
        Err(TcpError::WouldBlock)
    }

    /// Whether enough of the receive buffer came free since the last run that smoltcp may want to announce it.
    pub(super) fn window_update_due(&self) -> bool {
        self.socket().is_some_and(|socket| {
            let window_bytes = socket.recv_capacity() - socket.recv_queue();
            let worth_bytes = WINDOW_UPDATE_BYTES.min(socket.recv_capacity() / 2);
            window_bytes >= worth_bytes && window_bytes / 2 >= self.window_at_poll_bytes
        })
    }

    /// Room in the send ring.
    pub(super) fn send_room_bytes(&self) -> usize {
        self.socket()
            .map_or(0, |socket| socket.send_capacity() - socket.send_queue())
    }

    pub(super) fn send(&mut self, data: &[u8], now: Instant) -> Result<usize, TcpError> {
        if let Some(reason) = self.reason {
            return Err(TcpError::Closed(reason));
        }
        let Some(stack) = &mut self.stack else {
            return Err(TcpError::Stale);
        };
        let was_empty = stack.socket().send_queue() == 0;
        // A larger ring is to take this one's place, which only an empty one can.
        if self.pace.is_cramped && !was_empty {
            self.waits.write = true;
            return Err(TcpError::WouldBlock);
        }
        match stack.socket_mut().send_slice(data) {
            Ok(0) if !data.is_empty() => {}
            Ok(length) => {
                if was_empty && length > 0 {
                    self.quiet_since = now;
                }
                self.ledger.queue(length);
                self.pace.note_queued(length);
                return Ok(length);
            }
            Err(_) if self.standing() != Standing::Handshake => return Err(TcpError::ShutDown),
            Err(_) => {}
        }
        self.waits.write = true;
        Err(TcpError::WouldBlock)
    }

    /// Sends FIN behind the queued bytes.
    pub(super) fn shutdown(&mut self, now: Instant) -> Result<(), TcpError> {
        if let Some(reason) = self.reason {
            return Err(TcpError::Closed(reason));
        }
        if self.standing() == Standing::Handshake {
            self.abort(CloseReason::Aborted);
        } else if let Some(stack) = &mut self.stack {
            self.quiet_since = now;
            stack.socket_mut().close();
        }
        Ok(())
    }

    pub(super) fn is_flushed(&self) -> bool {
        self.socket().is_none_or(|socket| socket.send_queue() == 0)
    }

    /// Whether the peer has yet to acknowledge bytes, or our FIN.
    pub(super) fn owes(&self) -> bool {
        self.socket().is_some_and(|socket| {
            let closing = [State::FinWait1, State::Closing, State::LastAck];
            socket.send_queue() > 0 || closing.contains(&socket.state())
        })
    }

    pub(super) fn wait_for_flush(&mut self) {
        self.waits.flush = true;
    }

    /// The caller lets go: a connection that was shut down closes in the background, any other is reset.
    pub(super) fn release(&mut self, now: Instant, patience: &Patience) {
        self.phase = Phase::Released;
        self.waits = Waits::default();
        self.quiet_since = now;
        self.expires_at = Some(now + patience.linger);
        let half_closed = self.socket().is_some_and(|socket| match socket.state() {
            State::FinWait1
            | State::FinWait2
            | State::Closing
            | State::LastAck
            | State::TimeWait => true,
            State::Closed
            | State::Listen
            | State::SynSent
            | State::SynReceived
            | State::Established
            | State::CloseWait => false,
        });
        if !half_closed || self.unread_bytes() > 0 {
            self.abort(CloseReason::Aborted);
        }
    }

    /// The next run sends a reset.
    pub(super) fn abort(&mut self, reason: CloseReason) {
        if let Some(stack) = &mut self.stack {
            self.reason.get_or_insert(reason);
            // Out of TIME-WAIT nothing is left to reset.
            if stack.socket().state() != State::TimeWait {
                stack.socket_mut().abort();
            }
        }
    }

    pub(super) fn standing(&self) -> Standing {
        match self.socket().map_or(State::Closed, Socket::state) {
            State::SynSent | State::SynReceived => Standing::Handshake,
            State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck => Standing::Alive,
            State::TimeWait => Standing::Resting,
            // A half-open socket that is reset goes back to listening, which no connection here does.
            State::Closed | State::Listen => Standing::Over,
        }
    }

    /// What TIME-WAIT has to remember once the ack of the peer's FIN is out.
    pub(super) fn rests_with(&self, now: Instant, deadline: Option<Instant>) -> Option<LastSent> {
        let owes_nothing = deadline.is_some_and(|at| at > now + ACK_DELAY_MAX);
        self.last_sent
            .filter(|_| self.standing() == Standing::Resting && owes_nothing)
    }

    pub(super) fn reason(&self) -> Option<CloseReason> {
        self.reason
    }

    pub(super) fn unread_bytes(&self) -> usize {
        self.socket().map_or(0, Socket::recv_queue)
    }

    /// Grants the waits that are over: (readable, writable).
    pub(super) fn grant(&mut self) -> (bool, bool) {
        let standing = self.standing();
        let (readable, writable, flushed) = match self.socket() {
            None => (true, true, true),
            Some(_) if standing == Standing::Handshake => (false, false, false),
            Some(socket) => {
                let room_bytes = socket.send_capacity() - socket.send_queue();
                (
                    socket.can_recv() || !socket.may_recv(),
                    // A quarter, so that a writer that fills the buffer is not woken for every segment; all of it, if a larger ring is to
                    // take its place, which an empty one only can.
                    !socket.may_send()
                        || room_bytes == socket.send_capacity()
                        || !self.pace.is_cramped
                            && room_bytes >= socket.send_capacity().div_ceil(4),
                    socket.send_queue() == 0 || standing == Standing::Over,
                )
            }
        };
        let read = readable && std::mem::take(&mut self.waits.read);
        let write = writable && std::mem::take(&mut self.waits.write);
        let flush = flushed && std::mem::take(&mut self.waits.flush);
        (read, write || flush)
    }

    /// Frees the stack and says what to give back to the budget.
    pub(super) fn drop_stack(&mut self, reason: CloseReason) -> Option<Buffers> {
        self.reason.get_or_insert(reason);
        self.stack.take().map(|stack| stack.buffers)
    }

    fn socket(&self) -> Option<&Socket<'static>> {
        self.stack.as_ref().map(Stack::socket)
    }
}

/// A peer that closed in order, or that we outlived in order, ends the reading; any other end is an error.
fn end_of_reading(reason: Option<CloseReason>) -> Result<usize, TcpError> {
    match reason {
        Some(CloseReason::Done) => Ok(0),
        Some(
            reason @ (CloseReason::Reset
            | CloseReason::Refused
            | CloseReason::TimedOut
            | CloseReason::Aborted),
        ) => Err(TcpError::Closed(reason)),
        None => Err(TcpError::Stale),
    }
}
