//! Peers that have lost their session or their path, and say so with nothing but a disco ping, as stock nodes do.

use super::*;
use crate::path::PeerPath;

/// Longer than a pong is trusted.
const SILENCE: Duration = Duration::from_secs(20);

fn has_session(wire: &Wire, host: usize) -> bool {
    let status = wire.hosts[host].node.status();
    status.peers.iter().any(|peer| peer.session)
}

/// Host 1 looks for a path to host 2; a handshake of its own it does not send.
fn ask(wire: &mut Wire) {
    let (now, peer) = (wire.now, wire.hosts[1].key.public());
    let plane = wire.hosts[0].node.plane.as_mut().unwrap();
    plane.paths.route(now, &peer);
    wire.settle();
}

/// The peer that asked has had its chance to begin by itself.
fn pass_head_start(wire: &mut Wire) {
    wire.now += Duration::from_millis(200);
    for host in &mut wire.hosts {
        host.node.handle_timeout(wire.now);
    }
    wire.settle();
}

/// Host 1 runs in a new process: its node key stays, its disco key and its session do not.
fn restart(wire: &mut Wire) {
    let mut fresh = host(1);
    fresh.node = Node::new(config(1, &fresh.key), [0x77; 32], wire.now);
    let told = [tail_node(1, &fresh), tail_node(2, &wire.hosts[1])];
    wire.hosts[0] = fresh;
    for (own, host) in wire.hosts.iter_mut().enumerate() {
        let map = MapResponse {
            node: Some(told[own].clone()),
            peers: vec![told[1 - own].clone()],
            packet_filter: Some(allow_all()),
            ..MapResponse::default()
        };
        host.node.apply_map(wire.now, map);
    }
    wire.settle();
}

#[test]
fn a_peer_that_asks_for_a_path_gets_a_session_with_it() {
    let mut wire = Wire::new(&allow_all());
    ask(&mut wire);
    assert!(!has_session(&wire, 1), "the peer may begin by itself");
    pass_head_start(&mut wire);
    assert!(has_session(&wire, 0) && has_session(&wire, 1));
}

#[test]
fn a_peer_that_begins_by_itself_is_not_crossed() {
    let mut wire = Wire::new(&allow_all());
    wire.hosts[1].node.tcp().listen(80, 4).unwrap();
    ask(&mut wire);
    wire.connection("100.64.0.2:80");
    pass_head_start(&mut wire);
    let stats = wire.hosts[1].node.plane.as_ref().unwrap().tunnels.stats();
    assert_eq!(
        (stats.handshakes_answered, stats.handshakes_completed),
        (1, 0)
    );
}

#[test]
fn a_peer_that_has_restarted_gets_a_new_session_as_soon_as_it_asks_for_a_path() {
    let mut wire = Wire::new(&allow_all());
    wire.hosts[1].node.tcp().listen(80, 4).unwrap();
    wire.connection("100.64.0.2:80");
    assert!(has_session(&wire, 1));
    restart(&mut wire);
    assert!(!has_session(&wire, 0));
    ask(&mut wire);
    pass_head_start(&mut wire);
    assert!(has_session(&wire, 0));
}

#[test]
fn what_waits_for_a_peer_that_has_restarted_does_not_stand_in_for_a_handshake() {
    let mut wire = Wire::new(&allow_all());
    wire.hosts[1].node.tcp().listen(80, 4).unwrap();
    let (_, far) = wire.connection("100.64.0.2:80");
    // The old process is gone before these bytes; they wait, sealed by a session that nobody has.
    let (now, peer) = (wire.now, wire.hosts[0].key.public());
    restart(&mut wire);
    wire.hosts[1].node.tcp().send(far, b"anyone?").unwrap();
    wire.hosts[1].node.flush(now);
    let plane = wire.hosts[1].node.plane.as_mut().unwrap();
    assert!(plane.paths.status(&peer).unwrap().best.is_none());
    wire.hosts[1].sent.clear();
    wire.settle();
    pass_head_start(&mut wire);
    // Host 1 was not asked, and still it begins.
    let begun = |datagram: &Vec<u8>| datagram.len() == 148 && datagram.starts_with(&[1, 0, 0, 0]);
    assert!(wire.hosts[1].sent.iter().any(begun));
}

#[test]
fn a_peer_that_has_lost_its_path_and_no_session_is_left_gets_one_when_it_asks() {
    let mut wire = Wire::new(&allow_all());
    ask(&mut wire);
    wire.now += SILENCE;
    let (now, peer) = (wire.now, wire.hosts[1].key.public());
    let told = PeerPath {
        node: peer,
        disco: disco_of(&wire.hosts[1]),
        endpoints: vec![wire.hosts[1].addr],
        home_derp: 0,
    };
    for host in &mut wire.hosts {
        let plane = host.node.plane.as_mut().unwrap();
        plane.tunnels.retain_peers(&|_| false);
    }
    let plane = wire.hosts[0].node.plane.as_mut().unwrap();
    plane.paths.set_peers(now, &[]);
    plane.paths.set_peers(now, &[told]);
    assert!(!has_session(&wire, 0) && !has_session(&wire, 1));
    ask(&mut wire);
    pass_head_start(&mut wire);
    assert!(has_session(&wire, 0) && has_session(&wire, 1));
}

#[test]
fn a_ping_after_a_silence_costs_no_handshake_while_the_session_lasts() {
    let mut wire = Wire::new(&allow_all());
    ask(&mut wire);
    pass_head_start(&mut wire);
    wire.now += SILENCE;
    for host in &mut wire.hosts {
        host.sent.clear();
    }
    ask(&mut wire);
    pass_head_start(&mut wire);
    let handshakes = wire
        .hosts
        .iter()
        .flat_map(|host| &host.sent)
        .filter(|datagram| {
            crate::wireguard::is_handshake(datagram) && !crate::disco::looks_like_disco(datagram)
        });
    assert_eq!(handshakes.count(), 0);
}
