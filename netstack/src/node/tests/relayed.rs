//! Two nodes and a relay between them: a connection that begins there, moves to a direct path, and back.

use std::collections::BTreeMap;

use super::*;
use crate::key::NodePublic;
use crate::relay::{RelayCommand, RelayConn};
use crate::tailcfg::{DerpMap, DerpNode, DerpRegion, PeerChange};

/// The regions of the simulated relays: each carries what it is given, at once.
#[derive(Default)]
pub(super) struct Relay {
    is_down: bool,
    conns: [BTreeMap<u32, RelayConn>; 2],
    carried: usize,
}

fn derp_map(regions: &[u32]) -> DerpMap {
    let region = |id: &u32| {
        let node = DerpNode {
            name: format!("{id}a"),
            region_id: *id,
            host_name: "relay.test".to_owned(),
            ..DerpNode::default()
        };
        let region = DerpRegion {
            region_id: *id,
            nodes: vec![node],
            ..DerpRegion::default()
        };
        (*id, Some(region))
    };
    DerpMap {
        regions: Some(regions.iter().map(region).collect()),
        ..DerpMap::default()
    }
}

impl Wire {
    /// Does what a host wants of its relays, and brings what it sends through them.
    pub(super) fn carry_relayed(&mut self, from: usize, batch: &mut TransmitBatch) -> bool {
        let mut any = false;
        while let Some(command) = self.hosts[from].node.poll_relay() {
            any = true;
            let conns = &mut self.relay.conns[from];
            match command {
                RelayCommand::Open { conn, .. } if self.relay.is_down => {
                    let node = &mut self.hosts[from].node;
                    node.handle_relay_down(self.now, conn, None);
                }
                RelayCommand::Open { conn, .. } => {
                    conns.insert(conn.region, conn);
                    self.hosts[from].node.handle_relay_up(self.now, conn);
                }
                RelayCommand::Close { conn } => {
                    conns.remove(&conn.region);
                }
                RelayCommand::Prefer { .. } | RelayCommand::Probe { .. } => {}
            }
        }
        for relayed in batch.drain_relayed() {
            any = true;
            let to = 1 - from;
            assert_eq!(relayed.peer, self.hosts[to].key.public());
            assert_eq!(
                self.relay.conns[from].get(&relayed.conn.region),
                Some(&relayed.conn),
                "through a connection that is open"
            );
            if let Some(conn) = self.relay.conns[to].get(&relayed.conn.region) {
                self.relay.carried += 1;
                let sender = self.hosts[from].key.public();
                let node = &mut self.hosts[to].node;
                node.handle_relayed(self.now, *conn, &sender, &relayed.packet);
            }
        }
        any
    }

    /// Two hosts whose homes are `homes`, that know no UDP address of each other.
    fn relayed(homes: [u32; 2]) -> Self {
        let mut wire = Self::new(&allow_all());
        for own in 0..2 {
            let host = &mut wire.hosts[own];
            let at = host.addr;
            let peer = i64::try_from(2 - own).unwrap();
            let map = MapResponse {
                derp_map: Some(derp_map(&[homes[own]])),
                peers_changed_patch: vec![PeerChange {
                    node_id: peer,
                    derp_region: homes[1 - own],
                    endpoints: Some(Vec::new()),
                    ..PeerChange::default()
                }],
                ..MapResponse::default()
            };
            host.node.apply_map(wire.now, map);
            let map = MapResponse {
                derp_map: Some(derp_map(&homes)),
                ..MapResponse::default()
            };
            host.node.apply_map(wire.now, map);
            host.node.set_endpoints(wire.now, vec![at], None);
        }
        // Both are at home before anybody speaks.
        wire.settle();
        wire
    }

    fn relay_fails(&mut self) {
        self.relay.is_down = true;
        for own in 0..2 {
            for conn in std::mem::take(&mut self.relay.conns[own]).into_values() {
                self.hosts[own].node.handle_relay_down(self.now, conn, None);
            }
        }
    }

    fn is_direct(&self, own: usize) -> bool {
        let peers = self.hosts[own].node.status().peers;
        peers.iter().any(|peer| peer.direct.is_some())
    }

    /// Sends `bytes` from host 1 to host 2, a piece a step; `during` may change the world before each.
    fn send_all(
        &mut self,
        (near, far): (ConnId, ConnId),
        pieces: usize,
        mut during: impl FnMut(&mut Self, usize),
    ) {
        for piece in 0..pieces {
            during(self, piece);
            let text = format!("piece {piece};");
            self.hosts[0]
                .node
                .tcp()
                .send(near, text.as_bytes())
                .unwrap();
            let mut got = Vec::new();
            self.until(&format!("piece {piece}"), |wire| {
                let mut buf = [0; 4096];
                while let Ok(count @ 1..) = wire.hosts[1].node.tcp().recv(far, &mut buf) {
                    got.extend_from_slice(&buf[..count]);
                }
                got.len() >= text.len()
            });
            assert_eq!(got, text.as_bytes());
        }
    }
}

