//! What a decrypted packet meets on its way to TCP: its source, the packet filter, TSMP.
//!
//! Invariant: nothing passes that is not from an address of the peer whose tunnel it came through, or
//! that the filter does not let in; an answer goes to that peer alone, and is shorter than 64 bytes.
//! Called by `node`.

use std::net::SocketAddr;
use std::time::Instant;

use super::status::DropCounts;
use super::tsmp::{self, Tsmp};
use crate::filter::{DropReason, Filter, PacketView, Transport, Verdict};
use crate::key::NodePublic;
use crate::netmap::Netmap;
use crate::tcpip::TcpIp;

pub(super) struct Inner<'a> {
    pub(super) netmap: &'a Netmap,
    pub(super) filter: &'a mut Filter,
    pub(super) tcp: &'a mut TcpIp,
    pub(super) counts: &'a mut DropCounts,
}

impl Inner<'_> {
    /// Checks the packet and hands it on; returns a packet to send back, if one is due.
    pub(super) fn handle(
        &mut self,
        now: Instant,
        peer: &NodePublic,
        packet: &[u8],
    ) -> Option<Vec<u8>> {
        let Ok(view) = PacketView::parse(packet) else {
            self.counts.malformed += 1;
            return None;
        };
        if !self.netmap.source_allowed(peer, view.src) {
            self.counts.source_not_allowed += 1;
            return None;
        }
        let node = self.netmap.peer(peer)?;
        let has_cap = |cap: &str| self.netmap.source_has_cap(view.src, cap);
        match self.filter.check_in_view(&view, node.is_jailed, &has_cap) {
            Verdict::Accept if view.protocol == tsmp::PROTOCOL => self.handle_tsmp(&view),
            Verdict::Accept => {
                self.tcp.handle_packet(now, packet);
                None
            }
            Verdict::Drop(reason) => {
                self.counts.filtered += 1;
                refusal(&view, reason)
            }
        }
    }

    fn handle_tsmp(&mut self, view: &PacketView<'_>) -> Option<Vec<u8>> {
        match Tsmp::parse(view.payload)? {
            Tsmp::Ping(data) => tsmp::pong(view.dst, view.src, data),
            Tsmp::RejectedTcp {
                local_port,
                remote_port,
            } => {
                let local = SocketAddr::new(view.dst, local_port);
                let remote = SocketAddr::new(view.src, remote_port);
                self.tcp.handle_reject(local, remote);
                None
            }
        }
    }
}

/// As upstream, we tell who wants to connect that a rule forbids it, lest it wait in vain.
fn refusal(view: &PacketView<'_>, reason: DropReason) -> Option<Vec<u8>> {
    match (reason, view.transport) {
        (
            DropReason::NoRule,
            Transport::Tcp {
                src_port, dst_port, ..
            },
        ) if view.transport.is_tcp_open() => tsmp::reject(view.dst, view.src, src_port, dst_port),
        _ => None,
    }
}
