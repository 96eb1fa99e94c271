//! The sequence numbers of the last segment that a connection sent, and the bare ack that can be made of them when no stack can be asked.
//!
//! Two answers need it: the repeated last ack of a connection in TIME-WAIT whose stack is gone already (RFC 9293 §3.6.1), and the challenge ack for a SYN on a
//! connection that lives (RFC 5961 §4), which smoltcp drops. Called by [`super::connection`] and [`super::time_wait`].

use smoltcp::wire::{TcpControl, TcpRepr, TcpSeqNumber};

use super::compose::compose;
use super::flow::Flow;

/// Taken from an outgoing packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LastSent {
    /// The number behind the segment's last byte or flag.
    sequence: u32,
    acknowledgement: u32,
    window: u16,
}

impl LastSent {
    /// Reads a packet that smoltcp built: no IP options, no extension headers. `None` for a SYN without ACK, which acknowledges nothing yet.
    pub(super) fn read(packet: &[u8]) -> Option<Self> {
        let header_bytes = if packet.first()? >> 4 == 4 { 20 } else { 40 };
        let (
            &[
                _,
                _,
                _,
                _,
                s0,
                s1,
                s2,
                s3,
                a0,
                a1,
                a2,
                a3,
                offset,
                flags,
                w0,
                w1,
            ],
            _,
        ) = packet.get(header_bytes..)?.split_first_chunk()?;
        let payload_bytes = packet
            .len()
            .saturating_sub(header_bytes + usize::from(offset >> 4) * 4);
        let control = u32::from(flags & 0x01) + u32::from((flags & 0x02) >> 1);
        (flags & 0x10 != 0).then(|| Self {
            sequence: u32::from_be_bytes([s0, s1, s2, s3])
                .wrapping_add(u32::try_from(payload_bytes).unwrap_or_default())
                .wrapping_add(control),
            acknowledgement: u32::from_be_bytes([a0, a1, a2, a3]),
            window: u16::from_be_bytes([w0, w1]),
        })
    }

    /// The number up to which it acknowledges.
    pub(super) fn acknowledgement(self) -> u32 {
        self.acknowledgement
    }

    /// A segment without data that says the same again.
    pub(super) fn bare_ack(self, flow: &Flow) -> Vec<u8> {
        let segment = TcpRepr {
            src_port: flow.local().port(),
            dst_port: flow.remote().port(),
            control: TcpControl::None,
            seq_number: TcpSeqNumber(self.sequence.cast_signed()),
            ack_number: Some(TcpSeqNumber(self.acknowledgement.cast_signed())),
            window_len: self.window,
            window_scale: None,
            max_seg_size: None,
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: &[],
        };
        compose(flow.local(), flow.remote(), &segment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_ack_reads_back_as_what_it_was_made_of() {
        let sent = LastSent {
            sequence: 0xffff_fff0,
            acknowledgement: 7,
            window: 1024,
        };
        for (local, remote) in [
            ("100.64.0.1", "100.64.0.2"),
            ("fd7a:115c:a1e0::1", "fd7a:115c:a1e0::2"),
        ] {
            let flow = Flow::new(local.parse().unwrap(), 80, remote.parse().unwrap(), 50_000);
            let packet = sent.bare_ack(&flow);
            assert_eq!(LastSent::read(&packet), Some(sent));
            for length in 0..packet.len() {
                LastSent::read(&packet[..length]);
            }
        }
    }
}
