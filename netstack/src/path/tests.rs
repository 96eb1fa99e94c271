//! Two nodes on a wire of this file's own, in virtual time, with loss and address translation.

use proptest::prelude::*;

use super::peer::{
    CANDIDATES_MAX, HEARD_LIFETIME, HEARTBEAT_INTERVAL, PING_INTERVAL_MIN, PING_TIMEOUT,
    SESSION_ACTIVE, TRUST, UPGRADE_INTERVAL,
};
use super::*;
use crate::key::NodePrivate;

mod cold_start;
mod relayed;

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// One node: its paths, and the address that others see it at.
struct Side {
    node: NodePublic,
    disco: DiscoPrivate,
    at: SocketAddr,
    paths: Paths,
}

impl Side {
    fn new(seed: u8, at: &str) -> Self {
        let node = NodePrivate::from_bytes([seed; 32]).public();
        let disco = DiscoPrivate::from_bytes([seed + 1; 32]);
        Self {
            node,
            at: addr(at),
            paths: Paths::new(disco.clone(), node, [seed; 32]),
            disco,
        }
    }

    fn told(&self, endpoints: &[SocketAddr]) -> PeerPath {
        PeerPath {
            node: self.node,
            disco: self.disco.public(),
            endpoints: endpoints.to_vec(),
            home_derp: 1,
        }
    }

    fn sent(&mut self) -> Vec<(SocketAddr, Vec<u8>)> {
        self.sent_any_way()
            .into_iter()
            .map(|(way, datagram)| match way {
                Way::Direct(to) => (to, datagram),
                Way::Relay { .. } => panic!("there is no relay"),
            })
            .collect()
    }

    fn sent_any_way(&mut self) -> Vec<(Way, Vec<u8>)> {
        std::iter::from_fn(|| self.paths.poll_transmit()).collect()
    }

    fn events(&mut self) -> Vec<PathEvent> {
        std::iter::from_fn(|| self.paths.poll_event()).collect()
    }
}

#[expect(clippy::disallowed_methods, reason = "where a test's own time begins")]
fn start() -> Instant {
    Instant::now()
}

/// Two nodes that know each other, each at its one endpoint.
fn pair() -> (Side, Side, Instant) {
    let now = start();
    let mut a = Side::new(0x10, "192.0.2.1:41641");
    let mut b = Side::new(0x20, "192.0.2.2:41641");
    a.paths.set_peers(now, &[b.told(&[b.at])]);
    b.paths.set_peers(now, &[a.told(&[a.at])]);
    (a, b, now)
}

/// Delivers what was sent to the other's address; what is sent elsewhere is lost.
fn exchange(now: Instant, a: &mut Side, b: &mut Side) {
    loop {
        let (from_a, from_b) = (a.sent(), b.sent());
        if from_a.is_empty() && from_b.is_empty() {
            return;
        }
        for (to, datagram) in from_a {
            if to == b.at {
                b.paths.handle_datagram(now, a.at, &datagram);
            }
        }
        for (to, datagram) in from_b {
            if to == a.at {
                a.paths.handle_datagram(now, b.at, &datagram);
            }
        }
    }
}

/// Lets `a`'s timers run until `end`, delivering nothing of what it sends.
fn run_cut_off(a: &mut Side, end: Instant) -> usize {
    let mut sent = 0;
    while let Some(at) = a.paths.poll_timeout().filter(|at| *at <= end) {
        a.paths.handle_timeout(at);
        sent += a.sent().len();
    }
    sent
}

#[test]
fn a_first_send_finds_the_path_in_both_directions() {
    let (mut a, mut b, now) = pair();
    assert_eq!(a.paths.route(now, &b.node).direct, None);
    exchange(now, &mut a, &mut b);
    assert_eq!(
        a.events(),
        [PathEvent::Up {
            peer: b.node,
            addr: b.at,
            latency: ms(0),
            asked_by_peer: false
        }]
    );
    // a's ping made b probe at once: b did not have to send anything of its own.
    assert_eq!(
        b.events(),
        [PathEvent::Up {
            peer: a.node,
            addr: a.at,
            latency: ms(0),
            asked_by_peer: true
        }]
    );
    assert_eq!(a.paths.route(now, &b.node).direct, Some(b.at));
    assert_eq!(b.paths.route(now, &a.node).direct, Some(a.at));
    let status = a.paths.status(&b.node).unwrap();
    assert_eq!(status.trusted_until, Some(now + TRUST));
    assert_eq!((status.candidates, status.home_derp), (1, 1));
    assert_eq!(a.paths.disco_public(), a.disco.public());
}

