//! The seed with which smoltcp chooses a given initial sequence number next.
//!
//! A stack that takes a connection over must go on with its numbers, and smoltcp offers no way to say so: a socket asks its interface's
//! generator. The generator is public knowledge (sPCG32, seeded by `Config::random_seed`, one step in `Interface::new`), so it is run
//! backwards here. Invariant: nobody relies on the result; [`super::rebuild`] compares what was chosen and gives up if it is another.

/// Multiplier and increment of the generator; `INVERSE * MULTIPLIER` is 1.
const MULTIPLIER: u64 = 0xbb2e_fcec_3c39_611d;
const INCREMENT: u64 = 0x7590_ef39;
const INVERSE: u64 = inverse(MULTIPLIER);
/// Steps that `Interface::new` takes itself: the first IPv4 identification.
const STEPS_BEFORE: u32 = 1;
/// With the highest three bits clear, the output is what lies above this bit.
const OUTPUT_SHIFT: u32 = 29;

/// The seed of an interface whose first socket gets `sequence`. There are many: `salt` chooses among them.
pub(super) fn seed_for(sequence: u32, salt: u32) -> u64 {
    let state =
        (u64::from(sequence) << OUTPUT_SHIFT) | u64::from(salt >> (u32::BITS - OUTPUT_SHIFT));
    (0..=STEPS_BEFORE).fold(state, |state, _| {
        state.wrapping_sub(INCREMENT).wrapping_mul(INVERSE)
    })
}

/// The inverse of an odd number modulo 2^64, by Newton's iteration: each step doubles the bits that are right, and three are at first.
const fn inverse(odd: u64) -> u64 {
    let mut found = odd;
    let mut bits = 3;
    while bits < u64::BITS {
        found = found.wrapping_mul(2_u64.wrapping_sub(odd.wrapping_mul(found)));
        bits *= 2;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inverse_undoes_the_multiplier() {
        assert_eq!(MULTIPLIER.wrapping_mul(INVERSE), 1);
    }

    #[test]
    fn a_generator_that_starts_from_the_seed_reaches_the_number() {
        for sequence in [0, 1, 7, 0x8000_0000, 0xdead_beef, u32::MAX] {
            for salt in [0, 1 << 3, u32::MAX] {
                let mut state = seed_for(sequence, salt);
                for _ in 0..=STEPS_BEFORE {
                    state = state.wrapping_mul(MULTIPLIER).wrapping_add(INCREMENT);
                }
                assert_eq!(state >> 61, 0);
                assert_eq!(state >> OUTPUT_SHIFT, u64::from(sequence));
            }
        }
    }
}
