//! The frame's codec against itself and against bent bytes; foreign bytes are in `journal_object/tests.rs`.

use proptest::prelude::*;

use super::*;

fn encoded(kind: FrameKind, offset: u64, plain: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut compressor = Compressor::new().unwrap();
    let recording = RecordingId::from_bytes([7; 10]);
    encode(
        &mut out,
        Some(&mut compressor),
        kind,
        recording,
        StreamOffset(offset),
        plain,
    )
    .unwrap();
    out
}

#[test]
fn a_frame_of_short_bytes_is_as_long_as_its_bytes_and_the_overhead() {
    assert_eq!(
        encoded(FrameKind::Data, 0, b"hello").len(),
        5 + FRAME_OVERHEAD_BYTES
    );
    assert_eq!(
        encoded(FrameKind::Close, 0, b"").len(),
        FRAME_OVERHEAD_BYTES
    );
}

#[test]
fn a_frame_is_compressed_from_512_bytes_on() {
    let below = vec![b'a'; 511];
    assert_eq!(
        encoded(FrameKind::Data, 0, &below).len(),
        511 + FRAME_OVERHEAD_BYTES
    );
    assert!(encoded(FrameKind::Data, 0, &[b'a'; 512]).len() < 100);
}

#[test]
fn a_frame_above_the_limit_is_refused_on_both_sides() {
    let plain = vec![b'a'; FRAME_PLAIN_BYTES_MAX + 1];
    let recording = RecordingId::from_bytes([7; 10]);
    let refused = encode(
        &mut Vec::new(),
        None,
        FrameKind::Data,
        recording,
        StreamOffset(0),
        &plain,
    );
    assert!(matches!(refused, Err(FrameError::TooLarge(_))));

    let mut bytes = encoded(FrameKind::Data, 0, b"hello");
    bytes[30..34].copy_from_slice(&u32::MAX.to_be_bytes());
    assert!(matches!(
        Frame::decode(&bytes),
        Err(FrameError::TooLarge(_))
    ));
}

#[test]
fn a_bomb_does_not_unpack_beyond_what_its_frame_declares() {
    let bomb = zstd::bulk::compress(&vec![0; 8 * 1024 * 1024], 1).unwrap();
    let mut bytes = Vec::new();
    let recording = RecordingId::from_bytes([7; 10]);
    encode(
        &mut bytes,
        None,
        FrameKind::Data,
        recording,
        StreamOffset(0),
        &bomb,
    )
    .unwrap();
    // Say that the bytes are packed, and mend the check.
    bytes[6] = FLAG_ZSTD;
    let end = bytes.len() - FRAME_CHECK_BYTES;
    let check = check_of(&bytes[..end]);
    bytes[end..].copy_from_slice(&check);
    let (frame, _) = Frame::decode(&bytes).unwrap();
    assert!(matches!(frame.plain(), Err(FrameError::Unpack(_))));
}

#[test]
fn what_a_newer_version_may_write_is_named_and_not_guessed() {
    for (place, value) in [(5, 5), (5, 9), (6, 2), (7, 1), (11, 1)] {
        let mut bytes = encoded(FrameKind::Data, 0, b"hello");
        bytes[place] = value;
        let end = bytes.len() - FRAME_CHECK_BYTES;
        let check = check_of(&bytes[..end]);
        bytes[end..].copy_from_slice(&check);
        assert!(
            matches!(Frame::decode(&bytes), Err(FrameError::Unknown { .. })),
            "byte {place}"
        );
    }
}

proptest! {
    #[test]
    fn a_frame_survives_its_bytes(offset: u64, plain in proptest::collection::vec(0..4_u8, 0..2000)) {
        let bytes = encoded(FrameKind::Data, offset, &plain);
        let (frame, rest) = Frame::decode(&bytes).unwrap();
        prop_assert!(rest.is_empty());
        prop_assert_eq!(frame.kind, FrameKind::Data);
        prop_assert_eq!(frame.offset, StreamOffset(offset));
        prop_assert_eq!(&*frame.plain().unwrap(), &plain[..]);
    }

    #[test]
    fn a_cut_off_frame_is_never_taken(keep in 0..60_usize) {
        let bytes = encoded(FrameKind::Data, 9, b"fourteen bytes");
        let keep = keep.min(bytes.len() - 1);
        prop_assert!(Frame::decode(&bytes[..keep]).is_err());
    }

    #[test]
    fn a_bent_byte_never_passes(place in 0..60_usize, change in 1..=255_u8) {
        let mut bytes = encoded(FrameKind::Data, 9, b"fourteen bytes");
        bytes[place] ^= change;
        prop_assert!(Frame::decode(&bytes).is_err());
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Frame::decode(&[b"ttfr\x01".as_slice(), &bytes].concat()).is_err());
    }
}
