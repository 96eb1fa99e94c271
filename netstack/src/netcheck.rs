//! What the network around us is like: which DERP region is home, which endpoints are ours.
//!
//! Invariants: an answer counts only if it names an outstanding transaction; a measurement ends
//! within five seconds; an existing home changes only while control can be told. What a DERP map, a
//! resolver or a STUN server can make us keep or send is bounded. Called by `node`.
//!
//! Order of calls: `set_derp_map` on each netmap with one; the `set_*` and `note_*` as things
//! change; `handle_datagram` for each STUN datagram of the shared sockets, `handle_resolved` and
//! `handle_https` for each answer to such an event; `handle_timeout` at `poll_timeout`; after each
//! of them `poll_transmit` and `poll_event` until `None`.
//!
//! ```text
//! schedule   when: at start, on a change of network or map, on a DERP error, every 20..26 s in use
//! plan       whom: every region (first, and every five minutes), or the fastest and the home
//! run        STUN requests and answers, then HTTPS where UDP said nothing
//! history    latencies of five minutes  →  home      which region, by which rule
//! report     what was found             →  endpoints which addresses, for how long
//! ```
//!
//! Source: tailscale.com `net/netcheck/netcheck.go`, `wgengine/magicsock/magicsock.go`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};

use crate::stun::{self, Answer};
use crate::tailcfg::{DerpMap, DerpNode, NetInfo};
use endpoints::Tracked;
use history::History;
use names::Names;
use plan::Known;
use regions::{Family, Place, Regions};
use run::{Advance, Run, Transmits};
use schedule::Schedule;

mod endpoints;
mod history;
mod home;
mod names;
mod plan;
mod regions;
mod report;
mod run;
mod schedule;
#[cfg(test)]
mod tests;

pub use endpoints::{Endpoint, EndpointKind};
pub use home::HomeReason;
pub use report::Report;

/// The path of an HTTPS probe on a relay; any answer will do, only its time counts.
pub const LATENCY_CHECK_PATH: &str = "/derp/latency-check";

/// Which sockets there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sockets {
    /// One for IPv4.
    pub ipv4: bool,
    /// One for IPv6.
    pub ipv6: bool,
    /// The local port, if the operator chose it: perhaps it is forwarded to us.
    pub fixed_port: Option<u16>,
}

/// Something to be done, or to be known.
#[derive(Debug, Clone)]
pub enum NetCheckEvent {
    /// Resolve a name, both families, and call [`NetCheck::handle_resolved`].
    Resolve {
        /// The name; never an address.
        host: String,
    },
    /// Time a GET of [`LATENCY_CHECK_PATH`], and call [`NetCheck::handle_https`].
    Https {
        /// Names the probe.
        id: u64,
        /// Whose latency it is.
        region: u32,
        /// The relay to be asked: its name, port, and how to check its certificate.
        node: Box<DerpNode>,
    },
    /// The home region is another one. The old connection is to be kept until it idles out.
    Home {
        /// The new home; `None`: no region may be home.
        region: Option<u32>,
        /// What was told before.
        before: Option<u32>,
        /// Why.
        reason: HomeReason,
    },
    /// Control is to be told, in `Hostinfo.NetInfo`.
    NetInfo(Box<NetInfo>),
    /// Our public endpoints are others; all of them, best first.
    Endpoints(Vec<Endpoint>),
    /// A measurement is done. Of several not yet polled only the last is told.
    Report(Box<Report>),
}

/// Counters since the start; each datagram handed in is in exactly one of the last three.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NetCheckStats {
    /// Measurements begun.
    pub runs: u64,
    /// Of these, those of every region.
    pub full_runs: u64,
    /// Handed to `poll_transmit`.
    pub requests_sent: u64,
    /// To a request that was outstanding.
    pub answers: u64,
    /// To no request, to one answered before, or too late.
    pub unknown_txid: u64,
    /// No binding success, or an address that nobody can have.
    pub malformed: u64,
}

