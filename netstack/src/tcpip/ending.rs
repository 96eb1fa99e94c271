//! Ends of many connections at once: a peer that left the tailnet, and the node that goes.
//!
//! Invariant: only flags and phases change here; packets leave at the next poll, and slots are freed
//! there. Each call looks at every connection, so it is for changes of the netmap and for the end, never
//! per packet. Called by `node`.

use std::net::{IpAddr, Ipv6Addr};

use super::connection::Phase;
use super::{CloseReason, TcpIp};

impl TcpIp {
    /// The remote addresses of all connections there are, each once, in no order.
    pub fn remotes(&self) -> impl Iterator<Item = IpAddr> {
        self.peers
            .keys()
            .map(|bits| Ipv6Addr::from_bits(*bits).to_canonical())
    }

    /// The peer behind `remote` is gone: its connections end as [`CloseReason::Aborted`], without a packet.
    pub fn cut_off(&mut self, remote: IpAddr) {
        for slot in self.table.occupied() {
            let theirs = self
                .table
                .at_mut(slot)
                .is_some_and(|connection| connection.flow.remote().ip() == remote);
            if theirs {
                self.drop_stack(slot, CloseReason::Aborted);
                self.touch(slot);
            }
        }
    }

    /// Closes all ports and resets every connection, whoever holds it: peers learn of the end with the
    /// next poll.
    pub fn abort_all(&mut self) {
        self.unlisten_all();
        for slot in self.table.occupied() {
            if let Some(connection) = self.table.at_mut(slot) {
                connection.abort(CloseReason::Aborted);
                self.touch(slot);
            }
        }
    }

    /// Closes all ports, as [`TcpIp::unlisten`] does.
    pub fn unlisten_all(&mut self) {
        let ports: Vec<u16> = self.listeners.keys().copied().collect();
        for port in ports {
            self.unlisten(port);
        }
    }

    /// Whether every byte and FIN that was sent is acknowledged, and every connection that was given
    /// back is over.
    #[must_use]
    pub fn is_drained(&mut self) -> bool {
        self.table.occupied().into_iter().all(|slot| {
            self.table
                .at_mut(slot)
                .is_none_or(|connection| match connection.phase {
                    Phase::Released => false,
                    Phase::HalfOpen(_) | Phase::Unaccepted(_) | Phase::Connecting => true,
                    Phase::Open => !connection.owes(),
                })
        })
    }
}
