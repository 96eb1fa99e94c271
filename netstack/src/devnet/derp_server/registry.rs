//! Who is connected to the relay, and where a packet for a key goes.
//!
//! Invariant: a packet for a key goes to the connection that sent a frame last, and to no other; the table
//! holds at most [`CLIENTS_MAX`] connections and [`PEERS_MAX`] remembered peers for each key. Called by
//! `session` and by the relay's handle.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use super::DerpServerStats;
use super::client::Client;
use crate::derp::{Frame, PeerGoneReason};
use crate::disco::looks_like_disco;
use crate::key::NodePublic;

/// Connections at one time.
pub(super) const CLIENTS_MAX: usize = 256;
/// Peers of one key that are told when it goes.
const PEERS_MAX: usize = 1024;

/// All clients, by key.
#[derive(Default)]
pub(super) struct Registry {
    by_key: BTreeMap<NodePublic, Known>,
    next_id: u64,
    count: usize,
    pub(super) stats: DerpServerStats,
}

#[derive(Default)]
struct Known {
    /// The one that sent last is last.
    connections: Vec<Arc<Client>>,
    home: bool,
    /// Whom it sent packets.
    sent_to: BTreeSet<NodePublic>,
}

impl Registry {
    /// Admits a connection; `None` if there are too many.
    pub(super) fn add(&mut self, key: NodePublic) -> Option<Arc<Client>> {
        if self.count >= CLIENTS_MAX {
            return None;
        }
        self.count += 1;
        self.next_id += 1;
        self.stats.clients_admitted += 1;
        let client = Arc::new(Client::new(self.next_id, key));
        let known = self.by_key.entry(key).or_default();
        known.connections.push(Arc::clone(&client));
        Some(client)
    }

    /// A connection ended. With the last one of its key, those who got packets of it are told.
    pub(super) fn remove(&mut self, client: &Client) {
        let Some(known) = self.by_key.get_mut(&client.key) else {
            return;
        };
        let before = known.connections.len();
        known.connections.retain(|other| other.id != client.id);
        self.count -= before - known.connections.len();
        if !known.connections.is_empty() {
            return;
        }
        let gone = self.by_key.remove(&client.key).unwrap_or_default();
        for peer in gone.sent_to {
            self.tell_gone(&peer, client.key, PeerGoneReason::Disconnected);
        }
    }

    /// The connection sent a frame: from now on it is the one that gets the key's packets.
    pub(super) fn touch(&mut self, client: &Client) {
        let Some(known) = self.by_key.get_mut(&client.key) else {
            return;
        };
        if known
            .connections
            .last()
            .is_some_and(|last| last.id == client.id)
        {
            return;
        }
        if let Some(at) = known.connections.iter().position(|one| one.id == client.id) {
            let touched = known.connections.remove(at);
            known.connections.push(touched);
        }
    }

    /// The key says whether this is its home.
    pub(super) fn set_home(&mut self, client: &Client, home: bool) {
        if let Some(known) = self.by_key.get_mut(&client.key) {
            known.home = home;
        }
    }

    /// Takes a packet to the connection that is to have it.
    pub(super) fn relay(&mut self, from: &Client, to: NodePublic, packet: Bytes) {
        let known = self.by_key.get(&to);
        let Some(receiver) = known.and_then(|known| known.connections.last()) else {
            self.stats.packets_for_nobody += 1;
            if looks_like_disco(&packet) && from.may_tell_not_here() {
                tell(from, to, PeerGoneReason::NotHere);
            }
            return;
        };
        let full = receiver.push_packet(from.key, packet);
        self.stats.packets_relayed += 1;
        self.stats.dropped_queue_full += u64::from(full);
        if let Some(known) = self.by_key.get_mut(&from.key)
            && known.sent_to.len() < PEERS_MAX
        {
            known.sent_to.insert(to);
        }
    }

    pub(super) fn broadcast(&self, frame: &Bytes) {
        for client in self.by_key.values().flat_map(|known| &known.connections) {
            client.push_own(frame.clone());
        }
    }

    pub(super) fn clients(&self) -> Vec<(NodePublic, bool)> {
        let clients = self.by_key.iter();
        clients.map(|(key, known)| (*key, known.home)).collect()
    }

    fn tell_gone(&self, whom: &NodePublic, peer: NodePublic, reason: PeerGoneReason) {
        if let Some(known) = self.by_key.get(whom) {
            for client in &known.connections {
                tell(client, peer, reason);
            }
        }
    }
}

fn tell(client: &Client, peer: NodePublic, reason: PeerGoneReason) {
    // A key and a byte always encode.
    if let Ok(frame) = (Frame::PeerGone { peer, reason }).encode() {
        client.push_own(frame);
    }
}
