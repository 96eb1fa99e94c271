//! Rings that follow the pace: large for bulk, small for idle connections, and no byte lost in between.

use super::*;

const LEAST: usize = (16 + 4) << 10;

#[test]
fn bulk_gets_the_largest_rings_and_gives_them_back_when_it_is_over() {
    for v6 in [false, true] {
        let mut pair = Pair::new(&TcpConfig::default(), v6);
        let (conn, peer) = pair.open();
        assert_eq!(pair.b.stats().buffer_bytes, LEAST);
        widen(&mut pair, conn, peer);
        let wide = pair.b.stats();
        assert_eq!(
            (wide.rings_grown, wide.rings_shrunk, wide.fits_failed),
            (2, 0, 0)
        );
        pair.pass(seconds(21));
        for node in [&pair.a, &pair.b] {
            let stats = node.stats();
            assert_eq!((stats.buffer_bytes, stats.rings_shrunk), (LEAST, 1));
        }
        // From here on nothing is due before the keep-alive.
        let before = pair.b.stats().stack_polls;
        pair.pass(seconds(3600));
        assert_eq!(pair.b.stats().stack_polls, before);
        pair.a.send(conn, b"still there").unwrap();
        pair.calm();
        assert_eq!(read_all(&mut pair.b, peer).0, b"still there");
    }
}

#[test]
fn a_session_of_keystrokes_keeps_the_smallest_rings_and_needs_no_timer() {
    let mut pair = Pair::new(&TcpConfig::default(), false);
    let (conn, peer) = pair.open();
    let mut timers = 0;
    for round in 0..2_000 {
        pair.a.send(conn, &pattern(300, 1)).unwrap();
        pair.exchange();
        pair.exchange();
        assert_eq!(read_all(&mut pair.b, peer).0.len(), 300, "round {round}");
        pair.b.send(peer, b"an ack frame").unwrap();
        let before = pair.b.stats().timer_polls;
        pair.pass(seconds(5));
        timers += pair.b.stats().timer_polls - before;
        drop(read_all(&mut pair.a, conn));
    }
    let stats = pair.b.stats();
    assert_eq!((stats.buffer_bytes, stats.rings_grown), (LEAST, 0));
    // The ack of the keystrokes rides on the ack frame, so nothing of this end's is ever delayed.
    assert_eq!(timers, 0);
}

#[test]
fn a_burst_that_was_promised_room_finds_it_although_the_ring_has_shrunk() {
    let mut pair = Pair::new(&TcpConfig::default(), false);
    let (conn, peer) = pair.open();
    widen(&mut pair, conn, peer);
    let data = pattern(60_000, 6);
    assert_eq!(pair.a.send(conn, &data), Ok(data.len()));
    pair.poll_a();
    let burst = std::mem::take(&mut pair.to_b);
    // The wire holds the burst back while the reader finds its ring too large.
    pair.now += seconds(10);
    pair.poll_b();
    pair.now += seconds(10);
    pair.poll_b();
    assert_eq!(pair.b.stats().buffer_bytes, LEAST);
    for packet in &burst {
        pair.b.handle_packet(pair.now, packet);
    }
    pair.poll_b();
    let got = read_all(&mut pair.b, peer).0;
    assert_eq!(
        got.len(),
        burst.iter().map(|packet| packet.len() - 40).sum::<usize>()
    );
    assert!(
        got.len() > 32 << 10 && data.starts_with(&got),
        "{}",
        got.len()
    );
    assert_eq!(pair.b.stats().rings_grown, 3);
}

