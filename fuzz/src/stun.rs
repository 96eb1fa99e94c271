//! STUN messages: what a server answers, and what a client asks.
//!
//! Seeds: the vectors of transport.md A, and every form of an address.

use netstack::stun::{
    Answer, REQUEST_BYTES, answer, looks_like_stun, parse_answer, parse_request, request,
};

use super::path::address;
use super::script::{Script, bend};

/// The bytes are a datagram; and then a message of ours, and how it is bent.
pub fn stun_message(data: &[u8]) {
    read(data);
    let mut script = Script::new(data);
    let txid = script.array();
    let asked = request(txid);
    assert_eq!(parse_request(&asked), Ok(txid));
    let mapped = address(script.byte());
    let mut message = if script.byte() & 1 == 0 {
        asked.to_vec()
    } else {
        answer(txid, mapped)
    };
    read(&message);
    while script.step().is_some() {
        bend(&mut script, &mut message);
    }
    read(&message);
}

/// A message that is read is STUN, of one kind, and means what its rewriting means.
fn read(datagram: &[u8]) {
    let (answered, asked) = (parse_answer(datagram), parse_request(datagram));
    assert!(answered.is_err() || asked.is_err());
    assert!(looks_like_stun(datagram) || (answered.is_err() && asked.is_err()));
    if let Ok(Answer { txid, mapped }) = answered {
        assert_eq!(datagram.get(8..20), Some(txid.as_slice()));
        assert_eq!(mapped.ip(), mapped.ip().to_canonical());
        let rewritten = answer(txid, mapped);
        assert_eq!(parse_answer(&rewritten), Ok(Answer { txid, mapped }));
    }
    if let Ok(txid) = asked {
        // A relay accepts attributes between; of this length there is one request alone.
        assert_eq!(datagram.get(8..20), Some(txid.as_slice()));
        assert!(datagram.len() >= REQUEST_BYTES);
        assert!(datagram.len() > REQUEST_BYTES || datagram == request(txid));
    }
}
