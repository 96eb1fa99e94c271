//! What one connection has promised and been promised, in sequence numbers: enough to build its stack anew.
//!
//! smoltcp keeps all this, and shows none of it. So the SYNs are read as they pass and bytes are counted where the caller hands them over.
//! The window scale that the peer was told in the SYN stays for the life of the connection, whatever ring the stack has by now: every
//! outgoing window is put on that scale here. Invariant: sequence numbers are taken modulo 2^32, and the edge that was promised
//! never moves back. Called by [`super::connection`] and [`super::rebuild`].

use smoltcp::wire::{Error, IpAddress, TcpPacket, TcpRepr};

use super::device::checksums;
use super::flow::Flow;
use super::inbound::Segment;

const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_WINDOW_SCALE: u8 = 3;
/// The largest scale that may be offered (RFC 7323 §2.3).
const SCALE_MAX: u8 = 14;
/// Bits of the window field of a header.
const WINDOW_BITS: u32 = 16;

/// What the peer offered in its SYN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Offer {
    pub(super) segment_bytes_max: Option<u16>,
    pub(super) window_scale: Option<u8>,
    pub(super) selective_acks: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Ledger {
    /// Number of our first byte and of the peer's; `None` before the SYN that says it.
    first_sent: Option<u32>,
    first_received: Option<u32>,
    pub(super) offer: Offer,
    /// Bytes that the caller queued, and bytes that it read.
    queued: u32,
    read: u32,
    /// The end of the farthest data that was seen within the window.
    farthest: u32,
    /// The end of the widest window that was announced.
    promised: u32,
    /// The peer's last window, on the scale that it offered.
    pub(super) peer_window: u16,
    /// The scale that we offer.
    scale: u8,
}

impl Ledger {
    /// A connection whose window may grow to `window_bytes_max`.
    pub(super) fn new(window_bytes_max: usize) -> Self {
        Self {
            first_sent: None,
            first_received: None,
            offer: Offer::default(),
            queued: 0,
            read: 0,
            farthest: 0,
            promised: 0,
            peer_window: 0,
            scale: scale_for(window_bytes_max).min(SCALE_MAX),
        }
    }

    pub(super) fn queue(&mut self, bytes: usize) {
        self.queued = self.queued.wrapping_add(wrapping(bytes));
    }

    pub(super) fn take(&mut self, bytes: usize) {
        self.read = self.read.wrapping_add(wrapping(bytes));
    }

    /// The number of the next byte that the caller will queue.
    pub(super) fn next_sent(&self) -> Option<u32> {
        Some(self.first_sent?.wrapping_add(self.queued))
    }

    /// The number of the next byte that the caller will read: where the receive ring begins.
    pub(super) fn next_read(&self) -> Option<u32> {
        Some(self.first_received?.wrapping_add(self.read))
    }

    /// How far the segment reaches beyond the next byte to read, if the peer was promised that much room.
    pub(super) fn reach(&self, segment: &Segment) -> Option<usize> {
        let end = segment.end();
        let reach = self.ahead(end)?;
        (segment.payload_bytes > 0 && before(end, self.promised.wrapping_add(1))).then_some(reach)
    }

    /// Whether nothing came that lies beyond a gap, `unread_bytes` being what the caller could read.
    pub(super) fn is_in_order(&self, unread_bytes: usize) -> bool {
        self.ahead(self.farthest)
            .is_none_or(|reach| reach <= unread_bytes)
    }

    /// The scale that the stack with a ring of this size puts its windows on.
    fn scale_of_ring(&self, ring_bytes: usize) -> u8 {
        self.offer.window_scale.map_or(0, |_| scale_for(ring_bytes))
    }

    /// The largest ring that makes sense for this peer: without scaling it never sends more than 64 KiB ahead.
    pub(super) fn ring_bytes_max(&self, wish_bytes: usize) -> usize {
        match self.offer.window_scale {
            Some(_) => wish_bytes,
            None => wish_bytes.min(usize::from(u16::MAX) + 1),
        }
    }

    /// Reads a segment of the peer's before the stack does. `opening`: the stack waits for the peer's SYN.
    pub(super) fn note_in(
        &mut self,
        opening: bool,
        flow: &Flow,
        packet: &[u8],
        segment: &Segment,
        ring_bytes: usize,
    ) {
        if segment.synchronizes() {
            if opening && let Ok(offer) = read_offer(flow, packet) {
                let first = segment.sequence.wrapping_add(1);
                self.offer = offer;
                // The window of a SYN is not scaled (RFC 7323 §2.2), all later ones are.
                let scale = u32::from(offer.window_scale.unwrap_or(0));
                self.peer_window = segment.window.checked_shr(scale).unwrap_or(0);
                self.first_received = Some(first);
                self.farthest = first;
                self.promised = first;
            }
            return;
        }
        self.peer_window = segment.window;
        if let Some(reach) = self.ahead(segment.end())
            && reach <= ring_bytes
            && before(self.farthest, segment.end())
        {
            self.farthest = segment.end();
        }
    }

