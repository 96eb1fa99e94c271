//! Closing: in order, by reset, by silence, and by letting go of the handle.

use super::*;

#[test]
fn each_side_may_finish_first_and_the_other_still_sends() {
    for dialler_first in [true, false] {
        let mut pair = Pair::new(&TcpConfig::default(), false);
        let (conn, peer) = pair.open();
        let data = pattern(30_000, 3);
        if dialler_first {
            pair.a.send(conn, b"request").unwrap();
            pair.a.shutdown(conn).unwrap();
            pair.calm();
            assert_eq!(read_all(&mut pair.b, peer), (b"request".to_vec(), Ok(0)));
            assert_eq!(pair.a.send(conn, b"x"), Err(TcpError::ShutDown));
            pair.b.send(peer, &data).unwrap();
            pair.b.shutdown(peer).unwrap();
            pair.pass(seconds(1));
            assert_eq!(read_to_end(&mut pair, false, conn), data);
        } else {
            pair.b.send(peer, &data).unwrap();
            pair.b.shutdown(peer).unwrap();
            pair.pass(seconds(1));
            assert_eq!(read_to_end(&mut pair, false, conn), data);
            pair.a.send(conn, &data).unwrap();
            pair.a.shutdown(conn).unwrap();
            pair.pass(seconds(1));
            assert_eq!(read_to_end(&mut pair, true, peer), data);
        }
        pair.pass(seconds(20));
        assert!(
            pair.a_events
                .contains(&TcpEvent::Closed(conn, CloseReason::Done))
        );
        assert!(
            pair.b_events
                .contains(&TcpEvent::Closed(peer, CloseReason::Done))
        );
        assert_eq!(
            (pair.a.stats().buffer_bytes, pair.b.stats().buffer_bytes),
            (0, 0)
        );
    }
}

#[test]
fn both_sides_may_finish_at_once() {
    let mut pair = Pair::new(&TcpConfig::default(), true);
    let (conn, peer) = pair.open();
    pair.a.shutdown(conn).unwrap();
    pair.b.shutdown(peer).unwrap();
    pair.calm();
    assert_eq!(read_all(&mut pair.a, conn), (vec![], Ok(0)));
    assert_eq!(read_all(&mut pair.b, peer), (vec![], Ok(0)));
    pair.pass(seconds(11));
    pair.a.release(conn);
    pair.b.release(peer);
    pair.calm();
    assert_eq!(
        (pair.a.stats().connections, pair.b.stats().connections),
        (0, 0)
    );
}

#[test]
fn a_released_connection_delivers_its_last_bytes_and_frees_its_buffers_in_time_wait() {
    let mut pair = Pair::new(&TcpConfig::default(), false);
    let (conn, peer) = pair.open();
    let data = pattern(40_000, 5);
    pair.a.send(conn, &data).unwrap();
    pair.a.shutdown(conn).unwrap();
    pair.a.release(conn);
    assert_eq!(pair.a.recv(conn, &mut [0]), Err(TcpError::Stale));
    pair.pass(seconds(1));
    assert_eq!(read_to_end(&mut pair, true, peer), data);
    pair.b.shutdown(peer).unwrap();
    pair.calm();
    // The dialler is in TIME-WAIT, without a stack.
    assert_eq!(
        (pair.a.stats().connections, pair.a.stats().buffer_bytes),
        (0, 0)
    );
    assert!(
        pair.b_events
            .contains(&TcpEvent::Closed(peer, CloseReason::Done))
    );
}

#[test]
fn a_fin_whose_ack_was_lost_is_acked_again_by_the_record_of_time_wait() {
    let mut pair = Pair::new(&TcpConfig::default(), true);
    let (conn, peer) = pair.open();
    pair.a.shutdown(conn).unwrap();
    pair.a.release(conn);
    pair.calm();
    pair.b.shutdown(peer).unwrap();
    pair.poll_b();
    for fin in std::mem::take(&mut pair.to_a) {
        pair.a.handle_packet(pair.now, &fin);
    }
    pair.a.poll(pair.now, &mut |_lost_ack| {});
    assert_eq!(pair.a.stats().connections, 0);
    assert!(
        !pair
            .b_events
            .contains(&TcpEvent::Closed(peer, CloseReason::Done))
    );
    pair.pass(seconds(2));
    assert!(
        pair.b_events
            .contains(&TcpEvent::Closed(peer, CloseReason::Done))
    );
    assert_eq!(pair.a.stats().unclaimed, 0);
}

