//! One peer's candidates, pings and best address.
//!
//! Invariants: `best` was proven by a pong to a ping of ours; at most [`CANDIDATES_MAX`] addresses
//! and [`SENT_PINGS_MAX`] pings are kept. Called by `path`, which seals, queues and keeps time.
//!
//! Source: tailscale.com `wgengine/magicsock/endpoint.go`.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::choice::better;
use super::outbox::Wire;
use super::{PathStatus, Route, Way};
use crate::disco::TxId;
use crate::key::{DiscoPublic, NodePublic};

/// Between pings to the best address while the peer is in use.
pub(super) const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(3);
/// How long a pong makes its address trusted: two heartbeats and some.
pub(super) const TRUST: Duration = Duration::from_millis(6500);
/// After this a ping is taken for lost.
pub(super) const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two calls, over a relay, for a peer to ping us.
pub(super) const CALL_INTERVAL_MIN: Duration = Duration::from_secs(5);
/// Between two calls of a peer that are followed: each may have us ping a hundred addresses of its choice.
pub(super) const CALL_HEEDED_INTERVAL_MIN: Duration = Duration::from_secs(1);
/// Between discovery pings to one candidate.
pub(super) const PING_INTERVAL_MIN: Duration = Duration::from_secs(5);
/// The same while no path is known, doubling with each round up to [`PING_INTERVAL_MIN`]: a peer that
/// hears of us a moment later than we of it drops the first ping, and no relay carries us until the next.
pub(super) const FIRST_PING_INTERVAL: Duration = Duration::from_millis(100);
/// A peer is in use for this long after we last sent to it.
pub(super) const SESSION_ACTIVE: Duration = Duration::from_secs(45);
/// A candidate learned from a ping lives this long after the last such ping.
pub(super) const HEARD_LIFETIME: Duration = Duration::from_secs(45);
/// Between tries for a better address while a good one works.
pub(super) const UPGRADE_INTERVAL: Duration = Duration::from_secs(60);
/// At or below this latency no better address is looked for.
pub(super) const GOOD_ENOUGH_LATENCY: Duration = Duration::from_millis(5);
/// Addresses kept; the reference collects garbage above this many.
pub(super) const CANDIDATES_MAX: usize = 100;
/// Pings whose pong is awaited: six rounds to each candidate begin within the timeout of the first, and
/// heartbeats come beside them.
const SENT_PINGS_MAX: usize = 6 * CANDIDATES_MAX + 8;

/// A held datagram's largest size: a WireGuard handshake initiation.
const HELD_BYTES_MAX: usize = 148;
/// After this WireGuard makes a new initiation, and a held one is of no use.
const HELD_LIFETIME: Duration = Duration::from_secs(5);

/// The address that datagrams are sent to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Best {
    pub(super) addr: SocketAddr,
    pub(super) latency: Duration,
    pub(super) trust_until: Instant,
    pub(super) asked_by_peer: bool,
}

#[derive(Debug, Default)]
struct Candidate {
    from_netmap: bool,
    /// The peer's last call named it.
    from_call: bool,
    /// The last valid ping from there: its id, to tell doubles, and when.
    heard: Option<(TxId, Instant)>,
    pinged_at: Option<Instant>,
}

#[derive(Debug)]
struct SentPing {
    txid: TxId,
    to: SocketAddr,
    at: Instant,
    asked_by_peer: bool,
}

/// See the file's head.
#[derive(Debug)]
pub(super) struct Peer {
    /// What `path` last noted as this peer's deadline; its business alone.
    pub(super) armed: Option<Instant>,
    node: NodePublic,
    disco: DiscoPublic,
    home_derp: u32,
    candidates: BTreeMap<SocketAddr, Candidate>,
    best: Option<Best>,
    /// Oldest first.
    sent: VecDeque<SentPing>,
    last_send: Option<Instant>,
    heartbeat_at: Option<Instant>,
    last_round: Option<Instant>,
    /// Rounds of unanswered pings since there was a path, or since the peer came into use.
    rounds: u32,
    /// No candidate may be pinged before this: spares each send a look at all of them.
    quiet_until: Option<Instant>,
    /// Goes out as soon as there is a path.
    held: Option<(Instant, Vec<u8>)>,
    /// See [`Peer::take_revived`].
    revived: bool,
    /// When we last called it, and when a call of its own was last followed.
    called_at: Option<Instant>,
    heeded_at: Option<Instant>,
}

impl Peer {
    pub(super) fn new(node: NodePublic, disco: DiscoPublic) -> Self {
        Self {
            armed: None,
            node,
            disco,
            home_derp: 0,
            candidates: BTreeMap::new(),
            best: None,
            sent: VecDeque::new(),
            last_send: None,
            heartbeat_at: None,
            last_round: None,
            rounds: 0,
            quiet_until: None,
            held: None,
            revived: false,
            called_at: None,
            heeded_at: None,
        }
    }

