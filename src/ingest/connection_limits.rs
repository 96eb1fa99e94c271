//! How many connections are open, in all and of one peer.
//!
//! Invariant: neither limit is exceeded; a place is free again when its guard is dropped. The acceptor asks before it serves what it accepted.

use std::sync::Arc;

use super::shares::{Exceeded, Share, Shares};
use super::stats::Counters;

/// The connections of one recorder. Clones share the counts.
#[derive(Debug, Clone)]
pub struct ConnectionLimits {
    shares: Shares,
    counters: Arc<Counters>,
}

/// The place of one connection, to be held while it is served.
#[derive(Debug)]
pub struct ConnectionGuard(#[expect(dead_code, reason = "held to be dropped")] Share);

/// Why a connection is closed unread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionRefused {
    /// As many are open as this recorder takes.
    #[error("connections_max: {0} connections are open: close this one")]
    All(u64),
    /// As many are open as one peer may have.
    #[error("connections_per_peer_max: {0} connections of this peer are open: close this one")]
    Peer(u64),
}

impl ConnectionLimits {
    pub(super) fn new(all_max: u64, per_peer_max: u64, counters: Arc<Counters>) -> Self {
        Self {
            shares: Shares::new(all_max, per_peer_max),
            counters,
        }
    }

    /// A place for one more connection of the node with this StableID.
    ///
    /// # Errors
    /// [`ConnectionRefused`], which is counted: the connection is to be closed.
    pub fn admit(&self, stable_id: &str) -> Result<ConnectionGuard, ConnectionRefused> {
        match self.shares.take(stable_id, 1) {
            Ok(share) => Ok(ConnectionGuard(share)),
            Err(Exceeded::All) => {
                self.counters.refused_connections.increase();
                Err(ConnectionRefused::All(self.shares.all_max()))
            }
            Err(Exceeded::Each) => {
                self.counters.refused_connections_per_peer.increase();
                Err(ConnectionRefused::Peer(self.shares.each_max()))
            }
        }
    }

    /// How many are open.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.shares.taken()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_at_its_limit_does_not_keep_others_out_and_each_refusal_is_counted() {
        let counters = Arc::new(Counters::default());
        let limits = ConnectionLimits::new(3, 2, Arc::clone(&counters));
        let first = limits.admit("n1").unwrap();
        let _second = limits.admit("n1").unwrap();
        assert_eq!(limits.admit("n1").unwrap_err(), ConnectionRefused::Peer(2));
        let _other = limits.admit("n2").unwrap();
        assert_eq!(limits.admit("n3").unwrap_err(), ConnectionRefused::All(3));
        drop(first);
        assert_eq!(limits.open(), 2);
        limits.admit("n1").unwrap();
        let stats = counters.snapshot();
        assert_eq!(stats.refused_connections, 1);
        assert_eq!(stats.refused_connections_per_peer, 1);
    }
}
