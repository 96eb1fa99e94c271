//! A small Internet in memory for `netcheck`'s tests: STUN servers at their distances, datagrams
//! that get lost, names, relays that answer HTTPS, a NAT.
//!
//! Invariant: the same seed and calls end the same way. Its clock moves only from one event to the
//! next.

use std::collections::{BTreeMap, BTreeSet};

use super::super::*;
use crate::tailcfg::{DerpRegion, HomeParams};

/// How the NAT before us maps.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Nat {
    /// One endpoint for all destinations.
    Easy,
    /// Another port for each destination.
    Hard,
}

/// A STUN server.
pub(super) struct Host {
    pub(super) round_trip: Duration,
    /// Lost requests of each hundred.
    pub(super) loss_percent: u32,
    /// How many requests to lose first.
    pub(super) lose_first: u32,
}

pub(super) struct Internet {
    pub(super) netcheck: NetCheck,
    pub(super) start: Instant,
    pub(super) now: Instant,
    pub(super) hosts: BTreeMap<SocketAddr, Host>,
    pub(super) names: BTreeMap<String, Vec<IpAddr>>,
    pub(super) resolver_takes: Duration,
    /// HTTPS round trips by region; the others refuse.
    pub(super) https: BTreeMap<u32, Duration>,
    pub(super) nat: Nat,
    pub(super) public_v4: [u8; 4],
    rng: ChaCha20Rng,
    due: BTreeMap<(Instant, u64), Arrival>,
    count: u64,
    /// What was sent: when after the start, and to whom.
    pub(super) sent: Vec<(Duration, SocketAddr)>,
    pub(super) resolved: Vec<String>,
    pub(super) https_asked: Vec<u32>,
    pub(super) homes: Vec<(Option<u32>, Option<u32>, HomeReason)>,
    pub(super) net_infos: Vec<NetInfo>,
    pub(super) endpoints: Vec<Vec<Endpoint>>,
    pub(super) reports: Vec<Report>,
}

enum Arrival {
    Datagram(Vec<u8>),
    Name(String),
    Https(u64, Option<Duration>),
}

pub(super) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

impl Internet {
    pub(super) fn new(seed: u8) -> Self {
        let sockets = Sockets {
            ipv4: true,
            ipv6: false,
            fixed_port: None,
        };
        Self::with_sockets(seed, sockets)
    }

