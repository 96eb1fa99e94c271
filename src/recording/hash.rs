//! SHA-256 of what uploads bring: in one go, or to be put down and taken up again, since a long recording is hashed over the
//! lives of several recorders.
//!
//! Invariants: for any cut of the input, and any number of saves in between, the digest is that of FIPS 180-4 (the `sha2`
//! crate's compression, our padding); every byte of an upload that is hashed passes here, so that a test can count them. Called by
//! frames, journal objects, segments, the parser and the store's writer.

use serde::{Deserialize, Serialize};
use sha2::{Digest, compress256};

const BLOCK_BYTES: usize = 64;
/// The initial chaining value (FIPS 180-4 §5.3.3).
const INITIAL: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// SHA-256 in one go.
#[derive(Debug, Clone, Default)]
pub struct Sha256(sha2::Sha256);

impl Sha256 {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        count(bytes);
        self.0.update(bytes);
    }

    /// The digest of what was taken.
    #[must_use]
    pub fn finalize(self) -> [u8; 32] {
        self.0.finalize().into()
    }

    /// The digest of `bytes`.
    #[must_use]
    pub fn digest(bytes: &[u8]) -> [u8; 32] {
        let mut hash = Self::default();
        hash.update(bytes);
        hash.finalize()
    }
}

/// A hash under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResumableSha256 {
    chaining: [u32; 8],
    /// The bytes behind the last whole block; `length` says how many of them count.
    pending: [u8; BLOCK_BYTES],
    length: u64,
}

/// A hash put down: JSON in a cut record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedHash {
    /// The chaining value behind the last whole block.
    pub chaining: [u32; 8],
    /// The bytes behind it, less than a block.
    pub pending: Vec<u8>,
    /// How many bytes were hashed in all.
    pub length: u64,
}

impl Default for ResumableSha256 {
    fn default() -> Self {
        Self {
            chaining: INITIAL,
            pending: [0; BLOCK_BYTES],
            length: 0,
        }
    }
}

impl ResumableSha256 {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        count(bytes);
        let held = self.held();
        self.length = self
            .length
            .saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        let room = BLOCK_BYTES.saturating_sub(held);
        let (head, rest) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
        if let Some(place) = self.pending.get_mut(held..held.saturating_add(head.len())) {
            place.copy_from_slice(head);
        }
        if head.len() < room {
            return;
        }
        compress(&mut self.chaining, &self.pending);
        let (blocks, tail) = rest.as_chunks::<BLOCK_BYTES>();
        for block in blocks {
            compress(&mut self.chaining, block);
        }
        if let Some(place) = self.pending.get_mut(..tail.len()) {
            place.copy_from_slice(tail);
        }
    }

    /// Whether nothing was taken yet.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The digest of what was taken so far.
    #[must_use]
    pub fn finalize(mut self) -> [u8; 32] {
        let bits = self.length.saturating_mul(8);
        let zeros = (BLOCK_BYTES * 2 - 9).saturating_sub(self.held()) % BLOCK_BYTES;
        let mut padding = [0; BLOCK_BYTES * 2];
        if let Some(first) = padding.first_mut() {
            *first = 0x80;
        }
        let end = zeros.saturating_add(9);
        if let Some(place) = padding.get_mut(zeros.saturating_add(1)..end) {
            place.copy_from_slice(&bits.to_be_bytes());
        }
        self.update(padding.get(..end).unwrap_or_default());
        let mut digest = [0; 32];
        for (place, word) in digest.as_chunks_mut::<4>().0.iter_mut().zip(self.chaining) {
            *place = word.to_be_bytes();
        }
        digest
    }

    /// Puts it down.
    #[must_use]
    pub fn save(&self) -> SavedHash {
        SavedHash {
            chaining: self.chaining,
            pending: self.pending.get(..self.held()).unwrap_or_default().to_vec(),
            length: self.length,
        }
    }

    /// Takes it up; `None` when the saved parts contradict one another.
    #[must_use]
    pub fn resume(saved: &SavedHash) -> Option<Self> {
        let mut hash = Self {
            chaining: saved.chaining,
            pending: [0; BLOCK_BYTES],
            length: saved.length,
        };
        if saved.pending.len() != hash.held() {
            return None;
        }
        hash.pending
            .get_mut(..saved.pending.len())?
            .copy_from_slice(&saved.pending);
        Some(hash)
    }

    fn held(&self) -> usize {
        // Below 64, so it fits.
        usize::try_from(self.length % 64).unwrap_or_default()
    }
}

/// Hashing is a large part of what an upload costs: tests count it, per byte of the upload.
#[cfg(not(test))]
const fn count(_: &[u8]) {}

#[cfg(test)]
thread_local! {
    static HASHED_BYTES: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

#[cfg(test)]
fn count(bytes: &[u8]) {
    HASHED_BYTES.with(|hashed| hashed.set(hashed.get() + bytes.len() as u64));
}

/// How many bytes were hashed by this thread.
#[cfg(test)]
pub(crate) fn hashed_bytes() -> u64 {
    HASHED_BYTES.with(std::cell::Cell::get)
}

fn compress(chaining: &mut [u32; 8], block: &[u8; BLOCK_BYTES]) {
    compress256(chaining, std::slice::from_ref(block.into()));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sha2::Sha256;

    use super::*;

    #[test]
    fn every_length_around_the_blocks_agrees_with_sha2() {
        let bytes: Vec<u8> = (0..=255).cycle().take(300).collect();
        for length in 0..bytes.len() {
            let mut hash = ResumableSha256::default();
            hash.update(&bytes[..length]);
            let expected: [u8; 32] = Sha256::digest(&bytes[..length]).into();
            assert_eq!(hash.finalize(), expected, "{length}");
        }
    }

    #[test]
    fn a_saved_hash_has_the_form_of_the_format_document() {
        let mut hash = ResumableSha256::default();
        hash.update(b"ab");
        let text = serde_json::to_string(&hash.save()).unwrap();
        assert_eq!(
            text,
            r#"{"chaining":[1779033703,3144134277,1013904242,2773480762,1359893119,2600822924,528734635,1541459225],"pending":[97,98],"length":2}"#
        );
        let saved: SavedHash = serde_json::from_str(&text).unwrap();
        assert_eq!(ResumableSha256::resume(&saved), Some(hash));
        for wrong in [0, 1, 3, 64] {
            let bent = SavedHash {
                length: wrong,
                ..saved.clone()
            };
            assert_eq!(ResumableSha256::resume(&bent), None);
        }
    }

    proptest! {
        #[test]
        fn a_hash_put_down_anywhere_goes_on_as_if_it_had_not_been(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..8)) {
            let mut hash = ResumableSha256::default();
            for piece in &pieces {
                hash.update(piece);
                hash = ResumableSha256::resume(&hash.save()).unwrap();
            }
            let expected: [u8; 32] = Sha256::digest(pieces.concat()).into();
            prop_assert_eq!(hash.finalize(), expected);
        }
    }
}
