//! Datagrams that wait for a path: a handshake for a peer whose address is not proven yet.
//!
//! Invariant: at most [`PER_PEER_MAX`] datagrams of a peer wait, for at most [`HOLD_MAX`]; the oldest
//! goes first. Without this the first handshake would be lost and tried again only 5 s later.
//! Called by `node`.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::key::NodePublic;

/// Datagrams that wait per peer: an initiation, a response and a few packets behind them.
const PER_PEER_MAX: usize = 8;

/// Peers with waiting datagrams; the netmap bounds it as well.
const PEERS_MAX: usize = 1024;

/// How long one waits: shorter than WireGuard's 5 s retry, which makes a newer one.
const HOLD_MAX: Duration = Duration::from_secs(4);

/// A peer's waiting datagrams with the moments at which they were made, oldest first.
type Queue = VecDeque<(Instant, Box<[u8]>)>;

#[derive(Debug, Default)]
pub(super) struct Held {
    peers: HashMap<NodePublic, Queue>,
    dropped: u64,
}

impl Held {
    /// Keeps a datagram until a path to `peer` is known.
    pub(super) fn push(&mut self, now: Instant, peer: &NodePublic, datagram: &[u8]) {
        if self.peers.len() >= PEERS_MAX && !self.peers.contains_key(peer) {
            self.peers
                .retain(|_, queue| queue.back().is_some_and(|(at, _)| fresh(now, *at)));
            if self.peers.len() >= PEERS_MAX {
                self.dropped += 1;
                return;
            }
        }
        let queue = self.peers.entry(*peer).or_default();
        if queue.len() >= PER_PEER_MAX {
            queue.pop_front();
            self.dropped += 1;
        }
        queue.push_back((now, datagram.into()));
    }

    /// Gives up what waited for `peer`, without what is too old.
    pub(super) fn take(&mut self, now: Instant, peer: &NodePublic) -> Vec<Box<[u8]>> {
        let queue = self.peers.remove(peer).unwrap_or_default();
        queue
            .into_iter()
            .filter(|(at, _)| fresh(now, *at))
            .map(|(_, datagram)| datagram)
            .collect()
    }

    /// Forgets peers that are no longer in the netmap.
    pub(super) fn retain(&mut self, keep: impl Fn(&NodePublic) -> bool) {
        self.peers.retain(|peer, _| keep(peer));
    }

    /// Datagrams given up because too many waited.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }
}

fn fresh(now: Instant, at: Instant) -> bool {
    now.saturating_duration_since(at) <= HOLD_MAX
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "tests need some instant to count from"
)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_few_wait_and_the_stale_are_forgotten() {
        let start = Instant::now();
        let peer = NodePublic::from_bytes([1; 32]);
        let mut held = Held::default();
        for n in 0..20_u8 {
            held.push(start, &peer, &[n]);
        }
        assert_eq!(held.dropped(), 12);
        let taken = held.take(start + Duration::from_secs(1), &peer);
        assert_eq!(
            taken.iter().map(|d| d[0]).collect::<Vec<_>>(),
            (12..20).collect::<Vec<_>>()
        );
        held.push(start, &peer, &[1]);
        assert!(held.take(start + Duration::from_secs(5), &peer).is_empty());
    }

    #[test]
    fn the_number_of_peers_is_bounded() {
        let start = Instant::now();
        let mut held = Held::default();
        for n in 0..2 * PEERS_MAX {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&n.to_le_bytes());
            held.push(start, &NodePublic::from_bytes(key), &[1]);
        }
        assert!(held.peers.len() <= PEERS_MAX);
        assert_eq!(held.dropped(), PEERS_MAX as u64);
    }
}
