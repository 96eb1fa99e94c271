//! Verdicts, as tables: packet and rules in, verdict out.

use proptest::prelude::*;

use super::*;
use crate::tailcfg::FilterRule;

const OWN_V4: &str = "100.64.0.1";
const OWN_V6: &str = "fd7a:115c:a1e0::1";
const PEER_V4: &str = "100.64.0.2";
const PEER_V6: &str = "fd7a:115c:a1e0::2";
const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;

pub(in crate::filter) fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(in crate::filter) fn ipv4(protocol: u8, src: &str, dst: &str, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let octets = |text: &str| text.parse::<Ipv4Addr>().unwrap().octets();
    let mut packet = vec![
        0x45, 0, length[0], length[1], 0, 0, 0, 0, 64, protocol, 0, 0,
    ];
    packet.extend(octets(src));
    packet.extend(octets(dst));
    packet.extend_from_slice(payload);
    packet
}

pub(in crate::filter) fn ipv6(next: u8, src: &str, dst: &str, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    let octets = |text: &str| text.parse::<std::net::Ipv6Addr>().unwrap().octets();
    let mut packet = vec![0x60, 0, 0, 0, length[0], length[1], next, 64];
    packet.extend(octets(src));
    packet.extend(octets(dst));
    packet.extend_from_slice(payload);
    packet
}

pub(in crate::filter) fn tcp(src_port: u16, dst_port: u16, flags: u8) -> Vec<u8> {
    let mut header = [src_port.to_be_bytes(), dst_port.to_be_bytes()].concat();
    header.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    header
}

pub(in crate::filter) fn udp(src_port: u16, dst_port: u16) -> Vec<u8> {
    [
        src_port.to_be_bytes(),
        dst_port.to_be_bytes(),
        [0, 8],
        [0, 0],
    ]
    .concat()
}

pub(in crate::filter) fn icmp(kind: u8, code: u8) -> Vec<u8> {
    vec![kind, code, 0, 0, 0, 1, 0, 1]
}

fn in_v4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    ipv4(protocol, PEER_V4, OWN_V4, payload)
}

fn rules(json: &str) -> Vec<FilterRule> {
    serde_json::from_str(json).unwrap()
}

fn compile(json: &str) -> Filter {
    Filter::compile(&rules(json), &[addr(OWN_V4), addr(OWN_V6)], &[]).0
}

fn no_caps(_: &str) -> bool {
    false
}

const NO_RULE: Verdict = Verdict::Drop(DropReason::NoRule);

#[test]
fn a_new_filter_drops_every_packet() {
    let mut filter = Filter::drop_all();
    for packet in [
        in_v4(6, &tcp(1, 80, SYN)),
        in_v4(6, &tcp(1, 80, 0x10)),
        in_v4(99, b"p"),
    ] {
        assert_eq!(
            filter.check_in(&packet, false, &|_| true),
            Verdict::Drop(DropReason::NotOurs)
        );
    }
}

#[test]
fn without_rules_only_answers_get_in() {
    let mut filter = compile("[]");
    for (name, packet, accepted) in [
        ("keep-alive", vec![], true),
        ("SYN", in_v4(6, &tcp(1, 80, SYN)), false),
        ("SYN with ECN", in_v4(6, &tcp(1, 80, 0xc2)), false),
        ("SYN and FIN", in_v4(6, &tcp(1, 80, 0x03)), false),
        ("SYN-ACK", in_v4(6, &tcp(80, 1, SYN_ACK)), true),
        ("ACK", in_v4(6, &tcp(80, 1, 0x10)), true),
        ("RST", in_v4(6, &tcp(80, 1, 0x04)), true),
        ("TCP without flags", in_v4(6, &tcp(80, 1, 0)), true),
        ("UDP", in_v4(17, &udp(53, 1)), false),
        ("SCTP", in_v4(132, &[0; 12]), false),
        ("echo request", in_v4(1, &icmp(8, 0)), false),
        ("echo reply", in_v4(1, &icmp(0, 0)), true),
        ("echo reply with a code", in_v4(1, &icmp(0, 1)), false),
        ("unreachable", in_v4(1, &icmp(3, 4)), true),
        ("time exceeded", in_v4(1, &icmp(11, 0)), true),
        ("parameter problem", in_v4(1, &icmp(12, 0)), true),
        ("redirect", in_v4(1, &icmp(5, 0)), false),
        (
            "v6 echo request",
            ipv6(58, PEER_V6, OWN_V6, &icmp(128, 0)),
            false,
        ),
        (
            "v6 echo reply",
            ipv6(58, PEER_V6, OWN_V6, &icmp(129, 0)),
            true,
        ),
        ("v6 too big", ipv6(58, PEER_V6, OWN_V6, &icmp(2, 0)), true),
        (
            "v6 neighbour solicitation",
            ipv6(58, PEER_V6, OWN_V6, &icmp(135, 0)),
            false,
        ),
        ("TSMP", in_v4(99, b"p"), true),
        ("GRE", in_v4(47, &[0; 8]), false),
    ] {
        let verdict = filter.check_in(&packet, false, &no_caps);
        assert_eq!(verdict == Verdict::Accept, accepted, "{name}: {verdict:?}");
    }
}

