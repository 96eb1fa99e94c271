//! STUN: the one question "from where do you see me?" and its answer, as relays speak it.
//!
//! Invariant: the request has exactly the bytes that a relay's STUN server insists on (it drops any
//! other); parsing never panics and keeps nothing. Called by `netcheck`, by whoever sorts the
//! datagrams of the shared socket, and by devnet's server.
//!
//! ```text
//! message     type 2 | length of the attributes 2 | cookie 21 12 a4 42 | transaction id 12 | attributes
//! attribute   type 2 | length 2 | value, padded to a multiple of 4
//! 0001 binding request: 8022 SOFTWARE "tailnode", 8028 FINGERPRINT; 40 bytes in all
//! 0101 binding success: 0020 (or 8020) XOR-MAPPED-ADDRESS, else 0001 MAPPED-ADDRESS
//! address     0 | family 1 (1 IPv4, 2 IPv6) | port 2 | address 4 or 16
//! XOR         port with 2112; address with the cookie, then the transaction id
//! FINGERPRINT CRC-32 of all bytes before it, XOR 5354554e; the length already counts it
//! ```
//!
//! Source: RFC 8489; tailscale.com `net/stun/stun.go` for the fixed request.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

#[cfg(test)]
mod tests;

/// Bytes of a binding request, always.
pub const REQUEST_BYTES: usize = 40;

/// The UDP port of a STUN server that names no other (RFC 8489 §14).
pub const PORT_DEFAULT: u16 = 3478;

/// Names one request, so that its answer can be told from any other.
pub type TxId = [u8; 12];

const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
const HEADER_BYTES: usize = 20;
const BINDING_REQUEST: u16 = 0x0001;
const BINDING_SUCCESS: u16 = 0x0101;
const MAPPED_ADDRESS: u16 = 0x0001;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
/// The number of XOR-MAPPED-ADDRESS before RFC 5389 gave it one; old servers write it.
const XOR_MAPPED_ADDRESS_EARLY: u16 = 0x8020;
const SOFTWARE: u16 = 0x8022;
const FINGERPRINT: u16 = 0x8028;
const FINGERPRINT_BYTES: usize = 8;
const FINGERPRINT_XOR: u32 = 0x5354_554e;
const FAMILY_IPV4: u8 = 1;
const FAMILY_IPV6: u8 = 2;
/// What relays want to read in SOFTWARE.
const SOFTWARE_NAME: [u8; 8] = *b"tailnode";

/// Why a datagram is not the STUN message that was wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StunError {
    /// It does not begin as a STUN binding message.
    #[error("the datagram of {length} bytes is not STUN")]
    NotStun {
        /// Bytes of the datagram.
        length: usize,
    },
    /// It is STUN of another type, such as an error or a request where an answer was wanted.
    #[error("the STUN message is of type {kind:#06x}")]
    Kind {
        /// The type.
        kind: u16,
    },
    /// An attribute ends after the message does, or the address in it is of no known family.
    #[error("an attribute of the STUN message of {length} bytes cannot be read")]
    Attribute {
        /// Bytes of the datagram.
        length: usize,
    },
    /// A success without an address.
    #[error("the STUN answer names no address")]
    NoAddress,
    /// A request from a client that relays do not serve.
    #[error("the SOFTWARE of the STUN request is not \"tailnode\"")]
    Software,
    /// A request whose last attribute is no FINGERPRINT, or a wrong one.
    #[error("the FINGERPRINT of the STUN request is missing or wrong")]
    Fingerprint,
}

/// What a server answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// The request's; to be believed only if it is outstanding.
    pub txid: TxId,
    /// From where the server saw the request; never an IPv4-mapped address.
    pub mapped: SocketAddr,
}