    pub(super) fn disco(&self) -> DiscoPublic {
        self.disco
    }

    pub(super) fn best(&self) -> Option<Best> {
        self.best
    }

    pub(super) fn status(&self) -> PathStatus {
        PathStatus {
            best: self.best.map(|best| best.addr),
            latency: self.best.map(|best| best.latency),
            trusted_until: self.best.map(|best| best.trust_until),
            candidates: self.candidates.len(),
            home_derp: self.home_derp,
        }
    }

    pub(super) fn home_derp(&self) -> u32 {
        self.home_derp
    }

    pub(super) fn set_home_derp(&mut self, region: u32) {
        self.home_derp = region;
    }

    /// Another key means another process: what the old one proved is worth nothing.
    pub(super) fn set_disco(&mut self, disco: DiscoPublic) {
        if self.disco == disco {
            return;
        }
        self.disco = disco;
        self.best = None;
        self.sent.clear();
        self.forget_pings();
    }

    /// The network has changed under us: nothing that was proven holds.
    pub(super) fn unprove(&mut self) {
        self.best = None;
        self.sent.clear();
        self.called_at = None;
        self.forget_pings();
    }

    /// The system says that `addr` cannot be reached.
    pub(super) fn handle_unreachable(&mut self, addr: &SocketAddr) {
        if self.best.is_some_and(|best| best.addr == *addr) {
            self.best = None;
        }
        self.sent.retain(|ping| ping.to != *addr);
    }

    fn forget_pings(&mut self) {
        self.rounds = 0;
        self.quiet_until = None;
        for candidate in self.candidates.values_mut() {
            candidate.pinged_at = None;
        }
    }

    /// The peer asks, over its relay, to be pinged at these addresses; it has just sent towards us from each. Whether it was heeded.
    pub(super) fn handle_call(
        &mut self,
        now: Instant,
        endpoints: impl Iterator<Item = SocketAddr>,
        wire: &mut Wire<'_>,
    ) -> bool {
        if self
            .heeded_at
            .is_some_and(|at| now < at + CALL_HEEDED_INTERVAL_MIN)
        {
            return false;
        }
        self.heeded_at = Some(now);
        for candidate in self.candidates.values_mut() {
            candidate.from_call = false;
        }
        for addr in endpoints.filter(usable).filter(|addr| !is_link_local(addr)) {
            if let Some(candidate) = self.candidate(now, addr) {
                candidate.from_call = true;
            }
        }
        self.sweep(now);
        self.forget_pings();
        self.last_round = Some(now);
        // No call in return, or two nodes would call each other for ever.
        self.ping_all(now, wire);
        true
    }

    /// The netmap's endpoints, all of them.
    pub(super) fn set_endpoints(
        &mut self,
        now: Instant,
        endpoints: impl Iterator<Item = SocketAddr>,
    ) {
        for candidate in self.candidates.values_mut() {
            candidate.from_netmap = false;
        }
        for addr in endpoints.filter(usable).take(CANDIDATES_MAX) {
            if let Some(candidate) = self.candidate(now, addr) {
                candidate.from_netmap = true;
            }
        }
        self.sweep(now);
    }

    /// Notes a valid ping from `src`; whether it is one that was noted before.
    pub(super) fn note_ping_from(&mut self, now: Instant, src: SocketAddr, txid: TxId) -> bool {
        if !usable(&src) {
            return false;
        }
        let Some(candidate) = self.candidate(now, src) else {
            return false;
        };
        let heard = candidate.heard.replace((txid, now));
        heard.is_some_and(|(heard, _)| heard == txid)
    }

    /// The peer pinged us from `src`: without a trusted path to it, try that one.
    pub(super) fn probe_asked(&mut self, now: Instant, src: SocketAddr, wire: &mut Wire<'_>) {
        if !self.trusts_best(now) && self.may_ping(now, &src) {
            self.ping(now, src, true, wire);
            self.rounds = self.rounds.saturating_add(1);
        }
    }

    /// Whether a ping with this id is out.
    pub(super) fn awaits(&self, txid: &TxId) -> bool {
        self.sent.iter().any(|ping| ping.txid == *txid)
    }

