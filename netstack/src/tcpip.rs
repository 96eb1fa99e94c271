//! IP packets on one side, TCP connections on the other: smoltcp, with one small stack per connection.
//!
//! smoltcp asks every socket of a set about every packet. Here each connection is alone in its set, a hash of the 4-tuple finds it, and one timer wheel holds all
//! deadlines, so a packet costs the same with ten connections and with ten thousand: it runs one stack. What no connection claims goes to an empty set, which
//! answers: RST for closed ports, echo replies, port unreachable.
//!
//! Pure: packets and `now` come in; packets, events and the next deadline come out. The order of calls: [`TcpIp::handle_packet`] for each packet of a batch, then
//! [`TcpIp::poll`], then [`TcpIp::poll_event`] until it is `None`. Any other call may leave work behind ([`TcpIp::needs_poll`]). [`TcpIp::poll_timeout`] says when to poll next if
//! nothing happens. `now` never goes backwards.
//!
//! Invariants: memory for buffers never exceeds the budget; a [`ConnId`] never means another connection than the one it was made for; a connection that is over and
//! not held by the caller is gone. Deliberately absent: fragments, routes, any address but our own.

mod allowance;
mod budget;
mod compose;
mod config;
mod connection;
mod deliver;
mod device;
mod ending;
mod engine;
mod error;
mod fit;
mod flow;
mod inbound;
mod initial;
mod last_sent;
mod ledger;
mod listener;
mod outbox;
mod pace;
mod patience;
mod rebuild;
mod settle;
mod stats;
mod table;
mod time_wait;
mod wheel;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use rand_core::RngCore;
use smoltcp::iface::{Config as InterfaceConfig, Interface, SocketSet};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};

pub use config::TcpConfig;
pub use error::{ConnectError, ListenError, TcpError};
pub use stats::TcpStats;
pub use table::ConnId;

use allowance::Allowance;
use budget::Budget;
use connection::{Connection, Phase};
use engine::Engine;
use flow::{Flow, HashKey, KeyedMap};
use listener::Listener;
use outbox::Outbox;
use patience::Patience;
use table::Table;
use time_wait::TimeWaits;
use wheel::Wheel;

/// smoltcp's time: microseconds since the epoch that [`TcpIp::new`] was given.
type Clock = smoltcp::time::Instant;

/// Addresses that smoltcp was built to hold (its feature `iface-max-addr-count-8`); a node has two.
const ADDRESSES_MAX: usize = 8;
/// First of the ports that outgoing connections take (RFC 6335 §6); the last is 65535.
const EPHEMERAL_FIRST: u16 = 49_152;
/// Random ports tried before a search begins; with half of the range taken, 32 fail once in four thousand million.
const EPHEMERAL_TRIES: u32 = 32;

/// What happened to connections; emptied with [`TcpIp::poll_event`] after every poll.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TcpEvent {
    /// One more connection waits in [`TcpIp::accept`].
    Acceptable {
        /// The listening port.
        port: u16,
    },
    /// Our handshake is done.
    Connected(ConnId),
    /// A [`TcpIp::recv`] that would have blocked is worth repeating. Sent once per such call.
    Readable(ConnId),
    /// A [`TcpIp::send`] or [`TcpIp::flush`] that would have blocked is worth repeating. Sent once per such call.
    Writable(ConnId),
    /// The connection is over. What has arrived can still be read. The handle stays until [`TcpIp::release`].
    Closed(ConnId, CloseReason),
}

/// How a connection ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CloseReason {
    /// The peer reset it.
    Reset,
    /// The peer, or a filter on the way, did not want it.
    Refused,
    /// The peer fell silent.
    TimedOut,
    /// We ended it: by a call, or because our address went away.
    Aborted,
    /// Both sides finished.
    Done,
}

/// A connection that a peer opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Accepted {
    /// Its handle.
    pub conn: ConnId,
    /// Our side.
    pub local: SocketAddr,
    /// The peer's side.
    pub remote: SocketAddr,
}

/// What one remote address has of the limits.
#[derive(Clone, Copy, Debug, Default)]
struct PeerCount {
    connections: usize,
    half_open: usize,
}

/// All TCP connections of this node. See the module for the order of calls.
pub struct TcpIp {
    config: TcpConfig,
    patience: Patience,
    epoch: Instant,
    /// The latest time that anyone told us.
    now: Clock,
    engine: Engine,
    /// The set without sockets, which answers for everything that is not open.
    stray: SocketSet<'static>,
    stray_answers: Allowance,
    addresses: Vec<IpAddr>,
    table: Table,
    flows: KeyedMap<Flow, u32>,
    peers: KeyedMap<u128, PeerCount>,
    listeners: BTreeMap<u16, Listener>,
    listeners_made: u64,
    time_waits: TimeWaits,
    wheel: Wheel,
    touched: Vec<u32>,
    fired: Vec<u32>,
    outbox: Outbox,
    events: VecDeque<TcpEvent>,
    budget: Budget,
    half_open: usize,
    stats: TcpStats,
}

