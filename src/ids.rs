//! The ids and units that cross rooms: no bare integer or string does.
//!
//! Invariant: a value of these types is well-formed, and its text form (lower-case RFC 4648 base32
//! without padding, or digits) is safe in object names. Randomness is an argument. Called by every room.

mod event_id;

use std::fmt;
use std::str::FromStr;

use rand_core::{CryptoRng, RngCore};
use sha2::{Digest, Sha256};
use thiserror::Error;

pub use event_id::EventId;

/// The largest millisecond count that 13 decimal digits hold (the year 2286); epochs sort as text up to it.
const EPOCH_MS_MAX: u64 = 9_999_999_999_999;
const EPOCH_MS_DIGITS: usize = 13;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{text:?} is not a {kind}")]
pub struct ParseIdError {
    kind: &'static str,
    text: String,
}

impl ParseIdError {
    fn new(kind: &'static str, text: &str) -> Self {
        // An id has at most 40 characters: what is longer is not worth keeping.
        let text = text.chars().take(64).collect();
        Self { kind, text }
    }
}

/// Declares an id of `$bytes` bytes whose text form is `$chars` base32 characters.
macro_rules! base32_id {
    ($(#[$doc:meta])* $name:ident, $bytes:literal, $chars:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; $bytes]);

        impl $name {
            /// The length of the binary form.
            pub const BYTES: usize = $bytes;
            /// The length of the text form.
            pub const CHARS: usize = $chars;

            /// Takes the binary form; every value is one.
            pub const fn from_bytes(bytes: [u8; $bytes]) -> Self {
                Self(bytes)
            }

            /// The binary form.
            pub const fn as_bytes(&self) -> &[u8; $bytes] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&base32(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                base32_decode(text)
                    .map(Self)
                    .ok_or_else(|| ParseIdError::new(stringify!($name), text))
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

/// Declares such an id that is drawn at random.
macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident, $bytes:literal, $chars:literal) => {
        base32_id! { $(#[$doc])* $name, $bytes, $chars }

        impl $name {
            /// Draws a new one.
            pub fn random(rng: &mut (impl RngCore + CryptoRng)) -> Self {
                let mut bytes = [0; $bytes];
                rng.fill_bytes(&mut bytes);
                Self(bytes)
            }
        }
    };
}

random_id! {
    /// One recording: 80 random bits, 16 characters. Made when the upload opens.
    RecordingId, 10, 16
}
random_id! {
    /// One attempt to seal a recording: 40 random bits, 8 characters; keeps the names of two attempts apart.
    AttemptId, 5, 8
}
random_id! {
    /// One store (bucket or directory): 128 random bits, 26 characters, made once.
    StoreId, 16, 26
}

base32_id! {
    /// The public key (Ed25519) of a recorder's log, 52 characters: in every opener, so that the log can be checked.
    LogKey, 32, 52
}

/// A position in the plain stream of one recording, in bytes from its start.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(transparent)]
pub struct StreamOffset(pub u64);

impl fmt::Display for StreamOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The place of one journal object in its epoch's chain: dense from 0.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(transparent)]
pub struct JournalNumber(pub u64);

impl JournalNumber {
    /// The opener of an epoch.
    pub const OPENER: Self = Self(0);

    /// The number that follows.
    #[must_use]
    pub const fn next(self) -> Self {
        // 2^64 commits at one a millisecond are half a billion years.
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for JournalNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One recorder: the first 26 base32 characters of the SHA-256 of its log's public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecorderId([u8; Self::CHARS]);

impl RecorderId {
    /// The length of the text form, which is also its form in a journal object.
    pub const CHARS: usize = 26;

    /// The id that belongs to a log's public key.
    pub fn from_log_key(public_key: &[u8]) -> Self {
        let text = base32(&Sha256::digest(public_key));
        let mut chars = [b'a'; Self::CHARS];
        for (to, from) in chars.iter_mut().zip(text.bytes()) {
            *to = from;
        }
        Self(chars)
    }

    /// The text form.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// The text form as bytes.
    pub const fn as_bytes(&self) -> &[u8; Self::CHARS] {
        &self.0
    }

    /// Takes the text form as bytes; `None` unless every one is of the base32 alphabet.
    pub fn from_bytes(chars: [u8; Self::CHARS]) -> Option<Self> {
        let all_base32 = chars.iter().all(|char| base32_value(*char).is_some());
        all_base32.then_some(Self(chars))
    }
}

impl fmt::Display for RecorderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for RecorderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecorderId({self})")
    }
}

impl FromStr for RecorderId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        <[u8; Self::CHARS]>::try_from(text.as_bytes())
            .ok()
            .and_then(Self::from_bytes)
            .ok_or_else(|| ParseIdError::new("RecorderId", text))
    }
}

impl serde::Serialize for RecorderId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> serde::Deserialize<'de> for RecorderId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// One life of a recorder's journal: a millisecond prefix, so that epochs sort, and 128 random bits. Never reused.
///
/// Text form: 13 digits, `-`, 26 base32 characters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EpochId {
    started_ms: u64,
    random: [u8; 16],
}

impl EpochId {
    /// The length of the binary form: milliseconds (u64, big-endian), then the random bits.
    pub const BYTES: usize = 24;

    /// Draws an epoch that starts at `started_ms`, milliseconds since 1970 (clamped to 13 digits).
    pub fn random(started_ms: u64, rng: &mut (impl RngCore + CryptoRng)) -> Self {
        let mut random = [0; 16];
        rng.fill_bytes(&mut random);
        let started_ms = started_ms.min(EPOCH_MS_MAX);
        Self { started_ms, random }
    }

    /// Takes the binary form; `None` if the milliseconds exceed 13 digits.
    pub fn from_parts(started_ms: u64, random: [u8; 16]) -> Option<Self> {
        (started_ms <= EPOCH_MS_MAX).then_some(Self { started_ms, random })
    }

    /// When the epoch began by its recorder's clock, milliseconds since 1970: a label, never an order.
    pub const fn started_ms(&self) -> u64 {
        self.started_ms
    }

    /// The random bits.
    pub const fn random_bits(&self) -> &[u8; 16] {
        &self.random
    }
}

impl fmt::Display for EpochId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:0width$}-{}",
            self.started_ms,
            base32(&self.random),
            width = EPOCH_MS_DIGITS
        )
    }
}

