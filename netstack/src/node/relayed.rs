//! The node and its relays: which region is home, what control and the paths are told of it.
//!
//! Invariant: control is told of a home only while there is one, so that peers never send first packets to a relay that we do not
//! hear. Called by the shell, through [`Node`], and by `node`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand_core::RngCore as _;

use super::Node;
use crate::key::{NodePrivate, NodePublic};
use crate::relay::{RelayCommand, RelayConn, RelayStatus};
use crate::tailcfg::{DerpRegion, NetInfo};

/// Type 1 of control.md §4.4: a local address.
const ENDPOINT_LOCAL: u8 = 1;

impl Node {
    /// Tells the node at which UDP addresses it can be reached; control and peers learn of them.
    pub fn set_endpoints(&mut self, now: Instant, endpoints: Vec<SocketAddr>) {
        self.endpoints = endpoints;
        self.publish_network(now);
        if let Some(plane) = &mut self.plane {
            plane.paths.set_own_endpoints(now, self.endpoints.clone());
        }
    }

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
        self.relays.handle_down(now, conn, pause)
    }

    /// A relay says that `peer` is not connected to it.
    pub fn handle_relay_peer_gone(&mut self, conn: RelayConn, peer: &NodePublic) {
        self.relays.handle_peer_gone(conn, peer);
    }

    /// The network has changed under us: addresses, or the sockets.
    pub fn handle_network_change(&mut self, now: Instant) {
        self.relays.handle_network_change(now);
        if let Some(plane) = &mut self.plane {
            plane.paths.handle_network_change(now);
        }
    }

    /// The relays that are in use, and our home.
    pub fn relay_status(&self) -> Vec<RelayStatus> {
        self.relays.status()
    }

    /// Follows the DERP map, and moves home where the old one is gone.
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
        let home = self.relays.home();
        let stands = home.is_some_and(|home| regions.iter().any(|(id, _)| *id == home));
        if !stands {
            let may_be_home: Vec<u32> = regions
                .iter()
                .filter(|(_, region)| !region.avoid && !region.no_measure_no_home)
                .map(|(id, _)| *id)
                .collect();
            let home = self.any_of(&may_be_home);
            self.set_home(now, home);
        }
    }

    /// Nothing is measured: any region will do, and a fleet spreads out over all.
    fn any_of(&mut self, regions: &[u32]) -> Option<u32> {
        let count = u64::try_from(regions.len())
            .ok()
            .filter(|count| *count > 0)?;
        let index = usize::try_from(self.rng.next_u64() % count).ok()?;
        regions.get(index).copied()
    }

    fn set_home(&mut self, now: Instant, home: Option<u32>) {
        self.relays.set_home(now, home);
        if let Some(plane) = &mut self.plane {
            plane.paths.set_has_relay(home.is_some());
        }
        self.publish_network(now);
    }

    /// A new plane hears of what the node knew before it.
    pub(super) fn equip_plane(&mut self, now: Instant) {
        let usable = self.relays.is_usable();
        if let Some(plane) = &mut self.plane {
            plane.paths.set_has_relay(usable);
            plane.paths.set_own_endpoints(now, self.endpoints.clone());
        }
    }

    /// Tells control where we are: our endpoints, and our home.
    fn publish_network(&mut self, now: Instant) {
        let net_info = NetInfo {
            working_udp: Some(true),
            preferred_derp: self.relays.home().unwrap_or_default(),
            ..NetInfo::default()
        };
        let endpoints = self
            .endpoints
            .iter()
            .map(|addr| (*addr, ENDPOINT_LOCAL))
            .collect();
        self.control.set_network(now, endpoints, net_info);
    }

    /// Peers wait to be told of our endpoints: what we know is what there is.
    pub(super) fn drain_relays(&mut self, now: Instant) {
        if let Some(plane) = &mut self.plane
            && plane.paths.take_wants_endpoints()
        {
            plane.paths.set_own_endpoints(now, self.endpoints.clone());
        }
    }
}
