//! One measurement under way: STUN first, then HTTPS where STUN said nothing.
//!
//! Invariant: it ends within [`TOTAL_MAX`], whatever comes or does not; only an answer to a request
//! of its own counts, once. Called by `netcheck`.
//!
//! ```text
//! Stun   until 3 s, or soon after 3 regions answered and the home had its chances, or when nothing
//!        more can come
//! Https  until 5 s, or when every probe is answered; left out if 3 regions answered
//! ```
//!
//! Source: tailscale.com `net/netcheck/netcheck.go`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand_chacha::ChaCha20Rng;
use rand_core::RngCore as _;

use super::history::Latencies;
use super::names::{Found, Names};
use super::plan::{Plan, Series};
use super::regions::{Family, Regions};
use crate::stun::{self, TxId};

/// A whole measurement.
pub(super) const TOTAL_MAX: Duration = Duration::from_secs(5);
/// Its STUN phase.
pub(super) const STUN_MAX: Duration = Duration::from_secs(3);
/// Regions whose answers are enough.
const ENOUGH_REGIONS: usize = 3;
/// HTTPS probes of one measurement; each costs a TLS handshake.
const HTTPS_MAX: usize = 32;

/// Datagrams on their way out.
pub(super) type Transmits = VecDeque<(SocketAddr, Vec<u8>)>;

/// What a measurement found.
#[derive(Debug, Default)]
pub(super) struct Measured {
    pub(super) v4: Latencies,
    pub(super) v6: Latencies,
    pub(super) https: Latencies,
    /// Which server saw us where, in the order of the answers.
    pub(super) seen: Vec<Seen>,
}

/// One answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) server: SocketAddr,
    pub(super) mapped: SocketAddr,
}

impl Measured {
    /// Per region the lowest latency by any means.
    pub(super) fn best(&self) -> Latencies {
        let mut best = Latencies::new();
        for (id, latency) in self.v4.iter().chain(&self.v6).chain(&self.https) {
            note(&mut best, *id, *latency);
        }
        best
    }

    fn stun_regions(&self) -> BTreeSet<u32> {
        self.v4.keys().chain(self.v6.keys()).copied().collect()
    }

    fn slowest(&self) -> Duration {
        let best = self.best();
        best.values().max().copied().unwrap_or_default()
    }
}

fn note(latencies: &mut Latencies, id: u32, latency: Duration) {
    let lowest = latencies.entry(id).or_insert(latency);
    *lowest = latency.min(*lowest);
}

#[derive(Debug)]
struct Progress {
    series: Series,
    /// Requests made.
    made: usize,
    due: Instant,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Asking,
    /// For the resolver.
    Waiting,
    /// Answered, or no server speaks the family.
    Over,
}

#[derive(Debug)]
struct Request {
    progress: usize,
    server: SocketAddr,
    sent: Instant,
}

#[derive(Debug)]
enum Phase {
    Stun,
    /// Ids of the probes that are not answered, and their regions.
    Https(BTreeMap<u64, u32>),
}

/// See the file's head.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) began: Instant,
    full: bool,
    regions: Vec<u32>,
    progress: Vec<Progress>,
    requests: BTreeMap<TxId, Request>,
    last_sent: Instant,
    phase: Phase,
    until: Instant,
    home: Option<u32>,
    /// When three regions have had enough time, once they answered.
    enough_at: Option<Instant>,
    measured: Measured,
}

