//! Control's filter rules, compiled: who may open what on us, and which capabilities they bring.
//!
//! Invariant: a rule set only ever accepts; an entry that cannot be read opens nothing, and a set
//! that cannot be trusted as a whole ([`Unusable`]) opens nothing at all and grants nothing. Called
//! by `filter` for verdicts and by `netmap` for WhoIs.
//!
//! Source: tailscale.com `wgengine/filter/tailcfg.go`, `ipn/ipnlocal/local.go`
//! (`packetFilterPermitsUnlockedNodes`); control.md §5.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::packet::protocol;
use super::ranges::{AddressRange, RangeSet};
use crate::tailcfg::{CapMap, FilterRule, NetPortRange, PortRange};

/// Most skipped entries that a compilation reports; enough for a log, whatever control sends.
pub const SKIPPED_REPORTED_MAX: usize = 64;

/// Longest quoted entry in a report, in characters; the longest `lo-hi` range has 79.
const QUOTE_CHARS_MAX: usize = 80;

/// Why a rule set as a whole opens nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// A rule carries the prefix lengths of before 2020, which change what its addresses mean.
    #[error("the filter uses SrcBits or Bits, which we do not read")]
    LegacyBits,
    /// A rule would let in a peer that tailnet lock has not signed.
    #[error("the filter would admit a peer that tailnet lock has not signed")]
    UnsignedPeer,
}

/// An entry of a rule that opens nothing because we could not read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkippedEntry {
    /// Index of the rule, in the order in which the rules were given.
    pub rule: usize,
    /// The entry, cut to a length fit for a log.
    pub entry: String,
    /// What is wrong with it.
    pub reason: SkipReason,
}

/// What is wrong with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SkipReason {
    /// No address, prefix without host bits, range, `*` or `cap:<name>`.
    Source,
    /// No address, prefix without host bits, range or `*`.
    Destination,
    /// The first port lies behind the last.
    Ports,
    /// The destination of a capability grant is no prefix.
    GrantDestination,
    /// A rule with both ports and grants, which upstream forbids; the whole rule is skipped.
    PortsAndGrants,
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source cannot be read",
            Self::Destination => "destination cannot be read",
            Self::Ports => "port range is empty",
            Self::GrantDestination => "destination of a grant is no prefix",
            Self::PortsAndGrants => "rule has both ports and grants",
        })
    }
}

/// What is being asked of the rules: protocol and port are `None` where they do not count.
#[derive(Debug, Clone, Copy)]
pub(super) struct Probe {
    pub(super) src: IpAddr,
    pub(super) dst: IpAddr,
    pub(super) wanted: Wanted,
}

/// The part of a rule that has to fit beside the addresses.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wanted {
    /// This protocol and destination port.
    Port(u8, u16),
    /// This protocol, on all ports.
    AllPorts(u8),
    /// Anything at all.
    Anything,
}

/// Compiled rules. `Default` is the empty set: it opens nothing and grants nothing.
#[derive(Debug, Clone, Default)]
pub struct RuleSet {
    own: Vec<IpAddr>,
    openings: Vec<Opening>,
    grants: Vec<Grant>,
    unusable: Option<Unusable>,
}

#[derive(Debug, Clone)]
struct Opening {
    protocols: ProtocolSet,
    sources: RangeSet,
    source_caps: Vec<String>,
    destinations: Vec<(AddressRange, PortRange)>,
}

#[derive(Debug, Clone)]
struct Grant {
    sources: RangeSet,
    destinations: RangeSet,
    caps: CapMap,
}

