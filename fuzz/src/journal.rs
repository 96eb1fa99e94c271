//! What the store reads back: frames, journal objects, manifests, packed bytes.
//!
//! Seeds: the vectors that `tests/vectors/journal.py` made, whole and in parts.

use sha2::{Digest, Sha256};
use tailtape::recording::compression::{Compressor, unpack as unpack_to};
use tailtape::recording::frame::{
    self, FRAME_CHECK_BYTES, FRAME_HEADER_BYTES, FRAME_OVERHEAD_BYTES, FRAME_PLAIN_BYTES_MAX, Frame,
};
use tailtape::recording::journal_object::{
    JournalObject, OBJECT_HEADER_BYTES, OBJECT_TRAILER_BYTES, ObjectWriter, digest_of,
};
use tailtape::recording::manifest::Manifest;

use super::script::Script;

/// The bytes are a frame; and then the same with its length and check put right.
pub fn journal_frame(data: &[u8]) {
    check_frame(data);
    check_frame(&mended_frame(data));
}

fn check_frame(bytes: &[u8]) {
    let Ok((frame, rest)) = Frame::decode(bytes) else {
        return;
    };
    let taken = bytes
        .len()
        .checked_sub(rest.len())
        .expect("the rest is a part");
    assert!(taken >= FRAME_OVERHEAD_BYTES && bytes.ends_with(rest));
    let plain_bytes = usize::try_from(frame.plain_bytes()).unwrap_or(usize::MAX);
    assert!(plain_bytes <= FRAME_PLAIN_BYTES_MAX);
    let Ok(plain) = frame.plain() else { return };
    assert_eq!(plain.len(), plain_bytes);
    let mut again = Vec::new();
    let encoded = frame::encode(
        &mut again,
        None,
        frame.kind,
        frame.recording,
        frame.offset,
        &plain,
    );
    encoded.expect("what was decoded is within the limits");
    // What is stored plain has one form only; what is packed has many.
    if matches!(plain, std::borrow::Cow::Borrowed(_)) {
        assert_eq!(bytes.get(..taken), Some(again.as_slice()));
    }
    let (unpacked, nothing) = Frame::decode(&again).expect("we read what we write");
    assert!(nothing.is_empty());
    assert_eq!(unpacked.plain().ok(), Some(plain));
}

/// Header and content as they come; stored length and check as they should be.
fn mended_frame(data: &[u8]) -> Vec<u8> {
    let mut bytes = data.to_vec();
    bytes.resize(data.len().max(FRAME_HEADER_BYTES), 0);
    let stored = bytes.len() - FRAME_HEADER_BYTES;
    let stored = u32::try_from(stored).unwrap_or(u32::MAX).to_be_bytes();
    for (to, from) in bytes.iter_mut().skip(FRAME_HEADER_BYTES - 4).zip(stored) {
        *to = from;
    }
    let digest: [u8; 32] = Sha256::digest(&bytes).into();
    bytes.extend(digest.iter().take(FRAME_CHECK_BYTES));
    bytes
}

/// The bytes are an object; and then a header and frames, all of whose lengths, checks and digests
/// are put right.
pub fn journal_object(data: &[u8]) {
    check_object(data);
    let mut script = Script::new(data);
    let mut head = script.array::<OBJECT_HEADER_BYTES>();
    let mut frames = Vec::new();
    while script.step().is_some() {
        frames.extend(mended_frame(script.piece()));
    }
    let length = u32::try_from(frames.len())
        .unwrap_or(u32::MAX)
        .to_be_bytes();
    for (to, from) in head.iter_mut().skip(OBJECT_HEADER_BYTES - 4).zip(length) {
        *to = from;
    }
    let mut object = [head.as_slice(), &frames].concat();
    let trailer: [u8; OBJECT_TRAILER_BYTES] = Sha256::digest(&object).into();
    object.extend_from_slice(&trailer);
    check_object(&object);
}

fn check_object(bytes: &[u8]) {
    let Ok(object) = JournalObject::decode(bytes) else {
        return;
    };
    let mut writer = ObjectWriter::new(&object.header);
    let (mut whole, mut canonical) = (true, true);
    for frame in object.frames() {
        assert!(whole, "the walk goes on after an error");
        let Ok(frame) = frame else {
            whole = false;
            continue;
        };
        let Ok(plain) = frame.plain() else {
            canonical = false;
            continue;
        };
        canonical &= matches!(plain, std::borrow::Cow::Borrowed(_));
        let pushed = writer.push(None, frame.kind, frame.recording, frame.offset, &plain);
        canonical &= pushed.is_ok();
    }
    if whole && canonical {
        let (again, digest) = writer.finish();
        assert_eq!(again, bytes);
        assert_eq!(digest, digest_of(bytes));
    }
}

/// The bytes are a manifest.
pub fn manifest_json(data: &[u8]) {
    let Ok(manifest) = Manifest::decode(data) else {
        return;
    };
    let bytes = manifest.encode().expect("what was JSON has a JSON form");
    let again = Manifest::decode(&bytes).expect("we read what we write");
    assert_eq!(again, manifest);
    assert_eq!(again.encode().ok(), Some(bytes));
    let end: u64 = again
        .segments
        .iter()
        .map(|segment| segment.plain_bytes)
        .sum();
    assert_eq!(end, again.bytes);
}

/// Three bytes are the length that was declared; the rest is packed, or is packed here first.
pub fn unpack(data: &[u8]) {
    let mut script = Script::new(data);
    let [low, middle, high] = script.array();
    let declared = u32::from_le_bytes([low, middle, high & 7, 0]);
    let declared = usize::try_from(declared).unwrap_or(0);
    let packed = script.rest();
    if let Ok(plain) = unpack_to(packed, declared) {
        assert_eq!(plain.len(), declared);
        assert!(plain.capacity() <= declared, "more than was declared");
    }
    let plain = packed.repeat(usize::from(high) + 1);
    let mut compressor = Compressor::new().expect("there is memory");
    if let Some(packed) = compressor.compress(&plain) {
        assert!(packed.len() < plain.len());
        assert_eq!(unpack_to(&packed, plain.len()).ok().as_ref(), Some(&plain));
        assert!(unpack_to(&packed, plain.len() - 1).is_err());
        assert!(unpack_to(&packed, plain.len() + 1).is_err());
    }
}
