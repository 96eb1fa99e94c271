//! Disco datagrams on their way out, and the generator that makes their ids and nonces.
//!
//! Invariant: no nonce is used twice (24 random bytes each), and the queue is bounded. Called by
//! `path`, and by its peers when they ping.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};

use super::{Group, Way};
use crate::disco::{DiscoBox, Message, TxId};
use crate::key::{DiscoPrivate, DiscoPublic, NodePublic};

/// Datagrams that wait to be sent: a heartbeat to each of as many active peers, about 2 MB. More
/// are dropped, as the network would.
const TRANSMITS_MAX: usize = 16_384;

/// Endpoints of our own that are older than this are looked for again before a peer is told of them: a mapping of a NAT may be gone.
const ENDPOINTS_FRESH: Duration = Duration::from_secs(27);

/// The queue, and what goes into every datagram.
pub(super) struct Outbox {
    rng: ChaCha20Rng,
    sender: DiscoPublic,
    node: NodePublic,
    transmits: VecDeque<(Way, Vec<u8>)>,
    calls: Calls,
    pings_sent: u64,
    calls_sent: u64,
    queue_full: u64,
}

impl Outbox {
    pub(super) fn new(sender: DiscoPublic, node: NodePublic, seed: [u8; 32]) -> Self {
        Self {
            rng: ChaCha20Rng::from_seed(seed),
            sender,
            node,
            transmits: VecDeque::new(),
            calls: Calls::default(),
            pings_sent: 0,
            calls_sent: 0,
            queue_full: 0,
        }
    }

    pub(super) fn sender(&self) -> DiscoPublic {
        self.sender
    }

    pub(super) fn pings_sent(&self) -> u64 {
        self.pings_sent
    }

    pub(super) fn calls_sent(&self) -> u64 {
        self.calls_sent
    }

    pub(super) fn calls(&mut self) -> &mut Calls {
        &mut self.calls
    }

    pub(super) fn queue_full(&self) -> u64 {
        self.queue_full
    }

    /// Seals a message and queues it; `None` if the queue is full.
    pub(super) fn send(&mut self, key: &DiscoBox, to: Way, message: &Message) -> Option<()> {
        let mut nonce = [0; 24];
        self.rng.fill_bytes(&mut nonce);
        let datagram = key.seal(nonce, message, &self.sender);
        self.forward(to, datagram)
    }

    /// Queues a datagram as it is; `None` if the queue is full.
    pub(super) fn forward(&mut self, to: Way, datagram: Vec<u8>) -> Option<()> {
        if self.transmits.len() >= TRANSMITS_MAX {
            self.queue_full += 1;
            return None;
        }
        self.transmits.push_back((to, datagram));
        Some(())
    }

    pub(super) fn poll_transmit(&mut self) -> Option<(Way, Vec<u8>)> {
        self.transmits.pop_front()
    }
}

/// Where we believe to be reachable, and which peers are to be told of it.
#[derive(Default)]
pub(super) struct Calls {
    /// Whether there is a relay to carry them.
    has_relay: bool,
    endpoints: Vec<SocketAddr>,
    looked_at: Option<Instant>,
    /// Peers that wait for fresh endpoints.
    waiting: BTreeSet<NodePublic>,
    wants_endpoints: bool,
}

impl Calls {
    pub(super) fn set_has_relay(&mut self, has_relay: bool) {
        self.has_relay = has_relay;
    }

    /// Takes what a look at the network found; whom to tell now.
    pub(super) fn set_endpoints(
        &mut self,
        now: Instant,
        endpoints: Vec<SocketAddr>,
    ) -> BTreeSet<NodePublic> {
        self.endpoints = endpoints;
        self.looked_at = Some(now);
        self.wants_endpoints = false;
        std::mem::take(&mut self.waiting)
    }

    pub(super) fn take_wants_endpoints(&mut self) -> bool {
        std::mem::take(&mut self.wants_endpoints)
    }

    pub(super) fn forget(&mut self, peer: &NodePublic) {
        self.waiting.remove(peer);
    }

    fn are_fresh(&self, now: Instant) -> bool {
        self.looked_at.is_some_and(|at| now < at + ENDPOINTS_FRESH)
    }
}

/// The outbox with the keys at hand: what a peer needs to ping.
pub(super) struct Wire<'a> {
    pub(super) outbox: &'a mut Outbox,
    pub(super) private: &'a DiscoPrivate,
    pub(super) groups: &'a mut HashMap<DiscoPublic, Group>,
}

impl Wire<'_> {
    /// Queues a ping under a fresh id; `None` if the queue is full.
    pub(super) fn ping(&mut self, disco: &DiscoPublic, to: SocketAddr) -> Option<TxId> {
        let mut txid = [0; 12];
        self.outbox.rng.fill_bytes(&mut txid);
        let ping = Message::Ping {
            txid,
            node: Some(self.outbox.node),
        };
        let key = self.groups.get_mut(disco)?.key(self.private, disco);
        self.outbox.send(key, Way::Direct(to), &ping)?;
        self.outbox.pings_sent += 1;
        Some(txid)
    }

    /// Asks `peer`, over its relay, to ping us at our endpoints; waits for fresh ones if need be. Whether it was asked, or will be.
    pub(super) fn call(&mut self, now: Instant, peer: NodePublic, disco: &DiscoPublic) -> bool {
        let calls = &mut self.outbox.calls;
        if !calls.has_relay {
            return false;
        }
        if !calls.are_fresh(now) {
            calls.waiting.insert(peer);
            calls.wants_endpoints = true;
            return true;
        }
        let call = Message::CallMeMaybe {
            endpoints: calls.endpoints.clone(),
        };
        let Some(group) = self.groups.get_mut(disco) else {
            return false;
        };
        let key = group.key(self.private, disco);
        let sent = self
            .outbox
            .send(key, Way::Relay { region: None, peer }, &call);
        self.outbox.calls_sent += u64::from(sent.is_some());
        sent.is_some()
    }
}
