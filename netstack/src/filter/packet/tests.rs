//! The bytes of packets, whole and bent. The foreign opinion on the headers is smoltcp's.

use proptest::prelude::*;
use smoltcp::wire::{Ipv4Packet, Ipv6Packet, TcpPacket, UdpPacket};

use super::*;
use crate::filter::tests::{addr, icmp, ipv4, ipv6, tcp, udp};

#[test]
fn a_packet_built_by_smoltcp_is_seen_as_it_was_meant() {
    let mut bytes = vec![0_u8; 20 + 24 + 5];
    let mut ip = Ipv4Packet::new_unchecked(&mut bytes);
    ip.set_version(4);
    ip.set_header_len(20);
    ip.set_total_len(49);
    ip.set_next_header(smoltcp::wire::IpProtocol::Tcp);
    ip.set_src_addr(Ipv4Addr::new(100, 64, 0, 2));
    ip.set_dst_addr(Ipv4Addr::new(100, 64, 0, 1));
    let mut segment = TcpPacket::new_unchecked(ip.payload_mut());
    segment.set_src_port(40_000);
    segment.set_dst_port(80);
    segment.set_header_len(24);
    segment.set_syn(true);
    bytes.extend_from_slice(&[0; 15]);

    let view = PacketView::parse(&bytes).unwrap();
    assert_eq!(
        (view.src, view.dst),
        (addr("100.64.0.2"), addr("100.64.0.1"))
    );
    assert_eq!(view.ip_bytes, 49, "the 15 bytes of padding do not count");
    assert_eq!(view.payload.len(), 29);
    assert_eq!(
        view.transport,
        Transport::Tcp {
            src_port: 40_000,
            dst_port: 80,
            flags: 0x02
        }
    );
    assert!(view.transport.is_tcp_open());
    assert!(!view.transport.is_tcp_end());
}

#[test]
fn an_ipv6_datagram_built_by_smoltcp_is_seen_as_it_was_meant() {
    let mut bytes = vec![0_u8; 40 + 8 + 3];
    let mut ip = Ipv6Packet::new_unchecked(&mut bytes);
    ip.set_version(6);
    ip.set_payload_len(11);
    ip.set_next_header(smoltcp::wire::IpProtocol::Udp);
    ip.set_src_addr("fd7a:115c:a1e0::2".parse().unwrap());
    ip.set_dst_addr("fd7a:115c:a1e0::1".parse().unwrap());
    let mut datagram = UdpPacket::new_unchecked(ip.payload_mut());
    datagram.set_src_port(53);
    datagram.set_dst_port(5353);
    datagram.set_len(11);

    let view = PacketView::parse(&bytes).unwrap();
    assert_eq!(
        (view.src, view.dst),
        (addr("fd7a:115c:a1e0::2"), addr("fd7a:115c:a1e0::1"))
    );
    assert_eq!((view.ip_bytes, view.protocol), (51, protocol::UDP));
    assert_eq!(
        view.transport,
        Transport::Udp {
            src_port: 53,
            dst_port: 5353
        }
    );
}

