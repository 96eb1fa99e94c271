//! The DERP map as a measurement needs it: addresses read, limits kept, roles decided.
//!
//! Invariant: at most [`REGIONS_MAX`] regions of [`SERVERS_MAX`] servers, none of which has an
//! address to which nothing can be sent. Called by `netcheck`.
//!
//! Source: tailscale.com `tailcfg/derpmap.go`, `net/netcheck/netcheck.go`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::stun;
use crate::tailcfg::{DerpMap, DerpNode};

/// Regions that are kept, lowest ids first; the largest public map has about thirty.
pub(super) const REGIONS_MAX: usize = 128;

/// Servers of one region that are kept, in their order; no attempt count reaches further.
pub(super) const SERVERS_MAX: usize = 8;

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub(super) fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// Where a server is, in one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// Here.
    At(IpAddr),
    /// Its name knows.
    Named,
    /// It does not speak this family.
    Nowhere,
}

/// One STUN server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) host: String,
    pub(super) port: u16,
    v4: Place,
    v6: Place,
}

impl Server {
    pub(super) fn place(&self, family: Family) -> &Place {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// `None` if the node does no STUN.
    fn read(node: &DerpNode) -> Option<Self> {
        let port = match node.stun_port {
            0 => stun::PORT_DEFAULT,
            port => u16::try_from(port).ok()?,
        };
        let (v4, v6) = match node.stun_test_ip.as_str() {
            "" => (node.ipv4.as_str(), node.ipv6.as_str()),
            test => (test, test),
        };
        let host = node.host_name.clone();
        let (v4, v6) = (place(v4, &host, Family::V4), place(v6, &host, Family::V6));
        (v4 != Place::Nowhere || v6 != Place::Nowhere).then_some(Self { host, port, v4, v6 })
    }
}

/// An address is taken as it is, nothing means its name, and all else disables the family.
fn place(text: &str, host: &str, family: Family) -> Place {
    // Some maps, our own devnet's among them, write an address as the name.
    let (text, may_be_named) = if text.is_empty() {
        (host, !host.is_empty())
    } else {
        (text, false)
    };
    match text.parse().map(|ip: IpAddr| ip.to_canonical()) {
        Ok(ip) if Family::of(ip) == family && can_be_sent_to(ip) => Place::At(ip),
        Ok(_) => Place::Nowhere,
        Err(_) if may_be_named => Place::Named,
        Err(_) => Place::Nowhere,
    }
}

/// Whether an address names one machine.
pub(super) fn can_be_sent_to(ip: IpAddr) -> bool {
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    !(ip.is_unspecified() || ip.is_multicast() || broadcast)
}

/// One region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) avoid: bool,
    pub(super) no_measure_no_home: bool,
    /// Whether any node relays; a region of STUN servers alone is nobody's home.
    pub(super) relays: bool,
    pub(super) servers: Vec<Server>,
}

/// All regions.
#[derive(Debug, Default)]
pub(super) struct Regions {
    pub(super) by_id: BTreeMap<u32, Region>,
    /// Multipliers of latencies, finite and positive.
    pub(super) scores: BTreeMap<u32, f64>,
    /// The first node of each region that relays.
    relays: BTreeMap<u32, DerpNode>,
}

impl Regions {
    pub(super) fn read(map: &DerpMap) -> Self {
        let mut regions = Self::default();
        let told = map.regions.iter().flatten();
        let told = told.filter_map(|(id, region)| Some((*id, region.as_ref()?)));
        for (id, region) in told.filter(|(id, _)| *id > 0).take(REGIONS_MAX) {
            let relay = region.nodes.iter().find(|node| !node.stun_only);
            let servers = region.nodes.iter().filter_map(Server::read);
            regions.by_id.insert(
                id,
                Region {
                    avoid: region.avoid,
                    no_measure_no_home: region.no_measure_no_home,
                    relays: relay.is_some(),
                    servers: servers.take(SERVERS_MAX).collect(),
                },
            );
            if let Some(relay) = relay {
                regions.relays.insert(id, relay.clone());
            }
        }
        let scores = map.home_params.iter().flat_map(|home| &home.region_score);
        let scores = scores.flatten().map(|(id, score)| (*id, *score));
        regions.scores = scores
            .filter(|(id, score)| {
                regions.by_id.contains_key(id) && score.is_finite() && *score > 0.0
            })
            .collect();
        regions
    }

    pub(super) fn relay(&self, id: u32) -> Option<&DerpNode> {
        self.relays.get(&id)
    }

    /// Regions to measure: all but those that say not to, and those to avoid unless one is home.
    pub(super) fn to_measure(&self, home: Option<u32>) -> impl Iterator<Item = (u32, &Region)> {
        let wanted = move |(id, region): &(u32, &Region)| {
            !region.no_measure_no_home && (!region.avoid || home == Some(*id))
        };
        self.by_id
            .iter()
            .map(|(id, region)| (*id, region))
            .filter(wanted)
    }

    /// Regions that may be home, sorted by id: those to measure that relay.
    pub(super) fn eligible(&self, home: Option<u32>) -> Vec<u32> {
        let relaying = self.to_measure(home).filter(|(_, region)| region.relays);
        relaying.map(|(id, _)| id).collect()
    }
}
