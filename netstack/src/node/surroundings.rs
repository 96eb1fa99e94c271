//! What the node knows of the network around it, and whom it tells: its endpoints, its home region.
//!
//! Invariant: control is told of a home only while there is one, so that peers never send first packets to a relay that we do not
//! hear; peers are told of endpoints that were looked for not long ago. Called by the shell, through [`Node`], and by `node`.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::{Node, NodeEvent};
use crate::netcheck::{NetCheckEvent, Report, Sockets};
use crate::tailcfg::NetInfo;

/// Type 1 of control.md §4.4: a local address.
const ENDPOINT_LOCAL: u8 = 1;

/// What is told to control and to peers.
#[derive(Debug, Default)]
pub(super) struct Surroundings {
    local: Vec<SocketAddr>,
    /// As seen from outside, with their types.
    public: Vec<(SocketAddr, u8)>,
    net_info: NetInfo,
    report: Option<Box<Report>>,
}

impl Surroundings {
    /// Local addresses first, each once.
    fn endpoints(&self) -> Vec<(SocketAddr, u8)> {
        let mut endpoints: Vec<_> = self.local.iter().map(|at| (*at, ENDPOINT_LOCAL)).collect();
        for (at, kind) in &self.public {
            if !self.local.contains(at) {
                endpoints.push((*at, *kind));
            }
        }
        endpoints
    }

    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.endpoints().into_iter().map(|(at, _)| at).collect()
    }
}

impl Node {
    /// Tells the node at which local UDP addresses it can be reached; control and peers learn of them. `fixed_port`: the port, if
    /// the operator chose it, so that a router may forward it to us.
    pub fn set_endpoints(
        &mut self,
        now: Instant,
        endpoints: Vec<SocketAddr>,
        fixed_port: Option<u16>,
    ) {
        let sockets = Sockets {
            ipv4: endpoints.iter().any(SocketAddr::is_ipv4),
            ipv6: endpoints.iter().any(SocketAddr::is_ipv6),
            fixed_port,
        };
        self.surroundings.local = endpoints;
        self.netcheck.set_sockets(now, sockets);
        self.tell_endpoints(now);
        self.publish_network(now);
    }

    /// The answer to [`NodeEvent::Resolve`]: the addresses of a name, none if it has none.
    pub fn handle_resolved(&mut self, now: Instant, host: &str, addresses: &[IpAddr]) {
        self.netcheck.handle_resolved(now, host, addresses);
    }

    /// The answer to [`NodeEvent::TimeRelay`]: from the request to the first byte of the answer; `None` if it failed.
    pub fn handle_relay_timed(&mut self, now: Instant, id: u64, latency: Option<Duration>) {
        self.netcheck.handle_https(now, id, latency);
    }

    /// What the last measurement of the network found.
    pub fn network_report(&self) -> Option<&Report> {
        self.surroundings.report.as_deref()
    }

    /// Has the network measured now, all of it.
    pub fn request_network_report(&mut self, now: Instant) {
        self.netcheck.request_report(now, true);
    }

    /// Sends and tells what the measurement wants.
    pub(super) fn drain_netcheck(&mut self, now: Instant) {
        let asked = self
            .plane
            .as_mut()
            .is_some_and(|plane| plane.paths.take_wants_endpoints());
        if asked {
            self.netcheck.request_report(now, false);
            if !self.netcheck.is_measuring() {
                // Nobody can say more than what we know.
                self.tell_endpoints(now);
            }
        }
        while let Some((to, request)) = self.netcheck.poll_transmit() {
            self.out.push(to, &request);
        }
        let mut is_news = false;
        while let Some(event) = self.netcheck.poll_event() {
            match event {
                NetCheckEvent::Home { region, .. } => {
                    self.set_home(now, region);
                    is_news = true;
                }
                NetCheckEvent::NetInfo(net_info) => {
                    self.surroundings.net_info = *net_info;
                    is_news = true;
                }
                NetCheckEvent::Endpoints(endpoints) => {
                    let typed = |endpoint: crate::netcheck::Endpoint| {
                        (endpoint.addr, endpoint.kind.number())
                    };
                    self.surroundings.public = endpoints.into_iter().map(typed).collect();
                    self.tell_endpoints(now);
                    is_news = true;
                }
                NetCheckEvent::Report(report) => {
                    self.surroundings.report = Some(report);
                    self.tell_endpoints(now);
                }
                NetCheckEvent::Resolve { host } => self.push_event(NodeEvent::Resolve { host }),
                NetCheckEvent::Https { id, node, .. } => {
                    self.push_event(NodeEvent::TimeRelay { id, node });
                }
            }
        }
        if is_news {
            self.publish_network(now);
        }
    }

    /// Peers that wait to hear of our endpoints are told.
    fn tell_endpoints(&mut self, now: Instant) {
        if let Some(plane) = &mut self.plane {
            plane
                .paths
                .set_own_endpoints(now, self.surroundings.addresses());
        }
    }

    /// Tells control where we are.
    fn publish_network(&mut self, now: Instant) {
        let net_info = NetInfo {
            preferred_derp: self.relays.home().unwrap_or_default(),
            working_udp: self.surroundings.net_info.working_udp.or(Some(true)),
            ..self.surroundings.net_info.clone()
        };
        self.control
            .set_network(now, self.surroundings.endpoints(), net_info);
    }
}
