//! Bent packets: nothing panics, nothing grows, and what is not ours is not answered.

use super::super::compose::compose;
use super::super::flow::Flow;
use super::*;
use proptest::prelude::*;
use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr, IpProtocol, Ipv4Packet, Ipv4Repr, UdpRepr};
use smoltcp::wire::{TcpControl, TcpSeqNumber};

fn v4(
    payload_bytes: usize,
    protocol: IpProtocol,
    to: IpAddr,
    write: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let (IpAddr::V4(src_addr), IpAddr::V4(dst_addr)) = (address(false, 1), to) else {
        panic!("both are IPv4")
    };
    let header = Ipv4Repr {
        src_addr,
        dst_addr,
        next_header: protocol,
        payload_len: payload_bytes,
        hop_limit: 64,
    };
    let mut packet = vec![0; 20 + payload_bytes];
    header.emit(
        &mut Ipv4Packet::new_unchecked(&mut packet[..]),
        &Default::default(),
    );
    write(&mut packet[20..]);
    packet
}

fn answers(pair: &mut Pair, packet: &[u8]) -> Vec<Vec<u8>> {
    pair.b.handle_packet(pair.now, packet);
    pair.poll_b();
    pair.to_a.drain(..).collect()
}

#[test]
fn a_ping_is_answered_and_a_datagram_is_told_that_no_port_is_open() {
    let mut pair = Pair::new(&TcpConfig::default(), false);
    let echo = Icmpv4Repr::EchoRequest {
        ident: 1,
        seq_no: 2,
        data: b"ping",
    };
    let ping = v4(
        echo.buffer_len(),
        IpProtocol::Icmp,
        address(false, 2),
        |body| echo.emit(&mut Icmpv4Packet::new_unchecked(body), &Default::default()),
    );
    let answer = answers(&mut pair, &ping);
    assert_eq!(
        (answer.len(), answer[0][20], &answer[0][28..]),
        (1, 0, &b"ping"[..])
    );
    let udp = UdpRepr {
        src_port: 5,
        dst_port: 53,
    };
    let datagram = v4(12, IpProtocol::Udp, address(false, 2), |body| {
        let (src, dst) = (address(false, 1).into(), address(false, 2).into());
        udp.emit(
            &mut smoltcp::wire::UdpPacket::new_unchecked(body),
            &src,
            &dst,
            4,
            |payload| payload.fill(7),
            &Default::default(),
        );
    });
    let answer = answers(&mut pair, &datagram);
    // Destination unreachable (3), port unreachable (3).
    assert_eq!(
        (answer.len(), answer[0][9], &answer[0][20..22]),
        (1, 1, &[3, 3][..])
    );
}

#[test]
fn packets_that_are_not_ours_get_no_answer_and_are_counted() {
    let mut pair = Pair::new(&TcpConfig::default(), false);
    pair.dial();
    pair.poll_a();
    let syn = pair.to_b.pop_front().unwrap();
    let mut elsewhere = syn.clone();
    elsewhere[19] = 77;
    let mut from_ourselves = syn.clone();
    from_ourselves[12..16].copy_from_slice(&syn[16..20]);
    let mut fragment = syn.clone();
    fragment[6] |= 0x20;
    for packet in [
        &elsewhere,
        &from_ourselves,
        &fragment,
        &syn[..30].to_vec(),
        &vec![],
    ] {
        assert!(answers(&mut pair, packet).is_empty());
    }
    let stats = pair.b.stats();
    assert_eq!(
        (
            stats.misdirected,
            stats.fragments,
            stats.malformed,
            stats.connections
        ),
        (2, 1, 2, 0)
    );
}

#[test]
fn a_node_without_addresses_is_silent() {
    let mut pair = Pair::new(&TcpConfig::default(), false);
    pair.b.set_addresses(&[]);
    pair.dial();
    pair.pass(seconds(5));
    assert_eq!((pair.a_events.len(), pair.b.stats().connections), (0, 0));
    assert!(pair.b.stats().misdirected > 0);
}