#[test]
fn options_and_extension_headers_are_stepped_over() {
    let mut options = ipv4(
        protocol::UDP,
        "10.0.0.1",
        "10.0.0.2",
        &[&[0; 8][..], &udp(1, 2)].concat(),
    );
    options[0] = 0x47;
    let view = PacketView::parse(&options).unwrap();
    assert_eq!(
        view.transport,
        Transport::Udp {
            src_port: 1,
            dst_port: 2
        }
    );

    let hop_by_hop = [60, 0, 1, 4, 0, 0, 0, 0];
    let destination = [protocol::UDP, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let payload = [&hop_by_hop[..], &destination, &udp(1, 2)].concat();
    let bytes = ipv6(0, "::1", "::2", &payload);
    let view = PacketView::parse(&bytes).unwrap();
    assert_eq!(
        view.transport,
        Transport::Udp {
            src_port: 1,
            dst_port: 2
        }
    );
    assert_eq!((view.protocol, view.payload.len()), (protocol::UDP, 8));
}

#[test]
fn bent_headers_are_refused_each_with_its_reason() {
    let good = ipv4(protocol::TCP, "10.0.0.1", "10.0.0.2", &tcp(1, 2, SYN));
    let bend = |at: usize, value: u8| {
        let mut bent = good.clone();
        bent[at] = value;
        bent
    };
    let chain = [0, 0, 1, 4, 0, 0, 0, 0].repeat(EXTENSION_HEADERS_MAX + 1);
    for (name, bytes, expected) in [
        ("empty", vec![], PacketError::Short),
        ("19 bytes", good[..19].to_vec(), PacketError::Short),
        ("version 5", bend(0, 0x55), PacketError::Version(5)),
        ("header length 16", bend(0, 0x44), PacketError::Length),
        (
            "header longer than packet",
            bend(0, 0x4f),
            PacketError::Length,
        ),
        (
            "total length beyond the bytes",
            bend(3, 41),
            PacketError::Length,
        ),
        (
            "total length within the header",
            bend(3, 19),
            PacketError::Length,
        ),
        (
            "TCP header cut",
            ipv4(6, "10.0.0.1", "10.0.0.2", &tcp(1, 2, SYN)[..19]),
            PacketError::Short,
        ),
        (
            "UDP header cut",
            ipv4(17, "10.0.0.1", "10.0.0.2", &udp(1, 2)[..7]),
            PacketError::Short,
        ),
        (
            "SCTP header cut",
            ipv4(132, "10.0.0.1", "10.0.0.2", &[0; 11]),
            PacketError::Short,
        ),
        (
            "ICMP header cut",
            ipv4(1, "10.0.0.1", "10.0.0.2", &[8, 0, 0]),
            PacketError::Short,
        ),
        (
            "overlapping fragment",
            bend(7, 1),
            PacketError::FragmentOverlap,
        ),
        (
            "IPv6 header cut",
            ipv6(59, "::1", "::2", &[])[..39].to_vec(),
            PacketError::Short,
        ),
        (
            "extension header cut",
            ipv6(0, "::1", "::2", &[6, 0, 0, 0]),
            PacketError::Short,
        ),
        (
            "extension headers without end",
            ipv6(0, "::1", "::2", &chain),
            PacketError::Extension,
        ),
        (
            "routing header not at its end",
            ipv6(43, "::1", "::2", &[59, 0, 0, 1, 0, 0, 0, 0]),
            PacketError::Extension,
        ),
        ("jumbogram", ipv6(0, "::1", "::2", &[]), PacketError::Short),
    ] {
        assert_eq!(PacketView::parse(&bytes), Err(expected), "{name}");
    }
}

#[test]
fn only_the_first_fragment_shows_its_ports() {
    let mut first = ipv4(protocol::TCP, "10.0.0.1", "10.0.0.2", &tcp(1, 2, SYN));
    first[6] = 0x20;
    assert!(PacketView::parse(&first).unwrap().transport.is_tcp_open());
    let mut later = ipv4(protocol::TCP, "10.0.0.1", "10.0.0.2", &tcp(1, 2, SYN));
    later[7] = 10;
    assert_eq!(
        PacketView::parse(&later).unwrap().transport,
        Transport::LaterFragment
    );

    let fragment = |offset_and_more: [u8; 2]| {
        let header = [
            protocol::UDP,
            0,
            offset_and_more[0],
            offset_and_more[1],
            0,
            0,
            0,
            9,
        ];
        ipv6(44, "::1", "::2", &[&header[..], &udp(1, 2)].concat())
    };
    let of = |bytes: &[u8]| PacketView::parse(bytes).map(|view| view.transport);
    assert_eq!(
        of(&fragment([0, 1])),
        Ok(Transport::Udp {
            src_port: 1,
            dst_port: 2
        })
    );
    assert_eq!(of(&fragment([0, 0x50])), Ok(Transport::LaterFragment));
    assert_eq!(of(&fragment([0, 0x48])), Err(PacketError::FragmentOverlap));
}

#[test]
fn icmp_of_the_other_family_is_just_another_protocol() {
    let echo = icmp(8, 0);
    let kind = |bytes: &[u8]| PacketView::parse(bytes).unwrap().transport;
    assert_eq!(
        kind(&ipv4(1, "10.0.0.1", "10.0.0.2", &echo)),
        Transport::Icmp { kind: 8, code: 0 }
    );
    assert_eq!(kind(&ipv6(1, "::1", "::2", &echo)), Transport::Other);
    assert_eq!(
        kind(&ipv4(58, "10.0.0.1", "10.0.0.2", &echo)),
        Transport::Other
    );
    assert_eq!(
        kind(&ipv6(58, "::1", "::2", &echo)),
        Transport::Icmp { kind: 8, code: 0 }
    );
}

/// Any bytes behind a plausible first byte and length.
fn nearly_a_packet() -> impl Strategy<Value = Vec<u8>> {
    let first = prop_oneof![0x45_u8..=0x47, Just(0x60), any::<u8>()];
    let next = prop_oneof![
        Just(0_u8),
        Just(6),
        Just(17),
        Just(43),
        Just(44),
        Just(51),
        Just(60),
        any::<u8>()
    ];
    (first, next, proptest::collection::vec(any::<u8>(), 0..120)).prop_map(|(first, next, rest)| {
        let mut bytes = [vec![first], rest].concat();
        let length = u8::try_from(bytes.len()).unwrap();
        let fields = match first >> 4 {
            4 => [(2, 0), (3, length), (9, next)],
            _ => [(4, 0), (5, length.saturating_sub(40)), (6, next)],
        };
        for (at, value) in fields {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        bytes
    })
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_without_panic(bytes in nearly_a_packet()) {
        if let Ok(view) = PacketView::parse(&bytes) {
            prop_assert!(view.ip_bytes <= bytes.len());
            prop_assert!(view.payload.len() <= view.ip_bytes);
            prop_assert_eq!(PacketView::parse(&bytes[..view.ip_bytes]), Ok(view));
        }
    }

    #[test]
    fn ports_and_flags_agree_with_smoltcp(
        src_port: u16, dst_port: u16, flags in 0_u8..64, options in 0_usize..4, padding in 0_usize..16,
    ) {
        let mut payload = tcp(src_port, dst_port, flags);
        payload[12] = 0x50;
        let mut bytes = ipv4(6, "10.0.0.1", "10.0.0.2", &[vec![1; options * 4], payload].concat());
        bytes[0] = 0x45 + u8::try_from(options).unwrap();
        let before_padding = bytes.len();
        bytes.extend(vec![0; padding]);

        let ip = Ipv4Packet::new_checked(&bytes).unwrap();
        let segment = TcpPacket::new_checked(ip.payload()).unwrap();
        let view = PacketView::parse(&bytes).unwrap();
        prop_assert_eq!(view.ip_bytes, before_padding);
        let Transport::Tcp { src_port, dst_port, .. } = view.transport else {
            return Err(TestCaseError::fail("not seen as TCP"));
        };
        prop_assert_eq!((src_port, dst_port), (segment.src_port(), segment.dst_port()));
        prop_assert_eq!(view.transport.is_tcp_open(), segment.syn() && !segment.ack());
        prop_assert_eq!(view.transport.is_tcp_end(), segment.fin() || segment.rst());
    }
}