#[test]
fn a_connection_that_udp_cannot_carry_lives_on_the_relay() {
    for homes in [[900, 900], [900, 901]] {
        let mut wire = Wire::relayed(homes);
        wire.udp_is_cut = true;
        wire.hosts[1].node.tcp().listen(80, 4).unwrap();
        let ends = wire.connection("100.64.0.2:80");
        wire.send_all(ends, 20, |_, _| {});
        assert!(!wire.is_direct(0) && !wire.is_direct(1));
        assert!(wire.relay.carried > 40, "{}", wire.relay.carried);
    }
}

#[test]
fn a_connection_moves_from_the_relay_to_a_direct_path_and_back_without_losing_a_byte() {
    let mut wire = Wire::relayed([900, 901]);
    wire.hosts[1].node.tcp().listen(80, 4).unwrap();
    let ends = wire.connection("100.64.0.2:80");
    wire.until("a direct path", |wire| {
        wire.is_direct(0) && wire.is_direct(1)
    });
    let before = wire.relay.carried;
    wire.send_all(ends, 20, |_, _| {});
    assert_eq!(
        wire.relay.carried, before,
        "nothing takes the relay beside a direct path"
    );
    // The direct path dies, and comes back.
    wire.udp_is_cut = true;
    wire.send_all(ends, 40, |wire, _| wire.now += Duration::from_millis(500));
    assert!(!wire.is_direct(0));
    assert!(wire.relay.carried > before);
    wire.udp_is_cut = false;
    wire.send_all(ends, 20, |wire, _| wire.now += Duration::from_secs(1));
    assert!(wire.is_direct(0) && wire.is_direct(1));
}

#[test]
fn a_direct_path_survives_the_relay_and_a_relay_that_comes_back_is_used_again() {
    let mut wire = Wire::relayed([900, 900]);
    wire.hosts[1].node.tcp().listen(80, 4).unwrap();
    let ends = wire.connection("100.64.0.2:80");
    wire.until("a direct path", |wire| {
        wire.is_direct(0) && wire.is_direct(1)
    });
    wire.relay_fails();
    wire.send_all(ends, 30, |wire, _| wire.now += Duration::from_secs(1));
    assert!(wire.is_direct(0));
    wire.relay.is_down = false;
    wire.until("the relay", |wire| {
        let up = |host: &Host| host.node.relay_status().iter().any(|relay| relay.up);
        wire.hosts.iter().all(up)
    });
    wire.udp_is_cut = true;
    wire.send_all(ends, 40, |wire, _| wire.now += Duration::from_millis(500));
    assert!(!wire.is_direct(0));
}

#[test]
fn what_a_relay_brings_from_a_stranger_goes_nowhere() {
    let mut wire = Wire::relayed([900, 900]);
    wire.settle();
    let conn = wire.relay.conns[1][&900];
    let stranger = NodePublic::from_bytes([9; 32]);
    let node = &mut wire.hosts[1].node;
    let before = node.stats();
    for length in [0, 1, 32, 148, 1400] {
        node.handle_relayed(wire.now, conn, &stranger, &vec![1; length]);
    }
    let after = node.stats();
    assert_eq!(after.relays.strangers, before.relays.strangers + 5);
    assert_eq!(after.tunnels, before.tunnels);
}

#[test]
fn a_new_node_key_makes_the_connections_to_relays_anew() {
    let mut wire = Wire::relayed([900, 900]);
    wire.settle();
    let old = wire.relay.conns[0][&900];
    let node = &mut wire.hosts[0].node;
    let key = NodePrivate::from_bytes([0x77; 32]);
    node.adopt_key(wire.now, &key);
    assert!(node.relay_key().unwrap().public() == key.public());
    wire.settle();
    assert_ne!(wire.relay.conns[0][&900], old);
}

#[test]
fn control_is_told_of_a_home_once_there_is_one() {
    let mut wire = Wire::relayed([900, 900]);
    wire.settle();
    assert_eq!(wire.hosts[0].node.relays.home(), Some(900));
    let none = MapResponse {
        derp_map: Some(DerpMap {
            regions: Some(BTreeMap::new()),
            ..DerpMap::default()
        }),
        ..MapResponse::default()
    };
    let now = wire.now;
    // As long as control cannot be told, a home stays.
    wire.hosts[0].node.netcheck.set_control_connected(true);
    wire.hosts[0].node.apply_map(now, none);
    wire.settle();
    assert_eq!(wire.hosts[0].node.relays.home(), None);
    wire.settle();
    assert!(wire.relay.conns[0].is_empty());
}
