//! The id of an event: a ULID, made at receipt.
//!
//! Invariant: its text form, 26 characters of Crockford's base32, sorts as its time does and is safe in object names.
//! Randomness and time are arguments. Called by the store, which names events.

use std::fmt;

use rand_core::{CryptoRng, RngCore};

/// Crockford's base32: no I, L, O, U.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const CHARS: u32 = 26;
const RANDOM_BITS: u32 = 80;
/// 48 bits of milliseconds last until the year 10889.
const MS_MAX: u64 = (1 << 48) - 1;

/// One event: 48 bits of milliseconds since 1970, 80 random bits (<https://github.com/ulid/spec>).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId(u128);

impl EventId {
    /// Draws the id of an event that came at `received_ms`, milliseconds since 1970 (clamped to 48 bits).
    pub fn random(received_ms: u64, rng: &mut (impl RngCore + CryptoRng)) -> Self {
        let mut random = [0; 16];
        rng.fill_bytes(&mut random);
        let random = u128::from_be_bytes(random) >> (u128::BITS - RANDOM_BITS);
        Self((u128::from(received_ms.min(MS_MAX)) << RANDOM_BITS) | random)
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = (0..CHARS).rev().map(|place| (self.0 >> (place * 5)) & 31);
        for digit in digits {
            let digit = usize::try_from(digit).unwrap_or_default();
            let letter = ALPHABET.get(digit).copied().unwrap_or(b'0');
            fmt::Write::write_char(f, char::from(letter))?;
        }
        Ok(())
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EventId({self})")
    }
}

impl serde::Serialize for EventId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use rand_core::SeedableRng;

    use super::*;

    #[test]
    fn the_time_stands_in_front_as_in_the_specifications_example() {
        // The README of github.com/ulid/javascript: ulid(1469918176385) is 01ARYZ6S41…
        let mut rng = rand_chacha::ChaCha20Rng::seed_from_u64(1);
        let id = EventId::random(1_469_918_176_385, &mut rng).to_string();
        assert_eq!(id.len(), 26);
        assert!(id.starts_with("01ARYZ6S41"), "{id}");
    }

    #[test]
    fn ids_sort_as_their_times_do_and_differ_within_one_millisecond() {
        let mut rng = rand_chacha::ChaCha20Rng::seed_from_u64(2);
        let first = EventId::random(1000, &mut rng);
        let second = EventId::random(1000, &mut rng);
        let later = EventId::random(1001, &mut rng);
        assert_ne!(first.to_string(), second.to_string());
        assert!(first.to_string() < later.to_string() && second.to_string() < later.to_string());
    }

    #[test]
    fn the_largest_value_has_the_specifications_text() {
        assert_eq!(EventId(u128::MAX).to_string(), "7ZZZZZZZZZZZZZZZZZZZZZZZZZ");
    }
}
