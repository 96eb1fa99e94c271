//! The digests of one stored segment: whole, per block, and the root that a log commits to.
//!
//! Invariant: blocks are cut at multiples of [`BLOCK_BYTES`] of the stored bytes whatever pieces they come
//! in, so a range read can prove what it got. Called by the store's writer (making) and reader (proving).

use serde::{Deserialize, Serialize};
use sha2::Digest;

use super::hash::Sha256;

/// What a range read has to fetch at least, to prove any byte.
pub const BLOCK_BYTES: usize = 256 * 1024;

/// A SHA-256 that is lower-case hexadecimal in JSON.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct HexDigest(pub [u8; 32]);

/// The digests of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentDigests {
    /// The length of the stored bytes.
    pub stored_bytes: u64,
    /// SHA-256 of the stored bytes.
    pub sha256: HexDigest,
    /// SHA-256 of each block, in order; the last may be shorter.
    pub blocks: Vec<HexDigest>,
    /// The Merkle tree hash (RFC 6962 §2.1) whose leaves are the block digests.
    pub root: HexDigest,
}

/// The digests of a segment's blocks. Together with its length they say all that a digest of the whole says: no other bytes have them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockDigests {
    /// The length of the stored bytes.
    pub stored_bytes: u64,
    /// SHA-256 of each block, in order; the last may be shorter.
    pub blocks: Vec<HexDigest>,
}

impl BlockDigests {
    /// The digests of the segment, whose own is `sha256`.
    #[must_use]
    pub fn with_whole(self, sha256: [u8; 32]) -> SegmentDigests {
        let root = merkle_root(self.blocks.iter().map(|block| block.0.as_slice()));
        SegmentDigests {
            stored_bytes: self.stored_bytes,
            sha256: HexDigest(sha256),
            blocks: self.blocks,
            root: HexDigest(root),
        }
    }
}

/// Hashes a segment while it passes.
#[derive(Debug, Clone, Default)]
pub struct SegmentHasher {
    whole: Sha256,
    blocks: BlockHasher,
}

impl SegmentHasher {
    /// Takes the next stored bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.whole.update(bytes);
        self.blocks.update(bytes);
    }

    /// Ends the segment.
    pub fn finish(self) -> SegmentDigests {
        self.blocks.finish().with_whole(self.whole.finalize())
    }
}

/// Hashes the blocks of a segment alone.
#[derive(Debug, Clone, Default)]
pub struct BlockHasher {
    block: Sha256,
    block_bytes: usize,
    stored_bytes: u64,
    blocks: Vec<HexDigest>,
}

impl BlockHasher {
    /// Takes the next stored bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = BLOCK_BYTES.saturating_sub(self.block_bytes);
            let (piece, behind) = rest.split_at_checked(room).unwrap_or((rest, &[]));
            self.block.update(piece);
            self.block_bytes = self.block_bytes.saturating_add(piece.len());
            rest = behind;
            if self.block_bytes == BLOCK_BYTES {
                self.close_block();
            }
        }
        let added = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.stored_bytes = self.stored_bytes.saturating_add(added);
    }

    /// Ends the segment.
    pub fn finish(mut self) -> BlockDigests {
        if self.block_bytes > 0 {
            self.close_block();
        }
        BlockDigests {
            stored_bytes: self.stored_bytes,
            blocks: self.blocks,
        }
    }

    fn close_block(&mut self) {
        self.blocks
            .push(HexDigest(std::mem::take(&mut self.block).finalize()));
        self.block_bytes = 0;
    }
}

/// The Merkle tree hash of RFC 6962 §2.1.
pub fn merkle_root<'a>(leaves: impl Iterator<Item = &'a [u8]>) -> [u8; 32] {
    // The roots of full subtrees, largest first, with their heights: the binary digits of the leaf count.
    let mut subtrees: Vec<(u32, [u8; 32])> = Vec::new();
    for leaf in leaves {
        let mut hash: [u8; 32] = sha2::Sha256::new_with_prefix([0])
            .chain_update(leaf)
            .finalize()
            .into();
        let mut height = 0;
        while let Some((left_height, left)) = subtrees.pop() {
            if left_height != height {
                subtrees.push((left_height, left));
                break;
            }
            hash = node(&left, &hash);
            height = height.saturating_add(1);
        }
        subtrees.push((height, hash));
    }
    let joined = subtrees.into_iter().map(|(_, hash)| hash).rev();
    joined
        .reduce(|right, left| node(&left, &right))
        .unwrap_or_else(|| Sha256::digest(&[]))
}

fn node(left: &[u8; 32], right: &[u8; 32]) -> [u8; 32] {
    sha2::Sha256::new_with_prefix([1])
        .chain_update(left)
        .chain_update(right)
        .finalize()
        .into()
}

impl std::fmt::Display for HexDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for HexDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for HexDigest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HexDigest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        parse_hex(&text)
            .map(Self)
            .ok_or_else(|| serde::de::Error::custom("not a SHA-256 in lower-case hexadecimal"))
    }
}

fn parse_hex(text: &str) -> Option<[u8; 32]> {
    let digits: &[u8; 64] = text.as_bytes().try_into().ok()?;
    let (pairs, _) = digits.as_chunks::<2>();
    let mut bytes = [0; 32];
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = (hex_value(*high)? << 4) | hex_value(*low)?;
    }
    Some(bytes)
}

const fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_root_agrees_with_the_vectors_of_certificate_transparency() {
        let leaves: [&[u8]; 8] = [
            b"",
            b"\x00",
            b"\x10",
            b"\x20\x21",
            b"\x30\x31",
            b"\x40\x41\x42\x43",
            b"\x50\x51\x52\x53\x54\x55\x56\x57",
            b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
        ];
        let roots = [
            (
                0,
                "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            ),
            (
                1,
                "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            ),
            (
                2,
                "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            ),
            (
                3,
                "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            ),
            (
                7,
                "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
            ),
            (
                8,
                "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
            ),
        ];
        for (count, root) in roots {
            assert_eq!(
                HexDigest(merkle_root(leaves.into_iter().take(count))).to_string(),
                root,
                "{count} leaves"
            );
        }
    }

    #[test]
    fn a_block_ends_at_256_kib_and_the_last_may_be_shorter() {
        let mut hasher = SegmentHasher::default();
        hasher.update(&vec![0; BLOCK_BYTES]);
        assert_eq!(hasher.clone().finish().blocks.len(), 1);
        hasher.update(b"x");
        let digests = hasher.finish();
        assert_eq!(digests.blocks.len(), 2);
        assert_eq!(digests.blocks[1], HexDigest(Sha256::digest(b"x")));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]
        #[test]
        fn the_digests_do_not_depend_on_the_pieces(cuts in proptest::collection::vec(0..600_000_usize, 0..5)) {
            let bytes: Vec<u8> = (0..600_000_u32).map(|n| (n / 251).to_le_bytes()[0]).collect();
            let mut once = SegmentHasher::default();
            once.update(&bytes);
            let mut cuts = cuts;
            cuts.sort_unstable();
            let mut pieces = SegmentHasher::default();
            let mut from = 0;
            for cut in cuts.into_iter().chain([bytes.len()]) {
                pieces.update(&bytes[from..cut]);
                from = cut;
            }
            prop_assert_eq!(pieces.finish(), once.finish());
        }
    }
}