/// Whether a datagram of the shared socket is STUN: to be asked before disco and WireGuard. The
/// second byte, 1 in every binding message, is 0 in WireGuard's and 0x53 in disco's, so none of
/// theirs is ever taken, whatever follows.
pub fn looks_like_stun(datagram: &[u8]) -> bool {
    datagram.len() >= HEADER_BYTES
        && matches!(datagram, [first, 1, _, _, cookie @ ..]
            if first & 0xc0 == 0 && cookie.starts_with(&COOKIE))
}

/// The binding request that relays answer.
pub fn request(txid: TxId) -> [u8; REQUEST_BYTES] {
    let mut message = [0; REQUEST_BYTES];
    let (sealed, fingerprint) = message.split_at_mut(REQUEST_BYTES - FINGERPRINT_BYTES);
    let parts: [&[u8]; 6] = [
        &BINDING_REQUEST.to_be_bytes(),
        &[0, 20],
        &COOKIE,
        &txid,
        &[0x80, 0x22, 0, 8],
        &SOFTWARE_NAME,
    ];
    fill(sealed, &parts);
    let crc = fingerprint_of(sealed).to_be_bytes();
    fill(fingerprint, &[&[0x80, 0x28, 0, 4], &crc]);
    message
}

/// Reads a binding success; of several addresses the first XORed one counts, else the first.
///
/// # Errors
/// [`StunError`]: not STUN, of another type, bent, or without an address.
pub fn parse_answer(datagram: &[u8]) -> Result<Answer, StunError> {
    let bent = StunError::Attribute {
        length: datagram.len(),
    };
    let (kind, txid, attributes) = parse_header(datagram)?;
    if kind != BINDING_SUCCESS {
        return Err(StunError::Kind { kind });
    }
    let (mut xored, mut plain) = (None, None);
    for attribute in Attributes(attributes) {
        let (kind, value) = attribute.ok_or(bent)?;
        match kind {
            XOR_MAPPED_ADDRESS | XOR_MAPPED_ADDRESS_EARLY if xored.is_none() => {
                xored = Some(parse_address(value, Some(&txid)).ok_or(bent)?);
            }
            MAPPED_ADDRESS if plain.is_none() => {
                plain = Some(parse_address(value, None).ok_or(bent)?);
            }
            _ => {}
        }
    }
    let mapped = xored.or(plain).ok_or(StunError::NoAddress)?;
    Ok(Answer { txid, mapped })
}

/// Reads a binding request with the eyes of a relay's server: its SOFTWARE and FINGERPRINT must be
/// those of [`request`].
///
/// # Errors
/// [`StunError`]: not STUN, no request, bent, of another client, or its CRC is wrong.
pub fn parse_request(datagram: &[u8]) -> Result<TxId, StunError> {
    let bent = StunError::Attribute {
        length: datagram.len(),
    };
    let (kind, txid, attributes) = parse_header(datagram)?;
    if kind != BINDING_REQUEST {
        return Err(StunError::Kind { kind });
    }
    let (mut software, mut last) = (false, None);
    for attribute in Attributes(attributes) {
        let (kind, value) = attribute.ok_or(bent)?;
        software |= kind == SOFTWARE && value == SOFTWARE_NAME;
        last = Some((kind, value));
    }
    if !software {
        return Err(StunError::Software);
    }
    let end = HEADER_BYTES + attributes.len();
    let sealed = datagram.get(..end.saturating_sub(FINGERPRINT_BYTES));
    let right = sealed.map(|sealed| fingerprint_of(sealed).to_be_bytes());
    match (last, right) {
        (Some((FINGERPRINT, value)), Some(right)) if value == right => Ok(txid),
        _ => Err(StunError::Fingerprint),
    }
}

