//! Machine, node and disco keys as distinct types, with the text forms that control speaks.
//!
//! Invariant: private halves are wiped on drop and never appear in `Debug`, and no private kind
//! can be passed where another is meant. Called by every room of this crate.
//!
//! ```text
//! mkey:<64 hex>      machine public      privkey:<64 hex>   machine or node private
//! nodekey:<64 hex>   node public         discokey:<64 hex>  disco public (private never serialised)
//! ```
//!
//! Source: tailscale.com `types/key`; hex is lower case on output, either case on input.

use std::fmt;
use std::str::FromStr;

use rand_core::{CryptoRng, RngCore};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

/// A key's text form could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text does not begin with the prefix of the wanted kind.
    #[error("key text does not begin with {expected:?}")]
    Prefix {
        /// The prefix of the kind that was asked for.
        expected: &'static str,
    },
    /// What follows the prefix is not exactly 64 hex digits.
    #[error("key text does not hold exactly 64 hex digits after its prefix")]
    Hex,
}

fn parse_hex32(prefix: &'static str, text: &str) -> Result<[u8; 32], KeyError> {
    let digits = text
        .strip_prefix(prefix)
        .ok_or(KeyError::Prefix { expected: prefix })?;
    decode_hex32(digits).ok_or(KeyError::Hex)
}

fn decode_hex32(digits: &str) -> Option<[u8; 32]> {
    let mut out = [0_u8; 32];
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    if pairs.len() != out.len() || !rest.is_empty() {
        return None;
    }
    for (byte, [high, low]) in out.iter_mut().zip(pairs) {
        *byte = hex_value(*high)? << 4 | hex_value(*low)?;
    }
    Some(out)
}

fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

fn write_hex(out: &mut impl fmt::Write, bytes: &[u8]) -> fmt::Result {
    for byte in bytes {
        write!(out, "{byte:02x}")?;
    }
    Ok(())
}

macro_rules! public_key {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name([u8; 32]);

        impl $name {
            /// The prefix of the text form, colon included.
            pub const PREFIX: &'static str = $prefix;

            /// Takes the 32 raw bytes of an X25519 public key.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The 32 raw bytes.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// Whether this is the all-zero key, by which Go peers say "none".
            pub fn is_zero(&self) -> bool {
                self.0 == [0; 32]
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str($prefix)?;
                write_hex(f, &self.0)
            }
        }

        /// The short form of Tailscale's logs: `[` + first 5 characters of base64 + `]`.
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                use base64::Engine as _;
                let text = base64::engine::general_purpose::STANDARD.encode(self.0);
                write!(f, "[{}]", text.get(..5).unwrap_or_default())
            }
        }

        impl FromStr for $name {
            type Err = KeyError;

            fn from_str(text: &str) -> Result<Self, KeyError> {
                parse_hex32($prefix, text).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    };
}

public_key! {
    /// Identifies a device to control; also the type of the control server's own Noise key.
    MachinePublic, "mkey:"
}
public_key! {
    /// Identifies a node: its WireGuard static key and its name on DERP.
    NodePublic, "nodekey:"
}
public_key! {
    /// Published in the netmap; seals disco messages. New at each process start.
    DiscoPublic, "discokey:"
}

macro_rules! private_key {
    ($(#[$doc:meta])* $name:ident, $public:ident) => {
        $(#[$doc])*
        #[derive(Clone)]
        pub struct $name(StaticSecret);

        impl $name {
            /// A fresh key from `rng`, clamped as X25519 wants it.
            pub fn generate(rng: &mut (impl RngCore + CryptoRng)) -> Self {
                let mut bytes = Zeroizing::new([0_u8; 32]);
                rng.fill_bytes(bytes.as_mut());
                Self::from_bytes(*bytes)
            }

            /// Takes 32 secret bytes and clamps them (`k[0] &= 0xf8; k[31] = (k[31] & 0x7f) | 0x40`).
            pub fn from_bytes(bytes: [u8; 32]) -> Self {
                let mut bytes = Zeroizing::new(bytes);
                let [first, .., last] = &mut *bytes;
                *first &= 0xf8;
                *last = (*last & 0x7f) | 0x40;
                Self(StaticSecret::from(*bytes))
            }

            /// The secret bytes; the copy wipes itself.
            pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
                Zeroizing::new(self.0.to_bytes())
            }

            /// The public half.
            pub fn public(&self) -> $public {
                $public(PublicKey::from(&self.0).to_bytes())
            }

            /// The underlying secret, for the cipher that uses it.
            pub fn secret(&self) -> &StaticSecret {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:?})"), self.public())
            }
        }
    };
}