/// See the file's head for the order of calls.
#[derive(Debug)]
pub struct NetCheck {
    rng: ChaCha20Rng,
    /// For the lot among regions: the same for the whole process.
    lot: u64,
    sockets: Sockets,
    control_connected: bool,
    regions: Regions,
    names: Names,
    schedule: Schedule,
    run: Option<Run>,
    next_probe: u64,
    history: History,
    tracked: Tracked,
    home: Option<u32>,
    home_reason: HomeReason,
    /// When the connection to each region last delivered a frame.
    heard: BTreeMap<u32, Instant>,
    /// As the last report knew that could compare two servers of this network.
    mapping_varies: Option<bool>,
    last: Option<Report>,
    transmits: Transmits,
    /// Resolve and Https events of the present run.
    requests: VecDeque<NetCheckEvent>,
    told_home: Option<u32>,
    told_net_info: NetInfo,
    told_endpoints: BTreeSet<Endpoint>,
    report_is_news: bool,
    /// Something of the above may differ from what was told. Events are asked for after every
    /// packet, and comparing costs more than a packet.
    compare: bool,
    stats: NetCheckStats,
}

impl NetCheck {
    /// Knows nothing yet. `seed` feeds the generator of transaction ids and of the period, and must
    /// be fresh for each process.
    pub fn new(seed: [u8; 32], sockets: Sockets) -> Self {
        let mut rng = ChaCha20Rng::from_seed(seed);
        Self {
            lot: rng.next_u64(),
            rng,
            sockets,
            control_connected: false,
            regions: Regions::default(),
            names: Names::default(),
            schedule: Schedule::default(),
            run: None,
            next_probe: 0,
            history: History::default(),
            tracked: Tracked::default(),
            home: None,
            home_reason: HomeReason::NoRegion,
            heard: BTreeMap::new(),
            mapping_varies: None,
            last: None,
            transmits: Transmits::new(),
            requests: VecDeque::new(),
            told_home: None,
            told_net_info: NetInfo::default(),
            told_endpoints: BTreeSet::new(),
            report_is_news: false,
            compare: false,
            stats: NetCheckStats::default(),
        }
    }

    /// The merged DERP map. If what is measured differs from before, a full measurement begins; a
    /// sole region becomes home at once.
    pub fn set_derp_map(&mut self, now: Instant, map: &DerpMap) {
        let regions = Regions::read(map);
        let same = regions.by_id == self.regions.by_id;
        self.regions = regions;
        if same {
            return;
        }
        self.names.retain(&self.regions);
        let known = &self.regions.by_id;
        self.heard.retain(|id, _| known.contains_key(id));
        self.abort();
        if self.regions.by_id.is_empty() {
            self.schedule.stop();
        } else {
            self.schedule.ask(now, true);
        }
        if self.regions.eligible(self.home).len() <= 1 {
            self.choose_home(now, now, &BTreeMap::new());
        }
        self.handle_timeout(now);
    }

    /// Which sockets there are now; a change is a change of network.
    pub fn set_sockets(&mut self, now: Instant, sockets: Sockets) {
        if self.sockets != sockets {
            self.sockets = sockets;
            self.handle_network_change(now);
        }
    }

    /// Whether the map stream is up, so that a new home would reach our peers.
    pub fn set_control_connected(&mut self, connected: bool) {
        self.control_connected = connected;
    }

    /// Whether there is a node key and a peer: without, nothing is measured periodically.
    pub fn set_wanted(&mut self, wanted: bool) {
        self.schedule.wanted = wanted;
    }

    /// Something was sent to a peer: the node is in use for the next 45 seconds.
    pub fn note_active(&mut self, now: Instant) {
        self.schedule.note_active(now);
    }

    /// The connection to a region delivered a frame.
    pub fn note_derp_frame(&mut self, now: Instant, region: u32) {
        if self.regions.by_id.contains_key(&region) {
            self.heard.insert(region, now);
        }
    }

    /// Addresses, routes or sockets changed: what was measured is of another network. A full
    /// measurement begins.
    pub fn handle_network_change(&mut self, now: Instant) {
        self.abort();
        self.history.clear();
        self.names.begin(true);
        self.mapping_varies = None;
        self.compare = true;
        self.ask(now, true);
    }

    /// A DERP connection failed. A measurement begins, unless one is under way.
    pub fn handle_derp_error(&mut self, now: Instant) {
        if self.run.is_none() {
            self.ask(now, false);
        }
    }

    /// Somebody wants to know: a person, or a peer that is to be told endpoints which are older
    /// than 27 s. A measurement begins; one under way is as good, unless it is not `full`.
    pub fn request_report(&mut self, now: Instant, full: bool) {
        if self.run.as_ref().is_none_or(|run| full && !run.is_full()) {
            self.ask(now, full);
        }
    }

