//! A bounded look at an IP packet: addresses, protocol, ports, flags; nothing is copied.
//!
//! ```text
//! IPv4  vi tt ll ll  id id ff ff  ttl P  ck ck  src×4 dst×4 [options]       RFC 791
//! IPv6  vt tf fl fl  ll ll N hop  src×16 dst×16 [extension headers]         RFC 8200
//! TCP   sport dport seq×4 ack×4 offset flags …     UDP, SCTP  sport dport …     ICMP  type code …
//! ```
//!
//! Invariant: any bytes give a view or an error, never a panic; the view spans only what the IP
//! length field names, so padding behind the packet is invisible. Called by `filter` and by the
//! node, which trims WireGuard's padding to [`PacketView::ip_bytes`].
//!
//! Source: tailscale.com `net/packet/packet.go` (which protocols are looked into, tiny fragments).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IP protocol numbers (IANA) that the filter treats by name.
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMPV4: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// Tailscale's in-tunnel control messages; unassigned at IANA ("any private encryption scheme").
    pub const TSMP: u8 = 99;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// Most IPv6 extension headers that are walked: each kind at most once, and one to spare (RFC 8200 §4.1).
pub const EXTENSION_HEADERS_MAX: usize = 8;

/// Later fragments may not start before this offset, in bytes, lest they overwrite the headers that
/// the filter judged: the longest IPv4 header (60) and a TCP header (20), as upstream has it.
pub const LATER_FRAGMENT_OFFSET_MIN_BYTES: u16 = 80;

const IPV4_HEADER_BYTES: usize = 20;
const IPV6_HEADER_BYTES: usize = 40;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Why bytes are no packet that we deal with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum PacketError {
    /// Fewer bytes than the headers need.
    #[error("packet ends within its headers")]
    Short,
    /// Neither IPv4 nor IPv6.
    #[error("IP version {0} is unknown")]
    Version(u8),
    /// The length fields contradict each other or the bytes at hand.
    #[error("IP length fields do not fit the packet")]
    Length,
    /// More than [`EXTENSION_HEADERS_MAX`], or a routing header that is not at its end.
    #[error("IPv6 extension headers are too many or want the packet forwarded")]
    Extension,
    /// A later fragment that would overlap the headers of the first.
    #[error("fragment overlaps the headers of the first one")]
    FragmentOverlap,
}

/// What lies above IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP ports and flags (byte 13 of the header).
    Tcp {
        /// Source port.
        src_port: u16,
        /// Destination port.
        dst_port: u16,
        /// CWR, ECE, URG, ACK, PSH, RST, SYN, FIN from the highest bit down.
        flags: u8,
    },
    /// UDP ports.
    Udp {
        /// Source port.
        src_port: u16,
        /// Destination port.
        dst_port: u16,
    },
    /// SCTP ports.
    Sctp {
        /// Source port.
        src_port: u16,
        /// Destination port.
        dst_port: u16,
    },
    /// ICMP of the packet's own IP version.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
    },
    /// Tailscale's in-tunnel control message.
    Tsmp,
    /// A fragment other than the first: its ports were in the first.
    LaterFragment,
    /// Any other protocol.
    Other,
}

impl Transport {
    /// Whether this opens a TCP connection: SYN set, ACK clear.
    pub fn is_tcp_open(&self) -> bool {
        matches!(self, Self::Tcp { flags, .. } if flags & (SYN | ACK) == SYN)
    }

    /// Whether this ends a TCP connection: FIN or RST set.
    pub fn is_tcp_end(&self) -> bool {
        matches!(self, Self::Tcp { flags, .. } if flags & (FIN | RST) != 0)
    }
}

/// A parsed IP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacketView<'a> {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Protocol number behind all IP headers.
    pub protocol: u8,
    /// Length of the whole packet by its own account; bytes beyond it are padding.
    pub ip_bytes: usize,
    /// What lies above IP.
    pub transport: Transport,
    /// Everything behind the IP headers, the transport header included.
    pub payload: &'a [u8],
}

