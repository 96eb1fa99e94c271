//! What client and relay tell of themselves, sealed between the node's key and the relay's.
//!
//! Invariant: a ClientInfo that opens proves that its sender holds the node key; no secret is ever put
//! into one. Called by `derp::client` and by the relay of devnet.
//!
//! ```text
//! nonce 24 | NaCl box: tag 16 + JSON       X25519 + HSalsa20 + XSalsa20-Poly1305
//! ```

use bytes::Bytes;
use crypto_box::SalsaBox;
use crypto_box::aead::Aead as _;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{DerpError, Frame, NONCE_BYTES, PROTOCOL_VERSION};
use crate::key::{NodePrivate, NodePublic};

/// What a client says. The key of a mesh of relays (`meshKey`) is left out: stock relays refuse every
/// value but their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientInfo {
    /// [`PROTOCOL_VERSION`].
    #[serde(default)]
    pub version: i64,
    /// Pings of the relay are answered.
    #[serde(rename = "CanAckPings", default)]
    pub can_ack_pings: bool,
}

impl ClientInfo {
    /// What we say.
    pub fn ours() -> Self {
        Self {
            version: PROTOCOL_VERSION,
            can_ack_pings: true,
        }
    }

    /// The frame, sealed to `relay`. `nonce` must not have been used before.
    pub fn seal(&self, nonce: [u8; NONCE_BYTES], node: &NodePrivate, relay: &NodePublic) -> Frame {
        Frame::ClientInfo {
            key: node.public(),
            sealed: seal(nonce, node, relay, self),
        }
    }

    /// Opens the box of a ClientInfo frame, which proves that it is from `node`.
    ///
    /// # Errors
    /// [`DerpError::Open`], [`DerpError::Json`].
    pub fn open(sealed: &[u8], relay: &NodePrivate, node: &NodePublic) -> Result<Self, DerpError> {
        open(sealed, relay, node, "ClientInfo")
    }
}

/// What a relay says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerInfo {
    /// [`PROTOCOL_VERSION`].
    #[serde(default)]
    pub version: i64,
    /// How many bytes of SendPacket frames a second the client may send; 0: as many as it likes.
    #[serde(
        rename = "TokenBucketBytesPerSecond",
        default,
        skip_serializing_if = "is_zero"
    )]
    pub bytes_per_second: i64,
    /// How many of them at once.
    #[serde(
        rename = "TokenBucketBytesBurst",
        default,
        skip_serializing_if = "is_zero"
    )]
    pub burst_bytes: i64,
}

impl ServerInfo {
    /// The frame, sealed to `node`. `nonce` must not have been used before.
    pub fn seal(&self, nonce: [u8; NONCE_BYTES], relay: &NodePrivate, node: &NodePublic) -> Frame {
        Frame::ServerInfo {
            sealed: seal(nonce, relay, node, self),
        }
    }

    /// Opens the box of a ServerInfo frame, which proves that the relay holds its key.
    ///
    /// # Errors
    /// [`DerpError::Open`], [`DerpError::Json`].
    pub fn open(sealed: &[u8], node: &NodePrivate, relay: &NodePublic) -> Result<Self, DerpError> {
        open(sealed, node, relay, "ServerInfo")
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_zero(value: &i64) -> bool {
    *value == 0
}

fn between(own: &NodePrivate, other: &NodePublic) -> SalsaBox {
    SalsaBox::new(
        &crypto_box::PublicKey::from_bytes(*other.as_bytes()),
        &crypto_box::SecretKey::from_bytes(*own.to_bytes()),
    )
}

fn seal(
    nonce: [u8; NONCE_BYTES],
    own: &NodePrivate,
    other: &NodePublic,
    info: &impl Serialize,
) -> Bytes {
    // Two integers and a boolean always serialise, and sealing fails only above 2^38 bytes.
    let json = serde_json::to_vec(info).unwrap_or_default();
    let boxed = between(own, other).encrypt(&nonce.into(), json.as_slice());
    let mut sealed = nonce.to_vec();
    sealed.extend_from_slice(&boxed.unwrap_or_default());
    sealed.into()
}

fn open<T: DeserializeOwned>(
    sealed: &[u8],
    own: &NodePrivate,
    other: &NodePublic,
    what: &'static str,
) -> Result<T, DerpError> {
    let failed = DerpError::Open { what };
    let (nonce, boxed) = sealed.split_first_chunk::<NONCE_BYTES>().ok_or(failed)?;
    let json = between(own, other)
        .decrypt(&(*nonce).into(), boxed)
        .map_err(|_| failed)?;
    serde_json::from_slice(&json).map_err(|_| DerpError::Json { what })
}
