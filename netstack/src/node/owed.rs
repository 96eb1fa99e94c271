//! Sessions that we begin for peers who asked for a path, a moment later.
//!
//! Invariant: at most one per peer, and none for a peer whose own handshake came meanwhile: initiations that cross
//! make wireguard-go forget which of two sessions it speaks (it reads its handshake state under one lock and stores
//! it under another), and what we send is then dropped. Called by `plane`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::key::NodePublic;

/// How long a peer that asked for a path has to begin by itself: a round trip across an ocean is 0.2 s, and a person who waits for
/// the session does not notice it.
const HEAD_START: Duration = Duration::from_millis(200);

/// A session to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Debt {
    pub(super) peer: NodePublic,
    /// A handshake of the peer's since then pays it.
    pub(super) since: Instant,
    /// The session that we have counts for nothing.
    pub(super) restarted: bool,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Owed(BTreeMap<NodePublic, (Instant, bool)>);

impl Owed {
    pub(super) fn owe(&mut self, now: Instant, peer: &NodePublic, restarted: bool) {
        let (_, renew) = self.0.entry(*peer).or_insert((now, restarted));
        *renew |= restarted;
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let first = self.0.values().map(|(since, _)| *since).min();
        first.map(|since| since + HEAD_START)
    }

    /// What is due at `now`, once.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<Debt> {
        let mut due = Vec::new();
        self.0.retain(|peer, (since, restarted)| {
            let is_due = now >= *since + HEAD_START;
            if is_due {
                due.push(Debt {
                    peer: *peer,
                    since: *since,
                    restarted: *restarted,
                });
            }
            !is_due
        });
        due
    }

    pub(super) fn retain(&mut self, keep: impl Fn(&NodePublic) -> bool) {
        self.0.retain(|peer, _| keep(peer));
    }
}
