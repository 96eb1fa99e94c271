//! Paths beside a relay: what goes both ways, what a relay may say, and calls for pings.

use super::super::peer::{CALL_HEEDED_INTERVAL_MIN, CALL_INTERVAL_MIN};
use super::*;

/// A pair with a relay between them, whose endpoints are fresh and unknown to the other.
fn strangers() -> (Side, Side, Instant) {
    let now = start();
    let mut a = Side::new(0x10, "192.0.2.1:41641");
    let mut b = Side::new(0x20, "192.0.2.2:41641");
    a.paths.set_peers(now, &[b.told(&[])]);
    b.paths.set_peers(now, &[a.told(&[])]);
    for side in [&mut a, &mut b] {
        side.paths.set_has_relay(true);
        side.paths.set_own_endpoints(now, vec![side.at]);
    }
    (a, b, now)
}

/// Brings what `from` sends to `to`, by whichever way; how many went over the relay.
fn carry(now: Instant, from: &mut Side, to: &mut Side) -> usize {
    let mut relayed = 0;
    for (way, datagram) in from.sent_any_way() {
        match way {
            Way::Direct(at) if at == to.at => to.paths.handle_datagram(now, from.at, &datagram),
            Way::Direct(_) => {}
            Way::Relay { peer, .. } => {
                assert_eq!(peer, to.node);
                relayed += 1;
                to.paths.handle_relayed(now, 900, &from.node, &datagram);
            }
        }
    }
    relayed
}

#[test]
fn a_call_over_the_relay_makes_a_direct_path_between_two_that_know_no_address_of_each_other() {
    let (mut a, mut b, now) = strangers();
    let first = a.paths.route(now, &b.node);
    assert_eq!(
        first,
        Route {
            direct: None,
            relayed: true
        }
    );
    assert_eq!(carry(now, &mut a, &mut b), 1, "the call");
    assert_eq!(
        carry(now, &mut b, &mut a),
        0,
        "pings, and no call in return"
    );
    assert_eq!(carry(now, &mut a, &mut b), 0, "pongs, and a ping back");
    let proven = b.paths.route(now, &a.node);
    assert_eq!(
        proven,
        Route {
            direct: Some(a.at),
            relayed: false
        }
    );
    carry(now, &mut b, &mut a);
    a.paths.route(now, &b.node);
    carry(now, &mut a, &mut b);
    carry(now, &mut b, &mut a);
    assert_eq!(a.paths.route(now, &b.node).direct, Some(b.at));
    assert_eq!(b.paths.stats().calls_received, 1);
}

#[test]
fn a_path_that_is_no_longer_trusted_goes_both_ways_until_it_is_proven_or_lost() {
    let (mut a, mut b, now) = strangers();
    a.paths.set_peers(now, &[b.told(&[b.at])]);
    a.paths.route(now, &b.node);
    carry(now, &mut a, &mut b);
    carry(now, &mut b, &mut a);
    assert!(!a.paths.route(now, &b.node).relayed);
    a.sent_any_way();
    let doubted = now + TRUST;
    assert_eq!(
        a.paths.route(doubted, &b.node),
        Route {
            direct: Some(b.at),
            relayed: true
        }
    );
}

#[test]
fn calls_go_out_at_most_every_five_seconds_whatever_is_sent() {
    let (mut a, b, now) = strangers();
    let mut calls = 0;
    for step in 0..200 {
        let now = now + ms(100) * step;
        a.paths.set_own_endpoints(now, vec![a.at]);
        a.paths.route(now, &b.node);
        calls += a.sent_any_way().len();
    }
    assert_eq!(
        Duration::from_secs(20).div_duration_f64(CALL_INTERVAL_MIN),
        4.0
    );
    assert_eq!(calls, 4);
}

#[test]
fn stale_endpoints_are_looked_for_before_the_peer_is_called() {
    let (mut a, b, now) = strangers();
    let later = now + Duration::from_secs(27);
    assert!(!a.paths.take_wants_endpoints());
    a.paths.route(later, &b.node);
    assert!(a.sent_any_way().is_empty());
    assert!(a.paths.take_wants_endpoints());
    assert!(!a.paths.take_wants_endpoints());
    a.paths.set_own_endpoints(later + ms(50), vec![a.at]);
    assert_eq!(a.sent_any_way().len(), 1);
    a.paths.set_own_endpoints(later + ms(60), vec![a.at]);
    assert!(a.sent_any_way().is_empty());
}

#[test]
fn without_a_relay_nobody_is_called() {
    let (mut a, b, now) = strangers();
    a.paths.set_has_relay(false);
    a.paths.route(now, &b.node);
    assert!(a.sent_any_way().is_empty());
}

