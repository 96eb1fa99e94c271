//! Opening: listening, dialling, backlog, repeated and late SYNs.

use super::*;

#[test]
fn a_connection_opens_and_carries_bytes_both_ways_on_both_families() {
    for v6 in [false, true] {
        let mut pair = Pair::new(&TcpConfig::default(), v6);
        let conn = pair.dial();
        pair.calm();
        assert_eq!(pair.a_events, [TcpEvent::Connected(conn)]);
        assert_eq!(pair.b_events, [TcpEvent::Acceptable { port: PORT }]);
        let Accepted {
            conn: peer,
            local,
            remote,
        } = pair.b.accept(PORT).unwrap();
        assert_eq!(pair.a.address_pair(conn), Some((remote, local)));
        assert_eq!((local, remote.ip()), (pair.remote(), address(v6, 1)));
        assert!(remote.port() >= 49_152);
        assert_eq!(pair.b.accept(PORT), None);
        assert_eq!(pair.a.send(conn, b"to b"), Ok(4));
        assert_eq!(pair.b.send(peer, b"to a"), Ok(4));
        pair.calm();
        assert_eq!(
            read_all(&mut pair.b, peer),
            (b"to b".to_vec(), Err(TcpError::WouldBlock))
        );
        assert_eq!(
            read_all(&mut pair.a, conn),
            (b"to a".to_vec(), Err(TcpError::WouldBlock))
        );
    }
}

#[test]
fn a_blocked_call_gets_exactly_one_event() {
    let mut pair = Pair::new(&TcpConfig::default(), false);
    let (conn, peer) = pair.open();
    assert_eq!(read_all(&mut pair.b, peer).1, Err(TcpError::WouldBlock));
    pair.b_events.clear();
    for _ in 0..3 {
        pair.a.send(conn, b"x").unwrap();
        pair.calm();
    }
    assert_eq!(pair.b_events, [TcpEvent::Readable(peer)]);
}

#[test]
fn a_full_send_buffer_wakes_its_writer_and_a_flush_waits_for_the_last_ack() {
    let mut pair = Pair::new(&TcpConfig::default(), false);
    let (conn, peer) = pair.open();
    while pair.a.send(conn, &[1; 4096]).is_ok() {}
    assert_eq!(pair.a.flush(conn), Err(TcpError::WouldBlock));
    pair.a_events.clear();
    pair.poll_a();
    assert_eq!(pair.a_events, []);
    pair.pass(seconds(1));
    assert!(pair.a_events.contains(&TcpEvent::Writable(conn)));
    assert_eq!(read_all(&mut pair.b, peer).0.len(), 4 << 10);
    assert!(pair.a.is_flushed(conn));
    assert_eq!(pair.a.flush(conn), Ok(()));
}

#[test]
fn a_closed_port_refuses_and_says_so() {
    let mut pair = Pair::new(&TcpConfig::default(), false);
    pair.b.unlisten(PORT);
    let conn = pair.dial();
    pair.calm();
    assert_eq!(
        pair.a_events,
        [TcpEvent::Closed(conn, CloseReason::Refused)]
    );
    assert_eq!(pair.b.stats().refused, 1);
    assert_eq!(
        pair.a.recv(conn, &mut [0]),
        Err(TcpError::Closed(CloseReason::Refused))
    );
    pair.a.release(conn);
    pair.calm();
    assert_eq!(
        (pair.a.stats().connections, pair.a.stats().buffer_bytes),
        (0, 0)
    );
}

#[test]
fn a_dial_that_nobody_answers_times_out() {
    let mut pair = Pair::new(&TcpConfig::default(), false);
    pair.loss = 1000;
    let conn = pair.dial();
    pair.pass(seconds(29));
    assert_eq!(pair.a_events, []);
    pair.pass(seconds(2));
    assert_eq!(
        pair.a_events,
        [TcpEvent::Closed(conn, CloseReason::TimedOut)]
    );
}

#[test]
fn a_reject_ends_a_dial_and_nothing_else() {
    let mut pair = Pair::new(&TcpConfig::default(), false);
    let (open, _) = pair.open();
    let (local, remote) = pair.a.address_pair(open).unwrap();
    pair.a.handle_reject(local, remote);
    pair.a_events.clear();
    pair.loss = 1000;
    let conn = pair.dial();
    let (local, remote) = pair.a.address_pair(conn).unwrap();
    pair.a.handle_reject(local, remote);
    pair.calm();
    assert_eq!(
        pair.a_events,
        [TcpEvent::Closed(conn, CloseReason::Refused)]
    );
    assert_eq!(pair.a.send(open, b"x"), Ok(1));
}