    fn ask(&mut self, now: Instant, full: bool) {
        if !self.regions.by_id.is_empty() {
            self.schedule.ask(now, full);
            self.handle_timeout(now);
        }
    }

    /// Takes a datagram that [`stun::looks_like_stun`]. It is never an error: what cannot be used is
    /// counted. Where it came from decides nothing.
    pub fn handle_datagram(&mut self, now: Instant, datagram: &[u8]) {
        let usable = |answer: &Answer| {
            regions::can_be_sent_to(answer.mapped.ip()) && answer.mapped.port() != 0
        };
        let Some(answer) = stun::parse_answer(datagram).ok().filter(usable) else {
            self.stats.malformed += 1;
            return;
        };
        let run = self.run.as_mut();
        if run.is_some_and(|run| run.handle_answer(now, answer)) {
            self.stats.answers += 1;
            self.handle_timeout(now);
        } else {
            self.stats.unknown_txid += 1;
        }
    }

    /// Takes the addresses of a name; none if it has none or the resolver failed.
    pub fn handle_resolved(&mut self, now: Instant, host: &str, addresses: &[IpAddr]) {
        if self.names.answer(host, addresses)
            && let Some(run) = &mut self.run
        {
            run.resume(now);
            self.handle_timeout(now);
        }
    }

    /// Takes the outcome of an HTTPS probe: from the request to the first byte of the answer,
    /// connection and handshake not counted; `None` if it failed.
    pub fn handle_https(&mut self, now: Instant, id: u64, latency: Option<Duration>) {
        let run = self.run.as_mut();
        if run.is_some_and(|run| run.handle_https(id, latency)) {
            self.handle_timeout(now);
        }
    }

    /// Whether a measurement is under way, so that a report will come.
    pub fn is_measuring(&self) -> bool {
        self.run.is_some()
    }

