//! Transfer: bytes arrive whole and in order over a bad wire, and a closed window opens again.

use super::*;

#[test]
fn a_mebibyte_each_way_survives_loss_and_reordering_on_both_families() {
    let data = pattern(1 << 20, 9);
    // Family, and of a thousand packets how many are lost and how many are late.
    for (v6, loss, reorder) in [
        (false, 0, 0),
        (false, 10, 20),
        (true, 10, 20),
        (true, 0, 100),
    ] {
        let mut pair = Pair::new(&TcpConfig::default(), v6);
        let (conn, peer) = pair.open();
        (pair.loss, pair.reorder) = (loss, reorder);
        let (mut from_a, mut from_b, mut at_a, mut at_b) = (0, 0, Vec::new(), Vec::new());
        let end = pair.now + seconds(3600);
        while at_a.len() < data.len() || at_b.len() < data.len() {
            assert!(
                pair.now < end,
                "{} and {} bytes arrived",
                at_a.len(),
                at_b.len()
            );
            from_a += pair.a.send(conn, &data[from_a..]).unwrap_or_default();
            from_b += pair.b.send(peer, &data[from_b..]).unwrap_or_default();
            pair.exchange();
            at_a.extend(read_all(&mut pair.a, conn).0);
            at_b.extend(read_all(&mut pair.b, peer).0);
            pair.now += Duration::from_millis(5);
        }
        assert!(
            at_a == data && at_b == data,
            "v6 {v6}, loss {loss}, reorder {reorder}"
        );
    }
}

#[test]
fn a_window_that_was_closed_for_an_hour_opens_again() {
    let mut pair = Pair::new(&TcpConfig::default(), false);
    let (conn, peer) = pair.open();
    let data = pattern(400_000, 2);
    let mut sent = 0;
    for _ in 0..100 {
        sent += pair.a.send(conn, &data[sent..]).unwrap_or_default();
        pair.pass(Duration::from_millis(50));
    }
    // The receive buffer is full and so is the send buffer behind it; the one does not grow for a reader that does not read.
    assert_eq!(sent, (16 + 64) << 10);
    pair.pass(seconds(3600));
    let (mut received, result) = read_all(&mut pair.b, peer);
    assert_eq!(
        (received.len(), result),
        (16 << 10, Err(TcpError::WouldBlock))
    );
    for _ in 0..100 {
        sent += pair.a.send(conn, &data[sent..]).unwrap_or_default();
        pair.pass(Duration::from_millis(50));
        received.extend(read_all(&mut pair.b, peer).0);
    }
    assert!(received == data);
}

#[test]
fn a_reader_that_catches_up_announces_its_window_without_being_asked() {
    let mut pair = Pair::new(&TcpConfig::default(), false);
    let (conn, peer) = pair.open();
    widen(&mut pair, conn, peer);
    let mut sent = 0;
    while let Ok(length) = pair.a.send(conn, &[0; 4096]) {
        sent += length;
        pair.pass(Duration::from_millis(50));
    }
    let polls = pair.b.stats().stack_polls;
    let mut buf = [0; 1_000];
    let mut reads = 0;
    while pair.b.recv(peer, &mut buf).is_ok() {
        reads += 1;
        if pair.b.needs_poll() {
            pair.poll_b();
        }
    }
    assert_eq!((sent, reads), ((256 + 64) << 10, 263));
    // Each poll announced at least twice the window of the one before.
    let polls = pair.b.stats().stack_polls - polls;
    assert!((1..=9).contains(&polls), "{polls} polls");
    assert!(!pair.to_a.is_empty());
}