#[test]
fn a_heartbeat_keeps_the_path_trusted_while_it_is_used_and_for_45_seconds_more() {
    let (mut a, mut b, now) = pair();
    a.paths.route(now, &b.node);
    exchange(now, &mut a, &mut b);
    let mut beats = 0;
    while let Some(at) = a.paths.poll_timeout() {
        assert!(
            at <= now + SESSION_ACTIVE + PING_TIMEOUT,
            "the heartbeat must end"
        );
        a.paths.handle_timeout(at);
        exchange(at, &mut a, &mut b);
        if a.paths.status(&b.node).unwrap().trusted_until == Some(at + TRUST) {
            beats += 1;
        }
    }
    assert_eq!(
        beats,
        SESSION_ACTIVE.as_secs() / HEARTBEAT_INTERVAL.as_secs() - 1
    );
    assert_eq!(a.events().len(), 1);
}

#[test]
fn a_cut_path_is_given_up_once_trust_and_a_ping_have_run_out_and_found_again_when_restored() {
    let (mut a, mut b, now) = pair();
    a.paths.route(now, &b.node);
    exchange(now, &mut a, &mut b);
    assert_eq!(a.events().len(), 1);

    // No longer trusted, not yet lost: still used.
    run_cut_off(&mut a, now + TRUST);
    assert_eq!(a.paths.route(now + TRUST, &b.node).direct, Some(b.at));
    assert_eq!(a.events(), []);
    let lost_at = now + HEARTBEAT_INTERVAL + PING_TIMEOUT;
    run_cut_off(&mut a, lost_at);
    assert_eq!(a.paths.route(lost_at, &b.node).direct, None);
    assert_eq!(a.events(), [PathEvent::Down { peer: b.node }]);

    // The next round of discovery finds it again.
    while a.paths.status(&b.node).unwrap().best.is_none() {
        let at = a.paths.poll_timeout().unwrap();
        assert!(at < lost_at + 2 * PING_INTERVAL_MIN);
        a.paths.handle_timeout(at);
        exchange(at, &mut a, &mut b);
    }
    assert!(matches!(a.events()[..], [PathEvent::Up { .. }]));
}

#[test]
fn without_a_path_rounds_of_pings_grow_rarer_however_much_is_sent() {
    let (mut a, b, now) = pair();
    let others: Vec<SocketAddr> = (1..=9)
        .map(|port| SocketAddr::new(b.at.ip(), port))
        .collect();
    a.paths.set_peers(now, &[b.told(&others)]);
    let mut rounds = Vec::new();
    for step in 0..20_000 {
        assert_eq!(a.paths.route(now + ms(step), &b.node).direct, None);
        match a.sent().len() {
            0 => {}
            sent => {
                assert_eq!(sent, 9);
                rounds.push(step);
            }
        }
    }
    assert_eq!(rounds, [0, 100, 300, 700, 1500, 3100, 6300, 11_300, 16_300]);
}

#[test]
fn a_ping_is_answered_to_its_very_source_which_becomes_a_candidate() {
    let (mut a, mut b, now) = pair();
    a.paths.route(now, &b.node);
    let (_, ping) = a.sent().remove(0);
    let source = addr("198.51.100.7:1234");
    b.paths.handle_datagram(now, source, &ping);
    let sent = b.sent();
    // First the pong, then our own ping to the same place.
    assert_eq!(
        sent.iter().map(|(to, _)| *to).collect::<Vec<_>>(),
        [source, source]
    );
    let key = DiscoBox::new(&a.disco, &b.disco.public());
    let Ok(Message::Pong { src, .. }) = key.open(&sent[0].1) else {
        panic!("the pong comes first");
    };
    assert_eq!(src, source);
    assert!(matches!(key.open(&sent[1].1), Ok(Message::Ping { node, .. }) if node == Some(b.node)));
    assert_eq!(b.paths.status(&a.node).unwrap().candidates, 2);
    // Only an answer to our own ping proves it.
    assert_eq!(b.paths.status(&a.node).unwrap().best, None);
    // A double is dropped without a pong.
    b.paths.handle_datagram(now, source, &ping);
    assert_eq!(b.sent(), []);
    assert_eq!(b.paths.stats().duplicate_pings, 1);
}