/// One bent packet: where in the recorded traffic it lies, which bytes change, and how long it is.
#[derive(Debug, Clone)]
struct Bend {
    at: usize,
    changes: Vec<(usize, u8)>,
    length: usize,
}

fn bend() -> impl Strategy<Value = Bend> {
    (
        0_usize..64,
        proptest::collection::vec((0_usize..80, any::<u8>()), 0..4),
        0_usize..1400,
    )
        .prop_map(|(at, changes, length)| Bend {
            at,
            changes,
            length,
        })
}

proptest! {
    #[test]
    fn arbitrary_bytes_do_no_harm(packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..40)) {
        let mut pair = Pair::new(&TcpConfig::default(), false);
        for packet in &packets {
            pair.b.handle_packet(pair.now, packet);
            pair.poll_b();
        }
        prop_assert_eq!(pair.b.stats().packets_in, u64::try_from(packets.len()).unwrap());
    }

    /// Real traffic with its bytes bent, into both ends of a living connection.
    #[test]
    fn bent_traffic_of_a_living_connection_does_no_harm(bends in proptest::collection::vec(bend(), 1..60), v6: bool) {
        let mut pair = Pair::new(&TcpConfig::default(), v6);
        let (conn, peer) = pair.open();
        let mut seen: Vec<(bool, Vec<u8>)> = Vec::new();
        for bend in bends {
            let at_b = bend.at % 2 == 0;
            match pair.a.send(conn, b"some bytes to talk about") {
                Ok(_) | Err(_) => {}
            }
            match pair.b.send(peer, b"and some in answer") {
                Ok(_) | Err(_) => {}
            }
            pair.poll_a();
            pair.poll_b();
            seen.extend(pair.to_b.iter().map(|packet| (true, packet.clone())));
            seen.extend(pair.to_a.iter().map(|packet| (false, packet.clone())));
            let chosen: Vec<&Vec<u8>> = seen.iter().filter(|(to_b, _)| *to_b == at_b).map(|(_, packet)| packet).collect();
            if let Some(packet) = chosen.get(bend.at % chosen.len().max(1)) {
                let mut packet = (*packet).clone();
                for &(at, byte) in &bend.changes {
                    if let Some(place) = packet.get_mut(at) {
                        *place = byte;
                    }
                }
                packet.truncate(bend.length.max(20));
                if at_b { pair.b.handle_packet(pair.now, &packet) } else { pair.a.handle_packet(pair.now, &packet) }
            }
            pair.exchange();
            drop((read_all(&mut pair.a, conn), read_all(&mut pair.b, peer)));
            pair.now += Duration::from_millis(u64::try_from(bend.length).unwrap());
            prop_assert!(pair.b.stats().connections < 70);
        }
    }

    /// Lengths, ports and addresses are what smoltcp's own reader finds, wherever both accept a packet.
    #[test]
    fn headers_are_read_as_smoltcp_reads_them(bend in bend(), v6: bool) {
        let mut pair = Pair::new(&TcpConfig::default(), v6);
        pair.dial();
        pair.poll_a();
        let mut packet = pair.to_b.pop_front().unwrap();
        for (at, byte) in bend.changes {
            if let Some(place) = packet.get_mut(at) {
                *place = byte;
            }
        }
        if let Ok(inbound) = Inbound::parse(&packet)
            && let Some(segment) = inbound.segment
        {
            use smoltcp::wire::{Ipv6Packet, TcpPacket};
            let (source, destination, payload): (IpAddr, IpAddr, Vec<u8>) = if packet[0] >> 4 == 4 {
                let ip = Ipv4Packet::new_checked(&packet[..]).unwrap();
                (ip.src_addr().into(), ip.dst_addr().into(), ip.payload().to_vec())
            } else {
                let ip = Ipv6Packet::new_checked(&packet[..]).unwrap();
                (ip.src_addr().into(), ip.dst_addr().into(), ip.payload().to_vec())
            };
            let tcp = TcpPacket::new_checked(&payload[..]).unwrap();
            prop_assert_eq!(segment.flow.remote(), SocketAddr::new(source, tcp.src_port()));
            prop_assert_eq!(segment.flow.local(), SocketAddr::new(destination, tcp.dst_port()));
            prop_assert_eq!(segment.opens(), tcp.syn() && !tcp.ack() && !tcp.rst() && !tcp.fin());
            prop_assert_eq!((segment.resets(), segment.finishes()), (tcp.rst(), tcp.fin()));
        }
    }
}