impl RuleSet {
    /// Compiles `rules` for a node with the addresses `own`; `unsigned` are the allowed IPs of peers
    /// that tailnet lock has not signed. At most [`SKIPPED_REPORTED_MAX`] skipped entries are reported.
    pub fn compile<'a>(
        rules: impl IntoIterator<Item = &'a FilterRule>,
        own: &[IpAddr],
        unsigned: &[IpNet],
    ) -> (Self, Vec<SkippedEntry>) {
        let mut set = Self {
            own: own.to_vec(),
            ..Self::default()
        };
        let mut skipped = Skipped::default();
        let unsigned: RangeSet = unsigned
            .iter()
            .filter_map(AddressRange::of_prefix)
            .collect();
        for (index, rule) in rules.into_iter().enumerate() {
            skipped.rule = index;
            if let Err(unusable) = set.add(rule, &unsigned, &mut skipped) {
                return (Self::closed(own, unusable), skipped.entries);
            }
        }
        (set, skipped.entries)
    }

    fn closed(own: &[IpAddr], unusable: Unusable) -> Self {
        Self {
            own: own.to_vec(),
            unusable: Some(unusable),
            ..Self::default()
        }
    }

    fn add(
        &mut self,
        rule: &FilterRule,
        unsigned: &RangeSet,
        skipped: &mut Skipped,
    ) -> Result<(), Unusable> {
        if !rule.src_bits.is_empty() || rule.dst_ports.iter().any(|dst| dst.bits.is_some()) {
            return Err(Unusable::LegacyBits);
        }
        let (ranges, source_caps) = compile_sources(&rule.src_ips, skipped);
        if !rule.dst_ports.is_empty() && ranges.iter().any(|range| unsigned.overlaps(*range)) {
            return Err(Unusable::UnsignedPeer);
        }
        if !rule.dst_ports.is_empty() && !rule.cap_grant.is_empty() {
            skipped.note("", SkipReason::PortsAndGrants);
            return Ok(());
        }
        let sources: RangeSet = ranges.into_iter().collect();
        let destinations = compile_destinations(&rule.dst_ports, &self.own, skipped);
        for grant in &rule.cap_grant {
            let destinations = compile_grant_destinations(&grant.dsts, skipped);
            let mut caps = grant.cap_map.clone();
            for cap in &grant.caps {
                caps.entry(cap.clone()).or_default();
            }
            self.grants.push(Grant {
                sources: sources.clone(),
                destinations,
                caps,
            });
        }
        if !destinations.is_empty() {
            let protocols = ProtocolSet::of(&rule.ip_proto);
            self.openings.push(Opening {
                protocols,
                sources,
                source_caps,
                destinations,
            });
        }
        Ok(())
    }

    /// The addresses that count as ours.
    pub fn own_addresses(&self) -> &[IpAddr] {
        &self.own
    }

    /// Why the set opens nothing, if it could not be trusted as a whole.
    pub fn unusable(&self) -> Option<Unusable> {
        self.unusable
    }

    /// What `src` may do on `dst`: the values of every capability, all grants joined. A capability
    /// without values is meaningful. `cap:` sources do not count here (control.md §5.3).
    pub fn caps(&self, src: IpAddr, dst: IpAddr) -> CapMap {
        let mut caps = CapMap::new();
        let granted =
            |grant: &&Grant| grant.destinations.contains(dst) && grant.sources.contains(src);
        for grant in self.grants.iter().filter(granted) {
            for (name, values) in &grant.caps {
                caps.entry(name.clone())
                    .or_default()
                    .0
                    .extend_from_slice(values);
            }
        }
        caps
    }

    /// Whether a rule accepts what `probe` asks.
    pub(super) fn permits(&self, probe: Probe, src_has_cap: &dyn Fn(&str) -> bool) -> bool {
        self.openings.iter().any(|opening| {
            opening.admits_to(probe)
                && (opening.sources.contains(probe.src)
                    || opening.source_caps.iter().any(|cap| src_has_cap(cap)))
        })
    }
}

impl Opening {
    fn admits_to(&self, probe: Probe) -> bool {
        let protocol_fits = match probe.wanted {
            Wanted::Port(protocol, _) | Wanted::AllPorts(protocol) => {
                self.protocols.contains(protocol)
            }
            Wanted::Anything => true,
        };
        protocol_fits
            && self.destinations.iter().any(|(range, ports)| {
                let ports_fit = match probe.wanted {
                    Wanted::Port(_, port) => (ports.first..=ports.last).contains(&port),
                    Wanted::AllPorts(_) => ports.first == 0 && ports.last == u16::MAX,
                    Wanted::Anything => true,
                };
                ports_fit && range.contains(probe.dst)
            })
    }
}

