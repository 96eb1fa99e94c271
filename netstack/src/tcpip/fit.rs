//! Fits the rings of connections to what they carry: small while idle, large while bulk moves, always within the budget.
//!
//! Invariant: the budget knows the rings of every stack; a connection that cannot be fitted just now goes on as it is. Called by the
//! other files of the room after a read, a write, a run, and before a segment that would not fit.

use super::budget::Buffers;
use super::inbound::Segment;
use super::pace::Pace;
use super::{Clock, TcpIp};

impl TcpIp {
    /// After a read or a run: larger rings if it moves fast.
    pub(super) fn fit_to_pace(&mut self, now: Clock, slot: u32) {
        let Some(connection) = self.table.at_mut(slot) else {
            return;
        };
        let wish = connection.rings().and_then(|held| {
            connection
                .pace
                .wish(held, connection.most(self.budget.most()))
        });
        if let Some(wish) = wish {
            self.fit(now, slot, wish);
        }
    }

    /// Before a segment that reaches beyond the ring, although its sender was promised the room: the ring has shrunk since.
    pub(super) fn fit_to_segment(&mut self, now: Clock, slot: u32, segment: &Segment) {
        let Some(connection) = self.table.at_mut(slot) else {
            return;
        };
        let wish = connection.rings().and_then(|held| {
            let reach_bytes = connection.reach(segment)?;
            Pace::wish_for(reach_bytes, held, connection.most(self.budget.most()))
        });
        if let Some(wish) = wish {
            self.fit(now, slot, wish);
        }
    }

    /// After a write that found too little room: the next one may find more, once this one is acknowledged.
    pub(super) fn fit_to_write(&mut self, slot: u32) {
        let Some(connection) = self.table.at_mut(slot) else {
            return;
        };
        let most = self.budget.most();
        if let Some(held) = connection
            .rings()
            .filter(|held| held.send_bytes < most.send_bytes)
        {
            let wish = Buffers {
                send_bytes: most.send_bytes,
                ..held
            };
            connection.pace.is_cramped =
                self.budget.affords(held, wish) && connection.may_be_fitted();
        }
    }

    /// After a run: the smallest rings if it has been slow for some time.
    pub(super) fn fit_to_idleness(&mut self, now: Clock, slot: u32) {
        let Some(connection) = self.table.at_mut(slot) else {
            return;
        };
        if !connection.pace.looks(now) {
            return;
        }
        if let Some(least) = connection
            .rings()
            .map(Buffers::least)
            .filter(|least| connection.unread_bytes() <= least.receive_bytes)
        {
            self.fit(now, slot, least);
        }
    }

    fn fit(&mut self, now: Clock, slot: u32, wish: Buffers) {
        let Some(connection) = self.table.at_mut(slot) else {
            return;
        };
        let Some(held) = connection.rings().filter(|_| connection.is_calm()) else {
            return;
        };
        let Some(granted) = self.budget.exchange(held, wish) else {
            connection.pace.settle(now, held);
            return;
        };
        let fitted = connection.fit(granted, now, &self.patience, &mut self.engine.scratch);
        match fitted {
            Some(ack) => {
                if granted.total() > held.total() {
                    self.stats.rings_grown += 1;
                } else {
                    self.stats.rings_shrunk += 1;
                }
                if let Some(ack) = ack {
                    self.outbox.push(&ack);
                }
            }
            None => {
                self.budget.give_back(granted);
                self.budget.take_again(held);
                self.stats.fits_failed += 1;
                connection.pace.settle(now, held);
            }
        }
    }
}