    pub(super) fn with_sockets(seed: u8, sockets: Sockets) -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "an Instant can be had in no other way, and only differences to it count"
        )]
        let start = Instant::now();
        let mut netcheck = NetCheck::new([seed; 32], sockets);
        netcheck.set_control_connected(true);
        Self {
            netcheck,
            start,
            now: start,
            hosts: BTreeMap::new(),
            names: BTreeMap::new(),
            resolver_takes: ms(15),
            https: BTreeMap::new(),
            nat: Nat::Easy,
            public_v4: [198, 51, 100, 1],
            rng: ChaCha20Rng::from_seed([seed ^ 0xff; 32]),
            due: BTreeMap::new(),
            count: 0,
            sent: Vec::new(),
            resolved: Vec::new(),
            https_asked: Vec::new(),
            homes: Vec::new(),
            net_infos: Vec::new(),
            endpoints: Vec::new(),
            reports: Vec::new(),
        }
    }

    /// A server, without loss.
    pub(super) fn host(&mut self, addr: SocketAddr, round_trip_millis: u64) {
        let host = Host {
            round_trip: ms(round_trip_millis),
            loss_percent: 0,
            lose_first: 0,
        };
        self.hosts.insert(addr, host);
    }

    /// A map of regions with one server each, at [`server`], as far away as told in milliseconds.
    pub(super) fn regions(&mut self, round_trips: &[(u32, u64)]) -> DerpMap {
        for (id, millis) in round_trips {
            self.host(server(*id), *millis);
        }
        let ids: Vec<u32> = round_trips.iter().map(|(id, _)| *id).collect();
        map(&ids)
    }

    pub(super) fn set_map(&mut self, map: &DerpMap) {
        self.netcheck.set_derp_map(self.now, map);
        self.settle();
    }

    /// Lets `act` do something now.
    pub(super) fn tell(&mut self, act: impl FnOnce(&mut NetCheck, Instant)) {
        act(&mut self.netcheck, self.now);
        self.settle();
    }

    /// Lets time pass, event by event.
    pub(super) fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            let arrival = self.due.keys().next().map(|(at, _)| *at);
            let timer = self.netcheck.poll_timeout();
            let Some(next) = arrival
                .into_iter()
                .chain(timer)
                .min()
                .filter(|at| *at <= end)
            else {
                break;
            };
            self.now = self.now.max(next);
            if arrival.is_some_and(|at| at <= self.now) {
                let (_, arrival) = self.due.pop_first().unwrap();
                self.arrive(arrival);
            } else {
                self.netcheck.handle_timeout(self.now);
                let next = self.netcheck.poll_timeout();
                assert!(
                    next.is_none_or(|at| at > self.now),
                    "one call does what is due"
                );
            }
            self.settle();
        }
        self.now = end;
    }

    fn arrive(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Datagram(datagram) => self.netcheck.handle_datagram(self.now, &datagram),
            Arrival::Name(host) => {
                let addresses = self.names.get(&host).cloned().unwrap_or_default();
                self.netcheck.handle_resolved(self.now, &host, &addresses);
            }
            Arrival::Https(id, latency) => self.netcheck.handle_https(self.now, id, latency),
        }
    }

    fn later(&mut self, after: Duration, arrival: Arrival) {
        self.count += 1;
        self.due.insert((self.now + after, self.count), arrival);
    }

    fn settle(&mut self) {
        while let Some((to, datagram)) = self.netcheck.poll_transmit() {
            self.sent.push((self.now - self.start, to));
            self.carry(to, &datagram);
        }
        while let Some(event) = self.netcheck.poll_event() {
            match event {
                NetCheckEvent::Resolve { host } => {
                    self.resolved.push(host.clone());
                    self.later(self.resolver_takes, Arrival::Name(host));
                }
                NetCheckEvent::Https { id, region, node } => {
                    assert!(!node.stun_only);
                    self.https_asked.push(region);
                    let latency = self.https.get(&region).copied();
                    let after = latency.unwrap_or(ms(1));
                    self.later(after, Arrival::Https(id, latency));
                }
                NetCheckEvent::Home {
                    region,
                    before,
                    reason,
                } => self.homes.push((before, region, reason)),
                NetCheckEvent::NetInfo(info) => self.net_infos.push(*info),
                NetCheckEvent::Endpoints(endpoints) => self.endpoints.push(endpoints),
                NetCheckEvent::Report(report) => self.reports.push(*report),
            }
        }
    }

    /// Carries a request to its server and, perhaps, the answer back.
    fn carry(&mut self, to: SocketAddr, datagram: &[u8]) {
        let txid = stun::parse_request(datagram).unwrap();
        let drawn = self.rng.next_u32() % 100;
        let Some(host) = self.hosts.get_mut(&to) else {
            return;
        };
        let early = host.lose_first > 0;
        host.lose_first = host.lose_first.saturating_sub(1);
        if early || drawn < host.loss_percent {
            return;
        }
        let round_trip = host.round_trip;
        let mapped = match (to.ip(), self.nat) {
            (IpAddr::V6(_), _) => "[2001:db8:99::1]:41641".parse().unwrap(),
            (IpAddr::V4(_), Nat::Easy) => SocketAddr::from((self.public_v4, 1024)),
            (IpAddr::V4(ip), Nat::Hard) => {
                let port = 2000 + u16::from(ip.octets()[3]);
                SocketAddr::from((self.public_v4, port))
            }
        };
        self.later(round_trip, Arrival::Datagram(stun::answer(txid, mapped)));
    }

    /// Requests that went to `addr`, as times after the start.
    pub(super) fn sent_to(&self, addr: SocketAddr) -> Vec<Duration> {
        let to = self.sent.iter().filter(|(_, to)| *to == addr);
        to.map(|(at, _)| *at).collect()
    }

    pub(super) fn asked(&self) -> BTreeSet<SocketAddr> {
        self.sent.iter().map(|(_, to)| *to).collect()
    }

    pub(super) fn report(&self) -> &Report {
        self.reports.last().unwrap()
    }
}

/// The address of a region's server.
pub(super) fn server(region: u32) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, u8::try_from(region).unwrap()], 3478))
}

/// The IPv6 address of a region's server.
pub(super) fn server_v6(region: u32) -> SocketAddr {
    let host = u16::try_from(region).unwrap();
    SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, host], 3478))
}

pub(super) fn node(region: u32) -> DerpNode {
    DerpNode {
        name: format!("{region}a"),
        region_id: region,
        host_name: format!("relay{region}.example"),
        ipv4: server(region).ip().to_string(),
        ipv6: server_v6(region).ip().to_string(),
        ..DerpNode::default()
    }
}

pub(super) fn map(ids: &[u32]) -> DerpMap {
    let region = |id: &u32| {
        let region = DerpRegion {
            region_id: *id,
            nodes: vec![node(*id)],
            ..DerpRegion::default()
        };
        (*id, Some(region))
    };
    DerpMap {
        regions: Some(ids.iter().map(region).collect()),
        ..DerpMap::default()
    }
}

/// Changes one region of a map.
pub(super) fn alter(map: &mut DerpMap, id: u32, change: impl FnOnce(&mut DerpRegion)) {
    let regions = map.regions.as_mut().unwrap();
    change(regions.get_mut(&id).unwrap().as_mut().unwrap());
}

pub(super) fn score(map: &mut DerpMap, scores: &[(u32, f64)]) {
    map.home_params = Some(HomeParams {
        region_score: Some(scores.iter().copied().collect()),
    });
}
