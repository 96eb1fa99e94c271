//! Disco messages: the payload alone, and whole datagrams under a known pair of keys.
//!
//! Seeds: the vectors of transport.md A.

use netstack::disco::{
    CALL_ME_MAYBE_ENDPOINTS_MAX, DATAGRAM_BYTES_MAX, DiscoBox, HEADER_BYTES, Message,
    looks_like_disco, sender,
};
use netstack::key::DiscoPrivate;

use super::script::{Script, bend};

/// The bytes are the payload of a box.
pub fn disco_message(data: &[u8]) {
    let Ok(message) = Message::parse(data) else {
        return;
    };
    let encoded = message.encode();
    assert_eq!(Message::parse(&encoded).as_ref(), Ok(&message));
    match &message {
        // The version is not looked at, and what follows is ignored.
        Message::Ping { .. } | Message::Pong { .. } => {
            assert!(data.get(2..) >= encoded.get(2..));
            assert!(data.get(2..encoded.len()) == encoded.get(2..));
        }
        Message::CallMeMaybe { endpoints } => {
            assert!(endpoints.len() <= CALL_ME_MAYBE_ENDPOINTS_MAX);
            if endpoints.len() == CALL_ME_MAYBE_ENDPOINTS_MAX {
                assert!(data.starts_with(&encoded));
            } else if !endpoints.is_empty() {
                assert_eq!(data, encoded);
            }
        }
        Message::Unknown { .. } => assert!(data.starts_with(&encoded)),
    }
}

/// The bytes are a datagram; and then what is sealed, and how the datagram is bent.
pub fn disco_datagram(data: &[u8]) {
    let (a, b) = (
        DiscoPrivate::from_bytes([0x11; 32]),
        DiscoPrivate::from_bytes([0x22; 32]),
    );
    let at_a = DiscoBox::new(&a, &b.public());
    let at_b = DiscoBox::new(&b, &a.public());
    assert_eq!(looks_like_disco(data), sender(data).is_some());
    if at_b.open(data).is_ok() {
        assert!((HEADER_BYTES..=DATAGRAM_BYTES_MAX).contains(&data.len()));
    }

    let mut script = Script::new(data);
    let nonce = script.array();
    let Ok(message) = Message::parse(script.piece()) else {
        return;
    };
    let mut datagram = at_a.seal(nonce, &message, &a.public());
    assert_eq!(sender(&datagram), Some(a.public()));
    assert_eq!(at_b.open(&datagram), Ok(message.clone()));
    let good = datagram.clone();
    while script.step().is_some() {
        bend(&mut script, &mut datagram);
    }
    // The sender's key says which box to take, and is not itself sealed.
    let sealed = |datagram: &[u8]| {
        let (magic, rest) = (datagram.get(..6), datagram.get(38..));
        (magic.map(<[u8]>::to_vec), rest.map(<[u8]>::to_vec))
    };
    let outcome = at_b.open(&datagram);
    if sealed(&datagram) == sealed(&good) {
        assert_eq!(outcome, Ok(message));
    } else {
        assert!(outcome.is_err());
    }
}
