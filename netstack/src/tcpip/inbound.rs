//! What an inbound IP packet says about where it belongs, read once at the door.
//!
//! ```text
//! IPv4 (RFC 791)   4|ihl tos  total    ident    flags+offset  ttl proto sum  source(4)  destination(4)  options
//! IPv6 (RFC 8200)  6|class+flow        payload  next hop      source(16)  destination(16)
//! TCP (RFC 9293)   source dest  sequence(4)  acknowledgement(4)  offset|flags  window  checksum urgent  options
//! ```
//!
//! A packet that passes has consistent lengths, is no fragment, and comes from a unicast address. Checksums are not looked at: WireGuard authenticated the bytes.
//! Bytes behind the packet's own length (padding of the tunnel) are cut off. Called by [`super::TcpIp::handle_packet`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::flow::Flow;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

const PROTOCOL_TCP: u8 = 6;
const EXTENSION_FRAGMENT: u8 = 44;
/// Hop-by-hop, routing, ESP, AH and destination options (RFC 8200 §4): no tailnet node sends them, and what lies behind them would dodge the flow table.
const EXTENSIONS_REFUSED: [u8; 5] = [0, 43, 50, 51, 60];

/// A packet that passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Inbound<'a> {
    /// The packet without what follows it.
    pub(super) packet: &'a [u8],
    pub(super) local: IpAddr,
    pub(super) remote: IpAddr,
    /// Present if it is TCP.
    pub(super) segment: Option<Segment>,
}

/// The parts of a TCP header that decide where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) flow: Flow,
    pub(super) local_port: u16,
    pub(super) sequence: u32,
    pub(super) window: u16,
    pub(super) payload_bytes: usize,
    flags: u8,
}

impl Segment {
    /// Whether it asks for a new connection: SYN and nothing that contradicts it.
    pub(super) fn opens(&self) -> bool {
        self.flags & (SYN | ACK | RST | FIN) == SYN
    }

    pub(super) fn synchronizes(&self) -> bool {
        self.flags & SYN != 0
    }

    pub(super) fn resets(&self) -> bool {
        self.flags & RST != 0
    }

    pub(super) fn finishes(&self) -> bool {
        self.flags & FIN != 0
    }

    /// The number behind its last byte.
    pub(super) fn end(&self) -> u32 {
        self.sequence
            .wrapping_add(u32::try_from(self.payload_bytes).unwrap_or_default())
    }
}

/// Why a packet did not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dropped {
    Malformed,
    Fragment,
}

impl<'a> Inbound<'a> {
    pub(super) fn parse(packet: &'a [u8]) -> Result<Self, Dropped> {
        match packet.first().map(|byte| byte >> 4) {
            Some(4) => Self::parse_v4(packet),
            Some(6) => Self::parse_v6(packet),
            Some(_) | None => Err(Dropped::Malformed),
        }
    }

    fn parse_v4(packet: &'a [u8]) -> Result<Self, Dropped> {
        let (&[version_ihl, _, t0, t1, _, _, f0, f1, _, protocol, _, _], rest) =
            split::<12>(packet)?;
        let (&remote, rest) = split::<4>(rest)?;
        let (&local, _) = split::<4>(rest)?;
        let header_bytes = usize::from(version_ihl & 0x0f) * 4;
        let packet = packet
            .get(..usize::from(u16::from_be_bytes([t0, t1])))
            .ok_or(Dropped::Malformed)?;
        if header_bytes < 20 {
            return Err(Dropped::Malformed);
        }
        let payload = packet.get(header_bytes..).ok_or(Dropped::Malformed)?;
        // More fragments follow, or this is not the first.
        if u16::from_be_bytes([f0, f1]) & 0x3fff != 0 {
            return Err(Dropped::Fragment);
        }
        let remote = Ipv4Addr::from(remote);
        if remote.is_unspecified() || remote.is_multicast() || remote.is_broadcast() {
            return Err(Dropped::Malformed);
        }
        Self::with_payload(
            packet,
            Ipv4Addr::from(local).into(),
            remote.into(),
            protocol,
            payload,
        )
    }

    fn parse_v6(packet: &'a [u8]) -> Result<Self, Dropped> {
        let (&[_, _, _, _, p0, p1, next_header, _], rest) = split::<8>(packet)?;
        let (&remote, rest) = split::<16>(rest)?;
        let (&local, payload) = split::<16>(rest)?;
        let payload_bytes = usize::from(u16::from_be_bytes([p0, p1]));
        let payload = payload.get(..payload_bytes).ok_or(Dropped::Malformed)?;
        let packet = packet.get(..40 + payload_bytes).ok_or(Dropped::Malformed)?;
        let remote = Ipv6Addr::from(remote);
        if remote.is_unspecified() || remote.is_multicast() || remote.to_ipv4_mapped().is_some() {
            return Err(Dropped::Malformed);
        }
        match next_header {
            EXTENSION_FRAGMENT => Err(Dropped::Fragment),
            refused if EXTENSIONS_REFUSED.contains(&refused) => Err(Dropped::Malformed),
            protocol => Self::with_payload(
                packet,
                Ipv6Addr::from(local).into(),
                remote.into(),
                protocol,
                payload,
            ),
        }
    }

