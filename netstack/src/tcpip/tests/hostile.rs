//! Bent packets: nothing panics, nothing grows, and what is not ours is not answered.

use super::*;
use proptest::prelude::*;
use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr, IpProtocol, Ipv4Packet, Ipv4Repr, UdpRepr};

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
        if let Ok(inbound) = super::super::inbound::Inbound::parse(&packet)
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