    /// Takes a pong. What it proves is the address that was pinged, wherever the pong came from.
    /// Whether it proved anything.
    pub(super) fn handle_pong(&mut self, now: Instant, txid: &TxId, wire: &mut Wire<'_>) -> bool {
        // One that comes too late finds its ping given up, or about to be.
        let in_time = |ping: &SentPing| ping.txid == *txid && now < ping.at + PING_TIMEOUT;
        let position = self.sent.iter().position(in_time);
        let Some(ping) = position.and_then(|position| self.sent.remove(position)) else {
            return false;
        };
        let latency = now.saturating_duration_since(ping.at);
        if !self.candidates.contains_key(&ping.to) {
            return false;
        }
        self.revived |= ping.asked_by_peer && self.best.is_some_and(|best| now >= best.trust_until);
        let trust_until = now + TRUST;
        self.rounds = 0;
        if self.best.is_none() && self.heartbeat_at.is_some() {
            self.heartbeat_at = Some(now + HEARTBEAT_INTERVAL);
        }
        match &mut self.best {
            Some(best) if best.addr == ping.to => {
                best.latency = latency;
                best.trust_until = trust_until;
            }
            Some(best)
                if now < best.trust_until
                    && !better((ping.to, latency), (best.addr, best.latency)) => {}
            Some(_) | None => {
                self.best = Some(Best {
                    addr: ping.to,
                    latency,
                    trust_until,
                    asked_by_peer: ping.asked_by_peer,
                });
            }
        }
        if let (Some(best), Some((at, datagram))) = (self.best, self.held.take())
            && now < at + HELD_LIFETIME
        {
            wire.outbox.forward(Way::Direct(best.addr), datagram);
        }
        true
    }

    /// Whether, since the last call, a path that had not been proven for a while was proven because the peer asked.
    pub(super) fn take_revived(&mut self) -> bool {
        std::mem::take(&mut self.revived)
    }

    /// Keeps one handshake datagram for when a path is proven.
    pub(super) fn hold(&mut self, now: Instant, datagram: &[u8]) {
        if self.best.is_none() && datagram.len() <= HELD_BYTES_MAX {
            self.held = Some((now, datagram.to_vec()));
        }
    }

    /// The hot half of routing: the trusted best address of a peer whose heartbeat runs.
    pub(super) fn route_trusted(&mut self, now: Instant) -> Option<SocketAddr> {
        self.heartbeat_at?;
        let best = self.best.filter(|best| now < best.trust_until)?;
        self.last_send = Some(now);
        Some(best.addr)
    }

    /// The other half: starts the heartbeat and, while nothing is trusted, discovery.
    pub(super) fn route_untrusted(&mut self, now: Instant, wire: &mut Wire<'_>) -> Route {
        self.last_send = Some(now);
        if self.heartbeat_at.is_none() {
            self.rounds = 0;
        }
        if !self.trusts_best(now) {
            self.discover(now, wire);
        }
        if self.heartbeat_at.is_none() {
            self.heartbeat_at = Some(now + self.heartbeat_interval());
        }
        Route {
            direct: self.best.map(|best| best.addr),
            // Of the two copies WireGuard's window drops one.
            relayed: !self.trusts_best(now),
        }
    }

