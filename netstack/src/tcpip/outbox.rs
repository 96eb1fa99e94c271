//! Packets that arose while a packet was taken in, waiting for the next poll: immediate acks, resets and answers to pings.
//!
//! They lie end to end in one buffer that is reused, and their number is bounded; one too many is dropped, which TCP repairs. Owned by [`super::TcpIp`].

/// Answers that may wait for one poll. A shell hands in at most a few hundred packets between polls, and each makes one answer or none, but for the data that an ack lets go.
const PACKETS_MAX: usize = 4_096;

#[derive(Debug, Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
    /// Where each packet ends in `bytes`.
    ends: Vec<usize>,
    dropped: u64,
}

impl Outbox {
    pub(super) fn push(&mut self, packet: &[u8]) {
        if self.ends.len() < PACKETS_MAX {
            self.bytes.extend_from_slice(packet);
            self.ends.push(self.bytes.len());
        } else {
            self.dropped += 1;
        }
    }

    /// Gives every packet to `emit`, oldest first, and forgets them.
    pub(super) fn flush(&mut self, emit: &mut dyn FnMut(&[u8])) {
        let mut start = 0;
        for &end in &self.ends {
            emit(self.bytes.get(start..end).unwrap_or_default());
            start = end;
        }
        self.bytes.clear();
        self.ends.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_come_out_in_order_and_one_too_many_is_dropped() {
        let mut outbox = Outbox::default();
        for number in 0..=PACKETS_MAX {
            outbox.push(&number.to_be_bytes());
        }
        let mut seen = 0_usize;
        outbox.flush(&mut |packet| {
            assert_eq!(packet, seen.to_be_bytes());
            seen += 1;
        });
        assert_eq!(
            (seen, outbox.dropped(), outbox.is_empty()),
            (PACKETS_MAX, 1, true)
        );
    }
}