impl Run {
    pub(super) fn new(now: Instant, plan: Plan, home: Option<u32>) -> Self {
        let progress = plan.series.into_iter().map(|series| Progress {
            series,
            made: 0,
            due: now,
            state: State::Asking,
        });
        Self {
            began: now,
            full: plan.full,
            regions: plan.regions,
            progress: progress.collect(),
            requests: BTreeMap::new(),
            last_sent: now,
            phase: Phase::Stun,
            until: now + STUN_MAX,
            home,
            enough_at: None,
            measured: Measured::default(),
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.full
    }

    pub(super) fn into_measured(self) -> Measured {
        self.measured
    }

    /// Sends what is due.
    pub(super) fn send(
        &mut self,
        now: Instant,
        regions: &Regions,
        names: &Names,
        rng: &mut ChaCha20Rng,
        transmits: &mut Transmits,
    ) -> u64 {
        let mut sent = 0;
        if !matches!(self.phase, Phase::Stun) || now >= self.until {
            return sent;
        }
        for (index, progress) in self.progress.iter_mut().enumerate() {
            if progress.state != State::Asking || progress.due > now || progress.is_spent() {
                continue;
            }
            let server = match choose_server(&progress.series, progress.made, regions, names) {
                Choice::Server(server) => server,
                Choice::Wait => {
                    progress.state = State::Waiting;
                    continue;
                }
                Choice::Nobody => {
                    progress.state = State::Over;
                    continue;
                }
            };
            let mut txid = [0; 12];
            rng.fill_bytes(&mut txid);
            transmits.push_back((server, stun::request(txid).to_vec()));
            let request = Request {
                progress: index,
                server,
                sent: now,
            };
            self.requests.insert(txid, request);
            self.last_sent = now;
            sent += 1;
            progress.made += 1;
            let gap = progress.series.gaps.get(progress.made);
            progress.due = now + gap.copied().unwrap_or_default();
        }
        sent
    }

    /// The resolver answered: what waited for it goes on, with its pauses counted from now.
    pub(super) fn resume(&mut self, now: Instant) {
        for progress in &mut self.progress {
            if progress.state == State::Waiting {
                progress.state = State::Asking;
                progress.due = progress.due.max(now);
            }
        }
    }

    /// Takes an answer. Whether it was to a request of this measurement.
    pub(super) fn handle_answer(&mut self, now: Instant, answer: stun::Answer) -> bool {
        let Some(request) = self.requests.remove(&answer.txid) else {
            return false;
        };
        let Some(progress) = self.progress.get_mut(request.progress) else {
            return false;
        };
        progress.state = State::Over;
        let latency = now.saturating_duration_since(request.sent);
        let by_family = match Family::of(answer.mapped.ip()) {
            Family::V4 => &mut self.measured.v4,
            Family::V6 => &mut self.measured.v6,
        };
        note(by_family, progress.series.region, latency);
        self.measured.seen.push(Seen {
            server: request.server,
            mapped: answer.mapped,
        });
        self.hurry(now);
        true
    }

    /// Three regions are enough: the others get as long again as the slowest of these took, or
    /// twice as long in a full measurement.
    fn hurry(&mut self, now: Instant) {
        if self.enough_at.is_none() && self.measured.stun_regions().len() >= ENOUGH_REGIONS {
            self.enough_at = Some(now + self.measured.slowest() * self.patience());
        }
    }

    fn patience(&self) -> u32 {
        if self.full { 2 } else { 1 }
    }

    /// Takes the outcome of an HTTPS probe. Whether it was awaited.
    pub(super) fn handle_https(&mut self, id: u64, latency: Option<Duration>) -> bool {
        let Phase::Https(awaited) = &mut self.phase else {
            return false;
        };
        let Some(region) = awaited.remove(&id) else {
            return false;
        };
        if let Some(latency) = latency.filter(|latency| *latency <= TOTAL_MAX) {
            note(&mut self.measured.https, region, latency);
        }
        true
    }

    /// When something is due next.
    pub(super) fn poll_timeout(&self) -> Instant {
        let ends = self.ends();
        match self.phase {
            Phase::Stun => {
                let asking = self.progress.iter().filter(|progress| progress.is_asking());
                asking.map(|progress| progress.due).fold(ends, Instant::min)
            }
            Phase::Https(_) => ends,
        }
    }

    /// When this phase ends if nothing more comes.
    fn ends(&self) -> Instant {
        match &self.phase {
            Phase::Https(awaited) if awaited.is_empty() => self.began,
            Phase::Https(_) => self.until,
            Phase::Stun => {
                let early = [self.nothing_more_comes(), self.enough()];
                early.into_iter().flatten().fold(self.until, Instant::min)
            }
        }
    }

    /// When enough regions have answered and had their time. A home that is silent gets all of its
    /// requests before: one lost datagram among near regions would else move it, and every peer
    /// would have to learn that.
    fn enough(&self) -> Option<Instant> {
        let at = self.enough_at?;
        let Some(home) = self.home else {
            return Some(at);
        };
        if self.measured.stun_regions().contains(&home) {
            return Some(at);
        }
        let asking = self
            .progress
            .iter()
            .filter(|progress| progress.series.region == home && progress.state == State::Asking);
        let patience = self.measured.slowest() * self.patience();
        let chances = asking.map(|progress| progress.last_due() + patience);
        Some(chances.fold(at, Instant::max))
    }

    /// When the STUN phase has nothing left to wait for, short of its limit: at once if every
    /// series is over; else, if every region has answered in one family and all requests are made,
    /// after twice the slowest answer.
    fn nothing_more_comes(&self) -> Option<Instant> {
        let mut open = self
            .progress
            .iter()
            .filter(|progress| progress.state != State::Over);
        if open.clone().next().is_none() {
            return Some(self.began);
        }
        let answered = self.measured.stun_regions();
        let asked =
            |progress: &Progress| progress.is_spent() && answered.contains(&progress.series.region);
        open.all(asked)
            .then(|| self.last_sent + self.measured.slowest() * 2)
    }

    /// Moves on at `now`: to the next phase, whose probes are then to be made (`id` names them), or
    /// to the end.
    pub(super) fn advance(
        &mut self,
        now: Instant,
        regions: &Regions,
        next_probe: &mut u64,
    ) -> Advance {
        if now < self.ends() {
            return Advance::Wait;
        }
        if !matches!(self.phase, Phase::Stun) {
            return Advance::End;
        }
        self.requests.clear();
        let answered = self.measured.stun_regions();
        let mut awaited = BTreeMap::new();
        if self.enough_at.is_none() {
            let silent = self.regions.iter().filter(|id| !answered.contains(id));
            for id in silent
                .filter(|id| regions.relay(**id).is_some())
                .take(HTTPS_MAX)
            {
                *next_probe = next_probe.wrapping_add(1);
                awaited.insert(*next_probe, *id);
            }
        }
        let probes: Vec<(u64, u32)> = awaited.iter().map(|(id, region)| (*id, *region)).collect();
        self.phase = Phase::Https(awaited);
        self.until = self.began + TOTAL_MAX;
        if probes.is_empty() || now >= self.until {
            Advance::End
        } else {
            Advance::Probe(probes)
        }
    }
}

/// What [`Run::advance`] came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Advance {
    Wait,
    /// HTTPS probes to be made: id and region.
    Probe(Vec<(u64, u32)>),
    End,
}

