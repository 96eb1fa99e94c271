//! disco against golden bytes (NaCl's box, made outside this crate) and against bent bytes.

use proptest::prelude::*;

use super::*;

/// Made with a stand-alone `SalsaBox`; private keys are 32 equal bytes, nonce 40 41 .. 57.
const PING_PLAIN: &str =
    "0100a0a1a2a3a4a5a6a7a8a9aaab7b0d47d93427f8311160781c7c733fd89f88970aef490d8aa0ee19a4cb8a1b14";
const PING_PACKET: &str = concat!(
    "5453f09f92ac7b4e909bbe7ffe44c465a220037d608ee35897d31ef972f07f74892cb0f73f13",
    "404142434445464748494a4b4c4d4e4f5051525354555657",
    "ff7b7796d541fe4d84bf274d86e488314ab6101442135f0c0e03dd96fe43e8d4f672e247a8603564c019be57a790d1e543c5902dd6a28b7033a3746e8ae4",
);
const PONG_PLAIN: &str = "0200a0a1a2a3a4a5a6a7a8a9aaab00000000000000000000ffffc0000205a2a9";
const PONG_PACKET: &str = concat!(
    "5453f09f92ac0faa684ed28867b97f4a6a2dee5df8ce974e76b7018e3f22a1c4cf2678570f20",
    "404142434445464748494a4b4c4d4e4f5051525354555657",
    "ec25bea47d9ac110807ce647cc4f185a49b6101442135f0c0e03dd96fe4393d9b1abd6605051240447fa02249a4decc4",
);
const CALL_ME_MAYBE_PLAIN: &str =
    "030000000000000000000000ffffc0000205a2a920010db8000000000000000000000007a2a9";

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect()
}

fn a() -> DiscoPrivate {
    DiscoPrivate::from_bytes([0x11; 32])
}

fn b() -> DiscoPrivate {
    DiscoPrivate::from_bytes([0x22; 32])
}

fn nonce() -> [u8; 24] {
    std::array::from_fn(|i| 0x40 + u8::try_from(i).unwrap())
}

fn txid() -> TxId {
    std::array::from_fn(|i| 0xa0 + u8::try_from(i).unwrap())
}

fn ping() -> Message {
    Message::Ping {
        txid: txid(),
        node: Some(crate::key::NodePrivate::from_bytes([0x33; 32]).public()),
    }
}

fn pong() -> Message {
    Message::Pong {
        txid: txid(),
        src: "192.0.2.5:41641".parse().unwrap(),
    }
}

#[test]
fn the_foreign_ping_is_read_and_written_to_the_same_bytes() {
    assert_eq!(ping().encode(), bytes(PING_PLAIN));
    let at_a = DiscoBox::new(&a(), &b().public());
    let at_b = DiscoBox::new(&b(), &a().public());
    let packet = at_a.seal(nonce(), &ping(), &a().public());
    assert_eq!(packet, bytes(PING_PACKET));
    assert_eq!(packet.len(), 124);
    assert_eq!(sender(&packet), Some(a().public()));
    assert_eq!(at_b.open(&packet), Ok(ping()));
}

#[test]
fn the_foreign_pong_is_read_and_written_to_the_same_bytes() {
    assert_eq!(pong().encode(), bytes(PONG_PLAIN));
    let at_a = DiscoBox::new(&a(), &b().public());
    let at_b = DiscoBox::new(&b(), &a().public());
    let packet = at_b.seal(nonce(), &pong(), &b().public());
    assert_eq!(packet, bytes(PONG_PACKET));
    assert_eq!(packet.len(), 110);
    assert_eq!(sender(&packet), Some(b().public()));
    assert_eq!(at_a.open(&packet), Ok(pong()));
}

#[test]
fn the_foreign_call_me_maybe_is_read_and_written_to_the_same_bytes() {
    let message = Message::CallMeMaybe {
        endpoints: vec![
            "192.0.2.5:41641".parse().unwrap(),
            "[2001:db8::7]:41641".parse().unwrap(),
        ],
    };
    assert_eq!(message.encode(), bytes(CALL_ME_MAYBE_PLAIN));
    assert_eq!(
        Message::parse(&bytes(CALL_ME_MAYBE_PLAIN)),
        Ok(message.clone())
    );
    let sealed = DiscoBox::new(&a(), &b().public()).seal(nonce(), &message, &a().public());
    assert_eq!(sealed.len(), 80 + 18 * 2);
}

#[test]
fn an_old_ping_without_node_key_and_a_padded_ping_are_both_read() {
    let plain = bytes(PING_PLAIN);
    assert_eq!(
        Message::parse(&plain[..14]),
        Ok(Message::Ping {
            txid: txid(),
            node: None
        })
    );
    let mut padded = plain;
    padded.resize(1200, 0);
    assert_eq!(Message::parse(&padded), Ok(ping()));
}

#[test]
fn a_call_me_maybe_of_wrong_length_or_version_reads_as_empty() {
    let empty = Ok(Message::CallMeMaybe { endpoints: vec![] });
    let mut payload = bytes(CALL_ME_MAYBE_PLAIN);
    payload[1] = 1;
    assert_eq!(Message::parse(&payload), empty);
    payload[1] = 0;
    payload.pop();
    assert_eq!(Message::parse(&payload), empty);
    assert_eq!(Message::parse(&[3, 0]), empty);
}

