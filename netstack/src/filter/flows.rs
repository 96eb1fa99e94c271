//! The flows that we opened: replies to them need no rule.
//!
//! Invariant: at most [`FLOWS_MAX`] flows; the least recently used one gives way. Rules may be
//! swapped at any time without touching it. Called by `filter` for UDP and SCTP.
//!
//! Source: tailscale.com `wgengine/filter/filter.go` (`lruMax`, `filterState`).

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

use super::packet::{PacketView, Transport};

/// Most remembered flows; upstream's number.
pub const FLOWS_MAX: usize = 512;

/// One direction of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Flow {
    protocol: u8,
    src: SocketAddr,
    dst: SocketAddr,
}

impl Flow {
    /// The flow of a UDP or SCTP packet; `None` for anything else.
    pub(super) fn of(view: &PacketView<'_>) -> Option<Self> {
        let (src_port, dst_port) = match view.transport {
            Transport::Udp { src_port, dst_port } | Transport::Sctp { src_port, dst_port } => {
                (src_port, dst_port)
            }
            Transport::Tcp { .. }
            | Transport::Icmp { .. }
            | Transport::Tsmp
            | Transport::LaterFragment
            | Transport::Other => return None,
        };
        Some(Self::new(
            view.protocol,
            (view.src, src_port),
            (view.dst, dst_port),
        ))
    }

    fn new(protocol: u8, src: (IpAddr, u16), dst: (IpAddr, u16)) -> Self {
        Self {
            protocol,
            src: src.into(),
            dst: dst.into(),
        }
    }

    /// The flow of the replies.
    pub(super) fn reversed(self) -> Self {
        Self {
            protocol: self.protocol,
            src: self.dst,
            dst: self.src,
        }
    }
}

/// Recently used flows.
#[derive(Debug, Default)]
pub(super) struct Flows {
    used_at: HashMap<Flow, u64>,
    by_use: BTreeMap<u64, Flow>,
    uses: u64,
}

impl Flows {
    /// Remembers a flow, or renews it.
    pub(super) fn insert(&mut self, flow: Flow) {
        self.uses += 1;
        if let Some(before) = self.used_at.insert(flow, self.uses) {
            self.by_use.remove(&before);
        }
        self.by_use.insert(self.uses, flow);
        if self.used_at.len() > FLOWS_MAX
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            self.used_at.remove(&oldest);
        }
    }

    /// Whether the flow is remembered; renews it if so.
    pub(super) fn touch(&mut self, flow: Flow) -> bool {
        let known = self.used_at.contains_key(&flow);
        if known {
            self.insert(flow);
        }
        known
    }

    /// How many flows are remembered.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        assert_eq!(self.used_at.len(), self.by_use.len());
        self.used_at.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(port: u16) -> Flow {
        let address = IpAddr::from([100, 64, 0, 1]);
        Flow::new(17, (address, port), (address, 53))
    }

    #[test]
    fn the_least_recently_used_flow_gives_way() {
        let mut flows = Flows::default();
        let last = u16::try_from(FLOWS_MAX).unwrap();
        for port in 0..last {
            flows.insert(flow(port));
        }
        assert!(flows.touch(flow(0)), "still there, and now the youngest");
        flows.insert(flow(last));
        assert!(flows.touch(flow(0)));
        assert!(!flows.touch(flow(1)), "the oldest one went");
        assert!(flows.touch(flow(last)));
        assert_eq!(flows.len(), FLOWS_MAX);
    }

    #[test]
    fn a_renewed_flow_is_held_once() {
        let mut flows = Flows::default();
        for _ in 0..3 * FLOWS_MAX {
            flows.insert(flow(7));
        }
        assert_eq!(flows.len(), 1);
    }
}
