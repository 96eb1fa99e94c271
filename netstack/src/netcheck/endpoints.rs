//! Our public endpoints: where STUN servers see us, and for how long that is worth telling.
//!
//! Invariant: at most [`PER_IP_MAX`] endpoints of one address and [`ENDPOINTS_MAX`] in all; each
//! is gone [`LIFETIME`] after it was last seen. Called by `netcheck`.
//!
//! Source: tailscale.com `wgengine/magicsock/endpoint_tracker.go`, `net/netcheck/netcheck.go`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::regions::Family;
use super::run::Seen;

/// How long an endpoint is told after it was last seen.
pub(super) const LIFETIME: Duration = Duration::from_secs(5 * 60 + 10);
/// Endpoints of one address: a NAT that gives every server another port makes as many.
const PER_IP_MAX: usize = 6;
/// Endpoints in all; half of what one call-me-maybe may hold, as local ones are told beside them.
const ENDPOINTS_MAX: usize = 48;

/// How an endpoint is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EndpointKind {
    /// A STUN server saw it.
    Stun,
    /// The address that a STUN server saw, with the local port: a guess that the port is forwarded.
    StunWithLocalPort,
}

impl EndpointKind {
    /// The number in a map request's `EndpointTypes`.
    pub fn number(self) -> u8 {
        match self {
            Self::Stun => 2,
            Self::StunWithLocalPort => 4,
        }
    }
}

/// A public endpoint of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// Where others may reach us; never an IPv4-mapped address.
    pub addr: SocketAddr,
    /// How it is known.
    pub kind: EndpointKind,
}

/// The endpoints of late.
#[derive(Debug, Default)]
pub(super) struct Tracked(BTreeMap<SocketAddr, Instant>);

impl Tracked {
    /// Notes what a measurement saw.
    pub(super) fn note(&mut self, now: Instant, seen: &[SocketAddr]) {
        for addr in seen {
            self.0.insert(*addr, now);
        }
        self.expire(now);
        let ips: BTreeSet<IpAddr> = seen.iter().map(SocketAddr::ip).collect();
        for ip in ips {
            self.shrink(PER_IP_MAX, |addr| addr.ip() == ip);
        }
        self.shrink(ENDPOINTS_MAX, |_| true);
    }

    /// Drops the oldest of those that match, down to `max`.
    fn shrink(&mut self, max: usize, matches: impl Fn(&SocketAddr) -> bool) {
        let matching = self.0.iter().filter(|(addr, _)| matches(addr));
        let mut by_age: Vec<(Instant, SocketAddr)> =
            matching.map(|(addr, at)| (*at, *addr)).collect();
        by_age.sort_unstable();
        let surplus = by_age.len().saturating_sub(max);
        for (_, addr) in by_age.into_iter().take(surplus) {
            self.0.remove(&addr);
        }
    }

    /// Whether any was too old.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        let before = self.0.len();
        self.0
            .retain(|_, at| now.saturating_duration_since(*at) < LIFETIME);
        self.0.len() != before
    }

    /// When the next one expires.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.0.values().min().map(|at| *at + LIFETIME)
    }

    /// Last seen first, IPv4 first.
    pub(super) fn list(&self) -> Vec<SocketAddr> {
        let mut list: Vec<(Instant, SocketAddr)> =
            self.0.iter().map(|(addr, at)| (*at, *addr)).collect();
        list.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
        list.into_iter().map(|(_, addr)| addr).collect()
    }
}

/// What of a measurement is worth telling: per family the first endpoint that was seen, and others
/// that two servers saw. One server's word for a port says nothing about other destinations.
pub(super) fn worth_telling(seen: &[Seen]) -> Vec<SocketAddr> {
    let mut told = Vec::new();
    for family in Family::BOTH {
        let mut servers: BTreeMap<SocketAddr, BTreeSet<SocketAddr>> = BTreeMap::new();
        let of_family = seen
            .iter()
            .filter(|seen| Family::of(seen.mapped.ip()) == family);
        for seen in of_family.clone() {
            servers.entry(seen.mapped).or_default().insert(seen.server);
        }
        let first = of_family.map(|seen| seen.mapped).next();
        told.extend(first);
        let twice = servers
            .iter()
            .filter(|(addr, by)| by.len() > 1 && first != Some(**addr));
        told.extend(twice.map(|(addr, _)| *addr));
    }
    told
}

/// Whether the NAT maps us differently for different IPv4 destinations: known to if two servers saw
/// different endpoints, known not to if servers at two addresses saw the same.
pub(super) fn mapping_varies(seen: &[Seen]) -> Option<bool> {
    let v4 = seen.iter().filter(|seen| seen.mapped.is_ipv4());
    let mut pairs = v4
        .clone()
        .flat_map(|one| v4.clone().map(move |other| (one, other)));
    let varies = pairs
        .clone()
        .any(|(one, other)| one.server != other.server && one.mapped != other.mapped);
    let compared = pairs.any(|(one, other)| one.server.ip() != other.server.ip());
    (varies || compared).then_some(varies)
}

#[cfg(test)]
mod tests;
