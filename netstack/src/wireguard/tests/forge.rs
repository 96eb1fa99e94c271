//! What a forger can compute who knows public keys only. Called by the tests of `wireguard`.

use crate::key::NodePublic;

/// Makes the first MAC of an initiation good, as anyone can who knows the receiver's key.
pub(super) fn remac(initiation: &mut [u8], to: &NodePublic) {
    let key = blake2s(32, &[], &[b"mac1----".as_slice(), to.as_bytes()].concat());
    let mac = blake2s(16, &key, &initiation[..116]);
    initiation[116..132].copy_from_slice(&mac);
}

/// RFC 7693, for the forger's arithmetic.
fn blake2s(out_bytes: usize, key: &[u8], message: &[u8]) -> Vec<u8> {
    const IV: [u32; 8] = [
        0x6a09_e667,
        0xbb67_ae85,
        0x3c6e_f372,
        0xa54f_f53a,
        0x510e_527f,
        0x9b05_688c,
        0x1f83_d9ab,
        0x5be0_cd19,
    ];
    const SIGMA: [[usize; 16]; 10] = [
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
        [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
        [11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4],
        [7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8],
        [9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13],
        [2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9],
        [12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11],
        [13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10],
        [6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5],
        [10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0],
    ];
    const LANES: [[usize; 4]; 8] = [
        [0, 4, 8, 12],
        [1, 5, 9, 13],
        [2, 6, 10, 14],
        [3, 7, 11, 15],
        [0, 5, 10, 15],
        [1, 6, 11, 12],
        [2, 7, 8, 13],
        [3, 4, 9, 14],
    ];
    let mut state = IV;
    state[0] ^= 0x0101_0000 ^ u32::try_from(key.len() << 8 | out_bytes).unwrap();
    let mut input = Vec::new();
    if !key.is_empty() {
        input.extend_from_slice(key);
        input.resize(64, 0);
    }
    input.extend_from_slice(message);
    let blocks = input.chunks(64).count();
    for (at, block) in input.chunks(64).enumerate() {
        let last = at + 1 == blocks;
        let mut padded = [0_u8; 64];
        padded[..block.len()].copy_from_slice(block);
        let words: Vec<u32> = padded
            .as_chunks::<4>()
            .0
            .iter()
            .map(|word| u32::from_le_bytes(*word))
            .collect();
        let mut v = [0_u32; 16];
        v[..8].copy_from_slice(&state);
        v[8..].copy_from_slice(&IV);
        v[12] ^= u32::try_from(at * 64 + block.len()).unwrap();
        v[14] ^= if last { u32::MAX } else { 0 };
        for sigma in SIGMA {
            for (lane, [a, b, c, d]) in LANES.into_iter().enumerate() {
                for (word, turn_d, turn_b) in
                    [(sigma[2 * lane], 16, 12), (sigma[2 * lane + 1], 8, 7)]
                {
                    v[a] = v[a].wrapping_add(v[b]).wrapping_add(words[word]);
                    v[d] = (v[d] ^ v[a]).rotate_right(turn_d);
                    v[c] = v[c].wrapping_add(v[d]);
                    v[b] = (v[b] ^ v[c]).rotate_right(turn_b);
                }
            }
        }
        for (word, (low, high)) in state.iter_mut().zip(v[..8].iter().zip(&v[8..])) {
            *word ^= low ^ high;
        }
    }
    let bytes: Vec<u8> = state.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes[..out_bytes].to_vec()
}
