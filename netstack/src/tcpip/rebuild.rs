//! The smoltcp socket of one connection, alone in its set, and how it is exchanged for one with other rings.
//!
//! smoltcp cannot resize the rings of a socket. But a socket knows of its connection only what segments told it, so a new one is told the
//! same: a SYN with the peer's numbers and options, an ACK, and the bytes that nobody has read yet. That holds only while nothing of ours
//! is unacknowledged and nothing of the peer's lies beyond a gap, which the caller checks. Invariant: the new stack has exactly the
//! numbers of the old one, or there is no new stack. Called by [`super::connection`].

use smoltcp::iface::{Config as InterfaceConfig, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{CongestionControl, Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{
    HardwareAddress, IpEndpoint, IpListenEndpoint, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
};

use super::budget::Buffers;
use super::compose::compose;
use super::device::Wire;
use super::engine::Engine;
use super::flow::Flow;
use super::initial::seed_for;
use super::ledger::Ledger;
use super::patience::Patience;
use super::single;

/// Unread bytes go into the new stack in pieces of this size, each in one packet.
const PIECE_BYTES: usize = 32 << 10;
/// A seed leads elsewhere if the interface's first draw happens to be zero, once in 65,536; the next salt has another first draw.
const SALTS: u32 = 4;

pub(super) struct Stack {
    pub(super) sockets: SocketSet<'static>,
    handle: SocketHandle,
    pub(super) buffers: Buffers,
}

impl Stack {
    pub(super) fn new(socket: Socket<'static>, buffers: Buffers) -> Self {
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Self {
            sockets,
            handle,
            buffers,
        }
    }

    pub(super) fn socket(&self) -> &Socket<'static> {
        self.sockets.get(self.handle)
    }

    pub(super) fn socket_mut(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }
}

/// A socket that is closed yet, with rings of these sizes.
pub(super) fn new_socket(buffers: Buffers, patience: &Patience) -> Socket<'static> {
    let mut socket = Socket::new(
        SocketBuffer::new(vec![0; buffers.receive_bytes]),
        SocketBuffer::new(vec![0; buffers.send_bytes]),
    );
    // Without congestion control a bottleneck queue collapses; Cubic is slower than Reno where acks come in batches.
    socket.set_congestion_control(CongestionControl::Reno);
    socket.set_nagle_enabled(false);
    // Before `listen` and `connect`, which keep the interval and clear the timer: set later, it would send a question at once.
    socket.set_keep_alive(patience.keep_alive_idle);
    socket
}

/// What a stack is built from.
#[derive(Clone, Copy)]
pub(super) struct Plan<'a> {
    pub(super) flow: &'a Flow,
    pub(super) ledger: &'a Ledger,
    pub(super) buffers: Buffers,
    /// Bytes that arrived and were not read; they fit into the new ring.
    pub(super) unread: &'a [u8],
    /// Whether the peer has finished behind them.
    pub(super) is_finished: bool,
}

/// Builds the stack of an established connection anew. Returns it with an ack of all that arrived, which announces its window.
pub(super) fn rebuild(
    plan: Plan<'_>,
    now: Instant,
    patience: &Patience,
    scratch: &mut Vec<u8>,
) -> Option<(Stack, Vec<u8>)> {
    (0..SALTS).find_map(|salt| rebuild_with(plan, salt, now, patience, scratch))
}