    /// Reads a packet that the stack has built for a ring of this size, and puts its window on the scale that the peer knows. Whether it
    /// promises more than was promised before.
    pub(super) fn note_out(&mut self, packet: &mut [u8], ring_bytes: usize) -> bool {
        let ring_scale = self.scale_of_ring(ring_bytes);
        let Some(mut header) = Header::of(packet) else {
            return false;
        };
        // The window of a SYN is not scaled (RFC 7323 §2.2).
        let scale = if header.tcp.syn() {
            self.first_sent = Some(header.sequence().wrapping_add(1));
            header.set_scale(self.scale);
            0
        } else {
            let scale = self.offer.window_scale.map_or(0, |_| self.scale);
            let bytes = u32::from(header.tcp.window_len()) << ring_scale;
            header.set_window(u16::try_from(bytes >> scale).unwrap_or(u16::MAX));
            scale
        };
        let window_bytes = u32::from(header.tcp.window_len()) << scale;
        let edge = header.acknowledgement().wrapping_add(window_bytes);
        let promises = header.tcp.ack() && before(self.promised, edge);
        if promises {
            self.promised = edge;
        }
        promises
    }

    /// How far `end` lies beyond the next byte to read; `None` if it is behind, or nothing is known yet.
    fn ahead(&self, end: u32) -> Option<usize> {
        let distance = end.wrapping_sub(self.next_read()?);
        i32::try_from(distance).ok()?;
        usize::try_from(distance).ok()
    }
}

/// The scale that smoltcp chooses for a ring: what makes its size fit into the window field.
fn scale_for(ring_bytes: usize) -> u8 {
    let bits = usize::BITS - ring_bytes.leading_zeros();
    u8::try_from(bits.saturating_sub(WINDOW_BITS)).unwrap_or(u8::MAX)
}

/// Sequence numbers and byte counts wrap alike.
fn wrapping(bytes: usize) -> u32 {
    u32::try_from(bytes & 0xffff_ffff).unwrap_or_default()
}

/// Whether `a` comes before `b` (RFC 9293 §3.4).
fn before(a: u32, b: u32) -> bool {
    a.wrapping_sub(b).cast_signed() < 0
}

fn read_offer(flow: &Flow, packet: &[u8]) -> Result<Offer, Error> {
    let header_bytes = ip_header_bytes(packet).ok_or(Error)?;
    let tcp = TcpPacket::new_checked(packet.get(header_bytes..).ok_or(Error)?)?;
    let (local, remote): (IpAddress, IpAddress) =
        (flow.local().ip().into(), flow.remote().ip().into());
    let syn = TcpRepr::parse(&tcp, &remote, &local, &checksums())?;
    Ok(Offer {
        segment_bytes_max: syn.max_seg_size,
        window_scale: syn.window_scale,
        selective_acks: syn.sack_permitted,
    })
}

/// Bytes of the IP header of a packet that passed [`super::inbound`], or that smoltcp built: no extension headers.
fn ip_header_bytes(packet: &[u8]) -> Option<usize> {
    let first = packet.first()?;
    Some(match first >> 4 {
        4 => usize::from(first & 0x0f) * 4,
        _ => 40,
    })
}

/// The TCP header of a packet of our own.
struct Header<'a> {
    tcp: TcpPacket<&'a mut [u8]>,
}

impl<'a> Header<'a> {
    fn of(packet: &'a mut [u8]) -> Option<Self> {
        let header_bytes = ip_header_bytes(packet)?;
        let tcp = TcpPacket::new_checked(packet.get_mut(header_bytes..)?).ok()?;
        Some(Self { tcp })
    }

    fn sequence(&self) -> u32 {
        self.tcp.seq_number().0.cast_unsigned()
    }

    fn acknowledgement(&self) -> u32 {
        self.tcp.ack_number().0.cast_unsigned()
    }

    fn set_window(&mut self, window: u16) {
        let old = self.tcp.window_len();
        if old != window {
            self.tcp.set_window_len(window);
            self.mend_checksum(old, window);
        }
    }

    /// Sets the scale of a SYN, if it offers one at all.
    fn set_scale(&mut self, scale: u8) {
        let options = self.tcp.options_mut();
        let mut at = 0;
        let found = loop {
            match options.get(at..) {
                Some([OPTION_NOP, ..]) => at += 1,
                Some([OPTION_WINDOW_SCALE, 3, ..]) => break at + 2,
                Some([OPTION_END, ..]) | Some([]) | None => return,
                Some([_, length, ..]) => at += usize::from(*length).max(2),
                Some([_]) => return,
            }
        };
        let Some(byte) = options.get_mut(found) else {
            return;
        };
        let old = std::mem::replace(byte, scale);
        // The checksum is of 16-bit words from the start of the header, whose fixed part is 20 bytes.
        let place = |byte: u8| {
            if found % 2 == 0 {
                u16::from(byte) << 8
            } else {
                u16::from(byte)
            }
        };
        self.mend_checksum(place(old), place(scale));
    }

    /// RFC 1624 §3, equation 3: the checksum after one word changed.
    fn mend_checksum(&mut self, old: u16, new: u16) {
        let sum = u32::from(!self.tcp.checksum()) + u32::from(!old) + u32::from(new);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        self.tcp
            .set_checksum(!u16::try_from(sum & 0xffff).unwrap_or_default());
    }
}
