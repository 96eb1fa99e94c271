//! Both sides of ts2021 against vectors that another implementation made.

use proptest::prelude::*;
use zeroize::Zeroizing;

use super::handshake::{begin, write_message};
use super::*;
use crate::key::MachinePrivate;

const VERSION: u16 = 130;
const INITIATION: &str = "0082010060358072d6365880d1aeea329adf9121383851ed21a28e3b75e965d0d2cd166254ad5b8febedeb97415be53612205e6bfab385e34cb127dd8854c4f9afb10f9b0e49945171d80e52b62b1cc7794ec92042d7380dba1e3c96fde099f9f4158e08ea";
const RESPONSE: &str = "020030675dd574ed7789310b3d2e7681f3790b466c773b1521fecf36577958371ea52fc9dd7d78df78ba87d8e5e246ffc6af00";
const HELLO_0: &str = "040015dc192494126dbf7536fc5739545df3ba74e6dc4970";
const HELLO_1: &str = "040015d2340ad1e4312e8db9998d67f7fa32f131ac9d935b";
const HELLO_1_LITTLE_ENDIAN_START: &str = "ebc861d1b72ecf";
const WORLD_0: &str = "0400151f9a994f2943daba9ea312ffbafc58552337cdff1c";
const EMPTY_1: &str = "04001076840ad50f23f23685ed85af609b37ad";

fn hex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

fn ramp(first: u8) -> [u8; 32] {
    std::array::from_fn(|at| first + u8::try_from(at).unwrap())
}

fn client_key() -> MachinePrivate {
    MachinePrivate::from_bytes(ramp(0x00))
}

fn server_key() -> MachinePrivate {
    MachinePrivate::from_bytes(ramp(0x40))
}

fn initiate() -> (Initiator, [u8; INITIATION_BYTES]) {
    let ephemeral = Zeroizing::new(ramp(0x20));
    Initiator::new(&client_key(), server_key().public(), VERSION, ephemeral).unwrap()
}

fn respond(initiation: &[u8]) -> Result<Responder, NoiseError> {
    Responder::handle_initiation(&server_key(), initiation, Zeroizing::new(ramp(0x60)))
}

/// Client's and server's ends of one connection.
fn pair() -> (Records, Records) {
    let (initiator, initiation) = initiate();
    let responder = respond(&initiation).unwrap();
    let client = initiator.handle_response(&responder.response).unwrap();
    (client, responder.records)
}

fn open(records: &mut Records, bytes: &[u8]) -> Result<Vec<u8>, NoiseError> {
    let mut out = Vec::new();
    records.open(bytes, &mut out).map(|()| out)
}

fn seal(records: &mut Records, plain: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    records.seal(plain, &mut out).unwrap();
    out
}

#[test]
fn the_client_writes_the_published_initiation_and_accepts_the_published_response() {
    let (initiator, initiation) = initiate();
    assert_eq!(initiation.as_slice(), hex(INITIATION));
    assert!(initiator.handle_response(&hex(RESPONSE)).is_ok());
}

#[test]
fn the_server_answers_the_published_initiation_with_the_published_response() {
    let responder = respond(&hex(INITIATION)).unwrap();
    assert_eq!(responder.response.as_slice(), hex(RESPONSE));
    assert_eq!(responder.client, client_key().public());
    assert_eq!(responder.version, VERSION);
}

#[test]
fn the_handshake_alone_gives_the_published_raw_messages() {
    let prologue = b"TEST HANDSHAKE";
    let server = server_key().public();
    let mut client = begin(
        &client_key(),
        Some(server),
        prologue,
        Zeroizing::new(ramp(0x20)),
    )
    .unwrap();
    let first: [u8; 96] = write_message(&mut client).unwrap();
    assert_eq!(
        first.as_slice(),
        hex(
            "358072d6365880d1aeea329adf9121383851ed21a28e3b75e965d0d2cd166254ad5b8febedeb97415be53612205e6bfab385e34cb127dd8854c4f9afb10f9b0e49075a6f14f9d5bc61412f096ae4950589aef8286944be93ca02ab76a5483b51"
        )
    );
    let mut server = begin(&server_key(), None, prologue, Zeroizing::new(ramp(0x60))).unwrap();
    server.read_message(&first, &mut [0; 96]).unwrap();
    let second: [u8; 48] = write_message(&mut server).unwrap();
    assert_eq!(
        second.as_slice(),
        hex(
            "675dd574ed7789310b3d2e7681f3790b466c773b1521fecf36577958371ea52f5ef5508032efff8066fc858410f411e8"
        )
    );
}

