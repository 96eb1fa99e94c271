//! ts2021: both handshake messages, the record layer and the early payload.
//!
//! Seeds: the vectors of control.md §2.6.

use netstack::key::MachinePrivate;
use netstack::noise::{
    EARLY_PAYLOAD_BYTES_MAX, ERROR_TEXT_BYTES_MAX, EarlyPayloadReader, INITIATION_BYTES, Initiator,
    NoiseError, RECORD_PLAIN_BYTES_MAX, Records, Responder, encode_early_payload, message_bytes,
};

use super::script::{Script, bend, pieces};

const VERSION: u16 = 130;

fn ramp(first: u8) -> [u8; 32] {
    std::array::from_fn(|at| first.wrapping_add(u8::try_from(at).unwrap_or(0)))
}

fn client_key() -> MachinePrivate {
    MachinePrivate::from_bytes(ramp(0x00))
}

fn server_key() -> MachinePrivate {
    MachinePrivate::from_bytes(ramp(0x40))
}

fn initiate() -> (Initiator, [u8; INITIATION_BYTES]) {
    let server = server_key().public();
    Initiator::new(&client_key(), server, VERSION, ramp(0x20).into()).expect("fixed, good keys")
}

fn respond(initiation: &[u8]) -> Result<Responder, NoiseError> {
    Responder::handle_initiation(&server_key(), initiation, ramp(0x60).into())
}

/// Client's and server's ends of one connection.
fn pair() -> (Records, Records) {
    let (initiator, initiation) = initiate();
    let responder = respond(&initiation).expect("answers a good initiation");
    let client = initiator.handle_response(&responder.response);
    (client.expect("takes a good response"), responder.records)
}

/// The bytes are a client's first message; and then bends of a good one.
pub fn noise_initiation(data: &[u8]) {
    if let Ok(responder) = respond(data) {
        assert_eq!(data.len(), INITIATION_BYTES);
        assert!(data.starts_with(&responder.version.to_be_bytes()));
        assert!(responder.response.starts_with(&[2, 0, 48]));
    }
    let mut script = Script::new(data);
    let (_, mut initiation) = initiate();
    let good = initiation;
    while script.step().is_some_and(|step| step % 8 != 0) {
        bend(&mut script, &mut initiation);
    }
    let outcome = respond(&initiation);
    assert_eq!(outcome.is_ok(), initiation == good, "{outcome:?}");
    if let Ok(responder) = outcome {
        assert_eq!(responder.client, client_key().public());
    }
}

/// The bytes are a server's answer; and then bends of a good one.
pub fn noise_response(data: &[u8]) {
    let (initiator, initiation) = initiate();
    let announced = message_bytes(data);
    match initiator.handle_response(data) {
        Ok(_) => assert!(matches!(announced, Ok(Some(length)) if length == data.len())),
        Err(NoiseError::Refused { text }) => {
            // A byte that is not UTF-8 becomes a character of three.
            assert!(text.len() <= 3 * ERROR_TEXT_BYTES_MAX);
            assert!(matches!(announced, Ok(Some(length)) if length == data.len()));
        }
        Err(_) => {}
    }

    let mut script = Script::new(data);
    let responder = respond(&initiation).expect("answers a good initiation");
    let mut response = responder.response;
    while script.step().is_some_and(|step| step % 8 != 0) {
        bend(&mut script, &mut response);
    }
    let (initiator, _) = initiate();
    let outcome = initiator.handle_response(&response);
    assert_eq!(outcome.is_ok(), response == responder.response);
}

fn open_all<'a>(
    records: &mut Records,
    wire: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<u8>, Option<String>, bool) {
    let mut plain = Vec::new();
    for piece in wire {
        if let Err(error) = records.open(piece, &mut plain) {
            let after = records.open(b"x", &mut plain);
            assert!(matches!(after, Err(NoiseError::Dead)), "{after:?}");
            return (plain, Some(error.to_string()), false);
        }
    }
    (plain, None, records.is_mid_record())
}

/// The bytes are a stream of records in two ways of cutting it: as they are, or after a script that
/// seals, bends and drops.
pub fn noise_records(data: &[u8]) {
    let mut script = Script::new(data);
    let seed = script.byte();
    let ((mut client, mut server), (_, mut again)) = (pair(), pair());
    if script.byte() & 1 == 0 {
        let wire = script.rest();
        let whole = open_all(&mut server, [wire]);
        assert_eq!(open_all(&mut again, pieces(wire, seed)), whole);
        return;
    }
    let (mut wire, mut said, mut bent) = (Vec::new(), Vec::new(), false);
    while let Some(step) = script.step() {
        match step % 4 {
            0 | 1 => {
                let plain = script.piece();
                let fits = plain.len() <= RECORD_PLAIN_BYTES_MAX;
                assert_eq!(client.seal(plain, &mut wire).is_ok(), fits);
                if fits {
                    said.extend_from_slice(plain);
                }
            }
            2 => bent |= bend(&mut script, &mut wire),
            _ => {
                bent |= !wire.is_empty();
                wire.truncate(usize::from(script.u16()));
            }
        }
    }
    let whole = open_all(&mut server, [wire.as_slice()]);
    assert_eq!(open_all(&mut again, pieces(&wire, seed)), whole);
    let (heard, error, mid_record) = whole;
    assert!(said.starts_with(&heard), "what was not said was heard");
    if !bent {
        assert_eq!((heard, error, mid_record), (said, None, false));
    }
}

/// The bytes are the server's first plaintext; and then the content of an early payload.
pub fn noise_early(data: &[u8]) {
    let seed = data.len().to_le_bytes()[0];
    let strip = |pieces: Vec<&[u8]>| {
        let (mut reader, mut out) = (EarlyPayloadReader::default(), Vec::new());
        for piece in pieces {
            if let Err(error) = reader.handle_plain(piece, &mut out) {
                return (out, Some(error.to_string()));
            }
        }
        (out, None)
    };
    let (out, error) = strip(vec![data]);
    let length = data.strip_prefix(b"\xff\xff\xffTS");
    let length = length.and_then(|head| head.first_chunk());
    let skipped = match length.map(|length| u32::from_be_bytes(*length)) {
        Some(length) => usize::try_from(length).unwrap_or(usize::MAX),
        None => 0,
    };
    let (head_bytes, too_long) = match length {
        Some(_) => (9, skipped > EARLY_PAYLOAD_BYTES_MAX),
        None => (0, false),
    };
    assert_eq!(error.is_some(), too_long);
    let http = data.get(head_bytes..).and_then(|rest| rest.get(skipped..));
    if data.len() >= 9 && !too_long {
        assert_eq!(out, http.unwrap_or_default(), "HTTP/2 was changed");
    } else {
        assert_eq!(out, b"", "too early to tell, or over");
    }
    assert_eq!(strip(pieces(data, seed)), (out, error));

    let mut framed = encode_early_payload(data).expect("an input is shorter than the limit");
    assert!(data.len() <= EARLY_PAYLOAD_BYTES_MAX);
    framed.extend_from_slice(b"PRI * HTTP/2.0");
    let stripped = (b"PRI * HTTP/2.0".to_vec(), None);
    assert_eq!(strip(vec![&framed]), stripped);
    assert_eq!(strip(pieces(&framed, seed)), stripped);
}