impl std::fmt::Debug for TcpIp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TcpIp")
            .field("addresses", &self.addresses)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl TcpIp {
    /// A node without addresses and listeners: it answers nothing. `seed` must be unpredictable (initial sequence numbers and the hash key come from it); `epoch` is the zero
    /// of smoltcp's clock and must not be later than any `now`.
    #[must_use]
    pub fn new(config: TcpConfig, seed: u64, epoch: Instant) -> Self {
        let mut interface = InterfaceConfig::new(HardwareAddress::Ip);
        interface.random_seed = seed;
        let mut scratch = Vec::new();
        let mut wire = device::Wire {
            inbound: None,
            scratch: &mut scratch,
            emit: &mut |_| {},
        };
        let iface = Interface::new(interface, &mut wire, Clock::ZERO);
        let key = HashKey::new(seed);
        let stray_answers = Allowance::new(config.stray_answers_per_second_max);
        Self {
            patience: Patience::new(&config),
            budget: Budget::new(&config),
            config,
            epoch,
            now: Clock::ZERO,
            engine: Engine { iface, scratch },
            stray: SocketSet::new(Vec::new()),
            stray_answers,
            addresses: Vec::new(),
            table: Table::default(),
            flows: KeyedMap::with_hasher(key),
            peers: KeyedMap::with_hasher(key),
            listeners: BTreeMap::new(),
            listeners_made: 0,
            time_waits: TimeWaits::new(key),
            wheel: Wheel::new(),
            touched: Vec::new(),
            fired: Vec::new(),
            outbox: Outbox::default(),
            events: VecDeque::new(),
            half_open: 0,
            stats: TcpStats::default(),
        }
    }

    /// Our addresses from now on. Connections on an address that vanished end as [`CloseReason::Aborted`], without a packet; all others stay. Only unicast addresses count, and
    /// of those the first eight.
    pub fn set_addresses(&mut self, addresses: &[IpAddr]) {
        self.addresses = addresses
            .iter()
            .copied()
            .filter(|address| {
                !address.is_unspecified()
                    && !address.is_multicast()
                    && *address != IpAddr::V4(std::net::Ipv4Addr::BROADCAST)
            })
            .take(ADDRESSES_MAX)
            .collect();
        let cidrs: Vec<IpCidr> = self
            .addresses
            .iter()
            .map(|&address| single(address))
            .collect();
        self.engine.iface.update_ip_addrs(|held| {
            held.clear();
            held.extend(cidrs);
        });
        for slot in self.table.occupied() {
            let orphaned = self
                .table
                .at_mut(slot)
                .is_some_and(|conn| !self.addresses.contains(&conn.flow.local().ip()));
            if orphaned {
                self.drop_stack(slot, CloseReason::Aborted);
                self.touch(slot);
            }
        }
    }

    /// Whether [`TcpIp::poll`] has something to do now.
    #[must_use]
    pub fn needs_poll(&self) -> bool {
        !self.touched.is_empty() || !self.outbox.is_empty()
    }

    /// When to poll at the latest, if nothing happens before. It may be a little early, never late.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.needs_poll() {
            return Some(self.instant(self.now.total_micros()));
        }
        let tick = self.wheel.next()?;
        Some(self.instant(i64::try_from(tick.saturating_mul(1_000)).unwrap_or(i64::MAX)))
    }

    /// The oldest event that was not told yet.
    pub fn poll_event(&mut self) -> Option<TcpEvent> {
        while let Some(event) = self.events.pop_front() {
            let conn = match event {
                TcpEvent::Acceptable { .. } => return Some(event),
                TcpEvent::Connected(conn)
                | TcpEvent::Readable(conn)
                | TcpEvent::Writable(conn)
                | TcpEvent::Closed(conn, _) => conn,
            };
            // A handle that was released meanwhile interests nobody.
            if self.held(conn).is_some() {
                return Some(event);
            }
        }
        None
    }

    /// Lets peers connect to `port` on all our addresses. At most `backlog` connections (at least one) shake hands or wait to be accepted at a time; a SYN beyond is dropped.
    ///
    /// # Errors
    /// If the port is listened on, or 0.
    pub fn listen(&mut self, port: u16, backlog: usize) -> Result<(), ListenError> {
        if port == 0 {
            return Err(ListenError::PortZero);
        }
        if self.listeners.contains_key(&port) {
            return Err(ListenError::InUse(port));
        }
        self.listeners_made += 1;
        self.listeners
            .insert(port, Listener::new(self.listeners_made, backlog));
        Ok(())
    }

    /// Closes the port: connections that nobody accepted are reset, accepted ones stay.
    pub fn unlisten(&mut self, port: u16) {
        let Some(mut listener) = self.listeners.remove(&port) else {
            return;
        };
        while let Some(conn) = listener.next() {
            if let Some(connection) = self.table.get_mut(conn) {
                connection.abort(CloseReason::Aborted);
                self.touch(conn.slot());
            }
        }
    }

    /// Takes the connection that waited longest; its handshake is done.
    pub fn accept(&mut self, port: u16) -> Option<Accepted> {
        let listener = self.listeners.get_mut(&port)?;
        loop {
            let conn = listener.next()?;
            if let Some(connection) = self.table.get_mut(conn) {
                connection.phase = Phase::Open;
                return Some(Accepted {
                    conn,
                    local: connection.flow.local(),
                    remote: connection.flow.remote(),
                });
            }
        }
    }

    /// Begins a connection; [`TcpEvent::Connected`] or [`TcpEvent::Closed`] tells how that went. `rng` chooses the local port among those free.
    ///
    /// # Errors
    /// If the addresses do not fit, or no port, slot or memory is left.
    pub fn connect(
        &mut self,
        now: Instant,
        local: IpAddr,
        remote: SocketAddr,
        rng: &mut dyn RngCore,
    ) -> Result<ConnId, ConnectError> {
        let now = self.advance(now);
        let usable = self.addresses.contains(&local)
            && local.is_ipv4() == remote.is_ipv4()
            && !(remote.port() == 0
                || remote.ip().is_unspecified()
                || remote.ip().is_multicast()
                || self.addresses.contains(&remote.ip()));
        if !usable {
            return Err(ConnectError::Unaddressable(local, remote));
        }
        let flow = self
            .free_flow(now, local, remote, rng)
            .ok_or(ConnectError::NoPort(remote))?;
        let buffers = self.admit(&flow).ok_or(ConnectError::Exhausted(remote))?;
        let made = Connection::active(
            flow,
            buffers,
            self.ledger(),
            now,
            &self.patience,
            &mut self.engine,
        );
        let Ok(connection) = made else {
            self.budget.give_back(buffers);
            return Err(ConnectError::Unaddressable(local, remote));
        };
        let conn = self
            .insert(connection)
            .ok_or(ConnectError::Exhausted(remote))?;
        self.touch(conn.slot());
        Ok(conn)
    }

    /// Reads into `buf` what has arrived; `Ok(0)` is the end of the stream. Bytes that came before a reset can be read after it.
    ///
    /// # Errors
    /// [`TcpError::WouldBlock`] arms one [`TcpEvent::Readable`]; the other errors are final.
    pub fn recv(&mut self, conn: ConnId, buf: &mut [u8]) -> Result<usize, TcpError> {
        let now = self.now;
        let result = self.held_mut(conn)?.recv(buf, now);
        self.fit_to_pace(now, conn.slot());
        let connection = self.held_mut(conn)?;
        if connection.window_update_due() || connection.reported {
            self.touch(conn.slot());
        }
        result
    }

    /// Queues as much of `data` as there is room for, and says how much that was.
    ///
    /// # Errors
    /// [`TcpError::WouldBlock`] arms one [`TcpEvent::Writable`]; the other errors are final.
    pub fn send(&mut self, conn: ConnId, data: &[u8]) -> Result<usize, TcpError> {
        let now = self.now;
        let connection = self.held_mut(conn)?;
        // A writer that comes with more than the ring holds gets a larger one, at once if nothing is unacknowledged, else after that.
        if data.len() > connection.send_room_bytes() && connection.is_flushed() {
            self.fit_to_write(conn.slot());
        }
        self.fit_to_pace(now, conn.slot());
        let connection = self.held_mut(conn)?;
        let is_short = data.len() > connection.send_room_bytes();
        let result = connection.send(data, now);
        if is_short {
            self.fit_to_write(conn.slot());
        }
        self.touch(conn.slot());
        result
    }

    /// Says that we are done sending: FIN follows the queued bytes, receiving goes on. During a handshake it gives the connection up.
    ///
    /// # Errors
    /// If the connection is over.
    pub fn shutdown(&mut self, conn: ConnId) -> Result<(), TcpError> {
        let now = self.now;
        self.held_mut(conn)?.shutdown(now)?;
        self.touch(conn.slot());
        Ok(())
    }

    /// Whether the peer acknowledged every byte that was sent, or never will.
    #[must_use]
    pub fn is_flushed(&self, conn: ConnId) -> bool {
        self.held(conn).is_none_or(Connection::is_flushed)
    }

    /// `Ok` once [`TcpIp::is_flushed`].
    ///
    /// # Errors
    /// [`TcpError::WouldBlock`] arms one [`TcpEvent::Writable`], sent when the last byte is acknowledged.
    pub fn flush(&mut self, conn: ConnId) -> Result<(), TcpError> {
        let connection = self.held_mut(conn)?;
        if connection.is_flushed() {
            return Ok(());
        }
        connection.wait_for_flush();
        Err(TcpError::WouldBlock)
    }

    /// Gives the handle back. If it was shut down, the rest of the closing goes on in the background, for a limited time; if not, or if bytes lie unread, the peer gets a RST.
    pub fn release(&mut self, conn: ConnId) {
        let now = self.now;
        if let Some(connection) = self
            .table
            .get_mut(conn)
            .filter(|connection| is_held(connection.phase))
        {
            connection.release(now, &self.patience);
            self.touch(conn.slot());
        }
    }

    /// Ends the connection with a RST. The handle stays until it is released.
    pub fn abort(&mut self, conn: ConnId) {
        if let Ok(connection) = self.held_mut(conn) {
            connection.abort(CloseReason::Aborted);
            self.touch(conn.slot());
        }
    }

    /// The peer's node said (by a TSMP reject) that it does not let this flow in: a connection under way to it ends as [`CloseReason::Refused`], any other is left alone, because
    /// only a SYN is ever filtered.
    pub fn handle_reject(&mut self, local: SocketAddr, remote: SocketAddr) {
        if local.is_ipv4() != remote.is_ipv4() {
            return;
        }
        let flow = Flow::new(local.ip(), local.port(), remote.ip(), remote.port());
        let Some(&slot) = self.flows.get(&flow) else {
            return;
        };
        if self
            .table
            .at_mut(slot)
            .is_some_and(|connection| connection.phase == Phase::Connecting)
        {
            self.drop_stack(slot, CloseReason::Refused);
            self.touch(slot);
        }
    }

    /// Our side and the peer's, while the handle is held.
    #[must_use]
    pub fn address_pair(&self, conn: ConnId) -> Option<(SocketAddr, SocketAddr)> {
        self.held(conn)
            .map(|connection| (connection.flow.local(), connection.flow.remote()))
    }

    /// What happened so far, and what there is now.
    #[must_use]
    pub fn stats(&self) -> TcpStats {
        TcpStats {
            connections: self.table.len(),
            half_open: self.half_open,
            buffer_bytes: self.budget.used_bytes(),
            answers_dropped: self.outbox.dropped(),
            ..self.stats
        }
    }

    fn held(&self, conn: ConnId) -> Option<&Connection> {
        self.table
            .get(conn)
            .filter(|connection| is_held(connection.phase))
    }

    fn held_mut(&mut self, conn: ConnId) -> Result<&mut Connection, TcpError> {
        self.table
            .get_mut(conn)
            .filter(|connection| is_held(connection.phase))
            .ok_or(TcpError::Stale)
    }

    /// A random port whose flow to `remote` is not in use, TIME-WAIT included.
    fn free_flow(
        &mut self,
        now: Clock,
        local: IpAddr,
        remote: SocketAddr,
        rng: &mut dyn RngCore,
    ) -> Option<Flow> {
        let count = u32::from(u16::MAX - EPHEMERAL_FIRST) + 1;
        let mut start = 0;
        for attempt in 0..EPHEMERAL_TRIES + count {
            if attempt <= EPHEMERAL_TRIES {
                start = rng.next_u32() % count;
            }
            let offset = (start + attempt.saturating_sub(EPHEMERAL_TRIES)) % count;
            let port = EPHEMERAL_FIRST + u16::try_from(offset).ok()?;
            let flow = Flow::new(local, port, remote.ip(), remote.port());
            if !self.flows.contains_key(&flow) && !self.time_waits.contains(now, &flow) {
                return Some(flow);
            }
        }
        None
    }

    fn advance(&mut self, now: Instant) -> Clock {
        let micros = now.saturating_duration_since(self.epoch).as_micros();
        self.now = self.now.max(Clock::from_micros(
            i64::try_from(micros).unwrap_or(i64::MAX),
        ));
        self.now
    }

    fn instant(&self, micros: i64) -> Instant {
        self.epoch + std::time::Duration::from_micros(u64::try_from(micros).unwrap_or_default())
    }
}

/// Whether the caller has a handle on a connection in this phase.
fn is_held(phase: Phase) -> bool {
    match phase {
        Phase::Connecting | Phase::Open => true,
        Phase::HalfOpen(_) | Phase::Unaccepted(_) | Phase::Released => false,
    }
}

/// The address alone, without a network around it: then smoltcp knows no broadcast address either.
fn single(address: IpAddr) -> IpCidr {
    let address = IpAddress::from(address);
    let bits = match address {
        IpAddress::Ipv4(_) => 32,
        IpAddress::Ipv6(_) => 128,
    };
    IpCidr::new(address, bits)
}
