//! disco: the small sealed messages by which two nodes find and prove a UDP path.
//!
//! Invariant: a message is believed only after its NaCl box opened under the sender's disco key;
//! parsing never panics and never keeps more than [`CALL_ME_MAYBE_ENDPOINTS_MAX`] endpoints.
//! Called by `path`, which decides what a message means.
//!
//! ```text
//! datagram   54 53 f0 9f 92 ac | sender's disco key 32 | nonce 24 | NaCl box: tag 16 + payload
//! payload    kind 1 | version 1 (0) | body          bytes after the known body are ignored
//! 01 ping          txid 12 | sender's node key 32 (absent from old clients) | zero padding
//! 02 pong          txid 12 | addr18: the source from which the ping was seen
//! 03 call-me-maybe addr18, zero or more: the sender's endpoints
//! addr18           IPv6 16 (IPv4 as ::ffff:a.b.c.d) | port 2, big-endian
//! ```
//!
//! Source: tailscale.com `disco/disco.go`; the box is X25519 + `HSalsa20` + `XSalsa20-Poly1305`.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crypto_box::SalsaBox;
use crypto_box::aead::Aead as _;

use crate::key::{DiscoPrivate, DiscoPublic, NodePublic};

#[cfg(test)]
mod tests;

/// The six bytes that begin every disco datagram: "TS" and U+1F4AC.
pub const MAGIC: [u8; 6] = [0x54, 0x53, 0xf0, 0x9f, 0x92, 0xac];

/// Bytes before the box: magic, sender's key, nonce. A shorter datagram is not disco.
pub const HEADER_BYTES: usize = 6 + 32 + 24;

/// The longest datagram that is opened. Path-MTU probing pads pings up to a 9000-byte IP packet;
/// nothing else comes near.
pub const DATAGRAM_BYTES_MAX: usize = 9000;

/// Endpoints kept of one call-me-maybe: as many as candidates are kept per peer.
pub const CALL_ME_MAYBE_ENDPOINTS_MAX: usize = 100;

/// Names one ping, so that its pong can be told from any other.
pub type TxId = [u8; 12];

const KIND_PING: u8 = 1;
const KIND_PONG: u8 = 2;
const KIND_CALL_ME_MAYBE: u8 = 3;
const VERSION: u8 = 0;
const ADDR_BYTES: usize = 18;

/// Why a datagram or payload could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DiscoError {
    /// The datagram does not begin with the magic and a whole header.
    #[error("the datagram of {length} bytes is not disco")]
    NotDisco {
        /// Bytes of the datagram.
        length: usize,
    },
    /// The datagram is longer than [`DATAGRAM_BYTES_MAX`].
    #[error("the disco datagram of {length} bytes is longer than any we open")]
    TooLong {
        /// Bytes of the datagram.
        length: usize,
    },
    /// The box does not open: another key, or bent bytes.
    #[error("the disco box does not open")]
    Open,
    /// The payload ends before its message does.
    #[error("the disco payload of {length} bytes ends within a message of kind {kind:?}")]
    Short {
        /// The kind byte, when there was one.
        kind: Option<u8>,
        /// Bytes of the payload.
        length: usize,
    },
}

/// A disco message, as far as we speak them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// "Can you hear me here?"
    Ping {
        /// Comes back in the pong.
        txid: TxId,
        /// The sender's node key; old clients leave it out.
        node: Option<NodePublic>,
    },
    /// "I heard you, from this address."
    Pong {
        /// The ping's.
        txid: TxId,
        /// Where the ping seemed to come from.
        src: SocketAddr,
    },
    /// "Ping me at these; my firewall is open." Valid over DERP only.
    CallMeMaybe {
        /// The sender's own endpoints; the first [`CALL_ME_MAYBE_ENDPOINTS_MAX`] of them.
        endpoints: Vec<SocketAddr>,
    },
    /// A kind that we do not speak: peer relays, and whatever comes later.
    Unknown {
        /// The kind byte.
        kind: u8,
        /// The version byte.
        version: u8,
    },
}

impl Message {
    /// Reads an opened payload. Bytes after the known body are ignored, as upstream does.
    ///
    /// # Errors
    /// [`DiscoError::Short`] when the payload ends before its message does.
    pub fn parse(payload: &[u8]) -> Result<Self, DiscoError> {
        let short = |kind| DiscoError::Short {
            kind,
            length: payload.len(),
        };
        let (&[kind, version], body) = payload
            .split_first_chunk()
            .ok_or_else(|| short(payload.first().copied()))?;
        match kind {
            KIND_PING => {
                let (txid, rest) = body.split_first_chunk().ok_or_else(|| short(Some(kind)))?;
                Ok(Self::Ping {
                    txid: *txid,
                    node: rest.first_chunk().copied().map(NodePublic::from_bytes),
                })
            }
            KIND_PONG => {
                let (txid, rest) = body.split_first_chunk().ok_or_else(|| short(Some(kind)))?;
                let addr = rest.first_chunk().ok_or_else(|| short(Some(kind)))?;
                Ok(Self::Pong {
                    txid: *txid,
                    src: addr_from_bytes(addr),
                })
            }
            KIND_CALL_ME_MAYBE => {
                let (addrs, rest) = body.as_chunks::<ADDR_BYTES>();
                // Upstream reads a wrong length or version as an empty list, not as an error.
                let addrs = if version == VERSION && rest.is_empty() {
                    addrs
                } else {
                    &[]
                };
                Ok(Self::CallMeMaybe {
                    endpoints: addrs
                        .iter()
                        .take(CALL_ME_MAYBE_ENDPOINTS_MAX)
                        .map(addr_from_bytes)
                        .collect(),
                })
            }
            _ => Ok(Self::Unknown { kind, version }),
        }
    }