/// A binding success: what [`parse_answer`] reads back. 32 bytes for IPv4, 44 for IPv6.
pub fn answer(txid: TxId, mapped: SocketAddr) -> Vec<u8> {
    let mapped = SocketAddr::new(mapped.ip().to_canonical(), mapped.port());
    let (family, mut value) = match mapped.ip() {
        IpAddr::V4(ip) => (FAMILY_IPV4, ip.octets().to_vec()),
        IpAddr::V6(ip) => (FAMILY_IPV6, ip.octets().to_vec()),
    };
    xor(&mut value, &txid);
    // 4 or 16 bytes of address behind 4 of family and port.
    let length = if family == FAMILY_IPV4 { 8 } else { 20 };
    let mut message = Vec::with_capacity(44);
    message.extend_from_slice(&BINDING_SUCCESS.to_be_bytes());
    message.extend_from_slice(&[0, length + 4]);
    message.extend_from_slice(&COOKIE);
    message.extend_from_slice(&txid);
    message.extend_from_slice(&XOR_MAPPED_ADDRESS.to_be_bytes());
    message.extend_from_slice(&[0, length, 0, family]);
    message.extend_from_slice(&(mapped.port() ^ port_mask()).to_be_bytes());
    message.extend_from_slice(&value);
    message
}

/// Type, transaction id, and as many bytes of attributes as the header says; what follows them is
/// ignored.
fn parse_header(datagram: &[u8]) -> Result<(u16, TxId, &[u8]), StunError> {
    let not_stun = StunError::NotStun {
        length: datagram.len(),
    };
    if !looks_like_stun(datagram) {
        return Err(not_stun);
    }
    let (head, rest) = datagram.split_first_chunk::<8>().ok_or(not_stun)?;
    let (txid, rest) = rest.split_first_chunk().ok_or(not_stun)?;
    let &[high, low, length_high, length_low, ..] = head;
    let length = usize::from(u16::from_be_bytes([length_high, length_low]));
    let attributes = rest.get(..length).ok_or(StunError::Attribute {
        length: datagram.len(),
    })?;
    Ok((u16::from_be_bytes([high, low]), *txid, attributes))
}

/// Attributes one by one: type and value; once `None` inside `Some`, for one that is cut short.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = Option<(u16, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let rest = std::mem::take(&mut self.0);
        let Some((&[kind_high, kind_low, high, low], rest)) = rest.split_first_chunk() else {
            return Some(None);
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        let (Some(value), Some(next)) =
            (rest.get(..length), rest.get(length.next_multiple_of(4)..))
        else {
            return Some(None);
        };
        self.0 = next;
        Some(Some((u16::from_be_bytes([kind_high, kind_low]), value)))
    }
}

fn parse_address(value: &[u8], xored_with: Option<&TxId>) -> Option<SocketAddr> {
    let (&[_, family, high, low], address) = value.split_first_chunk()?;
    let mut port = u16::from_be_bytes([high, low]);
    let mut octets = [0; 16];
    let length = match family {
        FAMILY_IPV4 => 4,
        FAMILY_IPV6 => 16,
        _ => return None,
    };
    fill(&mut octets, &[address.get(..length)?]);
    if let Some(txid) = xored_with {
        port ^= port_mask();
        xor(&mut octets, txid);
    }
    let ip = if family == FAMILY_IPV4 {
        IpAddr::V4(Ipv4Addr::from_octets(*octets.first_chunk()?))
    } else {
        IpAddr::V6(Ipv6Addr::from_octets(octets)).to_canonical()
    };
    Some(SocketAddr::new(ip, port))
}

/// The upper half of the cookie.
const fn port_mask() -> u16 {
    let [high, low, _, _] = COOKIE;
    u16::from_be_bytes([high, low])
}

fn xor(octets: &mut [u8], txid: &TxId) {
    for (octet, mask) in octets.iter_mut().zip(COOKIE.iter().chain(txid)) {
        *octet ^= mask;
    }
}

fn fill(to: &mut [u8], parts: &[&[u8]]) {
    let from = parts.iter().copied().flatten();
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
}

fn fingerprint_of(message: &[u8]) -> u32 {
    crc32(message) ^ FINGERPRINT_XOR
}

/// CRC-32 as Ethernet has it (IEEE 802.3, reflected). A message has 32 bytes before its
/// fingerprint, so eight steps per byte are cheaper than a table.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & 0_u32.wrapping_sub(crc & 1))
        })
    })
}