#[test]
fn a_candidate_known_by_its_pings_lives_45_seconds_unless_it_is_the_best() {
    let (mut a, mut b, now) = pair();
    b.paths.set_peers(now, &[a.told(&[])]);
    a.paths.route(now, &b.node);
    exchange(now, &mut a, &mut b);
    assert_eq!(b.paths.status(&a.node).unwrap().best, Some(a.at));
    let later = now + HEARD_LIFETIME;
    b.paths.set_peers(later, &[a.told(&[])]);
    assert_eq!(b.paths.status(&a.node).unwrap().candidates, 1);
    // Once lost, it is gone as well.
    b.paths.route(later, &a.node);
    run_cut_off(&mut b, later + PING_TIMEOUT);
    b.paths.set_peers(later + PING_TIMEOUT, &[a.told(&[])]);
    assert_eq!(b.paths.status(&a.node).unwrap().candidates, 0);
    assert_eq!(
        b.events().len(),
        0,
        "up and down between two polls is no news"
    );
}

#[test]
fn a_pong_proves_the_address_that_was_pinged_not_where_it_came_from() {
    let (mut a, mut b, now) = pair();
    a.paths.route(now, &b.node);
    let (_, ping) = a.sent().remove(0);
    b.paths.handle_datagram(now, a.at, &ping);
    let (_, pong) = b.sent().remove(0);
    a.paths
        .handle_datagram(now + ms(20), addr("203.0.113.9:9"), &pong);
    let status = a.paths.status(&b.node).unwrap();
    assert_eq!(status.best, Some(b.at));
    assert_eq!(status.latency, Some(ms(20)));
    assert_eq!(status.candidates, 1);
}

#[test]
fn pongs_unasked_twice_or_too_late_prove_nothing() {
    let (mut a, mut b, now) = pair();
    let key = DiscoBox::new(&b.disco, &a.disco.public());
    let unasked = Message::Pong {
        txid: [9; 12],
        src: a.at,
    };
    let datagram = key.seal([1; 24], &unasked, &b.disco.public());
    a.paths.handle_datagram(now, b.at, &datagram);
    assert_eq!(a.paths.stats().unknown_txid, 1);

    a.paths.route(now, &b.node);
    let (_, ping) = a.sent().remove(0);
    b.paths.handle_datagram(now, a.at, &ping);
    let (_, pong) = b.sent().remove(0);
    a.paths.handle_datagram(now + PING_TIMEOUT, b.at, &pong);
    assert_eq!(a.paths.stats().unknown_txid, 2);
    assert_eq!(a.paths.status(&b.node).unwrap().best, None);

    // In time, but twice.
    a.paths.handle_timeout(now + PING_TIMEOUT);
    a.sent();
    let again = now + 2 * PING_INTERVAL_MIN;
    a.paths.route(again, &b.node);
    let (_, ping) = a.sent().remove(0);
    b.paths.handle_datagram(again, a.at, &ping);
    let (_, pong) = b.sent().remove(0);
    a.paths.handle_datagram(again, b.at, &pong);
    a.paths.handle_datagram(again, b.at, &pong);
    assert_eq!(a.paths.stats().pongs_received, 1);
    assert_eq!(a.paths.stats().unknown_txid, 3);
}

#[test]
fn strangers_call_me_maybes_and_unknown_kinds_are_counted_and_ignored() {
    let (mut a, b, now) = pair();
    let stranger = DiscoPrivate::from_bytes([0x77; 32]);
    let to_a = a.disco.public();
    let ping = Message::Ping {
        txid: [1; 12],
        node: Some(b.node),
    };
    let by_stranger = DiscoBox::new(&stranger, &to_a).seal([1; 24], &ping, &stranger.public());
    a.paths.handle_datagram(now, b.at, &by_stranger);
    assert_eq!(a.paths.stats().unknown_sender, 1);
    // The stranger claims to be b.
    let forged = DiscoBox::new(&stranger, &to_a).seal([1; 24], &ping, &b.disco.public());
    a.paths.handle_datagram(now, b.at, &forged);
    assert_eq!(a.paths.stats().unopened, 1);

    let key = DiscoBox::new(&b.disco, &to_a);
    let call = Message::CallMeMaybe {
        endpoints: vec![addr("203.0.113.9:9")],
    };
    a.paths
        .handle_datagram(now, b.at, &key.seal([2; 24], &call, &b.disco.public()));
    assert_eq!(a.paths.stats().call_me_maybe_over_udp, 1);
    let relay = Message::Unknown {
        kind: 4,
        version: 0,
    };
    a.paths
        .handle_datagram(now, b.at, &key.seal([3; 24], &relay, &b.disco.public()));
    assert_eq!(a.paths.stats().unknown_kind, 1);
    a.paths.handle_datagram(now, b.at, &[7]);
    assert_eq!(a.paths.stats().not_disco, 1);

    assert_eq!(a.sent(), []);
    assert_eq!(a.paths.status(&b.node).unwrap().candidates, 1);
    assert_eq!(
        a.paths.route(now, &NodePublic::from_bytes([1; 32])).direct,
        None
    );
}