#[test]
fn a_backlog_drops_what_exceeds_it_and_the_dropped_get_in_later() {
    let mut pair = Pair::new(&TcpConfig::default(), false);
    let conns: Vec<ConnId> = (0..12).map(|_| pair.dial()).collect();
    pair.calm();
    assert_eq!(pair.a_events.len(), 8);
    assert_eq!((pair.b.stats().syn_dropped, pair.b.stats().refused), (4, 0));
    let first: Vec<Accepted> = std::iter::from_fn(|| pair.b.accept(PORT)).collect();
    assert_eq!(first.len(), 8);
    pair.pass(seconds(2));
    assert_eq!(pair.a_events.len(), conns.len());
    assert_eq!(std::iter::from_fn(|| pair.b.accept(PORT)).count(), 4);
}

#[test]
fn a_repeated_syn_goes_to_the_connection_that_the_first_one_made() {
    let mut pair = Pair::new(&TcpConfig::default(), false);
    let conn = pair.dial();
    pair.poll_a();
    let syn = pair.to_b[0].clone();
    for _ in 0..5 {
        pair.b.handle_packet(pair.now, &syn);
    }
    assert_eq!(
        (pair.b.stats().half_open, pair.b.stats().connections),
        (1, 1)
    );
    pair.calm();
    assert_eq!(pair.a_events, [TcpEvent::Connected(conn)]);
    assert_eq!(pair.b.stats().connections, 1);
}

#[test]
fn a_handshake_that_is_not_finished_is_reaped_and_frees_the_backlog() {
    let mut pair = Pair::new(&TcpConfig::default(), false);
    for _ in 0..8 {
        pair.dial();
    }
    pair.poll_a();
    for syn in std::mem::take(&mut pair.to_b) {
        pair.b.handle_packet(pair.now, &syn);
    }
    pair.loss = 1000;
    assert_eq!(pair.b.stats().half_open, 8);
    pair.pass(seconds(11));
    let stats = pair.b.stats();
    assert_eq!(
        (
            stats.half_open,
            stats.connections,
            stats.buffer_bytes,
            stats.half_open_reaped
        ),
        (0, 0, 0, 8)
    );
    pair.loss = 0;
    pair.pass(seconds(30));
    pair.dial();
    pair.calm();
    assert!(pair.b.accept(PORT).is_some());
}

#[test]
fn a_restarted_peer_gets_through_on_the_flow_of_its_dead_connection() {
    let mut pair = Pair::new(&TcpConfig::default(), false);
    let (conn, old) = pair.open();
    let (local, remote) = pair.a.address_pair(conn).unwrap();
    // The peer forgets everything and dials again until it draws the same port.
    pair.a = TcpIp::new(TcpConfig::default(), 99, pair.now);
    pair.a.set_addresses(&[local.ip()]);
    let again = loop {
        let conn = pair
            .a
            .connect(pair.now, local.ip(), remote, &mut pair.rng)
            .unwrap();
        if pair.a.address_pair(conn) == Some((local, remote)) {
            break conn;
        }
        pair.a.release(conn);
        pair.a.poll(pair.now, &mut |_| {});
    };
    pair.a_events.clear();
    pair.b_events.clear();
    pair.pass(seconds(3));
    assert_eq!(
        pair.b_events,
        [
            TcpEvent::Closed(old, CloseReason::Reset),
            TcpEvent::Acceptable { port: PORT }
        ]
    );
    assert_eq!(pair.a_events, [TcpEvent::Connected(again)]);
}

#[test]
fn closing_a_port_resets_those_that_wait_and_leaves_the_accepted_alone() {
    let mut pair = Pair::new(&TcpConfig::default(), false);
    let (held, peer) = pair.open();
    let waiting = pair.dial();
    pair.calm();
    pair.a_events.clear();
    pair.b.unlisten(PORT);
    pair.calm();
    assert_eq!(
        pair.a_events,
        [TcpEvent::Closed(waiting, CloseReason::Reset)]
    );
    pair.a.send(held, b"x").unwrap();
    pair.calm();
    assert_eq!(read_all(&mut pair.b, peer).0, b"x");
    assert_eq!(pair.b.stats().connections, 1);
}
