//! The journal object against bytes that `tests/vectors/journal.py` made, against itself, and bent.

use proptest::prelude::*;

use super::*;

const VECTOR: &str = include_str!("../../../tests/vectors/journal.hex");

fn vector() -> Vec<u8> {
    let digits: Vec<u8> = VECTOR.bytes().filter(u8::is_ascii_hexdigit).collect();
    let pairs = digits
        .chunks(2)
        .map(|pair| std::str::from_utf8(pair).unwrap());
    pairs
        .map(|pair| u8::from_str_radix(pair, 16).unwrap())
        .collect()
}

fn header() -> ObjectHeader {
    ObjectHeader {
        recorder: RecorderId::from_log_key(b"key"),
        epoch: EpochId::from_parts(
            1_764_000_000_123,
            *b"\x10\x11\x12\x13\x14\x15\x16\x17\x18\x19\x1a\x1b\x1c\x1d\x1e\x1f",
        )
        .unwrap(),
        number: JournalNumber(7),
        previous: digest_of(b"object 6"),
        oldest_needed: JournalNumber(3),
    }
}

fn recording() -> RecordingId {
    RecordingId::from_bytes([0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
}

#[test]
fn an_object_made_by_another_implementation_is_read() {
    let bytes = vector();
    let object = JournalObject::decode(&bytes).unwrap();
    assert_eq!(object.header, header());
    let frames: Vec<_> = object.frames().map(Result::unwrap).collect();
    let seen: Vec<_> = frames
        .iter()
        .map(|f| (f.kind, f.offset.0, f.plain().unwrap().into_owned()))
        .collect();
    assert_eq!(
        seen,
        [
            (FrameKind::Open, 0, b"{}".to_vec()),
            (FrameKind::Data, 0, b"hello\n".to_vec()),
            (FrameKind::Data, 6, vec![b'a'; 600]),
            (FrameKind::Close, 606, b"{\"clean\":true}".to_vec()),
        ]
    );
    assert!(frames.iter().all(|frame| frame.recording == recording()));
}

#[test]
fn the_same_object_is_written_byte_for_byte() {
    // All of the vector but its zstd frame, which may be packed in more than one way.
    let mut writer = ObjectWriter::new(&header());
    writer
        .push(None, FrameKind::Open, recording(), StreamOffset(0), b"{}")
        .unwrap();
    writer
        .push(
            None,
            FrameKind::Data,
            recording(),
            StreamOffset(0),
            b"hello\n",
        )
        .unwrap();
    let (bytes, digest) = writer.finish();
    assert_eq!(digest, digest_of(&bytes));
    assert_eq!(bytes[..106], vector()[..106]);
    let frames_bytes = 2 * frame::FRAME_OVERHEAD_BYTES + 8;
    assert_eq!(
        bytes[114..114 + frames_bytes],
        vector()[114..114 + frames_bytes]
    );
    assert_eq!(
        bytes.len(),
        OBJECT_HEADER_BYTES + frames_bytes + OBJECT_TRAILER_BYTES
    );
}

#[test]
fn an_object_without_frames_is_an_object() {
    let (bytes, _) = ObjectWriter::new(&header()).finish();
    assert_eq!(bytes.len(), OBJECT_HEADER_BYTES + OBJECT_TRAILER_BYTES);
    assert_eq!(JournalObject::decode(&bytes).unwrap().frames().count(), 0);
}

#[test]
fn an_object_above_the_limit_is_refused() {
    let mut writer = ObjectWriter::new(&header());
    let plain = vec![0; frame::FRAME_PLAIN_BYTES_MAX];
    let mut pushed = Ok(());
    for _ in 0..=OBJECT_BYTES_MAX / plain.len() {
        pushed = writer.push(None, FrameKind::Data, recording(), StreamOffset(0), &plain);
    }
    assert!(matches!(pushed, Err(ObjectError::TooLarge(_))));
}

#[test]
fn a_wrong_frame_count_is_found_at_the_end_of_the_walk() {
    let mut bytes = vector();
    bytes[109] = 5;
    let end = bytes.len() - OBJECT_TRAILER_BYTES;
    let digest = digest_of(&bytes[..end]);
    bytes[end..].copy_from_slice(&digest);
    let walked: Vec<_> = JournalObject::decode(&bytes).unwrap().frames().collect();
    assert_eq!(walked.len(), 5);
    assert!(matches!(
        walked[4],
        Err(ObjectError::Malformed("frame count"))
    ));
}

proptest! {
    #[test]
    fn an_object_survives_its_bytes(pieces in proptest::collection::vec(proptest::collection::vec(0..3_u8, 0..1500), 0..6)) {
        let mut writer = ObjectWriter::new(&header());
        let mut compressor = Compressor::new().unwrap();
        for piece in &pieces {
            writer.push(Some(&mut compressor), FrameKind::Data, recording(), StreamOffset(5), piece).unwrap();
        }
        let (bytes, _) = writer.finish();
        let object = JournalObject::decode(&bytes).unwrap();
        let plain: Vec<_> = object.frames().map(|frame| frame.unwrap().plain().unwrap().into_owned()).collect();
        prop_assert_eq!(plain, pieces);
        prop_assert_eq!(object.header, header());
    }

    #[test]
    fn a_cut_off_or_bent_object_never_passes(place in 0..363_usize, change in 1..=255_u8) {
        let whole = vector();
        prop_assert!(JournalObject::decode(&whole[..place]).is_err());
        let mut bent = whole;
        bent[place] ^= change;
        prop_assert!(JournalObject::decode(&bent).is_err());
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(JournalObject::decode(&[b"ttjrnl\x00\x01".as_slice(), &bytes].concat()).is_err());
    }
}
