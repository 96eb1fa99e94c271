//! STUN against foreign bytes, against every form of an answer, and against bent bytes.

use proptest::prelude::*;

use super::*;

/// Made outside of this crate, for the transaction id 01 .. 0c.
const REQUEST: &str =
    "000100142112a4420102030405060708090a0b0c802200087461696c6e6f646580280004b32c370f";
const ANSWER_V4: &str = "0101000c2112a4420102030405060708090a0b0c00200008000183bbe112a647";
const ANSWER_V6: &str = concat!(
    "010100182112a4420102030405060708090a0b0c",
    "00200014000283bb0113a9fa0102030405060708090a0b0b",
);

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect()
}

fn txid() -> TxId {
    std::array::from_fn(|i| 1 + u8::try_from(i).unwrap())
}

/// A success with these attributes, given in hexadecimal.
fn success(attributes: &str) -> Vec<u8> {
    let attributes = bytes(attributes);
    let mut message = bytes("01010000");
    message[3] = u8::try_from(attributes.len()).unwrap();
    message.extend_from_slice(&COOKIE);
    message.extend_from_slice(&txid());
    message.extend_from_slice(&attributes);
    message
}

fn mapped(message: &[u8]) -> Result<String, StunError> {
    parse_answer(message).map(|answer| {
        assert_eq!(answer.txid, txid());
        answer.mapped.to_string()
    })
}

/// Sets the FINGERPRINT right, so that only what was bent before it is wrong.
fn sealed(mut message: Vec<u8>) -> Vec<u8> {
    let end = message.len() - 4;
    let crc = fingerprint_of(&message[..end - 4]).to_be_bytes();
    message[end..].copy_from_slice(&crc);
    message
}

#[test]
fn the_crc_is_that_of_ethernet() {
    assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    assert_eq!(crc32(b""), 0);
}

#[test]
fn the_request_has_the_very_bytes_that_a_relay_wants() {
    assert_eq!(request(txid()).to_vec(), bytes(REQUEST));
    assert_eq!(parse_request(&bytes(REQUEST)), Ok(txid()));
}

#[test]
fn the_foreign_answers_are_read_and_written_to_the_same_bytes() {
    for (hex, address, length) in [
        (ANSWER_V4, "192.0.2.5:41641", 32),
        (ANSWER_V6, "[2001:db8::7]:41641", 44),
    ] {
        let foreign = bytes(hex);
        assert_eq!(foreign.len(), length);
        assert_eq!(mapped(&foreign), Ok(address.to_owned()));
        assert_eq!(answer(txid(), address.parse().unwrap()), foreign);
    }
}

#[test]
fn every_form_of_an_address_is_read() {
    let v4 = "000183bbe112a647";
    let plain_v4 = "0001a2a9c0000206";
    let table = [
        // The number before RFC 5389.
        (format!("80200008{v4}"), "192.0.2.5:41641"),
        // Not XORed.
        (format!("00010008{plain_v4}"), "192.0.2.6:41641"),
        // The XORed one wins, whichever comes first.
        (format!("00010008{plain_v4}00200008{v4}"), "192.0.2.5:41641"),
        (format!("00200008{v4}00010008{plain_v4}"), "192.0.2.5:41641"),
        // Behind attributes that we do not know, one of them padded.
        (
            format!("8022000561626364650000007777000000200008{v4}"),
            "192.0.2.5:41641",
        ),
        // IPv4-mapped, not XORed.
        (
            "000100140002a2a900000000000000000000ffffc0000207".to_owned(),
            "192.0.2.7:41641",
        ),
        (
            "000100140002a2a920010db8000000000000000000000009".to_owned(),
            "[2001:db8::9]:41641",
        ),
    ];
    for (attributes, address) in table {
        assert_eq!(
            mapped(&success(&attributes)),
            Ok(address.to_owned()),
            "{attributes}"
        );
    }
}

#[test]
fn bytes_behind_the_attributes_are_ignored() {
    let mut message = bytes(ANSWER_V4);
    message.extend_from_slice(b"trailing");
    assert_eq!(mapped(&message), Ok("192.0.2.5:41641".to_owned()));
}

