//! Names of STUN servers and what the resolver said of them.
//!
//! Invariant: no more names than the DERP map has, two addresses each; a name is asked at most once
//! per measurement. An old answer serves until a new one comes, and survives a resolver that fails.
//! Called by `netcheck`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::regions::{Family, Place, Regions, can_be_sent_to};

/// What was asked and answered.
#[derive(Debug, Default)]
pub(super) struct Names(BTreeMap<String, Name>);

#[derive(Debug, Default)]
struct Name {
    v4: Option<IpAddr>,
    v6: Option<IpAddr>,
    state: State,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    /// To be asked by the next measurement that needs it.
    #[default]
    Stale,
    Asked,
    Fresh,
}

/// What is known of a name in one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    At(IpAddr),
    /// The resolver may yet say.
    NotYet,
    Nothing,
}

impl Names {
    /// Forgets names that no server has any more.
    pub(super) fn retain(&mut self, regions: &Regions) {
        let servers = regions.by_id.values().flat_map(|region| &region.servers);
        let hosts: BTreeSet<&str> = servers.map(|server| server.host.as_str()).collect();
        self.0.retain(|host, _| hosts.contains(host.as_str()));
    }

    /// A measurement begins: what was asked in vain is asked again, and with `all` everything is.
    pub(super) fn begin(&mut self, all: bool) {
        for name in self.0.values_mut() {
            let failed = name.v4.is_none() && name.v6.is_none();
            if all || failed || name.state == State::Asked {
                name.state = State::Stale;
            }
        }
    }

    /// Whether to ask the resolver now; if so, it counts as asked.
    pub(super) fn ask(&mut self, host: &str) -> bool {
        let name = self.0.entry(host.to_owned()).or_default();
        let stale = name.state == State::Stale;
        if stale {
            name.state = State::Asked;
        }
        stale
    }

    /// Takes the resolver's answer, empty if it had none. Whether it was asked for.
    pub(super) fn answer(&mut self, host: &str, addresses: &[IpAddr]) -> bool {
        let Some(name) = self
            .0
            .get_mut(host)
            .filter(|name| name.state == State::Asked)
        else {
            return false;
        };
        name.state = State::Fresh;
        let usable = addresses.iter().map(IpAddr::to_canonical);
        let usable: Vec<IpAddr> = usable.filter(|ip| can_be_sent_to(*ip)).take(64).collect();
        if !usable.is_empty() {
            name.v4 = usable.iter().find(|ip| ip.is_ipv4()).copied();
            name.v6 = usable.iter().find(|ip| ip.is_ipv6()).copied();
        }
        true
    }

    /// Where a server is, as far as its name must tell.
    pub(super) fn find(&self, place: &Place, host: &str, family: Family) -> Found {
        match place {
            Place::At(ip) => return Found::At(*ip),
            Place::Nowhere => return Found::Nothing,
            Place::Named => {}
        }
        let Some(name) = self.0.get(host) else {
            return Found::NotYet;
        };
        let known = match family {
            Family::V4 => name.v4,
            Family::V6 => name.v6,
        };
        match known {
            Some(ip) => Found::At(ip),
            None if name.state == State::Fresh => Found::Nothing,
            None => Found::NotYet,
        }
    }
}