    /// When [`Peer::handle_timeout`] is next due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let lost_at = self.sent.front().map(|ping| ping.at + PING_TIMEOUT);
        [lost_at, self.heartbeat_at].into_iter().flatten().min()
    }

    pub(super) fn handle_timeout(&mut self, now: Instant, wire: &mut Wire<'_>) {
        while let Some(lost) = self
            .sent
            .front()
            .filter(|ping| now >= ping.at + PING_TIMEOUT)
        {
            let to = lost.to;
            self.sent.pop_front();
            if self
                .best
                .is_some_and(|best| best.addr == to && now >= best.trust_until)
            {
                self.best = None;
            }
        }
        if self.heartbeat_at.is_some_and(|at| now >= at) {
            self.heartbeat(now, wire);
        }
    }

    fn heartbeat(&mut self, now: Instant, wire: &mut Wire<'_>) {
        if self.last_send.is_none_or(|at| now >= at + SESSION_ACTIVE) {
            self.heartbeat_at = None;
            return;
        }
        if let Some(best) = self.best {
            self.ping(now, best.addr, false, wire);
        }
        let upgrade = self
            .best
            .is_some_and(|best| best.latency > GOOD_ENOUGH_LATENCY)
            && self
                .last_round
                .is_none_or(|at| now >= at + UPGRADE_INTERVAL);
        if upgrade || !self.trusts_best(now) {
            self.discover(now, wire);
        }
        self.heartbeat_at = Some(now + self.heartbeat_interval());
    }

    /// Without a path, the heartbeat's work is to look for one.
    fn heartbeat_interval(&self) -> Duration {
        match self.best {
            Some(_) => HEARTBEAT_INTERVAL,
            None => self.ping_interval().min(HEARTBEAT_INTERVAL),
        }
    }

    fn ping_interval(&self) -> Duration {
        match self.best {
            Some(_) => PING_INTERVAL_MIN,
            None => FIRST_PING_INTERVAL
                .saturating_mul(1 << self.rounds.saturating_sub(1).min(6))
                .min(PING_INTERVAL_MIN),
        }
    }

    /// Pings every candidate that was not pinged of late.
    fn discover(&mut self, now: Instant, wire: &mut Wire<'_>) {
        if self.quiet_until.is_some_and(|until| now < until) {
            return;
        }
        self.sweep(now);
        self.last_round = Some(now);
        self.ping_all(now, wire);
        self.call(now, wire);
    }

    /// Has the peer ping us, also when we know no address of it: it may be the one that can be reached only from within.
    fn call(&mut self, now: Instant, wire: &mut Wire<'_>) {
        let is_due = self
            .called_at
            .is_none_or(|at| now >= at + CALL_INTERVAL_MIN);
        if is_due && wire.call(now, self.node, &self.disco) {
            self.called_at = Some(now);
        }
    }

    /// Our endpoints are fresh now, and the peer waits to hear of them.
    pub(super) fn call_waiting(&mut self, now: Instant, wire: &mut Wire<'_>) {
        if !self.trusts_best(now) && wire.call(now, self.node, &self.disco) {
            self.called_at = Some(now);
        }
    }

    /// Pings every candidate that was not pinged of late.
    fn ping_all(&mut self, now: Instant, wire: &mut Wire<'_>) {
        let mut due: Vec<SocketAddr> = self.candidates.keys().copied().collect();
        due.retain(|addr| self.may_ping(now, addr));
        for addr in &due {
            self.ping(now, *addr, false, wire);
        }
        if !due.is_empty() {
            self.rounds = self.rounds.saturating_add(1);
        }
        self.quiet_until = self
            .candidates
            .values()
            .filter_map(|candidate| candidate.pinged_at)
            .min()
            .map(|at| at + self.ping_interval());
    }

    fn ping(&mut self, now: Instant, to: SocketAddr, asked_by_peer: bool, wire: &mut Wire<'_>) {
        let Some(candidate) = self.candidates.get_mut(&to) else {
            return;
        };
        let Some(txid) = wire.ping(&self.disco, to) else {
            return;
        };
        candidate.pinged_at = Some(now);
        if self.sent.len() >= SENT_PINGS_MAX {
            self.sent.pop_front();
        }
        self.sent.push_back(SentPing {
            txid,
            to,
            at: now,
            asked_by_peer,
        });
    }

    fn trusts_best(&self, now: Instant) -> bool {
        self.best.is_some_and(|best| now < best.trust_until)
    }

    fn may_ping(&self, now: Instant, addr: &SocketAddr) -> bool {
        self.candidates.get(addr).is_some_and(|candidate| {
            candidate
                .pinged_at
                .is_none_or(|at| now >= at + self.ping_interval())
        })
    }

    /// The candidate at `addr`, made if there is room or room can be made.
    fn candidate(&mut self, now: Instant, addr: SocketAddr) -> Option<&mut Candidate> {
        if !self.candidates.contains_key(&addr) {
            if self.candidates.len() >= CANDIDATES_MAX {
                self.sweep(now);
            }
            if self.candidates.len() >= CANDIDATES_MAX {
                let oldest = self.longest_unheard()?;
                self.candidates.remove(&oldest);
            }
            self.quiet_until = None;
        }
        Some(self.candidates.entry(addr).or_default())
    }

    /// Of the candidates known by their pings alone, the one to forget first.
    fn longest_unheard(&self) -> Option<SocketAddr> {
        let best = self.best.map(|best| best.addr);
        self.candidates
            .iter()
            .filter(|(addr, candidate)| {
                !candidate.from_netmap && !candidate.from_call && Some(**addr) != best
            })
            .min_by_key(|(_, candidate)| candidate.heard.map(|(_, at)| at))
            .map(|(addr, _)| *addr)
    }

    /// Forgets candidates that nothing supports any more. The best one stays for as long as it is
    /// that: its own pongs speak for it.
    fn sweep(&mut self, now: Instant) {
        let best = self.best.map(|best| best.addr);
        self.candidates.retain(|addr, candidate| {
            candidate.from_netmap
                || candidate.from_call
                || Some(*addr) == best
                || candidate
                    .heard
                    .is_some_and(|(_, at)| now < at + HEARD_LIFETIME)
        });
    }
}

/// What only the sender's own link knows; the reference ignores it in a call.
fn is_link_local(addr: &SocketAddr) -> bool {
    matches!(addr.ip(), IpAddr::V6(ip) if ip.is_unicast_link_local())
}

/// Whether an address can be pinged at all.
fn usable(addr: &SocketAddr) -> bool {
    let special = match addr.ip() {
        IpAddr::V4(ip) => ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unspecified() || ip.is_multicast(),
    };
    addr.port() != 0 && !special
}
