//! Connections that are over on both sides but whose peer may not have heard our last ack (TIME-WAIT, RFC 9293 §3.6.1), without their buffers.
//!
//! A record costs some sixty bytes where the stack cost its windows. All live equally long, so the oldest is always the first to go, in time and in excess.
//! Owned by [`super::TcpIp`].

use std::collections::VecDeque;

use smoltcp::time::{Duration, Instant};

use super::flow::{Flow, HashKey, KeyedMap};
use super::last_sent::LastSent;

/// As long as smoltcp keeps its own sockets in this state.
const TIME_WAIT: Duration = Duration::from_secs(10);
/// Records kept. More would need over 800 closes a second by us for the whole time; the oldest then makes room, and its peer would hear a reset.
const RECORDS_MAX: usize = 8_192;

#[derive(Debug)]
pub(super) struct TimeWaits {
    records: KeyedMap<Flow, Record>,
    /// Oldest first; a record that was renewed or removed leaves its old line behind until its time.
    order: VecDeque<(Instant, Flow)>,
}

#[derive(Debug)]
struct Record {
    until: Instant,
    last_sent: LastSent,
}

impl TimeWaits {
    pub(super) fn new(key: HashKey) -> Self {
        Self {
            records: KeyedMap::with_hasher(key),
            order: VecDeque::new(),
        }
    }

    pub(super) fn insert(&mut self, now: Instant, flow: Flow, last_sent: LastSent) {
        self.expire(now);
        let until = now + TIME_WAIT;
        self.records.insert(flow, Record { until, last_sent });
        self.order.push_back((until, flow));
        while self.order.len() > RECORDS_MAX {
            self.pop_oldest();
        }
    }

    /// The ack to repeat, if the flow rests here.
    pub(super) fn last_sent(&mut self, now: Instant, flow: &Flow) -> Option<LastSent> {
        self.expire(now);
        self.records.get(flow).map(|record| record.last_sent)
    }

    /// A new connection takes the flow over.
    pub(super) fn remove(&mut self, flow: &Flow) {
        self.records.remove(flow);
    }

    pub(super) fn contains(&mut self, now: Instant, flow: &Flow) -> bool {
        self.last_sent(now, flow).is_some()
    }

    fn expire(&mut self, now: Instant) {
        while self.order.front().is_some_and(|&(until, _)| until <= now) {
            self.pop_oldest();
        }
    }

    fn pop_oldest(&mut self) {
        if let Some((until, flow)) = self.order.pop_front()
            && self
                .records
                .get(&flow)
                .is_some_and(|record| record.until <= until)
        {
            self.records.remove(&flow);
        }
    }
}