#[test]
fn a_handle_dropped_without_a_shutdown_resets_the_peer() {
    let mut pair = Pair::new(&TcpConfig::default(), false);
    let (conn, peer) = pair.open();
    pair.a.send(conn, b"cut off").unwrap();
    pair.calm();
    pair.a.release(conn);
    pair.calm();
    assert_eq!(pair.a.stats().connections, 0);
    assert!(
        pair.b_events
            .contains(&TcpEvent::Closed(peer, CloseReason::Reset))
    );
    // What came before the reset is not lost; what comes after it is an error.
    assert_eq!(
        read_all(&mut pair.b, peer),
        (
            b"cut off".to_vec(),
            Err(TcpError::Closed(CloseReason::Reset))
        )
    );
    assert_eq!(
        pair.b.send(peer, b"x"),
        Err(TcpError::Closed(CloseReason::Reset))
    );
    pair.calm();
    assert_eq!(pair.b.stats().buffer_bytes, 0);
}

#[test]
fn a_released_connection_whose_peer_keeps_sending_is_reset() {
    let mut pair = Pair::new(&TcpConfig::default(), false);
    let (conn, peer) = pair.open();
    pair.a.shutdown(conn).unwrap();
    pair.a.release(conn);
    pair.calm();
    pair.b.send(peer, b"nobody reads this").unwrap();
    pair.calm();
    assert_eq!(pair.a.stats().connections, 0);
    assert!(
        pair.b_events
            .contains(&TcpEvent::Closed(peer, CloseReason::Reset))
    );
}

#[test]
fn a_connection_that_nobody_holds_does_not_outlive_its_limits() {
    // (does the peer still answer, seconds until it is gone)
    for (deaf, gone_within) in [(true, 61), (false, 301)] {
        let mut pair = Pair::new(&TcpConfig::default(), false);
        let (conn, _) = pair.open();
        pair.a.shutdown(conn).unwrap();
        pair.a.release(conn);
        pair.loss = if deaf { 1000 } else { 0 };
        pair.pass(seconds(30));
        assert_eq!(pair.a.stats().connections, 1);
        pair.pass(seconds(gone_within - 30));
        assert_eq!(pair.a.stats().connections, 0);
    }
}

#[test]
fn an_idle_connection_lives_for_days_and_a_dead_peer_is_noticed() {
    let mut pair = Pair::new(&TcpConfig::default(), false);
    let (conn, peer) = pair.open();
    pair.pass(seconds(3 * 24 * 3600));
    pair.a.send(conn, b"still here").unwrap();
    pair.a.shutdown(conn).unwrap();
    pair.pass(seconds(1));
    assert_eq!(read_all(&mut pair.b, peer), (b"still here".to_vec(), Ok(0)));
    pair.loss = 1000;
    pair.pass(seconds(2 * 3600 + 9 * 75 - 5));
    assert!(
        !pair
            .b_events
            .iter()
            .any(|event| matches!(event, TcpEvent::Closed(..)))
    );
    pair.pass(seconds(10));
    assert!(
        pair.b_events
            .contains(&TcpEvent::Closed(peer, CloseReason::TimedOut))
    );
}

#[test]
fn unacknowledged_bytes_end_the_connection_in_a_quarter_of_an_hour() {
    let mut pair = Pair::new(&TcpConfig::default(), false);
    let (conn, _) = pair.open();
    pair.pass(seconds(24 * 3600));
    pair.loss = 1000;
    pair.a.send(conn, b"anyone?").unwrap();
    pair.pass(seconds(15 * 60 - 1));
    assert!(
        !pair
            .a_events
            .contains(&TcpEvent::Closed(conn, CloseReason::TimedOut))
    );
    pair.pass(seconds(2));
    assert!(
        pair.a_events
            .contains(&TcpEvent::Closed(conn, CloseReason::TimedOut))
    );
}

#[test]
fn a_vanished_address_ends_its_connections_and_no_other() {
    let mut pair = Pair::new(&TcpConfig::default(), false);
    let (v4, _) = pair.open();
    pair.v6 = true;
    let (v6, v6_peer) = pair.open();
    pair.a_events.clear();
    pair.a.set_addresses(&[address(true, 1)]);
    pair.calm();
    assert_eq!(pair.a_events, [TcpEvent::Closed(v4, CloseReason::Aborted)]);
    pair.a.send(v6, b"x").unwrap();
    pair.calm();
    assert_eq!(read_all(&mut pair.b, v6_peer).0, b"x");
}

#[test]
fn an_id_never_hits_the_successor_of_its_connection() {
    let mut pair = Pair::new(&TcpConfig::default(), false);
    let (old, _) = pair.open();
    pair.a.release(old);
    pair.calm();
    let (new, _) = pair.open();
    assert_eq!(old.slot(), new.slot());
    assert_ne!(old, new);
    pair.a.abort(old);
    pair.a.release(old);
    assert_eq!(pair.a.send(old, b"x"), Err(TcpError::Stale));
    assert_eq!(pair.a.recv(old, &mut [0]), Err(TcpError::Stale));
    assert_eq!(pair.a.shutdown(old), Err(TcpError::Stale));
    assert_eq!(pair.a.address_pair(old), None);
    assert_eq!(pair.a.send(new, b"x"), Ok(1));
}