impl fmt::Debug for EpochId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EpochId({self})")
    }
}

impl FromStr for EpochId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let wrong = || ParseIdError::new("EpochId", text);
        let (digits, random) = text.split_once('-').ok_or_else(wrong)?;
        let well_formed =
            digits.len() == EPOCH_MS_DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
        if !well_formed {
            return Err(wrong());
        }
        let started_ms = digits.parse().map_err(|_| wrong())?;
        let random = base32_decode(random).ok_or_else(wrong)?;
        Ok(Self { started_ms, random })
    }
}

impl serde::Serialize for EpochId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for EpochId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Lower-case base32 (RFC 4648 §6) without padding.
fn base32(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().saturating_mul(8).div_ceil(5));
    let mut bits: u16 = 0;
    let mut bits_held = 0;
    for byte in bytes {
        bits = (bits << 8) | u16::from(*byte);
        bits_held += 8;
        while bits_held >= 5 {
            bits_held -= 5;
            text.push(base32_char(bits >> bits_held));
            bits &= (1 << bits_held) - 1;
        }
    }
    if bits_held > 0 {
        text.push(base32_char(bits << (5 - bits_held)));
    }
    text
}

/// The exact reverse: `None` for a wrong length, a foreign character, or padding bits that are not 0.
fn base32_decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != N.saturating_mul(8).div_ceil(5) {
        return None;
    }
    let mut bytes = [0; N];
    let mut places = bytes.iter_mut();
    let mut bits: u16 = 0;
    let mut bits_held = 0;
    for char in text.bytes() {
        bits = (bits << 5) | u16::from(base32_value(char)?);
        bits_held += 5;
        if bits_held >= 8 {
            bits_held -= 8;
            *places.next()? = u8::try_from(bits >> bits_held).ok()?;
            bits &= (1 << bits_held) - 1;
        }
    }
    (bits == 0).then_some(bytes)
}

