//! Floods: datagrams of every size that look like WireGuard, and more SYNs than there are ports. What is there already goes on.

use super::*;
use crate::wireguard::TunnelStats;

/// A data message with nothing in it, which WireGuard sends by a clock of its own.
const KEEPALIVE_BYTES: usize = 32;
/// Where nobody of the tailnet is.
const STRANGER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7)), 9);

fn dropped(stats: TunnelStats) -> u64 {
    [
        stats.unknown_kind,
        stats.wrong_size,
        stats.oversize,
        stats.unknown_index,
        stats.bad_mac,
        stats.unknown_peer,
        stats.stale_initiation,
        stats.replayed,
        stats.undecryptable,
        stats.malformed_packet,
        stats.cookies_sent,
        stats.refused,
    ]
    .iter()
    .sum()
}

/// Resident memory of this process; 0 where the kernel does not tell. For the eye: other tests run beside.
fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .unwrap_or(0)
}

/// A connection over IPv4 and the bytes that prove that it lives.
fn greet(wire: &mut Wire, (near, far): (ConnId, ConnId), text: &[u8]) {
    wire.hosts[0].node.tcp().send(near, text).unwrap();
    let mut got = Vec::new();
    wire.until("the greeting", |wire| {
        let mut buf = [0; 64];
        if let Ok(length) = wire.hosts[1].node.tcp().recv(far, &mut buf) {
            got.extend_from_slice(&buf[..length]);
        }
        got.len() == text.len() && wire.hosts[0].node.tcp().is_flushed(near)
    });
    assert_eq!(got, text);
}

#[test]
fn datagrams_of_every_size_and_kind_are_counted_and_harm_nobody() {
    let mut wire = Wire::new(&allow_all());
    wire.hosts[1].node.tcp().listen(80, 4).unwrap();
    let ends = wire.connection("100.64.0.2:80");
    greet(&mut wire, ends, b"before");
    let live_index: [u8; 4] = {
        let sent = &wire.hosts[0].sent;
        let data = sent.iter().rev().find(|datagram| datagram[0] == 4).unwrap();
        data[4..8].try_into().unwrap()
    };
    let mut noise = vec![0_u8; 65_535];
    ChaCha20Rng::from_seed([9; 32]).fill_bytes(&mut noise);
    let before = wire.hosts[1].node.stats();
    let resident = resident_kib();
    let mut heads = vec![[noise[0], noise[1], noise[2], noise[3], 0, 0, 0, 0]];
    for kind in 1..=4 {
        heads.push([kind, 0, 0, 0, 0xaa, 0xbb, 0xcc, 0xdd]);
    }
    let [a, b, c, d] = live_index;
    heads.push([2, 0, 0, 0, a, b, c, d]);
    heads.push([4, 0, 0, 0, a, b, c, d]);
    let mut fed = 0;
    for head in heads {
        noise[..8].copy_from_slice(&head);
        let decrypts = head[0] == 4 && head[4..] == live_index;
        for size in 0..=noise.len() {
            // What has a session is decrypted in vain, byte for byte: beyond every size that a tunnel has, some must do.
            if decrypts && size > 2_048 && size % 509 != 0 && size < 65_500 {
                continue;
            }
            let node = &mut wire.hosts[1].node;
            node.handle_datagram(wire.now, STRANGER, &noise[..size]);
            fed += 1;
        }
    }
    wire.hosts[1].node.flush(wire.now);
    let after = wire.hosts[1].node.stats();
    println!(
        "{fed} datagrams: {:?}; resident {resident} KiB before, {} KiB after",
        after.tunnels,
        resident_kib()
    );
    assert_eq!(after.datagrams_in - before.datagrams_in, fed);
    assert_eq!(dropped(after.tunnels) - dropped(before.tunnels), fed);
    assert_eq!(after.tunnels.decrypted, before.tunnels.decrypted);
    // Nothing but cookies could go to a stranger, and none of these deserves one.
    let mut batch = TransmitBatch::default();
    wire.hosts[1].node.take_transmits(&mut batch);
    assert!(batch.iter().all(|run| run.destination != STRANGER));
    greet(&mut wire, ends, b"after");
}

#[test]
fn a_hundred_thousand_syns_of_one_peer_leave_its_session_and_the_memory_alone() {
    const ROUNDS: usize = 100;
    const ROUND_SYNS: usize = 1_000;
    let mut wire = Wire::new(&allow_all());
    wire.hosts[1].node.tcp().listen(80, 128).unwrap();
    let ends = wire.connection("100.64.0.2:80");
    greet(&mut wire, ends, b"before");
    let resident = resident_kib();
    let (mut syns, mut answers, mut half_open_max, mut bytes_max) = (0, 0, 0, 0);
    let begin = wire.now;
    for round in 0..ROUNDS {
        wire.now += Duration::from_millis(10);
        let port = if round % 2 == 0 { 80 } else { 81 };
        let target = SocketAddr::new("fd7a:115c:a1e0::2".parse().unwrap(), port);
        let now = wire.now;
        let dial = |_| wire.hosts[0].node.connect(now, target).unwrap().0;
        let dials: Vec<ConnId> = (0..ROUND_SYNS).map(dial).collect();
        let [attacker, victim] = &mut wire.hosts;
        attacker.node.flush(now);
        let mut batch = TransmitBatch::default();
        attacker.node.take_transmits(&mut batch);
        for run in batch.iter() {
            for datagram in run.contents.chunks(run.segment_bytes) {
                victim.node.handle_datagram(now, attacker.addr, datagram);
                syns += usize::from(datagram.len() > KEEPALIVE_BYTES);
            }
        }
        victim.node.flush(now);
        while victim.node.poll_event().is_some() {}
        // The attacker hears none of the answers, and forgets that it asked.
        let mut batch = TransmitBatch::default();
        victim.node.take_transmits(&mut batch);
        answers += batch
            .iter()
            .map(|run| run.contents.chunks(run.segment_bytes).count())
            .sum::<usize>();
        attacker.node.tcp().cut_off(target.ip());
        for dial in dials {
            attacker.node.tcp().release(dial);
        }
        attacker.node.flush(now);
        while attacker.node.poll_event().is_some() {}
        let stats = victim.node.stats().tcp;
        half_open_max = half_open_max.max(stats.half_open);
        bytes_max = bytes_max.max(stats.buffer_bytes);
    }
    let stats = wire.hosts[1].node.stats().tcp;
    println!(
        "{syns} SYNs, {answers} answers: {stats:?}; resident {resident} KiB before, {} KiB after",
        resident_kib()
    );
    assert_eq!(syns, ROUNDS * ROUND_SYNS);
    assert_eq!(wire.now - begin, Duration::from_secs(1));
    // Half of the backlog, twice 1,000 resets at most, and the SYN-ACKs of the half-open.
    assert_eq!(half_open_max, 64);
    assert!(answers <= 2_000 + 2 * 64, "{answers} answers");
    assert_eq!(stats.refused, 50_000);
    // Ports are chosen anew in each round: a few SYNs repeat one that is half open.
    assert!((49_000..=50_000 - 64).contains(&stats.syn_dropped));
    assert_eq!(bytes_max, (64 + 1) * (20 << 10));
    greet(&mut wire, ends, b"after");
    let end = wire.now + Duration::from_secs(12);
    while wire.now < end {
        wire.step();
    }
    let stats = wire.hosts[1].node.stats().tcp;
    assert_eq!((stats.half_open, stats.connections), (0, 1));
    wire.connection("100.64.0.2:80");
}
