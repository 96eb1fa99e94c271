//! Measurements of the network, with a map, STUN servers, a resolver and relays that do as they
//! please: everything ends in time, and nothing grows.
//!
//! Seeds: measurements that succeed, fail and are disturbed, as scripts.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netstack::netcheck::{NetCheck, NetCheckEvent, Sockets};
use netstack::stun::{self, TxId};
use netstack::tailcfg::{DerpMap, DerpNode, DerpRegion, HomeParams};

use super::path::address;
use super::script::{Script, epoch};

/// A measurement is over after this.
const TOTAL_MAX: Duration = Duration::from_secs(5);
/// Requests that one call may make: one to each region by each family.
const SENT_MAX: usize = 2 * 128;
/// Endpoints of one address, and the guess at a forwarded port.
const PER_IP_MAX: usize = 6 + 1;

struct World {
    netcheck: NetCheck,
    now: Instant,
    sockets: Sockets,
    /// Regions of the map that may be home.
    eligible: BTreeSet<u32>,
    asked: VecDeque<TxId>,
    ever_asked: BTreeSet<TxId>,
    hosts: VecDeque<String>,
    probes: VecDeque<u64>,
    home: Option<u32>,
    datagrams: u64,
}

/// The bytes are a script: the map, what is answered, what happens, and how long we wait.
pub fn netcheck(data: &[u8]) {
    let mut script = Script::new(data);
    let sockets = sockets(script.byte());
    let mut world = World {
        netcheck: NetCheck::new([7; 32], sockets),
        now: epoch(),
        sockets,
        eligible: BTreeSet::new(),
        asked: VecDeque::new(),
        ever_asked: BTreeSet::new(),
        hosts: VecDeque::new(),
        probes: VecDeque::new(),
        home: None,
        datagrams: 0,
    };
    world.netcheck.set_wanted(true);
    while let Some(step) = script.step() {
        world.step(step, &mut script);
        world.settle();
    }
    world.wait(TOTAL_MAX);
    let stats = world.netcheck.stats();
    let counted = stats.answers + stats.unknown_txid + stats.malformed;
    assert_eq!(counted, world.datagrams);
    assert!(stats.full_runs <= stats.runs && stats.answers <= stats.requests_sent);
}

fn sockets(byte: u8) -> Sockets {
    Sockets {
        ipv4: byte & 1 == 0,
        ipv6: byte & 2 != 0,
        fixed_port: (byte & 4 != 0).then_some(41641),
    }
}

/// A node of one of the forms that maps have.
fn node(script: &mut Script<'_>) -> DerpNode {
    let kind = script.byte();
    let ip = address(kind >> 3 << 3).ip().to_string();
    let mut node = DerpNode {
        host_name: format!("{}.relay.example", kind >> 5),
        ipv4: ip,
        ..DerpNode::default()
    };
    match kind & 7 {
        0 | 1 => {}
        2 => node.ipv4.clear(),
        3 => node.stun_port = i32::from(kind) - 40,
        4 => node.stun_only = true,
        5 => node.ipv6 = "2001:db8::5".to_owned(),
        6 => node.stun_test_ip = address(script.byte()).ip().to_string(),
        _ => node.ipv6 = "none".to_owned(),
    }
    node
}

impl World {
    fn step(&mut self, step: u8, script: &mut Script<'_>) {
        let now = self.now;
        match step & 7 {
            0 => self.receive(script.piece()),
            1 => {
                let mapped = address(script.byte());
                let oldest = step & 0x80 == 0;
                let txid = if oldest {
                    self.asked.pop_front()
                } else {
                    self.asked.pop_back()
                };
                if let Some(txid) = txid {
                    self.receive(&stun::answer(txid, mapped));
                }
            }
            2 => self.wait(Duration::from_millis(script.u16().into())),
            3 => {
                let map = self.map(step >> 3, script);
                self.netcheck.set_derp_map(now, &map);
            }
            4 => {
                if let Some(host) = self.hosts.pop_front() {
                    let count = usize::from(step >> 4);
                    let ips = (0..count).map(|_| address(script.byte()).ip());
                    let ips: Vec<IpAddr> = ips.collect();
                    self.netcheck.handle_resolved(now, &host, &ips);
                }
            }
            5 => {
                let latency = Duration::from_millis(script.u16().into());
                let latency = (step & 0x40 == 0).then_some(latency);
                let id = self.probes.pop_front().unwrap_or(step.into());
                self.netcheck.handle_https(now, id, latency);
            }
            6 => self.netcheck.note_derp_frame(now, u32::from(step >> 3)),
            _ => match step >> 3 & 7 {
                0 => self.netcheck.handle_network_change(now),
                1 => self.netcheck.handle_derp_error(now),
                2 => self.netcheck.request_report(now, step & 0x80 != 0),
                3 | 4 => self.netcheck.note_active(now),
                5 => self.netcheck.set_wanted(step & 0x80 != 0),
                6 => {
                    self.sockets = sockets(script.byte());
                    self.netcheck.set_sockets(now, self.sockets);
                }
                _ => self.netcheck.set_control_connected(step & 0x80 != 0),
            },
        }
    }

