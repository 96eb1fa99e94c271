//! The node and its relays: what the shell is to do about them, and what it tells of them.
//!
//! Invariant: a relay is asked for only while the DERP map has it, and under the node key of now. Called by the shell, through
//! [`Node`], and by `node`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Node;
use crate::key::{NodePrivate, NodePublic};
use crate::relay::{RelayCommand, RelayConn, RelayStatus};
use crate::tailcfg::DerpRegion;

impl Node {
    /// What is to be done about relays next; the shell carries it out and calls the handle_relay methods.
    pub fn poll_relay(&mut self) -> Option<RelayCommand> {
        self.relays.poll_command()
    }

    /// The key by which relays know us; `None` before there is one.
    pub fn relay_key(&self) -> Option<NodePrivate> {
        self.plane.as_ref().map(|plane| plane.node.clone())
    }

    /// A relay has accepted us.
    pub fn handle_relay_up(&mut self, now: Instant, conn: RelayConn) {
        self.netcheck.note_derp_frame(now, conn.region);
        self.relays.handle_up(now, conn);
    }

    /// A connection to a relay failed, or never came up; `pause` is what the relay asked for before it is dialled again. How often the
    /// region has failed since it last brought something; 0 when the connection was given up before.
    pub fn handle_relay_down(
        &mut self,
        now: Instant,
        conn: RelayConn,
        pause: Option<Duration>,
    ) -> u32 {
        let failures = self.relays.handle_down(now, conn, pause);
        if failures == 1 {
            self.netcheck.handle_derp_error(now);
        }
        failures
    }

    /// A relay says that `peer` is not connected to it.
    pub fn handle_relay_peer_gone(&mut self, conn: RelayConn, peer: &NodePublic) {
        self.relays.handle_peer_gone(conn, peer);
    }

    /// The network has changed under us: addresses, or the sockets.
    pub fn handle_network_change(&mut self, now: Instant) {
        self.netcheck.handle_network_change(now);
        self.relays.handle_network_change(now);
        if let Some(plane) = &mut self.plane {
            plane.paths.handle_network_change(now);
        }
    }

    /// The relays that are in use, and our home.
    pub fn relay_status(&self) -> Vec<RelayStatus> {
        self.relays.status()
    }

    /// Follows the DERP map; where home is, is for the measurement to say.
    pub(super) fn follow_derp_map(&mut self, now: Instant) {
        let regions: Vec<(u32, Arc<DerpRegion>)> = self
            .netmap
            .derp_map()
            .and_then(|map| map.regions.as_ref())
            .into_iter()
            .flatten()
            .filter_map(|(id, region)| Some((*id, Arc::new(region.clone()?))))
            .filter(|(_, region)| region.nodes.iter().any(|node| !node.stun_only))
            .collect();
        self.relays
            .set_map(now, regions.iter().map(|(id, region)| (*id, region)));
        // Whoever lives elsewhere than at its home is found all the same, until the next measurement chooses.
        if let Some(map) = self.netmap.derp_map() {
            self.netcheck.set_derp_map(now, map);
        }
    }

    pub(super) fn set_home(&mut self, now: Instant, home: Option<u32>) {
        self.relays.set_home(now, home);
        if let Some(plane) = &mut self.plane {
            plane.paths.set_has_relay(home.is_some());
        }
    }

    /// A new plane hears of what the node knew before it.
    pub(super) fn equip_plane(&mut self, now: Instant) {
        let usable = self.relays.is_usable();
        if let Some(plane) = &mut self.plane {
            plane.paths.set_has_relay(usable);
            plane
                .paths
                .set_own_endpoints(now, self.surroundings.addresses());
        }
    }
}