#[test]
fn destinations_are_judged_before_rules() {
    let mut filter =
        compile(r#"[{"SrcIPs":["*"],"DstPorts":[{"IP":"*","Ports":{"First":0,"Last":65535}}]}]"#);
    let syn = tcp(1, 80, SYN);
    let mut later_fragment = ipv4(6, PEER_V4, "100.64.0.9", &syn);
    later_fragment[7] = 10;
    let mut own_fragment = in_v4(6, &syn);
    own_fragment[7] = 10;
    for (packet, expected) in [
        (in_v4(6, &syn), Verdict::Accept),
        (ipv6(6, PEER_V6, OWN_V6, &syn), Verdict::Accept),
        (own_fragment, Verdict::Accept),
        (later_fragment, Verdict::Drop(DropReason::NotOurs)),
        (
            ipv4(6, PEER_V4, "100.64.0.9", &syn),
            Verdict::Drop(DropReason::NotOurs),
        ),
        (
            ipv4(6, PEER_V4, "169.254.169.254", &syn),
            Verdict::Drop(DropReason::NotOurs),
        ),
        (
            ipv4(6, PEER_V4, "169.254.1.1", &syn),
            Verdict::Drop(DropReason::LinkLocal),
        ),
        (
            ipv6(6, PEER_V6, "fe80::1", &syn),
            Verdict::Drop(DropReason::LinkLocal),
        ),
        (
            ipv4(17, PEER_V4, "224.0.0.251", &udp(1, 2)),
            Verdict::Drop(DropReason::Multicast),
        ),
        (
            ipv6(17, PEER_V6, "ff02::fb", &udp(1, 2)),
            Verdict::Drop(DropReason::Multicast),
        ),
        (
            ipv6(6, PEER_V6, "::ffff:100.64.0.1", &syn),
            Verdict::Drop(DropReason::NotOurs),
        ),
        (
            vec![0x45; 19],
            Verdict::Drop(DropReason::Malformed(PacketError::Short)),
        ),
    ] {
        assert_eq!(
            filter.check_in(&packet, false, &no_caps),
            expected,
            "{packet:02x?}"
        );
    }
}

#[test]
fn a_rule_opens_its_sources_ports_and_protocols_and_no_more() {
    let port = |ports: &str, sources: &str, protocols: &str| {
        format!(
            r#"[{{"SrcIPs":[{sources}],"DstPorts":[{{"IP":"100.64.0.1","Ports":{ports}}}],"IPProto":{protocols}}}]"#
        )
    };
    let eighty = r#"{"First":80,"Last":81}"#;
    let all = r#"{"First":0,"Last":65535}"#;
    let syn = |dst_port| in_v4(6, &tcp(9, dst_port, SYN));
    let any = r#""*""#;
    for (rules, packet, accepted) in [
        (port(eighty, any, "null"), syn(80), true),
        (port(eighty, any, "null"), syn(81), true),
        (port(eighty, any, "null"), syn(79), false),
        (port(eighty, any, "null"), syn(82), false),
        (port(eighty, r#""100.64.0.2""#, "[]"), syn(80), true),
        (port(eighty, r#""100.64.0.3""#, "[]"), syn(80), false),
        (port(eighty, r#""100.64.0.0/30""#, "[]"), syn(80), true),
        (
            port(eighty, r#""100.64.0.1-100.64.0.2""#, "[]"),
            syn(80),
            true,
        ),
        (
            port(eighty, r#""100.64.0.3-100.64.0.9""#, "[]"),
            syn(80),
            false,
        ),
        (port(eighty, r#""::/0""#, "[]"), syn(80), false),
        (port(eighty, r#""bad","100.64.0.2""#, "[]"), syn(80), true),
        (port(eighty, r#""bad""#, "[]"), syn(80), false),
        (port(eighty, "", "[]"), syn(80), false),
        (port(eighty, any, "[17]"), syn(80), false),
        (port(eighty, any, "[17]"), in_v4(17, &udp(9, 80)), true),
        (port(eighty, any, "[6]"), in_v4(17, &udp(9, 80)), false),
        (port(eighty, any, "null"), in_v4(17, &udp(9, 80)), true),
        (port(eighty, any, "[-1,256,9000000000]"), syn(80), false),
        (port(eighty, any, "[256,6]"), syn(80), true),
        (
            port(eighty, any, "[132]"),
            in_v4(132, &[0, 9, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0]),
            true,
        ),
        (
            port(eighty, any, "null"),
            in_v4(132, &[0, 9, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0]),
            false,
        ),
        (port(eighty, any, "[6]"), in_v4(1, &icmp(8, 0)), true),
        (
            port(eighty, r#""100.64.0.3""#, "[1]"),
            in_v4(1, &icmp(8, 0)),
            false,
        ),
        (port(all, any, "[47]"), in_v4(47, &[0; 8]), true),
        (port(eighty, any, "[47]"), in_v4(47, &[0; 8]), false),
        (port(all, any, "null"), in_v4(47, &[0; 8]), false),
        (port(all, any, "[255]"), in_v4(255, &[0; 8]), true),
        (
            port(r#"{"First":81,"Last":80}"#, any, "null"),
            syn(80),
            false,
        ),
    ] {
        let verdict = compile(&rules).check_in(&packet, false, &no_caps);
        assert_eq!(
            verdict == Verdict::Accept,
            accepted,
            "{rules} {packet:02x?}"
        );
        if !accepted {
            assert_eq!(verdict, NO_RULE);
        }
    }
}

#[test]
fn a_cap_source_admits_only_peers_that_have_the_attribute() {
    let mut filter = compile(
        r#"[{"SrcIPs":["cap:example.com/host"],"DstPorts":[{"IP":"*","Ports":{"First":80,"Last":80}}]}]"#,
    );
    let syn = in_v4(6, &tcp(9, 80, SYN));
    assert_eq!(
        filter.check_in(&syn, false, &|cap| cap == "example.com/host"),
        Verdict::Accept
    );
    assert_eq!(
        filter.check_in(&syn, false, &|cap| cap == "example.com/guest"),
        NO_RULE
    );
    assert_eq!(
        filter.check_in(&in_v4(6, &tcp(9, 81, SYN)), false, &|_| true),
        NO_RULE
    );
}

#[test]
fn a_jailed_peer_may_only_answer() {
    let mut filter =
        compile(r#"[{"SrcIPs":["*"],"DstPorts":[{"IP":"*","Ports":{"First":0,"Last":65535}}]}]"#);
    let jailed = Verdict::Drop(DropReason::Jailed);
    assert_eq!(
        filter.check_in(&in_v4(6, &tcp(9, 80, SYN)), true, &no_caps),
        jailed
    );
    assert_eq!(
        filter.check_in(&in_v4(1, &icmp(8, 0)), true, &no_caps),
        jailed
    );
    assert_eq!(
        filter.check_in(&in_v4(6, &tcp(80, 9, SYN_ACK)), true, &no_caps),
        Verdict::Accept
    );
    filter.note_out(&ipv4(17, OWN_V4, PEER_V4, &udp(5, 53)));
    assert_eq!(
        filter.check_in(&in_v4(17, &udp(53, 5)), true, &no_caps),
        Verdict::Accept
    );
}

#[test]
fn a_reply_to_our_datagram_passes_even_after_the_rules_were_swapped() {
    let mut filter = compile("[]");
    let reply = in_v4(17, &udp(53, 5000));
    assert_eq!(filter.check_in(&reply, false, &no_caps), NO_RULE);
    filter.note_out(&ipv4(17, OWN_V4, PEER_V4, &udp(5000, 53)));
    assert_eq!(filter.check_in(&reply, false, &no_caps), Verdict::Accept);
    let (swapped, _) = RuleSet::compile([], &[addr(OWN_V4)], &[]);
    filter.replace_rules(Arc::new(swapped));
    assert_eq!(filter.check_in(&reply, false, &no_caps), Verdict::Accept);
    assert_eq!(
        filter.check_in(&in_v4(17, &udp(53, 5001)), false, &no_caps),
        NO_RULE
    );
    assert_eq!(
        filter.check_in(
            &ipv4(17, "100.64.0.3", OWN_V4, &udp(53, 5000)),
            false,
            &no_caps
        ),
        NO_RULE
    );
    let sctp = |src: u8, dst: u8| [0, src, 0, dst, 0, 0, 0, 0, 0, 0, 0, 0];
    filter.note_out(&ipv6(132, OWN_V6, PEER_V6, &sctp(5, 6)));
    filter.replace_rules(Arc::new(RuleSet::compile([], &[addr(OWN_V6)], &[]).0));
    assert_eq!(
        filter.check_in(&ipv6(132, PEER_V6, OWN_V6, &sctp(6, 5)), false, &no_caps),
        Verdict::Accept
    );
}

#[test]
fn a_set_with_old_prefix_lengths_opens_nothing() {
    let open = r#"{"SrcIPs":["*"],"DstPorts":[{"IP":"*","Ports":{"First":0,"Last":65535}}],"CapGrant":null}"#;
    let grant = r#"{"SrcIPs":["*"],"CapGrant":[{"Dsts":["0.0.0.0/0"],"CapMap":{"x":null}}]}"#;
    for old in [
        r#"{"SrcIPs":["10.0.0.0"],"SrcBits":[8],"DstPorts":[]}"#,
        r#"{"SrcIPs":["*"],"DstPorts":[{"IP":"10.0.0.0","Bits":8,"Ports":{"First":1,"Last":1}}]}"#,
    ] {
        let mut filter = compile(&format!("[{open},{grant},{old}]"));
        assert_eq!(filter.rules().unusable(), Some(Unusable::LegacyBits));
        assert_eq!(
            filter.check_in(&in_v4(6, &tcp(9, 80, SYN)), false, &|_| true),
            NO_RULE
        );
        assert!(filter.caps(addr(PEER_V4), addr(OWN_V4)).is_empty());
    }
}

#[test]
fn a_set_that_admits_an_unsigned_peer_opens_nothing() {
    let ports = r#""DstPorts":[{"IP":"*","Ports":{"First":80,"Last":80}}]"#;
    let unsigned = ["100.64.0.7/32".parse().unwrap()];
    for (rule, unusable) in [
        (format!(r#"{{"SrcIPs":["100.64.0.7"],{ports}}}"#), true),
        (
            format!(r#"{{"SrcIPs":["100.64.0.2","100.64.0.0/29"],{ports}}}"#),
            true,
        ),
        (format!(r#"{{"SrcIPs":["*"],{ports}}}"#), true),
        (
            format!(r#"{{"SrcIPs":["100.64.0.8-100.64.0.9","100.64.0.2"],{ports}}}"#),
            false,
        ),
        (
            r#"{"SrcIPs":["*"],"CapGrant":[{"Dsts":["100.64.0.1/32"],"CapMap":{"x":null}}]}"#
                .to_owned(),
            false,
        ),
    ] {
        let rules = rules(&format!(r#"[{{"SrcIPs":["100.64.0.2"],{ports}}},{rule}]"#));
        let (mut filter, _) = Filter::compile(&rules, &[addr(OWN_V4)], &unsigned);
        let expected = if unusable { NO_RULE } else { Verdict::Accept };
        assert_eq!(
            filter.rules().unusable(),
            unusable.then_some(Unusable::UnsignedPeer),
            "{rule}"
        );
        assert_eq!(
            filter.check_in(&in_v4(6, &tcp(9, 80, SYN)), false, &no_caps),
            expected,
            "{rule}"
        );
    }
}

#[test]
fn entries_that_cannot_be_read_are_reported_and_their_neighbours_stand() {
    let json = r#"[{"SrcIPs":["10.0.0.1/8","*"],"DstPorts":[{"IP":"cap:x","Ports":{"First":1,"Last":2}},{"IP":"*","Ports":{"First":80,"Last":80}},{"IP":"*","Ports":{"First":2,"Last":1}}]},
        {"SrcIPs":["*"],"CapGrant":[{"Dsts":["nowhere","100.64.0.1/32"],"Caps":["x"]}]},
        {"SrcIPs":["*"],"DstPorts":[{"IP":"*","Ports":{"First":22,"Last":22}}],"CapGrant":[{"Dsts":["0.0.0.0/0"],"Caps":["y"]}]}]"#;
    let (mut filter, skipped) = Filter::compile(&rules(json), &[addr(OWN_V4)], &[]);
    let seen: Vec<_> = skipped
        .iter()
        .map(|entry| (entry.rule, entry.entry.as_str(), entry.reason))
        .collect();
    assert_eq!(
        seen,
        [
            (0, "10.0.0.1/8", SkipReason::Source),
            (0, "cap:x", SkipReason::Destination),
            (0, "*", SkipReason::Ports),
            (1, "nowhere", SkipReason::GrantDestination),
            (2, "", SkipReason::PortsAndGrants),
        ]
    );
    assert_eq!(
        filter.check_in(&in_v4(6, &tcp(9, 80, SYN)), false, &no_caps),
        Verdict::Accept
    );
    assert_eq!(
        filter.check_in(&in_v4(6, &tcp(9, 22, SYN)), false, &no_caps),
        NO_RULE
    );
    let caps = filter.caps(addr(PEER_V4), addr(OWN_V4));
    assert_eq!(caps.keys().collect::<Vec<_>>(), ["x"]);
}

#[test]
fn reports_are_bounded_in_number_and_length() {
    let long = "é".repeat(500);
    let rule = FilterRule {
        src_ips: vec![long; 1_000],
        ..FilterRule::default()
    };
    let (_, skipped) = Filter::compile([&rule], &[], &[]);
    assert_eq!(skipped.len(), SKIPPED_REPORTED_MAX);
    assert_eq!(skipped[0].entry.chars().count(), 80);
}

proptest! {
    #[test]
    fn any_bytes_get_a_verdict(packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..90), 1..8)) {
        let mut filter = compile(r#"[{"SrcIPs":["*"],"DstPorts":[{"IP":"*","Ports":{"First":80,"Last":80}}]}]"#);
        for mut packet in packets {
            filter.note_out(&packet);
            filter.check_in(&packet, false, &|_| true);
            if let Some(first) = packet.first_mut() {
                *first = 0x45;
            }
            filter.note_out(&packet);
            let verdict = filter.check_in(&packet, false, &no_caps);
            let ours = PacketView::parse(&packet).is_ok_and(|view| view.dst == addr(OWN_V4));
            prop_assert!(packet.is_empty() || ours || verdict != Verdict::Accept);
        }
    }

    #[test]
    fn without_rules_no_syn_gets_in_whatever_surrounds_it(src: [u8; 4], port: u16, options in 0_u8..11, padding in 0_usize..20) {
        let mut filter = compile("[]");
        let src = Ipv4Addr::from(src).to_string();
        let payload = [vec![1; usize::from(options) * 4], tcp(9, port, SYN)].concat();
        let mut packet = ipv4(6, &src, OWN_V4, &payload);
        packet[0] = 0x45 + options;
        packet.extend(vec![0; padding]);
        prop_assert_eq!(filter.check_in(&packet, false, &no_caps), NO_RULE);
    }
}