#[test]
fn a_call_me_maybe_keeps_a_bounded_number_of_endpoints() {
    let mut payload = vec![3, 0];
    payload.resize(2 + 18 * (CALL_ME_MAYBE_ENDPOINTS_MAX + 7), 1);
    let Ok(Message::CallMeMaybe { endpoints }) = Message::parse(&payload) else {
        panic!("a long call-me-maybe is still one");
    };
    assert_eq!(endpoints.len(), CALL_ME_MAYBE_ENDPOINTS_MAX);
}

#[test]
fn a_kind_that_we_do_not_speak_is_named_and_not_an_error() {
    assert_eq!(
        Message::parse(&[7, 0, 1, 2, 3]),
        Ok(Message::Unknown {
            kind: 7,
            version: 0
        })
    );
}

#[test]
fn a_payload_cut_within_its_message_is_short() {
    for (plain, whole) in [(PING_PLAIN, 14), (PONG_PLAIN, 32), (CALL_ME_MAYBE_PLAIN, 2)] {
        let plain = bytes(plain);
        for end in 0..=plain.len() {
            let short = matches!(
                Message::parse(&plain[..end]),
                Err(DiscoError::Short { length, .. }) if length == end
            );
            assert_eq!(short, end < whole, "{end} bytes of {plain:02x?}");
        }
    }
}

#[test]
fn a_third_key_a_flipped_bit_and_a_foreign_datagram_do_not_open() {
    let packet = bytes(PING_PACKET);
    let third = DiscoBox::new(&DiscoPrivate::from_bytes([0x44; 32]), &a().public());
    assert_eq!(third.open(&packet), Err(DiscoError::Open));
    let at_b = DiscoBox::new(&b(), &a().public());
    for at in 38..packet.len() {
        let mut bent = packet.clone();
        bent[at] ^= 1;
        assert_eq!(at_b.open(&bent), Err(DiscoError::Open), "byte {at}");
    }
    for datagram in [&packet[..61], &packet[1..], &[], &[7]] {
        assert!(!looks_like_disco(datagram));
        assert_eq!(sender(datagram), None);
        assert!(matches!(
            at_b.open(datagram),
            Err(DiscoError::NotDisco { .. })
        ));
    }
    let mut long = packet;
    long.resize(DATAGRAM_BYTES_MAX + 1, 0);
    assert_eq!(
        at_b.open(&long),
        Err(DiscoError::TooLong { length: long.len() })
    );
}

#[test]
fn a_box_prints_nothing_of_its_key() {
    assert_eq!(
        format!("{:?}", DiscoBox::new(&a(), &b().public())),
        "DiscoBox(..)"
    );
}

fn any_addr() -> impl Strategy<Value = SocketAddr> {
    any::<(IpAddr, u16)>().prop_map(|(ip, port)| SocketAddr::new(ip.to_canonical(), port))
}

fn any_message() -> impl Strategy<Value = Message> {
    prop_oneof![
        any::<(TxId, Option<[u8; 32]>)>().prop_map(|(txid, node)| Message::Ping {
            txid,
            node: node.map(NodePublic::from_bytes)
        }),
        (any::<TxId>(), any_addr()).prop_map(|(txid, src)| Message::Pong { txid, src }),
        proptest::collection::vec(any_addr(), 0..CALL_ME_MAYBE_ENDPOINTS_MAX)
            .prop_map(|endpoints| Message::CallMeMaybe { endpoints }),
        (4..=u8::MAX, any::<u8>()).prop_map(|(kind, version)| Message::Unknown { kind, version }),
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(message in any_message()) {
        prop_assert_eq!(Message::parse(&message.encode()), Ok(message.clone()));
        let sealed = DiscoBox::new(&a(), &b().public()).seal(nonce(), &message, &a().public());
        prop_assert_eq!(DiscoBox::new(&b(), &a().public()).open(&sealed), Ok(message));
    }

    #[test]
    fn bent_bytes_never_panic(
        payload in proptest::collection::vec(any::<u8>(), 0..300),
        at in any::<prop::sample::Index>(),
        flip in 1..=u8::MAX,
    ) {
        // Any outcome will do: what is tested is that there is one, and that it is bounded.
        if let Ok(Message::CallMeMaybe { endpoints }) = Message::parse(&payload) {
            prop_assert!(endpoints.len() <= CALL_ME_MAYBE_ENDPOINTS_MAX);
        }
        let mut packet = bytes(PING_PACKET);
        let at = at.index(packet.len());
        packet[at] ^= flip;
        let opened = DiscoBox::new(&b(), &a().public()).open(&packet);
        // The claimed sender (6..38) is outside the box; everything else is covered by it.
        prop_assert_eq!(opened.is_ok(), (6..38).contains(&at));
        packet.truncate(at);
        prop_assert!(DiscoBox::new(&b(), &a().public()).open(&packet).is_err());
    }
}
