//! What comes over relays, and what is asked of peers through them.
//!
//! Invariant: nothing that came over a relay proves an address; a call has us ping, within a budget, and never call in return. Called by
//! `node`, which knows the relays.
//!
//! Source: tailscale.com `wgengine/magicsock/magicsock.go` (`handleDiscoMessage`), `wgengine/magicsock/endpoint.go` (`handleCallMeMaybe`).

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

use super::peer::Peer;
use super::{Paths, Way, canonical};
use crate::disco::{self, DiscoError, Message};
use crate::key::{DiscoPublic, NodePublic};

/// What a pong names as the source of a ping that came over a relay; the port is the region.
const RELAY_MAGIC_IP: Ipv4Addr = Ipv4Addr::new(127, 3, 3, 40);

impl Paths {
    /// Whether there is a relay that may carry calls.
    pub fn set_has_relay(&mut self, has_relay: bool) {
        self.outbox.calls().set_has_relay(has_relay);
    }

    /// Where we believe to be reachable, as just found out: peers that wait to hear of it are told.
    pub fn set_own_endpoints(&mut self, now: Instant, endpoints: Vec<SocketAddr>) {
        for peer in self.outbox.calls().set_endpoints(now, endpoints) {
            self.drive(&peer, |peer, wire| peer.call_waiting(now, wire));
        }
    }

    /// Whether, since the last call, a peer was to be told of endpoints that are too old: look, then call [`Paths::set_own_endpoints`].
    pub fn take_wants_endpoints(&mut self) -> bool {
        self.outbox.calls().take_wants_endpoints()
    }

    /// The network has changed under us (addresses, a rebound socket): all paths are to be proven anew.
    pub fn handle_network_change(&mut self, now: Instant) {
        for node in self.all_peers() {
            self.drive(&node, |peer, wire| {
                peer.unprove();
                peer.handle_timeout(now, wire);
            });
        }
    }

    /// The system refused to send to `addr`, for it cannot be reached.
    pub fn handle_unreachable(&mut self, addr: SocketAddr) {
        let addr = canonical(addr);
        for node in self.all_peers() {
            self.drive(&node, |peer, _| peer.handle_unreachable(&addr));
        }
    }

    /// All peers, in an order that repeats.
    fn all_peers(&self) -> Vec<NodePublic> {
        let mut peers: Vec<NodePublic> = self.peers.keys().copied().collect();
        peers.sort_unstable();
        peers
    }

    /// Takes a disco datagram that came over a relay from the node `from`. It is never an error: what cannot be used is counted.
    pub fn handle_relayed(
        &mut self,
        now: Instant,
        region: u32,
        from: &NodePublic,
        datagram: &[u8],
    ) {
        let Some(sender) = disco::sender(datagram) else {
            self.stats.not_disco += 1;
            return;
        };
        // Whoever holds the node key says who it is; the disco key must be the one that control told us of.
        if self.peers.get(from).map(Peer::disco) != Some(sender) {
            self.stats.unknown_sender += 1;
            return;
        }
        let Some(group) = self.groups.get_mut(&sender) else {
            self.stats.unknown_sender += 1;
            return;
        };
        match group.key(&self.private, &sender).open(datagram) {
            Ok(Message::Ping { txid, .. }) => self.answer_relayed(now, region, from, &sender, txid),
            Ok(Message::Pong { .. }) => self.stats.pongs_over_relay += 1,
            Ok(Message::CallMeMaybe { endpoints }) => {
                let endpoints = endpoints.into_iter().map(canonical);
                let heeded = self.drive(from, |peer, wire| peer.handle_call(now, endpoints, wire));
                *if heeded == Some(true) {
                    &mut self.stats.calls_received
                } else {
                    &mut self.stats.calls_withheld
                } += 1;
            }
            Ok(Message::Unknown { .. }) => self.stats.unknown_kind += 1,
            Err(DiscoError::Open) => self.stats.unopened += 1,
            Err(
                DiscoError::NotDisco { .. } | DiscoError::TooLong { .. } | DiscoError::Short { .. },
            ) => self.stats.malformed += 1,
        }
    }

    fn answer_relayed(
        &mut self,
        now: Instant,
        region: u32,
        from: &NodePublic,
        sender: &DiscoPublic,
        txid: disco::TxId,
    ) {
        self.stats.pings_received += 1;
        let Some(group) = self.groups.get_mut(sender) else {
            return;
        };
        if !group.take_pong(now) {
            self.stats.pongs_withheld += 1;
            return;
        }
        // Region numbers are below 2^16 wherever pongs are read.
        let port = u16::try_from(region).unwrap_or_default();
        let pong = Message::Pong {
            txid,
            src: SocketAddr::from((RELAY_MAGIC_IP, port)),
        };
        let way = Way::Relay {
            region: Some(region),
            peer: *from,
        };
        let key = group.key(&self.private, sender);
        if self.outbox.send(key, way, &pong).is_some() {
            self.stats.pongs_sent += 1;
        }
    }
}