    /// The next datagram to send, from the socket of its family.
    pub fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        self.transmits.pop_front()
    }

    /// The next thing to do or to know. Changes that cancel out between two calls are never told.
    pub fn poll_event(&mut self) -> Option<NetCheckEvent> {
        if let Some(request) = self.requests.pop_front() {
            return Some(request);
        }
        if !self.compare {
            return None;
        }
        if self.told_home != self.home {
            let before = std::mem::replace(&mut self.told_home, self.home);
            return Some(NetCheckEvent::Home {
                region: self.home,
                before,
                reason: self.home_reason,
            });
        }
        let net_info = self.net_info();
        if report::is_news(&self.told_net_info, &net_info) {
            self.told_net_info = net_info.clone();
            return Some(NetCheckEvent::NetInfo(Box::new(net_info)));
        }
        let endpoints = self.endpoints();
        let set: BTreeSet<Endpoint> = endpoints.iter().copied().collect();
        if set != self.told_endpoints {
            self.told_endpoints = set;
            return Some(NetCheckEvent::Endpoints(endpoints));
        }
        self.compare = false;
        let news = std::mem::take(&mut self.report_is_news);
        let report = self.last.clone().filter(|_| news)?;
        Some(NetCheckEvent::Report(Box::new(report)))
    }

    /// When [`NetCheck::handle_timeout`] is next due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let next = match &self.run {
            Some(run) => Some(run.poll_timeout()),
            None => self.schedule.due(),
        };
        [next, self.tracked.poll_timeout()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Sends what is due, moves the measurement on, begins one.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.compare |= self.tracked.expire(now);
        loop {
            if self.run.is_none() && self.schedule.due().is_some_and(|due| due <= now) {
                self.begin(now);
            }
            // Ends because a second measurement is not due for a second.
            if !self.drive(now) {
                return;
            }
        }
    }

    /// Moves the measurement on. Whether that ended it.
    fn drive(&mut self, now: Instant) -> bool {
        let Some(run) = &mut self.run else {
            return false;
        };
        self.stats.requests_sent += run.send(
            now,
            &self.regions,
            &self.names,
            &mut self.rng,
            &mut self.transmits,
        );
        let probes = match run.advance(now, &self.regions, &mut self.next_probe) {
            Advance::Wait => return false,
            Advance::Probe(probes) => probes,
            Advance::End => {
                self.end(now);
                return true;
            }
        };
        for (id, region) in probes {
            if let Some(node) = self.regions.relay(region).cloned().map(Box::new) {
                self.requests
                    .push_back(NetCheckEvent::Https { id, region, node });
            }
        }
        false
    }

    fn begin(&mut self, now: Instant) {
        self.abort();
        let fastest = self.history.fastest(now);
        let full = self.schedule.begin(now) || fastest.is_empty();
        let available = |family: &Family| match family {
            Family::V4 => self.sockets.ipv4,
            Family::V6 => self.sockets.ipv6,
        };
        let families: Vec<Family> = Family::BOTH.into_iter().filter(available).collect();
        let had = |family: &Family| {
            self.last.as_ref().is_some_and(|last| match family {
                Family::V4 => last.ipv4,
                Family::V6 => last.ipv6,
            })
        };
        let answered: Vec<Family> = Family::BOTH.into_iter().filter(had).collect();
        let known = Known {
            regions: &self.regions,
            home: self.home,
            families: &families,
            answered: &answered,
            fastest: &fastest,
        };
        let plan = if full {
            plan::full(&known)
        } else {
            plan::incremental(&known)
        };
        self.names.begin(full);
        for series in &plan.series {
            let region = self.regions.by_id.get(&series.region);
            for server in region.iter().flat_map(|region| &region.servers) {
                let named = *server.place(series.family) == Place::Named;
                if named && self.names.ask(&server.host) {
                    let host = server.host.clone();
                    self.requests.push_back(NetCheckEvent::Resolve { host });
                }
            }
        }
        self.stats.runs += 1;
        self.stats.full_runs += u64::from(full);
        self.run = Some(Run::new(now, plan, self.home));
    }

    /// Ends a measurement without a report.
    fn abort(&mut self) {
        self.run = None;
        self.transmits.clear();
        self.requests.clear();
    }

    fn end(&mut self, now: Instant) {
        let Some(run) = self.run.take() else {
            return;
        };
        self.transmits.clear();
        self.requests.clear();
        let (began, full) = (run.began, run.is_full());
        self.schedule.end(now, full, &mut self.rng);
        let measured = run.into_measured();
        let latencies = measured.best();
        self.history.push(now, latencies.clone());
        self.tracked
            .note(now, &endpoints::worth_telling(&measured.seen));
        self.choose_home(now, began, &latencies);
        let home = (self.home, self.home_reason);
        let report = Report::new(began, now, full, measured, home);
        self.mapping_varies = report.mapping_varies_by_dest_ip.or(self.mapping_varies);
        self.last = Some(report);
        self.report_is_news = true;
        self.compare = true;
    }

    fn choose_home(&mut self, now: Instant, began: Instant, answered: &BTreeMap<u32, Duration>) {
        let facts = home::Facts {
            now,
            began,
            current: self.home,
            eligible: &self.regions.eligible(self.home),
            answered,
            best: &self.history.best(now),
            scores: &self.regions.scores,
            heard: self.home.and_then(|home| self.heard.get(&home)).copied(),
            control_connected: self.control_connected,
            lot: self.lot,
        };
        (self.home, self.home_reason) = home::choose(&facts);
        self.compare = true;
    }

    /// The home region now; `None`: no map yet, or no region may be home.
    pub fn home(&self) -> Option<u32> {
        self.home
    }

    /// The last report, if any.
    pub fn report(&self) -> Option<&Report> {
        self.last.as_ref()
    }

    /// When the endpoints were last looked at; call-me-maybe wants them younger than 27 s.
    pub fn endpoints_seen(&self) -> Option<Instant> {
        self.last
            .as_ref()
            .filter(|last| last.udp)
            .map(|last| last.ended)
    }

    /// What control is to know, with present latencies.
    pub fn net_info(&self) -> NetInfo {
        report::net_info(self.home, self.mapping_varies, self.last.as_ref())
    }

    /// Our public endpoints, best first.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        let listed = self.tracked.list().into_iter();
        let mut endpoints: Vec<Endpoint> = listed
            .map(|addr| Endpoint {
                addr,
                kind: EndpointKind::Stun,
            })
            .collect();
        let public = self.last.as_ref().and_then(|last| last.public_v4);
        if let (Some(public), Some(port), Some(true)) =
            (public, self.sockets.fixed_port, self.mapping_varies)
        {
            let addr = SocketAddr::new(public.ip(), port);
            if endpoints.iter().all(|known| known.addr != addr) {
                endpoints.push(Endpoint {
                    addr,
                    kind: EndpointKind::StunWithLocalPort,
                });
            }
        }
        endpoints
    }

    /// Counters since the start.
    pub fn stats(&self) -> NetCheckStats {
        self.stats
    }
}