impl<'a> PacketView<'a> {
    /// Looks at the packet that begins `bytes`.
    ///
    /// # Errors
    /// [`PacketError`] when the bytes are no packet that we deal with; the caller drops them.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, PacketError> {
        match bytes.first().ok_or(PacketError::Short)? >> 4 {
            4 => Self::parse_v4(bytes),
            6 => Self::parse_v6(bytes),
            version => Err(PacketError::Version(version)),
        }
    }

    fn parse_v4(bytes: &'a [u8]) -> Result<Self, PacketError> {
        let header = bytes
            .first_chunk::<IPV4_HEADER_BYTES>()
            .ok_or(PacketError::Short)?;
        let [
            version_length,
            _,
            len_hi,
            len_lo,
            _,
            _,
            frag_hi,
            frag_lo,
            _,
            protocol,
            _,
            _,
            s0,
            s1,
            s2,
            s3,
            d0,
            d1,
            d2,
            d3,
        ] = *header;
        let header_bytes = usize::from(version_length & 0x0f) * 4;
        let ip_bytes = usize::from(u16::from_be_bytes([len_hi, len_lo]));
        if header_bytes < IPV4_HEADER_BYTES {
            return Err(PacketError::Length);
        }
        let payload = bytes
            .get(header_bytes..ip_bytes)
            .ok_or(PacketError::Length)?;
        let offset_bytes = (u16::from_be_bytes([frag_hi, frag_lo]) & 0x1fff) << 3;
        let transport = parse_transport(4, protocol, offset_bytes, payload)?;
        Ok(Self {
            src: Ipv4Addr::new(s0, s1, s2, s3).into(),
            dst: Ipv4Addr::new(d0, d1, d2, d3).into(),
            protocol,
            ip_bytes,
            transport,
            payload,
        })
    }

    fn parse_v6(bytes: &'a [u8]) -> Result<Self, PacketError> {
        let (header, _) = bytes
            .split_first_chunk::<IPV6_HEADER_BYTES>()
            .ok_or(PacketError::Short)?;
        let (&[_, _, _, _, len_hi, len_lo, next_header, _], addresses) =
            header.split_first_chunk::<8>().ok_or(PacketError::Short)?;
        let (src, dst) = addresses
            .split_first_chunk::<16>()
            .ok_or(PacketError::Short)?;
        let dst = dst.first_chunk::<16>().ok_or(PacketError::Short)?;
        let ip_bytes = IPV6_HEADER_BYTES + usize::from(u16::from_be_bytes([len_hi, len_lo]));
        let payload = bytes
            .get(IPV6_HEADER_BYTES..ip_bytes)
            .ok_or(PacketError::Length)?;
        let upper = skip_extension_headers(next_header, payload)?;
        let transport = parse_transport(6, upper.protocol, upper.offset_bytes, upper.payload)?;
        Ok(Self {
            src: Ipv6Addr::from(*src).into(),
            dst: Ipv6Addr::from(*dst).into(),
            protocol: upper.protocol,
            ip_bytes,
            transport,
            payload: upper.payload,
        })
    }
}

/// What follows the extension headers of an IPv6 packet.
struct Upper<'a> {
    protocol: u8,
    offset_bytes: u16,
    payload: &'a [u8],
}

fn skip_extension_headers(first: u8, payload: &[u8]) -> Result<Upper<'_>, PacketError> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION: u8 = 60;

    let mut protocol = first;
    let mut rest = payload;
    for _ in 0..EXTENSION_HEADERS_MAX {
        if !matches!(
            protocol,
            HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION
        ) {
            return Ok(Upper {
                protocol,
                offset_bytes: 0,
                payload: rest,
            });
        }
        let &[next, length, b2, b3] = rest.first_chunk::<4>().ok_or(PacketError::Short)?;
        let header_bytes = match protocol {
            FRAGMENT => 8,
            AUTHENTICATION => (usize::from(length) + 2) * 4,
            _ => (usize::from(length) + 1) * 8,
        };
        rest = rest.get(header_bytes..).ok_or(PacketError::Short)?;
        if protocol == ROUTING && b3 != 0 {
            return Err(PacketError::Extension);
        }
        if protocol == FRAGMENT {
            let offset_bytes = u16::from_be_bytes([b2, b3]) & 0xfff8;
            if offset_bytes != 0 {
                return Ok(Upper {
                    protocol: next,
                    offset_bytes,
                    payload: rest,
                });
            }
        }
        protocol = next;
    }
    Err(PacketError::Extension)
}

fn parse_transport(
    version: u8,
    protocol: u8,
    offset_bytes: u16,
    payload: &[u8],
) -> Result<Transport, PacketError> {
    if offset_bytes != 0 {
        return if offset_bytes < LATER_FRAGMENT_OFFSET_MIN_BYTES {
            Err(PacketError::FragmentOverlap)
        } else {
            Ok(Transport::LaterFragment)
        };
    }
    match (version, protocol) {
        (_, protocol::TCP) => {
            let &[
                s0,
                s1,
                d0,
                d1,
                _,
                _,
                _,
                _,
                _,
                _,
                _,
                _,
                _,
                flags,
                _,
                _,
                _,
                _,
                _,
                _,
            ] = payload.first_chunk::<20>().ok_or(PacketError::Short)?;
            Ok(Transport::Tcp {
                src_port: u16::from_be_bytes([s0, s1]),
                dst_port: u16::from_be_bytes([d0, d1]),
                flags,
            })
        }
        (_, protocol::UDP) => {
            let &[s0, s1, d0, d1, _, _, _, _] =
                payload.first_chunk::<8>().ok_or(PacketError::Short)?;
            Ok(Transport::Udp {
                src_port: u16::from_be_bytes([s0, s1]),
                dst_port: u16::from_be_bytes([d0, d1]),
            })
        }
        (_, protocol::SCTP) => {
            let &[s0, s1, d0, d1, _, _, _, _, _, _, _, _] =
                payload.first_chunk::<12>().ok_or(PacketError::Short)?;
            Ok(Transport::Sctp {
                src_port: u16::from_be_bytes([s0, s1]),
                dst_port: u16::from_be_bytes([d0, d1]),
            })
        }
        (4, protocol::ICMPV4) | (6, protocol::ICMPV6) => {
            let &[kind, code, _, _] = payload.first_chunk::<4>().ok_or(PacketError::Short)?;
            Ok(Transport::Icmp { kind, code })
        }
        (_, protocol::TSMP) => Ok(Transport::Tsmp),
        _ => Ok(Transport::Other),
    }
}

#[cfg(test)]
mod tests;