fn compile_sources(entries: &[String], skipped: &mut Skipped) -> (Vec<AddressRange>, Vec<String>) {
    let (mut ranges, mut caps) = (Vec::with_capacity(entries.len()), Vec::new());
    for entry in entries {
        if entry == "*" {
            ranges.extend(AddressRange::ALL);
        } else if let Some(cap) = entry.strip_prefix("cap:") {
            caps.push(cap.to_owned());
        } else if let Some(range) = AddressRange::parse(entry) {
            ranges.push(range);
        } else {
            skipped.note(entry, SkipReason::Source);
        }
    }
    (ranges, caps)
}

/// Keeps only what concerns `own`: packets to other destinations are dropped before any rule is asked.
fn compile_destinations(
    entries: &[NetPortRange],
    own: &[IpAddr],
    skipped: &mut Skipped,
) -> Vec<(AddressRange, PortRange)> {
    let mut destinations = Vec::new();
    for entry in entries {
        if entry.ports.first > entry.ports.last {
            skipped.note(&entry.ip, SkipReason::Ports);
            continue;
        }
        let single = AddressRange::parse(&entry.ip).map(|range| [range; 1]);
        let ranges: &[AddressRange] = match &single {
            Some(range) => range,
            None if entry.ip == "*" => &AddressRange::ALL,
            None => {
                skipped.note(&entry.ip, SkipReason::Destination);
                continue;
            }
        };
        destinations.extend(
            ranges
                .iter()
                .filter(|range| own.iter().any(|address| range.contains(*address)))
                .map(|range| (*range, entry.ports)),
        );
    }
    destinations
}

fn compile_grant_destinations(entries: &[String], skipped: &mut Skipped) -> RangeSet {
    let read = |entry: &String| {
        let range = entry
            .parse()
            .ok()
            .and_then(|prefix: IpNet| AddressRange::of_prefix(&prefix));
        if range.is_none() {
            skipped.note(entry, SkipReason::GrantDestination);
        }
        range
    };
    entries.iter().filter_map(read).collect()
}

/// A set of IP protocol numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct ProtocolSet {
    low: u128,
    high: u128,
}

impl ProtocolSet {
    /// An empty list means the four usual protocols; numbers that are none are ignored.
    fn of(numbers: &[i64]) -> Self {
        const USUAL: [u8; 4] = [
            protocol::TCP,
            protocol::UDP,
            protocol::ICMPV4,
            protocol::ICMPV6,
        ];
        let mut set = Self::default();
        if numbers.is_empty() {
            USUAL.into_iter().for_each(|number| set.insert(number));
        }
        numbers
            .iter()
            .filter_map(|number| u8::try_from(*number).ok())
            .for_each(|number| set.insert(number));
        set
    }

    fn insert(&mut self, number: u8) {
        match number.checked_sub(128) {
            None => self.low |= 1 << number,
            Some(bit) => self.high |= 1 << bit,
        }
    }

    fn contains(&self, number: u8) -> bool {
        match number.checked_sub(128) {
            None => self.low >> number & 1 == 1,
            Some(bit) => self.high >> bit & 1 == 1,
        }
    }
}

#[derive(Debug, Default)]
struct Skipped {
    rule: usize,
    entries: Vec<SkippedEntry>,
}

impl Skipped {
    fn note(&mut self, entry: &str, reason: SkipReason) {
        if self.entries.len() < SKIPPED_REPORTED_MAX {
            let entry = entry.chars().take(QUOTE_CHARS_MAX).collect();
            self.entries.push(SkippedEntry {
                rule: self.rule,
                entry,
                reason,
            });
        }
    }
}
