//! TSMP, IP protocol 99: small control packets inside the tunnel. Pings are answered, refusals heeded.
//!
//! ```text
//! IP header | 'p' data[8]                          ping
//! IP header | 'o' data[8] peerapi_port u16         pong
//! IP header | '!' proto reason port u16 port u16   a flow of ours was refused
//! IP header | 'a' disco key[32]                    ignored: control tells us as well
//! ```
//!
//! Invariant: only packets that passed the inner source check and the filter come here, and an answer is
//! never longer than 64 bytes. Called by `node`. Source: transport.md §5.2, tailscale.com `net/packet/tsmp.go`.

use std::net::IpAddr;

use crate::filter::packet::protocol::TCP;

/// The protocol number.
pub(super) const PROTOCOL: u8 = crate::filter::packet::protocol::TSMP;

/// A packet filter refused it; the only reason that we give.
const REASON_ACL: u8 = b'A';

/// What a TSMP packet says, as far as it concerns us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tsmp<'a> {
    /// Wants its data back.
    Ping(&'a [u8; 8]),
    /// The peer does not let a TCP connection of ours in.
    RejectedTcp {
        /// Of ours.
        local_port: u16,
        /// Of the peer.
        remote_port: u16,
    },
}

impl<'a> Tsmp<'a> {
    /// Reads what lies behind the IP header.
    pub(super) fn parse(payload: &'a [u8]) -> Option<Self> {
        match payload {
            [b'p', rest @ ..] => rest.first_chunk().map(Self::Ping),
            [b'!', TCP, _reason, l0, l1, r0, r1, ..] => Some(Self::RejectedTcp {
                local_port: u16::from_be_bytes([*l0, *l1]),
                remote_port: u16::from_be_bytes([*r0, *r1]),
            }),
            _ => None,
        }
    }
}

/// The answer to a ping, from us to the pinging peer, as a whole IP packet.
pub(super) fn pong(from: IpAddr, to: IpAddr, data: &[u8; 8]) -> Option<Vec<u8>> {
    let mut body = vec![b'o'];
    body.extend_from_slice(data);
    // We serve no peer API.
    body.extend_from_slice(&[0, 0]);
    packet(from, to, &body)
}

/// Tells the peer that its connection from `its_port` to `our_port` is not let in.
pub(super) fn reject(from: IpAddr, to: IpAddr, its_port: u16, our_port: u16) -> Option<Vec<u8>> {
    let mut body = vec![b'!', TCP, REASON_ACL];
    body.extend_from_slice(&its_port.to_be_bytes());
    body.extend_from_slice(&our_port.to_be_bytes());
    packet(from, to, &body)
}

/// `None` if the addresses are of two families.
fn packet(from: IpAddr, to: IpAddr, body: &[u8]) -> Option<Vec<u8>> {
    let length = u8::try_from(body.len()).ok()?;
    let mut packet = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let total = length.checked_add(20)?;
            let mut packet = vec![0x45, 0, 0, total, 0, 0, 0, 0, 64, PROTOCOL, 0, 0];
            packet.extend_from_slice(&from.octets());
            packet.extend_from_slice(&to.octets());
            let sum = header_checksum(&packet);
            packet.splice(10..12, sum.to_be_bytes());
            packet
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut packet = vec![0x60, 0, 0, 0, 0, length, PROTOCOL, 64];
            packet.extend_from_slice(&from.octets());
            packet.extend_from_slice(&to.octets());
            packet
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
    };
    packet.extend_from_slice(body);
    Some(packet)
}

/// The one's complement sum of RFC 791 over a header whose checksum field is zero.
pub(super) fn header_checksum(header: &[u8]) -> u16 {
    let (words, _) = header.as_chunks::<2>();
    let mut sum: u32 = words
        .iter()
        .map(|word| u32::from(u16::from_be_bytes(*word)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ping_is_answered_with_its_data() {
        let (ours, theirs) = ("100.64.0.2".parse().unwrap(), "100.64.0.1".parse().unwrap());
        assert_eq!(Tsmp::parse(b"p12345678"), Some(Tsmp::Ping(b"12345678")));
        let answer = pong(ours, theirs, b"12345678").unwrap();
        assert_eq!(answer.len(), 31);
        assert_eq!(answer[12..16], [100, 64, 0, 2]);
        assert_eq!(answer[16..20], [100, 64, 0, 1]);
        assert_eq!(&answer[20..], b"o12345678\0\0");
        // A right header sums to zero when its checksum is included.
        assert_eq!(header_checksum(&answer[..20]), 0);
        let v6 = pong(
            "fd7a::2".parse().unwrap(),
            "fd7a::1".parse().unwrap(),
            b"12345678",
        );
        assert_eq!(v6.unwrap().len(), 51);
        assert_eq!(pong(ours, "fd7a::1".parse().unwrap(), b"12345678"), None);
    }

    #[test]
    fn a_refusal_names_the_ports_as_the_refused_side_knows_them() {
        let (ours, theirs) = ("100.64.0.2".parse().unwrap(), "100.64.0.1".parse().unwrap());
        let packet = reject(ours, theirs, 50_000, 443).unwrap();
        assert_eq!(&packet[20..], b"!\x06A\xc3\x50\x01\xbb");
        let told = Tsmp::RejectedTcp {
            local_port: 50_000,
            remote_port: 443,
        };
        assert_eq!(Tsmp::parse(&packet[20..]), Some(told));
        // Newer peers put flags behind it.
        assert_eq!(Tsmp::parse(b"!\x06S\xc3\x50\x01\xbb\x01"), Some(told));
    }

    #[test]
    fn short_and_other_packets_say_nothing() {
        for payload in [
            &b""[..],
            b"p",
            b"p1234567",
            b"o12345678",
            b"!\x06A\xc3\x50\x01",
            b"!\x11A\xc3\x50\x01\xbb",
            b"zzzzzzzzzzzz",
        ] {
            assert_eq!(Tsmp::parse(payload), None);
        }
    }
}