#[test]
fn an_answer_that_says_nothing_is_refused_with_its_reason() {
    let bent = |length| Err(StunError::Attribute { length });
    assert_eq!(mapped(&success("")), Err(StunError::NoAddress));
    assert_eq!(
        mapped(&success("80220004abcdabcd")),
        Err(StunError::NoAddress)
    );
    assert_eq!(mapped(&success("00200008000383bbe112a647")), bent(32));
    assert_eq!(mapped(&success("00200007000183bbe112a600")), bent(32));
    assert_eq!(mapped(&success("00200004000183bb")), bent(28));
    assert_eq!(mapped(&success("00200008000283bbe112a647")), bent(32));
    assert_eq!(mapped(&success("00200009000183bbe112a647")), bent(32));
    assert_eq!(mapped(&success("0020")), bent(22));
    assert_eq!(mapped(&bytes(ANSWER_V4)[..31]), bent(31));
    let mut error = bytes(ANSWER_V4);
    error[1] = 0x11;
    assert_eq!(mapped(&error), Err(StunError::NotStun { length: 32 }));
    assert_eq!(mapped(&bytes(REQUEST)), Err(StunError::Kind { kind: 1 }));
}

#[test]
fn a_relay_refuses_every_other_request() {
    let good = bytes(REQUEST);
    let at = |index: usize, value: u8| {
        let mut bent = good.clone();
        bent[index] = value;
        bent
    };
    assert_eq!(
        parse_request(&sealed(at(24, b'T'))),
        Err(StunError::Software)
    );
    assert_eq!(parse_request(&at(8, 0xff)), Err(StunError::Fingerprint));
    assert_eq!(parse_request(&at(39, 0)), Err(StunError::Fingerprint));
    assert_eq!(
        parse_request(&sealed(at(33, 0x29))),
        Err(StunError::Fingerprint)
    );
    assert_eq!(
        parse_request(&bytes(ANSWER_V4)),
        Err(StunError::Kind { kind: 0x0101 })
    );
    assert_eq!(
        parse_request(&good[..39]),
        Err(StunError::Attribute { length: 39 })
    );
    // Without FINGERPRINT, and with something behind it.
    let mut bare = good[..32].to_vec();
    bare[3] = 12;
    assert_eq!(parse_request(&bare), Err(StunError::Fingerprint));
    let mut more = [good.as_slice(), &[0x80, 0x22, 0, 0]].concat();
    more[3] = 24;
    assert_eq!(parse_request(&more), Err(StunError::Fingerprint));
    // A bare request, as a general STUN library makes it.
    let mut empty = good[..20].to_vec();
    empty[3] = 0;
    assert_eq!(parse_request(&empty), Err(StunError::Software));
}

#[test]
fn stun_is_told_from_disco_and_wireguard() {
    assert!(looks_like_stun(&bytes(REQUEST)));
    assert!(looks_like_stun(&bytes(ANSWER_V4)));
    assert!(!looks_like_stun(&bytes(REQUEST)[..19]));
    let mut disco = crate::disco::MAGIC.to_vec();
    disco.resize(62, 0);
    assert!(!looks_like_stun(&disco));
    // WireGuard data whose receiver index happens to be the cookie.
    let mut wireguard = vec![4, 0, 0, 0];
    wireguard.extend_from_slice(&COOKIE);
    wireguard.resize(32, 0);
    assert!(!looks_like_stun(&wireguard));
    let mut rtp = bytes(ANSWER_V4);
    rtp[0] |= 0x80;
    assert!(!looks_like_stun(&rtp));
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(txid: TxId, mapped: SocketAddr) {
        let mapped = SocketAddr::new(mapped.ip().to_canonical(), mapped.port());
        let message = answer(txid, mapped);
        prop_assert_eq!(message.len(), if mapped.is_ipv4() { 32 } else { 44 });
        prop_assert_eq!(parse_answer(&message), Ok(Answer { txid, mapped }));
        prop_assert_eq!(parse_request(&request(txid)), Ok(txid));
    }

    #[test]
    fn a_request_with_any_bit_turned_is_refused(txid: TxId, at in 0..REQUEST_BYTES, bit in 0..8_u8) {
        let mut message = request(txid);
        message[at] ^= 1 << bit;
        prop_assert!(parse_request(&message).is_err());
    }

    #[test]
    fn bent_bytes_never_panic(mut message in proptest::collection::vec(any::<u8>(), 0..80), framed: bool) {
        if framed && message.len() >= 20 {
            message[..4].copy_from_slice(&[1, 1, 0, 60]);
            message[4..8].copy_from_slice(&COOKIE);
        }
        let parsed = parse_answer(&message).is_ok() || parse_request(&message).is_ok();
        prop_assert!(!parsed || looks_like_stun(&message));
    }
}
