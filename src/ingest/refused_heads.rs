//! Request heads that HTTP/2's frame layer refuses by itself, seen in the frames that go out: the library answers them without a word to anyone.
//!
//! ```text
//! HEADERS, one more than answers were given      431: the head is larger than it may be
//! GOAWAY that says so in its debug data          the head is far larger, or has too many CONTINUATIONs
//! ```
//!
//! Invariants: what is counted was refused; a peer that resets its streams may hide as many of its own refusals, and no other's. Nothing is held but the
//! beginning of a frame. Pure. Asked by [`frame_watch`](super::frame_watch) for each connection.

const HEADERS: u8 = 1;
const GOAWAY: u8 = 7;

const FRAME_HEAD_BYTES: usize = 9;
/// Up to the debug data of a GOAWAY: the frame's head, the last stream's number, the code.
const GOAWAY_HEAD_BYTES: usize = FRAME_HEAD_BYTES + 8;
/// As much of a frame as is looked at: a GOAWAY with the longest of [`TOO_LARGE`], and whether it goes on.
const BEGINNING_BYTES: usize = GOAWAY_HEAD_BYTES + 26;

/// The library's words for a head that ends its connection. The tests of ingest have them from the library itself.
const TOO_LARGE: [&[u8]; 2] = [b"too_many_continuations", b"header_list_way_too_large"];

/// Reads what goes out. [`handle_bytes`](Self::handle_bytes) with all that was written.
#[derive(Debug, Default)]
pub(super) struct RefusedHeads {
    beginning: Beginning,
    /// Of the payload of the frame that goes out.
    left: usize,
    /// Heads of responses that went out.
    heads: u64,
    /// Of these, the ones that are known not to be ours.
    not_ours: u64,
    /// A GOAWAY has said it.
    ended: bool,
}

/// The beginning of a frame, as far as it has gone out.
#[derive(Debug)]
struct Beginning {
    bytes: [u8; BEGINNING_BYTES],
    filled: usize,
}

impl Default for Beginning {
    fn default() -> Self {
        Self {
            bytes: [0; BEGINNING_BYTES],
            filled: 0,
        }
    }
}

impl Beginning {
    /// True when all that is looked at is there.
    fn take(&mut self, byte: u8) -> bool {
        if let Some(place) = self.bytes.get_mut(self.filled) {
            *place = byte;
        }
        self.filled = self.filled.saturating_add(1);
        let end = FRAME_HEAD_BYTES.saturating_add(self.payload_bytes());
        let wanted = if self.filled >= FRAME_HEAD_BYTES && self.kind() == GOAWAY {
            end.min(BEGINNING_BYTES)
        } else {
            FRAME_HEAD_BYTES
        };
        self.filled >= wanted
    }

    fn kind(&self) -> u8 {
        let [_, _, _, kind, ..] = self.bytes;
        kind
    }

    fn payload_bytes(&self) -> usize {
        let [high, middle, low, ..] = self.bytes;
        usize::try_from(u32::from_be_bytes([0, high, middle, low])).unwrap_or(usize::MAX)
    }
}

impl RefusedHeads {
    /// Bytes went out, after `answered` answers were given in all. How many refusals they tell of.
    pub(super) fn handle_bytes(&mut self, mut bytes: &[u8], answered: u64) -> u64 {
        let before = self.not_ours;
        let had_ended = self.ended;
        while let Some((first, after)) = bytes.split_first() {
            if self.left > 0 {
                let passed = bytes.len().min(self.left);
                self.left = self.left.saturating_sub(passed);
                bytes = bytes.get(passed..).unwrap_or_default();
                continue;
            }
            bytes = after;
            if self.beginning.take(*first) {
                self.handle_frame(answered);
            }
        }
        let goaways = u64::from(self.ended && !had_ended);
        self.not_ours.saturating_sub(before).saturating_add(goaways)
    }

    fn handle_frame(&mut self, answered: u64) {
        let frame = std::mem::take(&mut self.beginning);
        let of_payload = frame.filled.saturating_sub(FRAME_HEAD_BYTES);
        self.left = frame.payload_bytes().saturating_sub(of_payload);
        if frame.kind() == HEADERS {
            self.heads = self.heads.saturating_add(1);
            self.not_ours = self.not_ours.max(self.heads.saturating_sub(answered));
        } else if frame.kind() == GOAWAY {
            let said = frame.bytes.get(GOAWAY_HEAD_BYTES..frame.filled);
            self.ended |= said.is_some_and(|said| TOO_LARGE.contains(&said));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, 4, 0, 0, 0, 1], payload].concat()
    }

    fn goaway(said: &[u8]) -> Vec<u8> {
        frame(GOAWAY, &[&[0, 0, 0, 1, 0, 0, 0, 11], said].concat())
    }

    #[test]
    fn heads_beyond_the_answers_are_refusals_however_the_bytes_are_cut() {
        let sent = [
            frame(4, &[0; 18]),
            frame(HEADERS, b"200"),
            frame(0, &[HEADERS; 40]),
            frame(HEADERS, b"431"),
            frame(0, b""),
            frame(HEADERS, b"431"),
            goaway(b"header_list_way_too_large"),
        ]
        .concat();
        for cut in 1..=sent.len() {
            let mut heads = RefusedHeads::default();
            let told = sent.chunks(cut).map(|part| heads.handle_bytes(part, 1));
            assert_eq!(told.sum::<u64>(), 3, "{cut}");
        }
    }

    #[test]
    fn an_answer_that_never_went_out_makes_no_refusal() {
        let mut heads = RefusedHeads::default();
        assert_eq!(heads.handle_bytes(&frame(HEADERS, b"200"), 2), 0);
        assert_eq!(heads.handle_bytes(&frame(HEADERS, b"200"), 3), 0);
    }

    #[test]
    fn a_goaway_is_a_refusal_once_and_only_if_it_says_so() {
        for (said, told) in [
            (TOO_LARGE[0], 1),
            (TOO_LARGE[1], 1),
            (b"too_many_resets", 0),
            (b"header_list_way_too_large, and more", 0),
            (b"", 0),
        ] {
            let mut heads = RefusedHeads::default();
            let sent = [goaway(said), goaway(said), frame(HEADERS, b"200")].concat();
            assert_eq!(heads.handle_bytes(&sent, 1), told);
        }
    }
}