/// A peer of which only three numbers exist: it sends what a stack never would.
struct Scripted {
    flow: Flow,
    sent: u32,
    received: u32,
}

impl Scripted {
    /// Shakes hands with `b`; `window_scale` is what it offers.
    fn open(pair: &mut Pair, window_scale: Option<u8>) -> (Self, ConnId, Vec<u8>) {
        let flow = Flow::new(address(false, 2), PORT, address(false, 9), 4_000);
        let mut peer = Self {
            flow,
            sent: u32::MAX - 5_000,
            received: 0,
        };
        let syn = peer.segment(TcpControl::Syn, 0, window_scale, &[]);
        let answer = answers(pair, &syn).remove(0);
        let tcp = TcpPacket::new_checked(&answer[20..]).unwrap();
        peer.received = tcp.seq_number().0.cast_unsigned().wrapping_add(1);
        peer.sent = peer.sent.wrapping_add(1);
        let ack = peer.segment(TcpControl::None, 0, None, &[]);
        assert!(answers(pair, &ack).is_empty());
        let conn = pair.b.accept(PORT).unwrap().conn;
        (peer, conn, answer)
    }

    /// A segment that begins so far behind the next byte that is due.
    fn segment(
        &self,
        control: TcpControl,
        ahead: u32,
        window_scale: Option<u8>,
        payload: &[u8],
    ) -> Vec<u8> {
        let opens = control == TcpControl::Syn;
        let segment = TcpRepr {
            src_port: self.flow.remote().port(),
            dst_port: self.flow.local().port(),
            control,
            seq_number: TcpSeqNumber(self.sent.wrapping_add(ahead).cast_signed()),
            ack_number: (!opens).then_some(TcpSeqNumber(self.received.cast_signed())),
            window_len: 60_000,
            window_scale,
            max_seg_size: opens.then_some(1_240),
            sack_permitted: opens,
            sack_ranges: [None; 3],
            timestamp: None,
            payload,
        };
        compose(self.flow.remote(), self.flow.local(), &segment)
    }

    /// Sends in order, a thousand bytes a segment, without waiting for acks.
    fn stream(&mut self, pair: &mut Pair, bytes: usize) {
        for _ in 0..bytes / 1_000 {
            let packet = self.segment(TcpControl::None, 0, None, &[7; 1_000]);
            pair.b.handle_packet(pair.now, &packet);
            self.sent = self.sent.wrapping_add(1_000);
        }
        pair.poll_b();
        pair.to_a.clear();
    }
}

#[test]
fn data_beyond_the_ring_at_every_distance_is_refused_and_what_is_due_still_arrives() {
    // At the edge of the ring in small steps, and far beyond in large ones.
    let distances = (14_000..18_000)
        .step_by(250)
        .chain((0..700_000).step_by(7_300));
    for ahead in distances {
        let mut pair = Pair::new(&TcpConfig::default(), false);
        let (mut peer, conn, _) = Scripted::open(&mut pair, Some(7));
        let beyond = peer.segment(TcpControl::None, ahead, None, &[9; 1_240]);
        drop(answers(&mut pair, &beyond));
        // Nobody reads meanwhile, so the ring is full long before this ends.
        peer.stream(&mut pair, 600_000);
        let (got, result) = read_all(&mut pair.b, conn);
        assert_eq!(result, Err(TcpError::WouldBlock));
        // What overlapped the early segment is sent once only, so up to one segment is missing.
        assert!(
            (15_000..=16 << 10).contains(&got.len()),
            "{ahead} ahead: {}",
            got.len()
        );
    }
}