#[test]
fn the_handshake_hash_and_the_transport_keys_are_the_published_ones() {
    let (initiator, _) = initiate();
    let mut state = initiator.state;
    state
        .read_message(&hex(RESPONSE)[3..], &mut [0; 96])
        .unwrap();
    assert_eq!(
        state.get_handshake_hash(),
        hex("fc6a2df04a3dde3f2239a9139f5ce582cae89ee8c448491635f55cdfe7dbdead")
    );
    let (client_key, server_key) = state.dangerously_get_raw_split();
    assert_eq!(
        client_key.as_slice(),
        hex("1ffa520b7b784b83355f4ca5754d333f51f53ff31d9d98f697c22e8f79b66e22")
    );
    assert_eq!(
        server_key.as_slice(),
        hex("1657d025486888648386e46e37e6722a42c605d3f1b0ec24454190a645355089")
    );
}

#[test]
fn records_have_the_published_bytes_in_both_directions() {
    let (mut client, mut server) = pair();
    assert_eq!(seal(&mut client, b"hello"), hex(HELLO_0));
    let second = seal(&mut client, b"hello");
    assert_eq!(second, hex(HELLO_1));
    assert!(!second[3..].starts_with(&hex(HELLO_1_LITTLE_ENDIAN_START)));
    assert_eq!(seal(&mut server, b"world"), hex(WORLD_0));
    assert_eq!(seal(&mut server, b""), hex(EMPTY_1));

    assert_eq!(open(&mut server, &hex(HELLO_0)).unwrap(), b"hello");
    assert_eq!(open(&mut server, &hex(HELLO_1)).unwrap(), b"hello");
    assert_eq!(open(&mut client, &hex(WORLD_0)).unwrap(), b"world");
}

#[test]
fn an_empty_record_is_skipped() {
    let (mut client, _) = pair();
    let mut bytes = hex(WORLD_0);
    bytes.extend(hex(EMPTY_1));
    assert_eq!(open(&mut client, &bytes).unwrap(), b"world");
    assert!(!client.is_mid_record());
}

#[test]
fn another_version_in_the_prologue_fails_the_handshake() {
    let mut bytes = hex(INITIATION);
    bytes[1] ^= 1;
    assert!(matches!(respond(&bytes), Err(NoiseError::Handshake { .. })));
}

#[test]
fn a_server_of_another_key_cannot_answer() {
    let (initiator, _) = initiate();
    let other = MachinePrivate::from_bytes([9; 32]).public();
    let (_, to_other) =
        Initiator::new(&client_key(), other, VERSION, Zeroizing::new(ramp(0x20))).unwrap();
    assert!(respond(&to_other).is_err());
    let mut response = hex(RESPONSE);
    response[50] ^= 1;
    assert!(matches!(
        initiator.handle_response(&response),
        Err(NoiseError::Handshake { .. })
    ));
}

#[test]
fn a_zero_shared_secret_is_refused() {
    let zero = crate::key::MachinePublic::default();
    let result = Initiator::new(&client_key(), zero, VERSION, Zeroizing::new(ramp(0x20)));
    assert!(matches!(result, Err(NoiseError::Handshake { .. })));
    let mut bytes = hex(INITIATION);
    bytes[5..37].fill(0);
    assert!(matches!(respond(&bytes), Err(NoiseError::Handshake { .. })));
}

#[test]
fn a_clear_text_error_is_reported_cut_and_escaped() {
    let (initiator, _) = initiate();
    let mut message = vec![3, 0x10, 0x00];
    message.extend([b'\n'; 4096]);
    assert_eq!(message_bytes(&message[..2]).unwrap(), None);
    assert_eq!(message_bytes(&message).unwrap(), Some(3 + 4096));
    let error = initiator.handle_response(&message).unwrap_err();
    let NoiseError::Refused { text } = &error else {
        panic!("{error:?}")
    };
    assert_eq!(text.len(), ERROR_TEXT_BYTES_MAX);
    assert!(!error.to_string().contains('\n'));
}

#[test]
fn a_record_of_4096_bytes_is_opened_and_one_of_4097_is_rejected() {
    let (mut client, mut server) = pair();
    let plain = vec![7; RECORD_PLAIN_BYTES_MAX];
    let record = seal(&mut client, &plain);
    assert_eq!(record.len(), RECORD_BYTES_MAX);
    assert_eq!(open(&mut server, &record).unwrap(), plain);
    assert!(matches!(
        client.seal(&vec![7; RECORD_PLAIN_BYTES_MAX + 1], &mut Vec::new()),
        Err(NoiseError::PlainLength { length: 4078 })
    ));
    // 4094 = 0x0ffe: the header alone is enough to refuse it.
    assert!(matches!(
        open(&mut server, &[4, 0x0f, 0xfe]),
        Err(NoiseError::RecordLength { length: 4094 })
    ));
    let (_, mut server) = pair();
    assert!(matches!(
        open(&mut server, &[4, 0, 15]),
        Err(NoiseError::RecordLength { length: 15 })
    ));
}

