//! Limits: connections, peers, handshakes, memory.

use super::*;

fn opened(config: &TcpConfig, dials: usize) -> (usize, Pair) {
    let mut pair = Pair::new(&TcpConfig::default(), false);
    pair.b = TcpIp::new(config.clone(), 3, pair.now);
    pair.b.set_addresses(&[address(false, 2)]);
    pair.b.listen(PORT, 1_000).unwrap();
    for _ in 0..dials {
        pair.dial();
    }
    pair.calm();
    (
        pair.a_events
            .iter()
            .filter(|event| matches!(event, TcpEvent::Connected(_)))
            .count(),
        pair,
    )
}

#[test]
fn a_limit_that_is_reached_drops_the_syn() {
    let base = TcpConfig::default;
    let table = [
        (
            "in all",
            TcpConfig {
                connections_max: 5,
                ..base()
            },
            5,
        ),
        (
            "of one peer",
            TcpConfig {
                connections_per_peer_max: 4,
                ..base()
            },
            4,
        ),
        (
            "memory",
            TcpConfig {
                buffer_budget_bytes: 60 << 10,
                ..base()
            },
            3,
        ),
    ];
    for (case, config, expected) in table {
        let (count, pair) = opened(&config, 9);
        let stats = pair.b.stats();
        assert_eq!(
            (count, stats.connections, stats.refused),
            (expected, expected, 0),
            "{case}"
        );
        assert_eq!(
            stats.syn_dropped,
            9 - u64::try_from(expected).unwrap(),
            "{case}"
        );
        let of_peer = if case == "of one peer" { 5 } else { 0 };
        assert_eq!(stats.syn_dropped_per_peer, of_peer, "{case}");
        assert!(stats.buffer_bytes <= config.buffer_budget_bytes, "{case}");
    }
}

#[test]
fn handshakes_under_way_are_limited_in_all_and_for_each_peer() {
    let base = TcpConfig::default;
    for config in [
        TcpConfig {
            half_open_max: 3,
            ..base()
        },
        TcpConfig {
            half_open_per_peer_max: 3,
            ..base()
        },
    ] {
        let mut pair = Pair::new(&config, false);
        for _ in 0..6 {
            pair.dial();
        }
        pair.poll_a();
        for syn in std::mem::take(&mut pair.to_b) {
            pair.b.handle_packet(pair.now, &syn);
        }
        assert_eq!(
            (pair.b.stats().half_open, pair.b.stats().syn_dropped),
            (3, 3)
        );
        // The handshakes end, so the limit is free again and those that were dropped get in.
        pair.pass(seconds(5));
        assert_eq!(
            (pair.b.stats().half_open, pair.b.stats().connections),
            (0, 6)
        );
    }
}

#[test]
fn a_dial_beyond_a_limit_says_so_and_takes_nothing() {
    let config = TcpConfig {
        connections_max: 1,
        ..TcpConfig::default()
    };
    let mut pair = Pair::new(&config, false);
    pair.dial();
    let remote = pair.remote();
    let before = pair.a.stats();
    let refused = pair
        .a
        .connect(pair.now, address(false, 1), remote, &mut pair.rng);
    assert_eq!(refused, Err(super::super::ConnectError::Exhausted(remote)));
    assert_eq!(pair.a.stats(), before);
}

#[test]
fn addresses_that_do_not_fit_cannot_be_dialled() {
    let mut pair = Pair::new(&TcpConfig::default(), false);
    let (ours, theirs) = (address(false, 1), pair.remote());
    let table = [
        (address(false, 9), theirs),
        (address(true, 1), theirs),
        (ours, SocketAddr::new(theirs.ip(), 0)),
        (ours, "0.0.0.0:80".parse().unwrap()),
        (ours, "224.0.0.1:80".parse().unwrap()),
        (ours, SocketAddr::new(ours, 80)),
    ];
    for (local, remote) in table {
        let result = pair.a.connect(pair.now, local, remote, &mut pair.rng);
        assert_eq!(
            result,
            Err(super::super::ConnectError::Unaddressable(local, remote))
        );
    }
}

#[test]
fn the_smallest_buffers_still_carry_everything() {
    let config = TcpConfig {
        buffer_budget_bytes: 20 << 10,
        ..TcpConfig::default()
    };
    let mut pair = Pair::new(&config, false);
    let (conn, peer) = pair.open();
    let data = pattern(200_000, 1);
    let (mut sent, mut received, mut buf) = (0, Vec::new(), [0; 3000]);
    while received.len() < data.len() {
        sent += pair.a.send(conn, &data[sent..]).unwrap_or_default();
        pair.pass(Duration::from_millis(20));
        while let Ok(length) = pair.b.recv(peer, &mut buf) {
            received.extend_from_slice(&buf[..length]);
        }
    }
    assert_eq!(received, data);
}