#[test]
fn bursts_and_pauses_over_a_bad_wire_lose_nothing_while_rings_come_and_go() {
    for (v6, loss, reorder) in [(false, 0, 0), (true, 5, 0), (false, 5, 40), (true, 0, 100)] {
        let mut pair = Pair::new(&TcpConfig::default(), v6);
        let (conn, peer) = pair.open();
        (pair.loss, pair.reorder) = (loss, reorder);
        let (data, mut streams) = (pattern(3 << 20, 7), [(0, 0), (0, 0)]);
        let mut halts = 0;
        let mut left = 0_usize;
        while streams.iter().any(|&(_, read)| read < data.len()) {
            if left == 0 && streams.iter().all(|&(sent, read)| sent == read) {
                halts += 1;
                let pause = seconds(u64::from(pair.rng.next_u32() % 40));
                pair.pass(pause);
                left = usize::try_from(pair.rng.next_u32() % 600_000).unwrap() + 1;
            }
            for (at_a, stream) in [true, false].into_iter().zip(&mut streams) {
                let (node, handle) = if at_a {
                    (&mut pair.a, conn)
                } else {
                    (&mut pair.b, peer)
                };
                let end = data.len().min(stream.0 + left.min(50_000));
                stream.0 += node.send(handle, &data[stream.0..end]).unwrap_or_default();
            }
            left = left.saturating_sub(50_000);
            pair.exchange();
            pair.now += Duration::from_millis(u64::from(pair.rng.next_u32() % 8));
            for (at_a, stream) in [true, false].into_iter().zip(&mut streams) {
                let got = if at_a {
                    read_all(&mut pair.b, peer).0
                } else {
                    read_all(&mut pair.a, conn).0
                };
                assert!(
                    data[stream.1..].starts_with(&got),
                    "v6 {v6}, loss {loss}, reorder {reorder}"
                );
                stream.1 += got.len();
            }
        }
        let stats = pair.b.stats();
        assert!(
            stats.rings_grown > 2 && stats.rings_shrunk > 1 && stats.fits_failed == 0,
            "{halts} halts, {stats:?}"
        );
    }
}

#[test]
fn a_full_budget_refuses_growth_and_everything_still_arrives() {
    let config = TcpConfig {
        buffer_budget_bytes: 30 << 10,
        ..TcpConfig::default()
    };
    let mut pair = Pair::new(&config, false);
    let (conn, peer) = pair.open();
    let data = pattern(500_000, 8);
    let (mut sent, mut received) = (0, Vec::new());
    while received.len() < data.len() {
        sent += pair.a.send(conn, &data[sent..]).unwrap_or_default();
        pair.exchange();
        pair.now += Duration::from_millis(1);
        received.extend(read_all(&mut pair.b, peer).0);
    }
    assert!(received == data);
    assert_eq!(
        (pair.b.stats().rings_grown, pair.b.stats().buffer_bytes),
        (0, LEAST)
    );
}

#[test]
fn a_peer_that_half_closed_still_gets_a_large_send_ring() {
    let mut pair = Pair::new(&TcpConfig::default(), false);
    let (conn, peer) = pair.open();
    pair.a.send(conn, b"request").unwrap();
    pair.a.shutdown(conn).unwrap();
    pair.calm();
    let data = pattern(60_000, 3);
    // What the peer sent is not read yet: it moves to the new stack, and its end with it.
    assert_eq!(pair.b.send(peer, &data), Ok(data.len()));
    assert_eq!(read_all(&mut pair.b, peer), (b"request".to_vec(), Ok(0)));
    pair.b.shutdown(peer).unwrap();
    assert_eq!(read_to_end(&mut pair, false, conn), data);
    assert_eq!(pair.b.stats().rings_grown, 1);
}

#[test]
fn a_window_that_opens_while_the_send_ring_is_exchanged_is_announced() {
    let mut pair = Pair::new(&TcpConfig::default(), false);
    let (conn, peer) = pair.open();
    let data = pattern(40_000, 5);
    pair.a.send(conn, &data).unwrap();
    pair.pass(seconds(1));
    // The ring is full and its window closed; reading and writing come before the next poll.
    let mut got = read_all(&mut pair.b, peer).0;
    assert_eq!(got.len(), 16 << 10);
    assert_eq!(pair.b.send(peer, &[1; 60_000]), Ok(60_000));
    for _ in 0..3 {
        pair.exchange();
    }
    got.extend(read_all(&mut pair.b, peer).0);
    assert!(
        got.len() > 16 << 10,
        "no byte came without the peer's asking"
    );
}