#[test]
fn a_flipped_bit_is_fatal_for_good() {
    let (_, mut server) = pair();
    let mut bent = hex(HELLO_0);
    bent[10] ^= 0x40;
    assert!(matches!(
        open(&mut server, &bent),
        Err(NoiseError::Open { counter: 0 })
    ));
    assert!(matches!(
        open(&mut server, &hex(HELLO_1)),
        Err(NoiseError::Dead)
    ));
}

#[test]
fn a_replayed_record_does_not_open() {
    let (_, mut server) = pair();
    open(&mut server, &hex(HELLO_0)).unwrap();
    assert!(matches!(
        open(&mut server, &hex(HELLO_0)),
        Err(NoiseError::Open { counter: 1 })
    ));
}

#[test]
fn anything_but_a_record_after_the_handshake_is_fatal() {
    let (_, mut server) = pair();
    assert!(matches!(
        open(&mut server, &[2, 0, 48]),
        Err(NoiseError::NotARecord { kind: 2 })
    ));
}

#[test]
fn a_wrong_type_is_told_at_its_first_byte_however_the_bytes_are_cut() {
    for bytes in [&[0][..], &[0, 0], &[0, 0, 16]] {
        let (_, mut server) = pair();
        assert!(matches!(
            open(&mut server, bytes),
            Err(NoiseError::NotARecord { kind: 0 })
        ));
    }
}

#[test]
fn nothing_secret_is_printed() {
    let (client, _) = pair();
    assert_eq!(format!("{client:?}"), "Records(..)");
    assert_eq!(format!("{:?}", initiate().0), "Initiator(..)");
}

#[test]
fn the_early_payload_is_stripped_and_its_absence_changes_nothing() {
    let http2 = b"\x00\x00\x12\x04\x00\x00\x00\x00\x00rest of settings";
    let mut with = encode_early_payload(br#"{"nodeKeyChallenge":"chalpub:00"}"#).unwrap();
    assert!(with.starts_with(b"\xff\xff\xffTS\x00\x00\x00\x21{"));
    with.extend(http2);
    for stream in [with.as_slice(), http2.as_slice()] {
        for step in 1..=stream.len() {
            let mut reader = EarlyPayloadReader::default();
            let mut out = Vec::new();
            for part in stream.chunks(step) {
                reader.handle_plain(part, &mut out).unwrap();
            }
            assert_eq!(out, http2, "in steps of {step}");
        }
    }
}

#[test]
fn an_oversize_early_payload_is_refused_by_its_head() {
    let head = b"\xff\xff\xffTS\x00\x01\x00\x01";
    assert!(matches!(
        EarlyPayloadReader::default().handle_plain(head, &mut Vec::new()),
        Err(NoiseError::EarlyPayloadLength { length: 65537 })
    ));
    assert!(encode_early_payload(&vec![b' '; EARLY_PAYLOAD_BYTES_MAX + 1]).is_err());
}

proptest! {
    #[test]
    fn a_stream_of_records_survives_any_split(
        plains in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..600), 0..12),
        cuts in prop::collection::vec(1_usize..700, 1..40),
    ) {
        let (mut client, mut server) = pair();
        let mut wire = Vec::new();
        for plain in &plains {
            client.seal(plain, &mut wire).unwrap();
        }
        let mut out = Vec::new();
        let mut rest = wire.as_slice();
        for cut in cuts.iter().cycle() {
            let (part, after) = rest.split_at(rest.len().min(*cut));
            server.open(part, &mut out).unwrap();
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(out, plains.concat());
    }

    #[test]
    fn bent_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), at in 0_usize..101, bit in 0_u8..8) {
        let (mut client, _) = pair();
        let mut out = Vec::new();
        // Whatever comes, nothing unauthenticated is handed out.
        if client.open(&bytes, &mut out).is_err() {
            prop_assert!(client.open(&[], &mut out).is_err());
        }
        prop_assert!(out.is_empty());
        let mut initiation = hex(INITIATION);
        initiation[at] ^= 1 << bit;
        prop_assert!(respond(&initiation).is_err());
        prop_assert!(respond(&bytes).is_err());
        prop_assert!(initiate().0.handle_response(&bytes).is_err());
        let mut reader = EarlyPayloadReader::default();
        let mut plain = Vec::new();
        if reader.handle_plain(&bytes, &mut plain).is_ok() {
            prop_assert!(plain.len() <= bytes.len());
        }
    }
}