    /// The payload that [`Message::parse`] reads back; not yet sealed.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Ping { txid, node } => {
                let mut payload = vec![KIND_PING, VERSION];
                payload.extend_from_slice(txid);
                if let Some(node) = node {
                    payload.extend_from_slice(node.as_bytes());
                }
                payload
            }
            Self::Pong { txid, src } => {
                let mut payload = vec![KIND_PONG, VERSION];
                payload.extend_from_slice(txid);
                payload.extend_from_slice(&addr_to_bytes(*src));
                payload
            }
            Self::CallMeMaybe { endpoints } => {
                let mut payload = vec![KIND_CALL_ME_MAYBE, VERSION];
                for addr in endpoints.iter().take(CALL_ME_MAYBE_ENDPOINTS_MAX) {
                    payload.extend_from_slice(&addr_to_bytes(*addr));
                }
                payload
            }
            Self::Unknown { kind, version } => vec![*kind, *version],
        }
    }
}

/// Whether a datagram is to be read as disco: magic and at least a whole header.
pub fn looks_like_disco(datagram: &[u8]) -> bool {
    datagram.len() >= HEADER_BYTES && datagram.starts_with(&MAGIC)
}

/// The disco key that a datagram claims as its sender. Not proven until the box opens.
pub fn sender(datagram: &[u8]) -> Option<DiscoPublic> {
    if !looks_like_disco(datagram) {
        return None;
    }
    let key = datagram.get(MAGIC.len()..)?.first_chunk()?;
    Some(DiscoPublic::from_bytes(*key))
}

/// The box between our disco key and one peer's: the same for both directions, computed once.
pub struct DiscoBox(SalsaBox);

/// Prints nothing of the key.
impl fmt::Debug for DiscoBox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DiscoBox(..)")
    }
}

impl DiscoBox {
    /// Computes the shared key (one X25519): keep the result.
    pub fn new(private: &DiscoPrivate, peer: &DiscoPublic) -> Self {
        let private = crypto_box::SecretKey::from_bytes(*private.to_bytes());
        let peer = crypto_box::PublicKey::from_bytes(*peer.as_bytes());
        Self(SalsaBox::new(&peer, &private))
    }

    /// A whole datagram: `message`, sealed under `nonce`, which is never to be used twice.
    /// `sender` is our own public key. 124 bytes for a ping, 110 for a pong, 80 + 18 per endpoint
    /// for a call-me-maybe.
    pub fn seal(&self, nonce: [u8; 24], message: &Message, sender: &DiscoPublic) -> Vec<u8> {
        let mut datagram = Vec::with_capacity(HEADER_BYTES + 16 + 46);
        datagram.extend_from_slice(&MAGIC);
        datagram.extend_from_slice(sender.as_bytes());
        datagram.extend_from_slice(&nonce);
        // Sealing fails only above 2^38 bytes; an empty box is refused by every receiver.
        let sealed = self.0.encrypt(&nonce.into(), message.encode().as_slice());
        datagram.extend_from_slice(&sealed.unwrap_or_default());
        datagram
    }

    /// Opens a whole datagram and reads its message.
    ///
    /// # Errors
    /// [`DiscoError`]: not disco, too long, not sealed under this key, or cut short.
    pub fn open(&self, datagram: &[u8]) -> Result<Message, DiscoError> {
        let length = datagram.len();
        let not_disco = DiscoError::NotDisco { length };
        if !looks_like_disco(datagram) {
            return Err(not_disco);
        }
        if length > DATAGRAM_BYTES_MAX {
            return Err(DiscoError::TooLong { length });
        }
        let (nonce, sealed) = datagram
            .get(MAGIC.len() + 32..)
            .and_then(<[u8]>::split_first_chunk::<24>)
            .ok_or(not_disco)?;
        let payload = self
            .0
            .decrypt(&(*nonce).into(), sealed)
            .map_err(|_| DiscoError::Open)?;
        Message::parse(&payload)
    }
}

/// Reads an addr18; an IPv4-mapped address becomes IPv4.
fn addr_from_bytes(bytes: &[u8; ADDR_BYTES]) -> SocketAddr {
    let [ip @ .., port_high, port_low] = bytes;
    let ip = Ipv6Addr::from_octets(*ip);
    SocketAddr::new(
        IpAddr::V6(ip).to_canonical(),
        u16::from_be_bytes([*port_high, *port_low]),
    )
}

fn addr_to_bytes(addr: SocketAddr) -> [u8; ADDR_BYTES] {
    let ip = match addr.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let mut bytes = [0; ADDR_BYTES];
    let [head @ .., port_high, port_low] = &mut bytes;
    *head = ip.octets();
    [*port_high, *port_low] = addr.port().to_be_bytes();
    bytes
}