fn rebuild_with(
    plan: Plan<'_>,
    salt: u32,
    now: Instant,
    patience: &Patience,
    scratch: &mut Vec<u8>,
) -> Option<(Stack, Vec<u8>)> {
    let (next_sent, next_read) = (plan.ledger.next_sent()?, plan.ledger.next_read()?);
    let mut engine = engine(
        plan.flow,
        seed_for(next_sent.wrapping_sub(1), salt),
        now,
        std::mem::take(scratch),
    );
    let mut socket = new_socket(plan.buffers, patience);
    let local = IpListenEndpoint::from(IpEndpoint::from(plan.flow.local()));
    socket.listen(local).ok()?;
    let mut stack = Stack::new(socket, plan.buffers);
    let mut told = None;
    let mut tell = |packet: Vec<u8>, stack: &mut Stack| {
        engine.take_in(now, &mut stack.sockets, &packet, &mut |answer| {
            told = Some(answer.to_vec());
        });
        if stack.socket().state() == State::SynReceived {
            engine.send_out(now, &mut stack.sockets, &mut |_| {});
        }
    };
    let segments = Segments {
        plan: &plan,
        next_sent,
    };
    tell(
        segments.make(next_read.wrapping_sub(1), TcpControl::Syn, &[]),
        &mut stack,
    );
    // With another initial number than the wanted one this acknowledges nothing and is refused.
    tell(segments.make(next_read, TcpControl::None, &[]), &mut stack);
    let mut at = next_read;
    for piece in plan.unread.chunks(PIECE_BYTES) {
        tell(segments.make(at, TcpControl::None, piece), &mut stack);
        at = at.wrapping_add(u32::try_from(piece.len()).ok()?);
    }
    if plan.is_finished {
        tell(segments.make(at, TcpControl::Fin, &[]), &mut stack);
        at = at.wrapping_add(1);
    }
    // A byte that was read before is answered at once, with the ack and the window as they are (RFC 9293 §3.10.7.4).
    tell(
        segments.make(at.wrapping_sub(1), TcpControl::None, &[0]),
        &mut stack,
    );
    *scratch = std::mem::take(&mut engine.scratch);
    let ack = told.filter(|ack| acknowledges(plan.flow, ack, next_sent, at))?;
    let socket = stack.socket();
    let state = if plan.is_finished {
        State::CloseWait
    } else {
        State::Established
    };
    let complete = socket.state() == state && socket.recv_queue() == plan.unread.len();
    complete.then_some((stack, ack))
}

/// An interface that lives as long as the rebuilding: it has our address, and the wanted number is the first that it draws.
fn engine(flow: &Flow, seed: u64, now: Instant, mut scratch: Vec<u8>) -> Engine {
    let mut config = InterfaceConfig::new(HardwareAddress::Ip);
    config.random_seed = seed;
    let mut wire = Wire {
        inbound: None,
        scratch: &mut scratch,
        emit: &mut |_| {},
    };
    let mut iface = Interface::new(config, &mut wire, now);
    iface.update_ip_addrs(|held| held.extend([single(flow.local().ip())]));
    Engine { iface, scratch }
}

/// What the peer would have sent.
struct Segments<'a> {
    plan: &'a Plan<'a>,
    next_sent: u32,
}

impl Segments<'_> {
    fn make(&self, sequence: u32, control: TcpControl, payload: &[u8]) -> Vec<u8> {
        let (flow, ledger) = (self.plan.flow, self.plan.ledger);
        let opens = control == TcpControl::Syn;
        let segment = TcpRepr {
            src_port: flow.remote().port(),
            dst_port: flow.local().port(),
            control,
            seq_number: TcpSeqNumber(sequence.cast_signed()),
            ack_number: (!opens).then_some(TcpSeqNumber(self.next_sent.cast_signed())),
            window_len: ledger.peer_window,
            window_scale: ledger.offer.window_scale.filter(|_| opens),
            max_seg_size: ledger.offer.segment_bytes_max.filter(|_| opens),
            sack_permitted: opens && ledger.offer.selective_acks,
            sack_ranges: [None; 3],
            timestamp: None,
            payload,
        };
        compose(flow.remote(), flow.local(), &segment)
    }
}

/// Whether a packet of the new stack bears the numbers of the old one.
fn acknowledges(flow: &Flow, packet: &[u8], sequence: u32, acknowledgement: u32) -> bool {
    let header_bytes = if flow.local().is_ipv4() { 20 } else { 40 };
    let body = packet.get(header_bytes..).unwrap_or_default();
    TcpPacket::new_checked(body).is_ok_and(|tcp| {
        tcp.ack()
            && !tcp.rst()
            && tcp.seq_number().0.cast_unsigned() == sequence
            && tcp.ack_number().0.cast_unsigned() == acknowledgement
    })
}
