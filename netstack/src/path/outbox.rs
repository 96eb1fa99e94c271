//! Disco datagrams on their way out, and the generator that makes their ids and nonces.
//!
//! Invariant: no nonce is used twice (24 random bytes each), and the queue is bounded. Called by
//! `path`, and by its peers when they ping.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};

use super::Group;
use crate::disco::{DiscoBox, Message, TxId};
use crate::key::{DiscoPrivate, DiscoPublic, NodePublic};

/// Datagrams that wait to be sent: a heartbeat to each of as many active peers, about 2 MB. More
/// are dropped, as the network would.
const TRANSMITS_MAX: usize = 16_384;

/// The queue, and what goes into every datagram.
pub(super) struct Outbox {
    rng: ChaCha20Rng,
    sender: DiscoPublic,
    node: NodePublic,
    transmits: VecDeque<(SocketAddr, Vec<u8>)>,
    pings_sent: u64,
    queue_full: u64,
}

impl Outbox {
    pub(super) fn new(sender: DiscoPublic, node: NodePublic, seed: [u8; 32]) -> Self {
        Self {
            rng: ChaCha20Rng::from_seed(seed),
            sender,
            node,
            transmits: VecDeque::new(),
            pings_sent: 0,
            queue_full: 0,
        }
    }

    pub(super) fn sender(&self) -> DiscoPublic {
        self.sender
    }

    pub(super) fn pings_sent(&self) -> u64 {
        self.pings_sent
    }

    pub(super) fn queue_full(&self) -> u64 {
        self.queue_full
    }

    /// Seals a message and queues it; `None` if the queue is full.
    pub(super) fn send(&mut self, key: &DiscoBox, to: SocketAddr, message: &Message) -> Option<()> {
        let mut nonce = [0; 24];
        self.rng.fill_bytes(&mut nonce);
        let datagram = key.seal(nonce, message, &self.sender);
        self.forward(to, datagram)
    }

    /// Queues a datagram as it is; `None` if the queue is full.
    pub(super) fn forward(&mut self, to: SocketAddr, datagram: Vec<u8>) -> Option<()> {
        if self.transmits.len() >= TRANSMITS_MAX {
            self.queue_full += 1;
            return None;
        }
        self.transmits.push_back((to, datagram));
        Some(())
    }

    pub(super) fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        self.transmits.pop_front()
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
        self.outbox.send(key, to, &ping)?;
        self.outbox.pings_sent += 1;
        Some(txid)
    }
}
