//! TSMP, IP protocol 99: small control packets inside the tunnel. Pings are answered, the rest noted.
//!
//! ```text
//! IP header | 'p' data[8]                          ping
//! IP header | 'o' data[8] peerapi_port u16         pong
//! IP header | '!' proto reason port u16 port u16   a flow of ours was refused
//! IP header | 'a' disco key[32]                    ignored: control tells us as well
//! ```
//!
//! Invariant: only packets that passed the inner source check come here, and an answer is never longer
//! than 64 bytes. Called by `node`. Source: transport.md §5.2, tailscale.com `net/packet/tsmp.go`.

use std::net::IpAddr;

/// The protocol number.
pub(super) const PROTOCOL: u8 = 99;

/// The answer to a TSMP packet from `src` to `dst` (our address) with `payload` behind its IP header,
/// as a whole IP packet; `None` when no answer is due.
pub(super) fn answer(src: IpAddr, dst: IpAddr, payload: &[u8]) -> Option<Vec<u8>> {
    let (kind, rest) = payload.split_first()?;
    if *kind != b'p' {
        return None;
    }
    let data = rest.first_chunk::<8>()?;
    let mut body = [0_u8; 11];
    body[0] = b'o';
    body[1..9].copy_from_slice(data);
    // The last two bytes stay 0: we serve no peer API.
    Some(match (dst, src) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut packet = vec![0x45, 0, 0, 31, 0, 0, 0, 0, 64, PROTOCOL, 0, 0];
            packet.extend_from_slice(&from.octets());
            packet.extend_from_slice(&to.octets());
            let sum = header_checksum(&packet);
            packet.splice(10..12, sum.to_be_bytes());
            packet.extend_from_slice(&body);
            packet
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut packet = vec![0x60, 0, 0, 0, 0, 11, PROTOCOL, 64];
            packet.extend_from_slice(&from.octets());
            packet.extend_from_slice(&to.octets());
            packet.extend_from_slice(&body);
            packet
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
    })
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
    fn a_ping_is_answered_with_its_data_and_swapped_addresses() {
        let (a, b) = ("100.64.0.1".parse().unwrap(), "100.64.0.2".parse().unwrap());
        let pong = answer(a, b, b"p12345678").unwrap();
        assert_eq!(pong.len(), 31);
        assert_eq!(pong[12..16], [100, 64, 0, 2]);
        assert_eq!(pong[16..20], [100, 64, 0, 1]);
        assert_eq!(&pong[20..], b"o12345678\0\0");
        // A right header sums to zero when its checksum is included.
        assert_eq!(header_checksum(&pong[..20]), 0);
        let v6 = answer(
            "fd7a::1".parse().unwrap(),
            "fd7a::2".parse().unwrap(),
            b"p12345678x",
        );
        assert_eq!(v6.unwrap().len(), 51);
    }

    #[test]
    fn short_and_other_packets_get_no_answer() {
        let a = "100.64.0.1".parse().unwrap();
        for payload in [
            &b""[..],
            b"p",
            b"p1234567",
            b"o12345678",
            b"!\x06A",
            b"zzzzzzzzzzzz",
        ] {
            assert_eq!(answer(a, a, payload), None);
        }
    }
}