#[test]
fn a_peer_without_window_scaling_is_never_promised_more_than_it_can_be_told() {
    let mut pair = Pair::new(&TcpConfig::default(), false);
    let (mut peer, conn, syn_ack) = Scripted::open(&mut pair, None);
    let tcp = TcpPacket::new_checked(&syn_ack[20..]).unwrap();
    assert!(!tcp.options().contains(&3), "{:?}", tcp.options());
    for _ in 0..100 {
        peer.stream(&mut pair, 15_000);
        assert_eq!(read_all(&mut pair.b, conn).0.len(), 15_000);
        pair.poll_b();
        pair.to_a.clear();
        pair.now += Duration::from_millis(1);
    }
    let stats = pair.b.stats();
    assert_eq!((stats.rings_grown, stats.buffer_bytes), (1, (64 + 4) << 10));
}

#[test]
fn the_scale_of_the_syn_stays_while_rings_grow_fourfold_and_fourfold_again() {
    let mut pair = Pair::new(&TcpConfig::default(), false);
    let (mut peer, conn, syn_ack) = Scripted::open(&mut pair, Some(7));
    let tcp = TcpPacket::new_checked(&syn_ack[20..]).unwrap();
    let options = tcp.options();
    let at = options.windows(2).position(|pair| pair == [3, 3]).unwrap();
    // 256 KiB is one bit more than the window field has with two.
    assert_eq!(options[at + 2], 3);
    let mut windows = Vec::new();
    for _ in 0..100 {
        for _ in 0..15 {
            let packet = peer.segment(TcpControl::None, 0, None, &[7; 1_000]);
            pair.b.handle_packet(pair.now, &packet);
            peer.sent = peer.sent.wrapping_add(1_000);
        }
        drop(read_all(&mut pair.b, conn));
        pair.poll_b();
        for ack in std::mem::take(&mut pair.to_a) {
            checked(&ack);
            let tcp = TcpPacket::new_checked(&ack[20..]).unwrap();
            windows.push(usize::from(tcp.window_len()) << 3);
        }
        pair.now += Duration::from_millis(1);
    }
    windows.sort_unstable();
    windows.dedup();
    assert!(
        windows.contains(&(16 << 10)) && windows.contains(&(64 << 10)),
        "{windows:?}"
    );
    assert_eq!(windows.last(), Some(&(256 << 10)));
}

#[test]
fn a_flood_of_packets_to_closed_ports_gets_so_many_answers_a_second() {
    let mut pair = Pair::new(&TcpConfig::default(), false);
    let peer = Scripted {
        flow: Flow::new(address(false, 2), 81, address(false, 9), 4_000),
        sent: 1,
        received: 0,
    };
    let syn = peer.segment(TcpControl::Syn, 0, None, &[]);
    let mut resets = 0;
    for n in 0..10_000 {
        resets += answers(&mut pair, &syn).len();
        pair.now += Duration::from_micros(if n == 5_000 { 1_000_000 } else { 1 });
    }
    assert_eq!(resets, 2_000);
    let stats = pair.b.stats();
    assert_eq!(
        (stats.refused, stats.stray_answers_withheld),
        (10_000, 8_000)
    );
}

#[test]
fn a_peer_that_never_finishes_a_handshake_leaves_half_of_the_backlog_to_others() {
    let mut pair = Pair::new(&TcpConfig::default(), false);
    for port in 1..1_000 {
        let flow = Flow::new(address(false, 2), PORT, address(false, 9), port);
        let peer = Scripted {
            flow,
            sent: 1,
            received: 0,
        };
        let syn = peer.segment(TcpControl::Syn, 0, None, &[]);
        drop(answers(&mut pair, &syn));
    }
    let stats = pair.b.stats();
    assert_eq!((stats.half_open, stats.syn_dropped), (8, 991));
    pair.open();
}