    fn with_payload(
        packet: &'a [u8],
        local: IpAddr,
        remote: IpAddr,
        protocol: u8,
        payload: &[u8],
    ) -> Result<Self, Dropped> {
        let segment = if protocol == PROTOCOL_TCP {
            let (&[s0, s1, d0, d1, n0, n1, n2, n3, _, _, _, _], rest) = split::<12>(payload)?;
            let (&[offset, flags, w0, w1, _, _, _, _], _) = split::<8>(rest)?;
            let header_bytes = usize::from(offset >> 4) * 4;
            let (remote_port, local_port) =
                (u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1]));
            if header_bytes < 20
                || header_bytes > payload.len()
                || remote_port == 0
                || local_port == 0
            {
                return Err(Dropped::Malformed);
            }
            Some(Segment {
                flow: Flow::new(local, local_port, remote, remote_port),
                local_port,
                sequence: u32::from_be_bytes([n0, n1, n2, n3]),
                window: u16::from_be_bytes([w0, w1]),
                payload_bytes: payload.len() - header_bytes,
                flags,
            })
        } else {
            None
        };
        Ok(Self {
            packet,
            local,
            remote,
            segment,
        })
    }
}

fn split<const N: usize>(bytes: &[u8]) -> Result<(&[u8; N], &[u8]), Dropped> {
    bytes.split_first_chunk().ok_or(Dropped::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A SYN to port 80 with the options that Linux sends, written out by hand.
    const SYN_TO_80: &str = "4500003c1c4640004006b1e6ac100a63ac100a0ce34b0050a1b2c3d400000000a002fe88c5a00000020405b40402080a0f0e0d0c0000000001030307";

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u32> = text
            .chars()
            .filter_map(|digit| digit.to_digit(16))
            .collect();
        digits
            .chunks(2)
            .map(|pair| u8::try_from(pair[0] * 16 + pair[1]).unwrap())
            .collect()
    }

    #[test]
    fn a_syn_is_read_and_its_padding_cut_off() {
        let syn = hex(SYN_TO_80);
        let mut padded = syn.clone();
        padded.extend([0; 4]);
        let inbound = Inbound::parse(&padded).unwrap();
        assert_eq!(inbound.packet, syn);
        let segment = inbound.segment.unwrap();
        assert_eq!(
            (segment.flow.local(), segment.flow.remote()),
            (
                "172.16.10.12:80".parse().unwrap(),
                "172.16.10.99:58187".parse().unwrap()
            )
        );
        assert!(segment.opens() && !segment.resets() && !segment.finishes());
    }

    #[test]
    fn bent_headers_are_refused() {
        let bend = |at: usize, byte: u8| {
            let mut packet = hex(SYN_TO_80);
            packet[at] = byte;
            Inbound::parse(&packet).map(|_| ())
        };
        let table = [
            ("version", 0, 0x55, Dropped::Malformed),
            ("header shorter than its least", 0, 0x44, Dropped::Malformed),
            ("header longer than the packet", 0, 0x4f, Dropped::Malformed),
            ("length beyond the bytes", 3, 0x3d, Dropped::Malformed),
            ("length inside the header", 3, 0x13, Dropped::Malformed),
            ("more fragments", 6, 0x20, Dropped::Fragment),
            ("later fragment", 7, 0x01, Dropped::Fragment),
            ("multicast source", 12, 0xe0, Dropped::Malformed),
            (
                "tcp header longer than the segment",
                32,
                0xb0,
                Dropped::Malformed,
            ),
            (
                "tcp header shorter than its least",
                32,
                0x40,
                Dropped::Malformed,
            ),
        ];
        for (case, at, byte, reason) in table {
            assert_eq!(bend(at, byte), Err(reason), "{case}");
        }
        assert_eq!(bend(1, 0xff), Ok(()));
    }

    #[test]
    fn every_truncation_is_refused() {
        let syn = hex(SYN_TO_80);
        for length in 0..syn.len() {
            assert_eq!(Inbound::parse(&syn[..length]), Err(Dropped::Malformed));
        }
    }

    #[test]
    fn ipv6_extension_headers_and_mapped_sources_are_refused() {
        let mut packet = vec![0_u8; 60];
        packet[0] = 0x60;
        packet[5] = 20;
        packet[23] = 2;
        packet[39] = 1;
        for (next_header, expected) in [
            (17, None),
            (44, Some(Dropped::Fragment)),
            (0, Some(Dropped::Malformed)),
            (60, Some(Dropped::Malformed)),
        ] {
            packet[6] = next_header;
            assert_eq!(Inbound::parse(&packet).err(), expected);
        }
        packet[6] = 17;
        packet[18..20].fill(0xff);
        assert_eq!(Inbound::parse(&packet).err(), Some(Dropped::Malformed));
    }
}