#[test]
fn a_peer_gets_fifty_pongs_a_second_and_its_sources_stay_bounded() {
    let (mut a, b, now) = pair();
    let key = DiscoBox::new(&b.disco, &a.disco.public());
    for port in 1..=300_u16 {
        let [high, low] = port.to_be_bytes();
        let txid = [high, low, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let ping = Message::Ping { txid, node: None };
        let datagram = key.seal([1; 24], &ping, &b.disco.public());
        a.paths
            .handle_datagram(now, SocketAddr::new(b.at.ip(), port), &datagram);
    }
    let stats = a.paths.stats();
    assert_eq!(stats.pings_received, 300);
    assert_eq!(stats.pongs_sent, 50);
    assert_eq!(stats.pongs_withheld, 250);
    assert_eq!(a.paths.status(&b.node).unwrap().candidates, CANDIDATES_MAX);
    // The netmap's endpoint was not pushed out.
    a.sent();
    a.paths.route(now, &b.node);
    assert!(a.sent().iter().any(|(to, _)| *to == b.at));

    let ping = Message::Ping {
        txid: [0xff; 12],
        node: None,
    };
    let datagram = key.seal([1; 24], &ping, &b.disco.public());
    a.paths.handle_datagram(now + PONG_PERIOD, b.at, &datagram);
    assert_eq!(a.paths.stats().pongs_sent, 51);
}

#[test]
fn endpoints_of_the_netmap_come_and_go_and_nonsense_is_not_pinged() {
    let (mut a, b, now) = pair();
    let told = [
        "0.0.0.0:1",
        "224.0.0.1:1",
        "255.255.255.255:1",
        "[::]:1",
        "192.0.2.9:0",
    ]
    .map(addr);
    a.paths.set_peers(now, &[b.told(&told)]);
    a.paths.route(now, &b.node);
    assert_eq!(a.sent(), []);
    // An IPv4-mapped address is the IPv4 address.
    a.paths
        .set_peers(now, &[b.told(&[addr("[::ffff:192.0.2.2]:41641"), b.at])]);
    a.paths.route(now, &b.node);
    assert_eq!(
        a.sent().iter().map(|(to, _)| *to).collect::<Vec<_>>(),
        [b.at]
    );
    let many: Vec<SocketAddr> = (1..=500)
        .map(|port| SocketAddr::new(b.at.ip(), port))
        .collect();
    a.paths.set_peers(now, &[b.told(&many)]);
    assert_eq!(a.paths.status(&b.node).unwrap().candidates, CANDIDATES_MAX);
}

#[test]
fn a_better_address_is_taken_and_a_worse_one_is_not() {
    let (mut a, mut b, now) = pair();
    let (far, near) = (b.at, addr("10.0.0.2:41641"));
    a.paths.set_peers(now, &[b.told(&[b.at, near])]);
    a.paths.route(now, &b.node);
    let sent = a.sent();
    let pong_to = |b: &mut Side, to: SocketAddr| {
        let (_, ping) = sent.iter().find(|(at, _)| *at == to).unwrap();
        b.paths.handle_datagram(now, a.at, ping);
        b.sent().remove(0).1
    };
    let (far_pong, near_pong) = (pong_to(&mut b, far), pong_to(&mut b, near));
    a.paths.handle_datagram(now + ms(30), b.at, &far_pong);
    assert!(matches!(a.events()[..], [PathEvent::Up { addr, .. }] if addr == b.at));
    a.paths.handle_datagram(now + ms(31), near, &near_pong);
    let moved = PathEvent::Moved {
        peer: b.node,
        addr: near,
        latency: ms(31),
    };
    assert_eq!(a.events(), [moved]);
    // The heartbeat pings only the best; after a minute of more than 5 ms, all are tried again.
    let mut at = now;
    let mut pinged = Vec::new();
    while at < now + UPGRADE_INTERVAL + HEARTBEAT_INTERVAL {
        at = a.paths.poll_timeout().unwrap();
        a.paths.route(at, &b.node);
        a.paths.handle_timeout(at);
        for (to, ping) in a.sent() {
            pinged.push(to);
            b.paths.handle_datagram(at, a.at, &ping);
            if to == near {
                a.paths
                    .handle_datagram(at + ms(31), near, &b.sent().remove(0).1);
            }
            b.sent();
        }
    }
    assert_eq!(pinged.iter().filter(|to| **to == b.at).count(), 1);
    assert_eq!(a.events(), []);
}

#[test]
fn a_new_disco_key_unproves_the_path_and_an_unchanged_netmap_does_not() {
    let (mut a, mut b, now) = pair();
    a.paths.route(now, &b.node);
    exchange(now, &mut a, &mut b);
    a.events();
    a.paths.set_peers(now, &[b.told(&[b.at])]);
    assert_eq!(a.paths.route(now, &b.node).direct, Some(b.at));
    assert_eq!(a.events(), []);

    let restarted = Side {
        paths: Paths::new(a.disco.clone(), b.node, [0; 32]),
        ..b
    };
    let mut b = Side {
        disco: DiscoPrivate::from_bytes([0x99; 32]),
        ..restarted
    };
    b.paths = Paths::new(b.disco.clone(), b.node, [5; 32]);
    b.paths.set_peers(now, &[a.told(&[a.at])]);
    a.paths.set_peers(now, &[b.told(&[b.at])]);
    assert_eq!(a.events(), [PathEvent::Down { peer: b.node }]);
    assert_eq!(a.paths.route(now, &b.node).direct, None);
    exchange(now, &mut a, &mut b);
    assert_eq!(a.paths.route(now, &b.node).direct, Some(b.at));
    assert_eq!(a.paths.groups.len(), 1);
}

#[test]
fn a_peer_that_leaves_or_has_no_disco_key_has_no_path() {
    let (mut a, mut b, now) = pair();
    a.paths.route(now, &b.node);
    exchange(now, &mut a, &mut b);
    a.events();
    let keyless = PeerPath {
        disco: DiscoPublic::default(),
        ..b.told(&[b.at])
    };
    a.paths.set_peers(now, &[keyless]);
    assert_eq!(a.events(), [PathEvent::Down { peer: b.node }]);
    assert_eq!(a.paths.route(now, &b.node).direct, None);
    assert_eq!(a.paths.status(&b.node), None);
    assert_eq!(a.paths.poll_timeout(), None);
    assert!(a.paths.groups.is_empty());
}

#[test]
fn two_nodes_behind_one_disco_key_are_told_apart_by_the_ping_and_the_txid() {
    let (mut a, mut b, now) = pair();
    let second = NodePrivate::from_bytes([0x50; 32]).public();
    let elsewhere = addr("192.0.2.3:41641");
    let other = PeerPath {
        node: second,
        ..b.told(&[elsewhere])
    };
    a.paths.set_peers(now, &[b.told(&[b.at]), other.clone()]);
    // Ours to b proves b alone.
    a.paths.route(now, &b.node);
    exchange(now, &mut a, &mut b);
    assert_eq!(a.paths.route(now, &b.node).direct, Some(b.at));
    assert_eq!(a.paths.status(&second).unwrap().best, None);
    // A ping without a node key is answered, but could be of either: no ping in return.
    a.paths.set_peers(now, &[other.clone(), b.told(&[])]);
    let key = DiscoBox::new(&b.disco, &a.disco.public());
    let source = addr("192.0.2.77:7");
    for (node, sent) in [(None, 1), (Some(second), 2)] {
        let txid = [sent; 12];
        let ping = key.seal([sent; 24], &Message::Ping { txid, node }, &b.disco.public());
        a.paths.handle_datagram(now, source, &ping);
        assert_eq!(a.sent().len(), usize::from(sent), "{node:?}");
    }
    a.paths.set_peers(now, &[other]);
    assert_eq!(a.paths.groups.len(), 1);
}

#[test]
fn the_same_seed_and_events_give_the_same_bytes() {
    let run = || {
        let (mut a, b, now) = pair();
        a.paths.route(now, &b.node);
        a.sent()
    };
    assert_eq!(run(), run());
}

proptest! {
    #[test]
    fn bent_datagrams_never_panic_and_prove_nothing(
        noise in proptest::collection::vec(any::<u8>(), 0..200),
        at in any::<prop::sample::Index>(),
        flip in 1..=u8::MAX,
    ) {
        let (mut a, mut b, now) = pair();
        a.paths.route(now, &b.node);
        let (_, ping) = a.sent().remove(0);
        b.paths.handle_datagram(now, a.at, &ping);
        let (_, mut pong) = b.sent().remove(0);
        let at = at.index(pong.len());
        pong[at] ^= flip;
        a.paths.handle_datagram(now, b.at, &pong);
        a.paths.handle_datagram(now, b.at, &noise);
        prop_assert_eq!(a.paths.status(&b.node).unwrap().best, None);
        prop_assert_eq!(a.sent(), []);
    }
}