impl Progress {
    fn is_spent(&self) -> bool {
        self.made >= self.series.gaps.len()
    }

    /// When its last request is due, or was made.
    fn last_due(&self) -> Instant {
        let later = self.series.gaps.iter().skip(self.made + 1);
        self.due + later.sum::<Duration>()
    }

    fn is_asking(&self) -> bool {
        self.state == State::Asking && !self.is_spent()
    }
}

enum Choice {
    Server(SocketAddr),
    Wait,
    Nobody,
}

/// The server for an attempt: the attempts go round the region's servers, past those that do not
/// speak the family or whose name is not known yet.
fn choose_server(series: &Series, attempt: usize, regions: &Regions, names: &Names) -> Choice {
    let servers = regions
        .by_id
        .get(&series.region)
        .map(|region| &region.servers);
    let servers = servers.map(Vec::as_slice).unwrap_or_default();
    let mut none_known = Choice::Nobody;
    let first = attempt.checked_rem(servers.len()).unwrap_or(0);
    for server in servers.iter().cycle().skip(first).take(servers.len()) {
        let place = server.place(series.family);
        match names.find(place, &server.host, series.family) {
            Found::At(ip) => return Choice::Server(SocketAddr::new(ip, server.port)),
            Found::NotYet => none_known = Choice::Wait,
            Found::Nothing => {}
        }
    }
    none_known
}