fn base32_char(value: u16) -> char {
    match u8::try_from(value & 31).unwrap_or_default() {
        letter @ 0..=25 => char::from(b'a' + letter),
        digit => char::from(b'2' + (digit - 26)),
    }
}

fn base32_value(char: u8) -> Option<u8> {
    match char {
        b'a'..=b'z' => Some(char - b'a'),
        b'2'..=b'7' => Some(char - b'2' + 26),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    use super::*;

    #[test]
    fn base32_agrees_with_the_vectors_of_rfc_4648() {
        let vectors = [
            ("", ""),
            ("f", "my"),
            ("fo", "mzxq"),
            ("foo", "mzxw6"),
            ("foob", "mzxw6yq"),
            ("fooba", "mzxw6ytb"),
            ("foobar", "mzxw6ytboi"),
        ];
        for (plain, text) in vectors {
            assert_eq!(base32(plain.as_bytes()), text);
        }
        assert_eq!(base32_decode::<6>("mzxw6ytboi"), Some(*b"foobar"));
    }

    #[test]
    fn a_recorder_id_is_the_head_of_the_digest_of_its_key() {
        // python3: base64.b32encode(hashlib.sha256(b"key").digest()).lower()[:26]
        let id = RecorderId::from_log_key(b"key");
        assert_eq!(id.as_str(), "fryock32azdpsitz6qt4pm4oom");
        assert_eq!(id.as_str().parse(), Ok(id));
    }

    #[test]
    fn padding_bits_and_capitals_are_refused() {
        assert!("mzxw6ytboimzxw6y".parse::<RecordingId>().is_ok());
        assert!("MZXW6YTBOIMZXW6Y".parse::<RecordingId>().is_err());
        assert!("aaaaaaaaaaaaaaaaaaaaaaaaab".parse::<StoreId>().is_err());
        assert!(
            "1764000000000-aaaaaaaaaaaaaaaaaaaaaaaaaa"
                .parse::<EpochId>()
                .is_ok()
        );
        assert!(
            "+764000000000-aaaaaaaaaaaaaaaaaaaaaaaaaa"
                .parse::<EpochId>()
                .is_err()
        );
    }

    #[test]
    fn the_same_seed_draws_the_same_ids_and_another_draws_others() {
        let draw = |seed| RecordingId::random(&mut ChaCha20Rng::seed_from_u64(seed));
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert_eq!(draw(1).to_string().len(), RecordingId::CHARS);
    }

    proptest! {
        #[test]
        fn every_id_survives_its_text_form(bytes: [u8; 10], random: [u8; 16], ms in 0..=EPOCH_MS_MAX) {
            let recording = RecordingId::from_bytes(bytes);
            prop_assert_eq!(recording.to_string().parse(), Ok(recording));
            let store = StoreId::from_bytes(random);
            prop_assert_eq!(store.to_string().parse(), Ok(store));
            let epoch = EpochId::from_parts(ms, random).unwrap();
            prop_assert_eq!(epoch.to_string().parse(), Ok(epoch));
        }

        #[test]
        fn no_text_makes_a_parser_panic(text in ".*") {
            prop_assert!(text.parse::<RecordingId>().is_err() || text.len() == RecordingId::CHARS);
            prop_assert!(text.parse::<EpochId>().is_err() || text.len() == 40);
            prop_assert!(text.parse::<RecorderId>().is_err() || text.len() == RecorderId::CHARS);
        }
    }
}
