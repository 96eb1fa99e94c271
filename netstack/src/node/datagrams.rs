//! What comes in, from the UDP socket and from relays: STUN to the measurement, disco to the paths, WireGuard to the tunnels, what they decrypt to TCP.
//!
//! Invariant: where a datagram came from decides nothing but where a cookie goes and, over a relay, whose call is heeded. Called by
//! the shell, through [`Node`].

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use super::Node;
use super::inner::Inner;
use super::plane::Exit;
use crate::disco;
use crate::key::NodePublic;
use crate::relay::RelayConn;
use crate::stun;
use crate::wireguard::Received;

/// Where a datagram came from, for the cookie that may be owed to it.
#[derive(Debug, Clone, Copy)]
enum Origin<'a> {
    Udp(SocketAddr),
    Relay(RelayConn, &'a NodePublic),
}

impl Origin<'_> {
    /// What a cookie is bound to: an address, or what stands for one.
    fn ip(&self) -> IpAddr {
        match self {
            Self::Udp(src) => src.ip(),
            Self::Relay(_, peer) => {
                let mut half = [0; 16];
                for (to, from) in half.iter_mut().zip(peer.as_bytes()) {
                    *to = *from;
                }
                Ipv6Addr::from(half).into()
            }
        }
    }
}

impl Node {
    /// A datagram from the UDP socket. Whatever it holds, it costs a counter at worst.
    pub fn handle_datagram(&mut self, now: Instant, src: SocketAddr, datagram: &[u8]) {
        self.datagrams_in += 1;
        if stun::looks_like_stun(datagram) {
            self.netcheck.handle_datagram(now, datagram);
            return;
        }
        let Some(plane) = &mut self.plane else {
            self.counts.before_netmap += 1;
            return;
        };
        if disco::looks_like_disco(datagram) {
            plane.paths.handle_datagram(now, src, datagram);
            return;
        }
        self.handle_wireguard(now, Origin::Udp(src), datagram);
    }

    /// A packet that a relay brought from `peer`. The same holds for it.
    pub fn handle_relayed(
        &mut self,
        now: Instant,
        conn: RelayConn,
        peer: &NodePublic,
        packet: &[u8],
    ) {
        let Some(plane) = &mut self.plane else {
            self.counts.before_netmap += 1;
            return;
        };
        let is_peer = self.netmap.peer(peer).is_some();
        if !self.relays.handle_received(conn, peer, is_peer) {
            return;
        }
        self.netcheck.note_derp_frame(now, conn.region);
        if disco::looks_like_disco(packet) {
            plane.paths.handle_relayed(now, conn.region, peer, packet);
            return;
        }
        self.handle_wireguard(now, Origin::Relay(conn, peer), packet);
    }

    fn handle_wireguard(&mut self, now: Instant, origin: Origin<'_>, datagram: &[u8]) {
        let Some(plane) = &mut self.plane else { return };
        let netmap = &self.netmap;
        let mut is_peer = |key: &NodePublic| netmap.peer(key).is_some();
        let mut exit = Exit::new(&mut self.relays, &mut self.out);
        let received = plane.tunnels.handle_datagram(
            now,
            origin.ip(),
            datagram,
            &mut is_peer,
            &mut self.scratch,
        );
        match received {
            Received::Packet {
                peer,
                packet,
                drain,
            } => {
                let mut inner = Inner {
                    netmap,
                    filter: &mut self.filter,
                    tcp: &mut self.tcp,
                    counts: &mut self.counts,
                };
                let answer = inner.handle(now, &peer, packet);
                if drain {
                    plane.drain(now, &peer, &mut exit);
                }
                if let Some(answer) = answer {
                    plane.send_packet(now, &peer, &answer, &mut exit);
                }
            }
            Received::Send { peer, datagram } => {
                plane.send_datagram(now, &peer, datagram, &mut exit);
                plane.drain(now, &peer, &mut exit);
            }
            Received::Keepalive { peer } => plane.drain(now, &peer, &mut exit),
            Received::Cookie { datagram } => match origin {
                Origin::Udp(src) => exit.out.push(src, datagram),
                Origin::Relay(conn, peer) => exit.out.push_relayed(conn, *peer, datagram),
            },
            Received::Nothing => {}
        }
    }
}
