//! Cost: one packet runs one stack, and an idle connection runs none, however many are open.

use super::*;

/// A listener with `count` open connections and their dialler.
fn crowd(count: usize) -> (Pair, Vec<ConnId>, Vec<ConnId>) {
    let config = TcpConfig {
        receive_buffer_bytes: 16 << 10,
        send_buffer_bytes: 4 << 10,
        ..TcpConfig::default()
    };
    let mut pair = Pair::new(&config, false);
    let (mut dialled, mut accepted) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let (conn, peer) = pair.open();
        dialled.push(conn);
        accepted.push(peer);
    }
    pair.pass(seconds(1));
    (pair, dialled, accepted)
}

#[test]
fn a_packet_runs_one_stack_however_many_connections_are_open() {
    for count in [10, 1_000, 5_000] {
        let (mut pair, dialled, accepted) = crowd(count);
        for round in 0..200 {
            let at = round * 37 % count;
            pair.a.send(dialled[at], b"keystroke").unwrap();
            pair.poll_a();
            assert_eq!(pair.to_b.len(), 1);
            let before = pair.b.stats();
            pair.b
                .handle_packet(pair.now, &pair.to_b.pop_front().unwrap());
            pair.poll_b();
            let after = pair.b.stats();
            assert_eq!(
                (
                    after.packets_in - before.packets_in,
                    after.stack_polls - before.stack_polls
                ),
                (1, 1)
            );
            assert_eq!(read_all(&mut pair.b, accepted[at]).0, b"keystroke");
            assert!(!pair.b.needs_poll());
            pair.pass(Duration::from_millis(50));
        }
        assert_eq!(pair.b.stats().connections, count);
    }
}

#[test]
fn a_bulk_upload_beside_5_000_idle_connections_runs_only_its_own_stack() {
    let (mut pair, dialled, accepted) = crowd(5_000);
    let data = pattern(1 << 20, 4);
    let before = (pair.a.stats(), pair.b.stats());
    let (mut sent, mut received) = (0, Vec::new());
    while received.len() < data.len() {
        sent += pair
            .a
            .send(dialled[2_500], &data[sent..])
            .unwrap_or_default();
        pair.pass(Duration::from_millis(1));
        received.extend(read_all(&mut pair.b, accepted[2_500]).0);
    }
    assert!(received == data);
    let packets = pair.b.stats().packets_in - before.1.packets_in + pair.a.stats().packets_in
        - before.0.packets_in;
    let polls = pair.b.stats().stack_polls - before.1.stack_polls + pair.a.stats().stack_polls
        - before.0.stack_polls;
    // A run for each batch of packets, and one for each call that sent or freed a window.
    assert!(polls < 2 * packets, "{polls} polls for {packets} packets");
}

#[test]
fn idle_connections_run_nothing_until_their_keep_alive() {
    let (mut pair, ..) = crowd(100);
    let before = pair.b.stats();
    pair.pass(seconds(2 * 3600 - 60));
    assert_eq!(pair.b.stats(), before);
    pair.pass(seconds(120));
    // Each end asks once and each is answered once.
    let after = pair.b.stats();
    assert!((100..=200).contains(&(after.timer_polls - before.timer_polls)));
    assert_eq!(after.connections, 100);
}

#[test]
fn eight_segments_make_an_ack_even_when_a_whole_batch_comes_at_once() {
    let mut pair = Pair::new(&TcpConfig::default(), false);
    let (conn, peer) = pair.open();
    // Open the congestion window first.
    let mut sent = 0;
    while sent < 300_000 {
        sent += pair.a.send(conn, &[0; 60_000]).unwrap_or_default();
        pair.pass(Duration::from_millis(20));
        drop(read_all(&mut pair.b, peer));
    }
    pair.a.send(conn, &[0; 64 * 1240 - 10_000]).unwrap();
    pair.poll_a();
    let segments = pair.to_b.len();
    assert!(segments >= 32, "{segments} segments");
    for packet in std::mem::take(&mut pair.to_b) {
        pair.b.handle_packet(pair.now, &packet);
    }
    pair.poll_b();
    assert_eq!(pair.to_a.len(), segments.div_ceil(8));
}