    fn receive(&mut self, datagram: &[u8]) {
        self.datagrams += 1;
        self.netcheck.handle_datagram(self.now, datagram);
    }

    fn map(&mut self, count: u8, script: &mut Script<'_>) -> DerpMap {
        let mut regions = BTreeMap::new();
        let mut scores = BTreeMap::new();
        for _ in 0..count {
            let (id, shape) = (u32::from(script.byte()), script.byte());
            let nodes = (0..shape >> 6).map(|_| node(script));
            let region = DerpRegion {
                region_id: id,
                avoid: shape & 1 != 0,
                no_measure_no_home: shape & 2 != 0,
                nodes: nodes.collect(),
                ..DerpRegion::default()
            };
            if shape & 4 != 0 {
                scores.insert(id, f64::from(shape) - 100.0);
            }
            regions.insert(id, (shape & 8 == 0).then_some(region));
        }
        let may = |(id, region): (&u32, &Option<DerpRegion>)| {
            let region = region.as_ref()?;
            let relays = region.nodes.iter().any(|node| !node.stun_only);
            (*id > 0 && relays && !region.no_measure_no_home).then_some(*id)
        };
        self.eligible = regions.iter().filter_map(may).collect();
        DerpMap {
            regions: Some(regions),
            home_params: Some(HomeParams {
                region_score: Some(scores),
            }),
            ..DerpMap::default()
        }
    }

    /// Lets time pass, from one deadline to the next.
    fn wait(&mut self, duration: Duration) {
        let end = self.now + duration;
        while let Some(at) = self.netcheck.poll_timeout().filter(|at| *at <= end) {
            self.now = at.max(self.now);
            self.netcheck.handle_timeout(self.now);
            self.settle();
        }
        self.now = end;
    }

    fn settle(&mut self) {
        // Of a node that is used again, a measurement may be due at once; one call begins it.
        if self
            .netcheck
            .poll_timeout()
            .is_some_and(|at| at <= self.now)
        {
            self.netcheck.handle_timeout(self.now);
            assert!(self.netcheck.poll_timeout().is_none_or(|at| at > self.now));
        }
        let sent: Vec<_> = std::iter::from_fn(|| self.netcheck.poll_transmit()).collect();
        assert!(sent.len() <= SENT_MAX, "{} requests at once", sent.len());
        for (to, datagram) in sent {
            let txid = stun::parse_request(&datagram).expect("a relay accepts it");
            assert!(self.ever_asked.insert(txid), "an id is used once");
            assert!(!to.ip().is_unspecified() && !to.ip().is_multicast() && to.port() != 0);
            assert_eq!(to.ip(), to.ip().to_canonical());
            self.asked.push_back(txid);
        }
        while let Some(event) = self.netcheck.poll_event() {
            self.note(event);
        }
        assert_eq!(self.netcheck.home(), self.home);
        assert!(self.netcheck.poll_event().is_none());
    }

    fn note(&mut self, event: NetCheckEvent) {
        match event {
            NetCheckEvent::Resolve { host } => {
                assert!(host.parse::<IpAddr>().is_err());
                self.hosts.push_back(host);
            }
            NetCheckEvent::Https { id, region, node } => {
                assert!(self.eligible.contains(&region) && !node.stun_only);
                self.probes.push_back(id);
            }
            NetCheckEvent::Home { region, before, .. } => {
                assert_eq!(before, self.home);
                assert_ne!(region, before);
                assert!(region.is_none_or(|region| self.eligible.contains(&region)));
                self.home = region;
            }
            NetCheckEvent::NetInfo(info) => {
                assert_eq!(info.preferred_derp, self.home.unwrap_or_default());
            }
            NetCheckEvent::Endpoints(endpoints) => {
                let mut per_ip: BTreeMap<IpAddr, usize> = BTreeMap::new();
                for endpoint in endpoints {
                    assert!(endpoint.addr.port() != 0);
                    *per_ip.entry(endpoint.addr.ip()).or_default() += 1;
                }
                assert!(per_ip.values().all(|count| *count <= PER_IP_MAX));
                assert!(per_ip.values().sum::<usize>() <= 48 + 1);
            }
            NetCheckEvent::Report(report) => {
                assert!(report.ended - report.began <= TOTAL_MAX);
                assert!(report.latency.values().all(|latency| *latency <= TOTAL_MAX));
                assert_eq!(report.udp, report.ipv4 || report.ipv6);
                assert_eq!(report.home, self.home);
            }
        }
    }
}
