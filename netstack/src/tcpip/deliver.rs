//! The way in: which connection a packet belongs to, and which SYNs make one.
//!
//! Every packet reaches at most one stack. A limit that is reached drops the SYN and counts it; only a port without a listener refuses. A drop costs no memory,
//! no packet and none of the answers that strays share, whatever the number of SYNs, and a peer that means it repeats its SYN and gets in once there is room,
//! where a RST would tell it that nobody listens.

use std::time::Instant;

use super::budget::Buffers;
use super::connection::{Connection, Origin, Phase, Standing};
use super::flow::Flow;
use super::inbound::{Dropped, Inbound, Segment};
use super::ledger::Ledger;
use super::{Clock, ConnId, TcpIp};

impl TcpIp {
    /// Takes in one IP packet that the packet filter let through. Answers wait for [`TcpIp::poll`].
    pub fn handle_packet(&mut self, now: Instant, packet: &[u8]) {
        let now = self.advance(now);
        self.stats.packets_in += 1;
        let inbound = match Inbound::parse(packet) {
            Ok(inbound) => inbound,
            Err(Dropped::Malformed) => {
                self.stats.malformed += 1;
                return;
            }
            Err(Dropped::Fragment) => {
                self.stats.fragments += 1;
                return;
            }
        };
        if !self.addresses.contains(&inbound.local) || self.addresses.contains(&inbound.remote) {
            self.stats.misdirected += 1;
            return;
        }
        let Some(segment) = inbound.segment else {
            self.answer_stray(now, inbound.packet);
            return;
        };
        match self.flows.get(&segment.flow).copied() {
            Some(slot) if !segment.opens() => self.deliver(now, slot, inbound.packet, segment),
            Some(slot) => self.deliver_syn(now, slot, inbound.packet, segment),
            None if segment.opens() => self.open(now, inbound.packet, segment),
            None => self.answer_segment(now, inbound.packet, segment),
        }
    }

    fn deliver(&mut self, now: Clock, slot: u32, packet: &[u8], segment: Segment) {
        self.fit_to_segment(now, slot, &segment);
        let Some(connection) = self.table.at_mut(slot) else {
            return;
        };
        connection.take_in(
            &mut self.engine,
            now,
            packet,
            segment,
            &self.patience,
            &mut |answer| self.outbox.push(answer),
        );
        self.touch(slot);
    }

    /// A SYN on a flow that we know: a repeated one, a peer that opens at the same time as we do, or a peer that forgot.
    fn deliver_syn(&mut self, now: Clock, slot: u32, packet: &[u8], segment: Segment) {
        let Some(connection) = self.table.at_mut(slot) else {
            return;
        };
        match connection.standing() {
            Standing::Handshake => self.deliver(now, slot, packet, segment),
            Standing::Alive => {
                if let Some(challenge) = connection.challenge_ack(now) {
                    self.outbox.push(&challenge);
                }
            }
            Standing::Resting | Standing::Over => {
                self.flows.remove(&segment.flow);
                self.touch(slot);
                self.open(now, packet, segment);
            }
        }
    }

    /// A SYN on a new flow.
    fn open(&mut self, now: Clock, packet: &[u8], segment: Segment) {
        let Some(listener) = self.listeners.get(&segment.local_port) else {
            self.stats.refused += 1;
            self.answer_stray(now, packet);
            return;
        };
        let origin = Origin {
            port: segment.local_port,
            serial: listener.serial,
        };
        let of_peer = self
            .peers
            .get(&segment.flow.peer())
            .map_or(0, |count| count.half_open);
        // A peer has at most as many handshakes under way as there is room left: so nobody takes the room of all.
        let has_room = of_peer < listener.room()
            && self.half_open < self.config.half_open_max
            && of_peer < self.config.half_open_per_peer_max;
        let opened = if has_room {
            self.open_from(now, segment.flow, origin)
        } else {
            None
        };
        let Some(conn) = opened else {
            self.stats.syn_dropped += 1;
            if self.is_peer_full(&segment.flow) {
                self.stats.syn_dropped_per_peer += 1;
            }
            return;
        };
        self.time_waits.remove(&segment.flow);
        self.half_open += 1;
        self.peers.entry(segment.flow.peer()).or_default().half_open += 1;
        if let Some(listener) = self.listeners.get_mut(&origin.port) {
            listener.handshake_began();
        }
        self.deliver(now, conn.slot(), packet, segment);
    }

    fn open_from(&mut self, now: Clock, flow: Flow, origin: Origin) -> Option<ConnId> {
        let buffers = self.admit(&flow)?;
        match Connection::passive(flow, origin, buffers, self.ledger(), now, &self.patience) {
            Some(connection) => self.insert(connection),
            None => {
                self.budget.give_back(buffers);
                None
            }
        }
    }

    /// Buffers for one more connection, if every limit permits it.
    pub(super) fn admit(&mut self, flow: &Flow) -> Option<Buffers> {
        if self.table.len() >= self.config.connections_max || self.is_peer_full(flow) {
            return None;
        }
        self.budget.take()
    }

    /// Whether the peer has as many connections as one peer may have.
    fn is_peer_full(&self, flow: &Flow) -> bool {
        let of_peer = self.peers.get(&flow.peer());
        of_peer.map_or(0, |count| count.connections) >= self.config.connections_per_peer_max
    }

    /// The books of a connection that begins.
    pub(super) fn ledger(&self) -> Ledger {
        Ledger::new(self.budget.most().receive_bytes)
    }

    pub(super) fn insert(&mut self, connection: Connection) -> Option<ConnId> {
        debug_assert!(matches!(
            connection.phase,
            Phase::HalfOpen(_) | Phase::Connecting
        ));
        let flow = connection.flow;
        let conn = self.table.insert(connection)?;
        self.flows.insert(flow, conn.slot());
        self.peers.entry(flow.peer()).or_default().connections += 1;
        Some(conn)
    }

    /// A segment of no connection: the last ack again if it was one of ours and its peer repeats its FIN, else a RST.
    fn answer_segment(&mut self, now: Clock, packet: &[u8], segment: Segment) {
        match self.time_waits.last_sent(now, &segment.flow) {
            // Only a FIN is answered, or two sides in this state would ack each other's acks for ever.
            Some(last_sent) if segment.finishes() => {
                self.outbox.push(&last_sent.bare_ack(&segment.flow))
            }
            Some(_) => {}
            None => self.answer_stray(now, packet),
        }
    }

    fn answer_stray(&mut self, now: Clock, packet: &[u8]) {
        self.stats.unclaimed += 1;
        if !self.stray_answers.spend(now) {
            self.stats.stray_answers_withheld += 1;
            return;
        }
        self.engine
            .take_in(now, &mut self.stray, packet, &mut |answer| {
                self.outbox.push(answer)
            });
    }
}