private_key! {
    /// Noise static key of this device; for ever, per installation.
    MachinePrivate, MachinePublic
}
private_key! {
    /// WireGuard static key of this node; replaced when control expires it.
    NodePrivate, NodePublic
}
private_key! {
    /// Seals disco messages; lives as long as the process and is never written down.
    DiscoPrivate, DiscoPublic
}

/// The two private kinds that are kept on disk share one text form, `privkey:` + 64 hex.
const PRIVATE_PREFIX: &str = "privkey:";

macro_rules! stored_private_key {
    ($name:ident) => {
        impl $name {
            /// The text form `privkey:<64 hex>`; wiped on drop. For the state store only.
            pub fn to_text(&self) -> Zeroizing<String> {
                let mut text = Zeroizing::new(String::with_capacity(72));
                text.push_str(PRIVATE_PREFIX);
                // Writing to a String cannot fail.
                write_hex(&mut *text, self.to_bytes().as_slice()).unwrap_or_default();
                text
            }

            /// Reads the text form.
            ///
            /// # Errors
            /// [`KeyError`] when the prefix is not `privkey:` or 64 hex digits do not follow.
            pub fn from_text(text: &str) -> Result<Self, KeyError> {
                parse_hex32(PRIVATE_PREFIX, text).map(Self::from_bytes)
            }
        }
    };
}

stored_private_key!(MachinePrivate);
stored_private_key!(NodePrivate);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_text_form_round_trips_and_accepts_upper_case() {
        let key = NodePublic::from_bytes([0xab; 32]);
        let text = key.to_string();
        assert_eq!(text.len(), "nodekey:".len() + 64);
        assert_eq!(text.parse::<NodePublic>().unwrap(), key);
        let upper = format!("nodekey:{}", "AB".repeat(32));
        assert_eq!(upper.parse::<NodePublic>().unwrap(), key);
    }

    #[test]
    fn a_key_of_another_kind_or_length_is_refused() {
        let mkey = format!("mkey:{}", "00".repeat(32));
        assert_eq!(
            mkey.parse::<NodePublic>(),
            Err(KeyError::Prefix {
                expected: "nodekey:"
            })
        );
        for bad in [
            "nodekey:",
            "nodekey:00",
            &format!("nodekey:{}", "0g".repeat(32)),
        ] {
            assert_eq!(bad.parse::<NodePublic>(), Err(KeyError::Hex), "{bad}");
        }
        assert!(serde_json::from_str::<DiscoPublic>("\"\"").is_err());
    }

    #[test]
    fn private_keys_are_clamped_and_never_printed() {
        let key = MachinePrivate::from_bytes([0xff; 32]);
        let bytes = key.to_bytes();
        assert_eq!(bytes[0] & 7, 0);
        assert_eq!(bytes[31], 0x7f);
        assert!(!format!("{key:?}").contains("ff"));
        let again = MachinePrivate::from_text(&key.to_text()).unwrap();
        assert_eq!(again.public(), key.public());
    }

    /// From control.md §2.6: the ramp 00..1f is the client's static key.
    #[test]
    fn the_public_half_of_the_vector_key_is_the_published_one() {
        let ramp: [u8; 32] = std::array::from_fn(|i| u8::try_from(i).unwrap());
        assert_eq!(
            MachinePrivate::from_bytes(ramp).public().to_string(),
            "mkey:8f40c5adb68f25624ae5b214ea767a6ec94d829d3d7b5e1ad1ba6f3e2138285f"
        );
    }
}
