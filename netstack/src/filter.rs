//! The packet filter: which decrypted packets of which peers reach our stack.
//!
//! Invariant: it starts at drop-all, and only rules from the netmap open it; replies to what we
//! began always pass. The caller has already checked that the source address belongs to the peer
//! (`Netmap::source_allowed`). Called by the node for every packet in both directions.
//!
//! TCP is judged without state: a segment that is not an opening SYN passes, and the stack answers
//! a stray one with RST. Source: tailscale.com `wgengine/filter/filter.go`; control.md §5.2.

mod flows;
pub mod packet;
mod ranges;
mod rules;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::IpNet;

pub use flows::FLOWS_MAX;
pub use packet::{PacketError, PacketView, Transport};
pub use rules::{RuleSet, SKIPPED_REPORTED_MAX, SkipReason, SkippedEntry, Unusable};

use crate::tailcfg::{CapMap, FilterRule};
use flows::{Flow, Flows};
use packet::protocol;
use rules::{Probe, Wanted};

/// The one link-local destination that upstream lets pass this check (cloud metadata servers).
const CLOUD_METADATA: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254));

/// What happens to a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on to the stack.
    Accept,
    /// It is forgotten, and counted under its reason.
    Drop(DropReason),
}

/// Why a packet is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// The bytes are no packet that we deal with.
    Malformed(PacketError),
    /// To a multicast group.
    Multicast,
    /// To a link-local address.
    LinkLocal,
    /// To an address that is not ours.
    NotOurs,
    /// From a peer that may not open anything on us.
    Jailed,
    /// No rule accepts it.
    NoRule,
}

/// The filter of one node.
#[derive(Debug, Default)]
pub struct Filter {
    rules: Arc<RuleSet>,
    flows: Flows,
}

impl Filter {
    /// A filter without rules and without addresses: every packet is dropped.
    pub fn drop_all() -> Self {
        Self::default()
    }

    /// A filter with the given rules; see [`RuleSet::compile`] for the arguments and the report.
    pub fn compile<'a>(
        rules: impl IntoIterator<Item = &'a FilterRule>,
        own: &[IpAddr],
        unsigned: &[IpNet],
    ) -> (Self, Vec<SkippedEntry>) {
        let (rules, skipped) = RuleSet::compile(rules, own, unsigned);
        let rules = Arc::new(rules);
        (
            Self {
                rules,
                flows: Flows::default(),
            },
            skipped,
        )
    }

    /// Swaps the rules and our addresses; the flows that we opened live on.
    pub fn replace_rules(&mut self, rules: Arc<RuleSet>) {
        self.rules = rules;
    }

    /// The rules in force.
    pub fn rules(&self) -> &RuleSet {
        &self.rules
    }

    /// What `src` may do on `dst`; see [`RuleSet::caps`].
    pub fn caps(&self, src: IpAddr, dst: IpAddr) -> CapMap {
        self.rules.caps(src, dst)
    }

    /// Judges a packet from a peer. `jailed`: the peer may only answer. `src_has_cap`: whether the
    /// packet's source is a peer's own address whose node has the named attribute
    /// (`Netmap::source_has_cap`). An empty packet is a keep-alive and is accepted.
    pub fn check_in(
        &mut self,
        packet: &[u8],
        jailed: bool,
        src_has_cap: &dyn Fn(&str) -> bool,
    ) -> Verdict {
        if packet.is_empty() {
            return Verdict::Accept;
        }
        match PacketView::parse(packet) {
            Ok(view) => self.check_in_view(&view, jailed, src_has_cap),
            Err(error) => Verdict::Drop(DropReason::Malformed(error)),
        }
    }

    /// [`Filter::check_in`] for a caller that has parsed the packet already.
    pub fn check_in_view(
        &mut self,
        view: &PacketView<'_>,
        jailed: bool,
        src_has_cap: &dyn Fn(&str) -> bool,
    ) -> Verdict {
        if view.dst.is_multicast() {
            return Verdict::Drop(DropReason::Multicast);
        }
        if is_link_local(view.dst) && view.dst != CLOUD_METADATA {
            return Verdict::Drop(DropReason::LinkLocal);
        }
        // Upstream accepts later fragments before it looks at the destination; we look first.
        if !self.rules.own_addresses().contains(&view.dst) {
            return Verdict::Drop(DropReason::NotOurs);
        }
        let wanted = match view.transport {
            Transport::LaterFragment | Transport::Tsmp => return Verdict::Accept,
            Transport::Icmp { kind, code } if is_icmp_answer(view.protocol, kind, code) => {
                return Verdict::Accept;
            }
            Transport::Icmp { .. } => Wanted::Anything,
            Transport::Tcp { .. } if !view.transport.is_tcp_open() => return Verdict::Accept,
            Transport::Tcp { dst_port, .. } => Wanted::Port(view.protocol, dst_port),
            Transport::Udp { dst_port, .. } | Transport::Sctp { dst_port, .. } => {
                if Flow::of(view).is_some_and(|flow| self.flows.touch(flow)) {
                    return Verdict::Accept;
                }
                Wanted::Port(view.protocol, dst_port)
            }
            Transport::Other => Wanted::AllPorts(view.protocol),
        };
        if jailed {
            return Verdict::Drop(DropReason::Jailed);
        }
        let probe = Probe {
            src: view.src,
            dst: view.dst,
            wanted,
        };
        if self.rules.permits(probe, src_has_cap) {
            Verdict::Accept
        } else {
            Verdict::Drop(DropReason::NoRule)
        }
    }

    /// Remembers the flow of a packet that we send, so that its replies pass. Outbound packets are
    /// never held back.
    pub fn note_out(&mut self, packet: &[u8]) {
        if is_plain_tcp(packet) {
            return;
        }
        if let Ok(view) = PacketView::parse(packet)
            && let Some(flow) = Flow::of(&view)
        {
            self.flows.insert(flow.reversed());
        }
    }
}

/// Nearly every packet that we send; told by one byte, lest each be parsed for nothing.
fn is_plain_tcp(packet: &[u8]) -> bool {
    let protocol_at = match packet.first().map(|first| first >> 4) {
        Some(4) => 9,
        _ => 6,
    };
    packet.get(protocol_at) == Some(&protocol::TCP)
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// Echo replies and error messages: they answer something that we sent.
fn is_icmp_answer(protocol: u8, kind: u8, code: u8) -> bool {
    match protocol {
        // Echo reply; unreachable, time exceeded, parameter problem (RFC 792).
        protocol::ICMPV4 => matches!((kind, code), (0, 0) | (3 | 11 | 12, _)),
        // Echo reply; unreachable, too big, time exceeded, parameter problem (RFC 4443).
        _ => matches!((kind, code), (129, 0) | (1..=4, _)),
    }
}

#[cfg(test)]
mod tests;