#[test]
fn a_ping_over_the_relay_is_answered_there_and_proves_nothing() {
    let (a, mut b, now) = strangers();
    let key = DiscoBox::new(&a.disco, &b.disco.public());
    let ping = Message::Ping {
        txid: [7; 12],
        node: Some(a.node),
    };
    let datagram = key.seal([1; 24], &ping, &a.disco.public());
    b.paths.handle_relayed(now, 900, &a.node, &datagram);
    let sent = b.sent_any_way();
    let [(way, pong)] = &sent[..] else {
        panic!("{sent:?}")
    };
    assert_eq!(
        *way,
        Way::Relay {
            region: Some(900),
            peer: a.node
        }
    );
    assert_eq!(
        key.open(pong).unwrap(),
        Message::Pong {
            txid: [7; 12],
            src: addr("127.3.3.40:900")
        }
    );
    assert_eq!(b.paths.status(&a.node).unwrap().candidates, 0);
}

#[test]
fn a_pong_over_the_relay_does_not_prove_the_address_that_was_pinged() {
    let (mut a, b, now) = strangers();
    a.paths.set_peers(now, &[b.told(&[b.at])]);
    a.paths.route(now, &b.node);
    let key = DiscoBox::new(&b.disco, &a.disco.public());
    let pinged = a.sent_any_way().into_iter().find_map(|(way, datagram)| {
        let message = key.open(&datagram).unwrap();
        match (way, message) {
            (Way::Direct(_), Message::Ping { txid, .. }) => Some(txid),
            _ => None,
        }
    });
    let pong = Message::Pong {
        txid: pinged.unwrap(),
        src: a.at,
    };
    let datagram = key.seal([2; 24], &pong, &b.disco.public());
    a.paths.handle_relayed(now, 900, &b.node, &datagram);
    assert_eq!(a.paths.route(now, &b.node).direct, None);
    assert_eq!(a.paths.stats().pongs_over_relay, 1);
}

#[test]
fn what_a_relay_says_in_the_name_of_another_node_is_passed_over() {
    let (a, mut b, now) = strangers();
    let key = DiscoBox::new(&a.disco, &b.disco.public());
    let call = Message::CallMeMaybe {
        endpoints: vec![a.at],
    };
    let datagram = key.seal([1; 24], &call, &a.disco.public());
    let other = NodePublic::from_bytes([9; 32]);
    b.paths.handle_relayed(now, 900, &other, &datagram);
    b.paths.handle_relayed(now, 900, &b.node.clone(), &datagram);
    assert!(b.sent_any_way().is_empty());
    assert_eq!(b.paths.stats().unknown_sender, 2);
}

#[test]
fn a_call_replaces_the_candidates_of_the_one_before_and_a_flood_of_them_is_withheld() {
    let (a, mut b, now) = strangers();
    let key = DiscoBox::new(&a.disco, &b.disco.public());
    let call = |number: u8, hosts: std::ops::Range<u8>| {
        let endpoints = hosts.map(|host| SocketAddr::from(([192, 0, 2, host], 41641)));
        let call = Message::CallMeMaybe {
            endpoints: endpoints.collect(),
        };
        key.seal([number; 24], &call, &a.disco.public())
    };
    b.paths.handle_relayed(now, 900, &a.node, &call(1, 1..11));
    assert_eq!(b.sent_any_way().len(), 10);
    for number in 2..102 {
        b.paths
            .handle_relayed(now, 900, &a.node, &call(number, 11..111));
    }
    assert!(b.sent_any_way().is_empty());
    assert_eq!(b.paths.stats().calls_withheld, 100);
    let later = now + CALL_HEEDED_INTERVAL_MIN;
    b.paths
        .handle_relayed(later, 900, &a.node, &call(103, 10..12));
    assert_eq!(b.sent_any_way().len(), 2);
    assert_eq!(b.paths.status(&a.node).unwrap().candidates, 2);
}

#[test]
fn a_change_of_network_unproves_every_path_and_an_unreachable_address_its_own() {
    let (mut a, mut b, now) = strangers();
    a.paths.set_peers(now, &[b.told(&[b.at])]);
    let prove = |a: &mut Side, b: &mut Side, now| {
        a.paths.route(now, &b.node);
        carry(now, a, b);
        carry(now, b, a);
        assert_eq!(a.paths.route(now, &b.node).direct, Some(b.at));
        a.events();
    };
    prove(&mut a, &mut b, now);
    a.paths.handle_unreachable(addr("192.0.2.99:1"));
    assert!(a.events().is_empty());
    a.paths.handle_unreachable(b.at);
    assert_eq!(a.events(), [PathEvent::Down { peer: b.node }]);
    let now = now + PING_INTERVAL_MIN;
    prove(&mut a, &mut b, now);
    a.paths.handle_network_change(now);
    assert_eq!(a.events(), [PathEvent::Down { peer: b.node }]);
    // The next packet looks for a path at once.
    a.paths.route(now, &b.node);
    assert!(!a.sent_any_way().is_empty());
}
