//! Something limited that many peers share: so much in all, so much for each.
//!
//! Invariant: what is taken never exceeds either limit and is given back when its [`Share`] is dropped; nothing is kept of a peer that holds nothing.
//! Uploads, event bodies and connections of [`ingest`](super) are counted with it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The counts of one limited thing. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Shares {
    all_max: u64,
    each_max: u64,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    all: u64,
    /// By StableID; an entry is never 0.
    each: BTreeMap<String, u64>,
}

/// Which limit was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exceeded {
    /// That for everyone together.
    All,
    /// That for this peer.
    Each,
}

/// What one peer holds until this is dropped.
#[derive(Debug)]
pub(super) struct Share {
    shares: Shares,
    peer: String,
    amount: u64,
}

impl Shares {
    pub(super) fn new(all_max: u64, each_max: u64) -> Self {
        Self {
            all_max,
            each_max,
            taken: Arc::default(),
        }
    }

    /// Takes `amount` for `peer`.
    pub(super) fn take(&self, peer: &str, amount: u64) -> Result<Share, Exceeded> {
        let mut share = self.nothing(peer);
        share.grow(amount).map(|()| share)
    }

    /// A share of `peer` that holds nothing yet.
    pub(super) fn nothing(&self, peer: &str) -> Share {
        Share {
            shares: self.clone(),
            peer: peer.to_owned(),
            amount: 0,
        }
    }

    pub(super) fn all_max(&self) -> u64 {
        self.all_max
    }

    pub(super) fn each_max(&self) -> u64 {
        self.each_max
    }

    /// How much is taken in all.
    pub(super) fn taken(&self) -> u64 {
        self.lock().all
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    /// Takes `amount` more; takes nothing when that is too much.
    pub(super) fn grow(&mut self, amount: u64) -> Result<(), Exceeded> {
        let mut taken = self.shares.lock();
        let all = taken.all.saturating_add(amount);
        let held = taken.each.get(&self.peer).copied().unwrap_or(0);
        let each = held.saturating_add(amount);
        if each > self.shares.each_max {
            return Err(Exceeded::Each);
        }
        if all > self.shares.all_max {
            return Err(Exceeded::All);
        }
        if each > 0 {
            taken.all = all;
            taken.each.insert(self.peer.clone(), each);
        }
        drop(taken);
        self.amount = self.amount.saturating_add(amount);
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.shares.lock();
        taken.all = taken.all.saturating_sub(self.amount);
        let left = taken.each.get(&self.peer).copied().unwrap_or(0);
        let left = left.saturating_sub(self.amount);
        if left == 0 {
            taken.each.remove(&self.peer);
        } else {
            taken.each.insert(self.peer.clone(), left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_limit_is_exceeded_and_what_is_dropped_is_given_back() {
        let shares = Shares::new(5, 3);
        let a = shares.take("a", 3).unwrap();
        assert_eq!(shares.take("a", 1).unwrap_err(), Exceeded::Each);
        let mut b = shares.take("b", 1).unwrap();
        assert_eq!(b.grow(2), Err(Exceeded::All));
        b.grow(1).unwrap();
        assert_eq!(shares.taken(), 5);
        drop(a);
        b.grow(1).unwrap();
        assert_eq!(b.grow(1), Err(Exceeded::Each));
        assert_eq!(shares.taken(), 3);
        drop(b);
        assert_eq!(shares.taken(), 0);
        assert!(
            shares.lock().each.is_empty(),
            "no trace of peers that are gone"
        );
    }

    #[test]
    fn a_share_of_nothing_leaves_no_trace_and_an_enormous_one_is_refused() {
        let shares = Shares::new(5, 3);
        drop(shares.take("a", 0).unwrap());
        assert!(shares.lock().each.is_empty());
        assert_eq!(shares.take("a", u64::MAX).unwrap_err(), Exceeded::Each);
        assert_eq!(shares.taken(), 0);
    }
}
