//! The id of an event: a ULID, made at receipt.
//!
//! Invariant: its text form, 26 characters of Crockford's base32, sorts as its time does and is safe in object names.
//! Randomness and time are arguments. Called by the store, which names events.

use std::fmt;
use std::str::FromStr;

use rand_core::{CryptoRng, RngCore};

use super::ParseIdError;

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

impl FromStr for EventId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let wrong = || ParseIdError::new("EventId", text);
        let chars = usize::try_from(CHARS).unwrap_or(usize::MAX);
        // 26 characters hold 130 bits: the first has three of them.
        if text.len() != chars || !text.starts_with(|first| ('0'..='7').contains(&first)) {
            return Err(wrong());
        }
        let mut id = 0_u128;
        for letter in text.bytes() {
            let digit = ALPHABET.iter().position(|known| *known == letter);
            let digit = digit.and_then(|digit| u128::try_from(digit).ok());
            id = (id << 5) | digit.ok_or_else(wrong)?;
        }
        Ok(Self(id))
    }
}

impl<'de> serde::Deserialize<'de> for EventId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
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

    #[test]
    fn an_id_survives_its_text_form_and_nothing_else_passes_for_one() {
        let mut rng = rand_chacha::ChaCha20Rng::seed_from_u64(2);
        for ms in [0, 1_469_918_176_385, MS_MAX] {
            let id = EventId::random(ms, &mut rng);
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        let zeros = "0".repeat(26);
        for wrong in [
            "",
            &zeros[1..],
            &zeros.replacen('0', "8", 1),
            &zeros.replacen("00", "0I", 1),
            &zeros.replacen("00", "0a", 1),
        ] {
            assert!(wrong.parse::<EventId>().is_err(), "{wrong}");
        }
    }
}
