//! TCP segments, written so that their lengths and places fit, whatever else is wrong with them.
//!
//! Called by the targets of `tcpip` and `node`.

use std::net::IpAddr;

use super::script::Script;

/// Where a segment stands in its connection.
#[derive(Clone, Copy, Default)]
pub struct Place {
    pub seq: u32,
    pub ack: u32,
}

/// One TCP segment from `src` to `dst` (one family), near `place`: ports, flags, window, options and
/// payload are the script's.
pub fn tcp(
    script: &mut Script<'_>,
    (src, dst): (IpAddr, IpAddr),
    (src_port, dst_port): (u16, u16),
    place: Place,
) -> Vec<u8> {
    let near = |base: u32, by: u16| base.wrapping_add_signed(i32::from(by.cast_signed()));
    let seq = near(place.seq, script.u16());
    let ack = near(place.ack, script.u16());
    let (flags, window, shape) = (script.byte(), script.u16(), script.byte());
    let mut options = script.array::<12>().to_vec();
    options.truncate(usize::from(shape & 3) * 4);
    let payload = script.piece();
    let payload = payload.get(..1200).unwrap_or(payload);

    let mut segment = Vec::with_capacity(32 + payload.len());
    segment.extend_from_slice(&src_port.to_be_bytes());
    segment.extend_from_slice(&dst_port.to_be_bytes());
    segment.extend_from_slice(&seq.to_be_bytes());
    segment.extend_from_slice(&ack.to_be_bytes());
    segment.extend_from_slice(&[(5 + (shape & 3)) << 4, flags]);
    segment.extend_from_slice(&window.to_be_bytes());
    segment.extend_from_slice(&[0, 0, 0, shape >> 2]);
    segment.extend_from_slice(&options);
    segment.extend_from_slice(payload);
    ip(src, dst, 6, &segment)
}

/// One IP packet without options. The sums inside are left 0: the tunnel vouches for the bytes.
pub fn ip(src: IpAddr, dst: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = |bytes: usize| u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes();
    let mut packet = Vec::with_capacity(40 + payload.len());
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            packet.extend_from_slice(&[0x45, 0]);
            packet.extend_from_slice(&length(20 + payload.len()));
            packet.extend_from_slice(&[0, 0, 0, 0, 64, protocol, 0, 0]);
            packet.extend_from_slice(&src.octets());
            packet.extend_from_slice(&dst.octets());
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            packet.extend_from_slice(&[0x60, 0, 0, 0]);
            packet.extend_from_slice(&length(payload.len()));
            packet.extend_from_slice(&[protocol, 64]);
            packet.extend_from_slice(&src.octets());
            packet.extend_from_slice(&dst.octets());
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {}
    }
    packet.extend_from_slice(payload);
    packet
}

/// Where the next segment of whoever gets `packet` belongs, if it is TCP over plain IP.
pub fn answer_to(packet: &[u8]) -> Option<Place> {
    let (header_bytes, protocol) = match packet.first()? >> 4 {
        4 => (20, *packet.get(9)?),
        6 => (40, *packet.get(6)?),
        _ => return None,
    };
    let (tcp, whole) = (packet.get(header_bytes..)?, packet.len());
    if protocol != 6 {
        return None;
    }
    let word = |at: usize| Some(u32::from_be_bytes(*tcp.get(at..)?.first_chunk()?));
    let (seq, ack) = (word(4)?, word(8)?);
    let (offset, flags) = (tcp.get(12)? >> 4, *tcp.get(13)?);
    let payload_bytes = whole.checked_sub(header_bytes + usize::from(offset) * 4)?;
    let counted = u32::try_from(payload_bytes).ok()? + u32::from(flags & 3 != 0);
    Some(Place {
        seq: ack,
        ack: seq.wrapping_add(counted),
    })
}
