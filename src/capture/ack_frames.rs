//! What a recorder says while a recording goes up, as bytes:
//!
//! ```text
//! {"ack":4096}\n{"ack":8192,"receipt":"…"}{"error":"disk full"}
//! └── frame ──┘  └────────── frame ──────┘└────── last ───────┘
//! ```
//!
//! The body of the answer to `POST /v2/record` is JSON objects back to back; white space between them is optional, and unknown
//! keys mean nothing to this reader. `ack` is the durable offset, cumulative from the first byte of the upload; left out, it is
//! 0. A non-empty `error` is the last frame.
//!
//! The invariant: the same bytes give the same frames however they are split, and at most [`FRAME_BYTES_MAX`] are held.
//! The recorder client feeds it.

use serde::Deserialize;

/// The longest frame that is read. Ours are below 100 bytes, a signed receipt adds a few hundred; a recorder that sends more than
/// this is not one.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;

/// How deep a frame may nest; the JSON reader's own limit.
const FRAME_DEPTH_MAX: usize = 127;

/// One frame, as the uploader understands it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AckFrame {
    /// Bytes of the upload that are safe. A frame that names no offset says 0: it shows only that the recorder is alive.
    Durable {
        /// Cumulative from the first byte of the upload, in bytes.
        acked_bytes: u64,
    },
    /// The recording failed, in the recorder's words. Nothing follows.
    Failed {
        /// Untrusted text of at most [`FRAME_BYTES_MAX`] bytes: escape it before showing it.
        message: String,
    },
}

/// Why the bytes are not ack frames. Each is the recorder's fault, and ends the upload.
#[derive(Debug, thiserror::Error)]
pub enum AckFrameError {
    /// A frame begins with a byte other than `{`, or a bracket closes what was not open.
    #[error("the recorder sent byte {byte:#04x} where no JSON object allows it")]
    NotAnObject {
        /// The offending byte.
        byte: u8,
    },
    /// The frame does not end within the limit.
    #[error("the recorder sent a frame of more than {FRAME_BYTES_MAX} bytes")]
    TooLong,
    /// The frame nests deeper than the JSON reader goes.
    #[error("the recorder sent a frame nested more than {FRAME_DEPTH_MAX} deep")]
    TooDeep,
    /// The frame is not JSON, or `ack` is no unsigned 64-bit integer, or `error` is no string.
    #[error("the recorder sent a frame that cannot be read")]
    Malformed(#[source] serde_json::Error),
    /// The answer ended inside a frame.
    #[error("the recorder's answer ended inside a frame, after {held_bytes} bytes of it")]
    EndsInside {
        /// Length of the part that came.
        held_bytes: usize,
    },
}

/// Cuts the answer's bytes into frames.
///
/// Order of calls: [`handle_bytes`](Self::handle_bytes) for each piece, which hands every frame that ends in it to the caller in
/// order; [`handle_end`](Self::handle_end) once, when the answer ended. After an error it is of no more use.
#[derive(Debug, Default)]
pub struct AckDecoder {
    /// The frame begun, from its `{`; empty between frames.
    held: Vec<u8>,
    /// The bracket that closes each open one, innermost last.
    closers: Vec<u8>,
    string: StringState,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum StringState {
    #[default]
    Outside,
    Inside,
    Escaped,
}

impl AckDecoder {
    /// A decoder at the start of an answer.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes, and gives each frame that they complete to `on_frame`.
    ///
    /// # Errors
    /// The bytes are not ack frames; the frames before the fault were given.
    pub fn handle_bytes(
        &mut self,
        bytes: &[u8],
        mut on_frame: impl FnMut(AckFrame),
    ) -> Result<(), AckFrameError> {
        for &byte in bytes {
            if let Some(frame) = self.handle_byte(byte)? {
                on_frame(frame);
            }
        }
        Ok(())
    }

    /// The answer ended.
    ///
    /// # Errors
    /// [`AckFrameError::EndsInside`] unless it ended between two frames.
    pub fn handle_end(&self) -> Result<(), AckFrameError> {
        match self.held.len() {
            0 => Ok(()),
            held_bytes => Err(AckFrameError::EndsInside { held_bytes }),
        }
    }

    fn handle_byte(&mut self, byte: u8) -> Result<Option<AckFrame>, AckFrameError> {
        if self.held.is_empty() {
            match byte {
                b' ' | b'\t' | b'\r' | b'\n' => return Ok(None),
                b'{' => {}
                _ => return Err(AckFrameError::NotAnObject { byte }),
            }
        }
        if self.held.len() == FRAME_BYTES_MAX {
            return Err(AckFrameError::TooLong);
        }
        self.held.push(byte);
        self.follow(byte)?;
        if !self.closers.is_empty() {
            return Ok(None);
        }
        let frame = parse(&self.held);
        self.held.clear();
        frame.map(Some)
    }

    /// Follows strings and brackets just far enough to know where the object ends; whether it is JSON is the reader's to say.
    fn follow(&mut self, byte: u8) -> Result<(), AckFrameError> {
        self.string = match (self.string, byte) {
            (StringState::Inside, b'\\') => StringState::Escaped,
            (StringState::Inside, b'"') => StringState::Outside,
            (StringState::Inside | StringState::Escaped, _) => StringState::Inside,
            (StringState::Outside, b'"') => StringState::Inside,
            (StringState::Outside, b'{') => self.open(b'}')?,
            (StringState::Outside, b'[') => self.open(b']')?,
            (StringState::Outside, b'}' | b']') => {
                if self.closers.pop() != Some(byte) {
                    return Err(AckFrameError::NotAnObject { byte });
                }
                StringState::Outside
            }
            (StringState::Outside, _) => StringState::Outside,
        };
        Ok(())
    }

    fn open(&mut self, closer: u8) -> Result<StringState, AckFrameError> {
        if self.closers.len() == FRAME_DEPTH_MAX {
            return Err(AckFrameError::TooDeep);
        }
        self.closers.push(closer);
        Ok(StringState::Outside)
    }
}

fn parse(object: &[u8]) -> Result<AckFrame, AckFrameError> {
    #[derive(Deserialize)]
    struct Wire {
        ack: Option<u64>,
        error: Option<String>,
    }
    let wire: Wire = serde_json::from_slice(object).map_err(AckFrameError::Malformed)?;
    Ok(match wire.error.filter(|message| !message.is_empty()) {
        Some(message) => AckFrame::Failed { message },
        None => AckFrame::Durable {
            acked_bytes: wire.ack.unwrap_or(0),
        },
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(pieces: &[&[u8]]) -> (Vec<AckFrame>, Result<(), String>) {
        let mut decoder = AckDecoder::new();
        let mut frames = Vec::new();
        for piece in pieces {
            if let Err(error) = decoder.handle_bytes(piece, |frame| frames.push(frame)) {
                return (frames, Err(error.to_string()));
            }
            assert!(decoder.held.len() <= FRAME_BYTES_MAX);
        }
        let end = decoder.handle_end().map_err(|error| error.to_string());
        (frames, end)
    }

    fn acks(frames: &[AckFrame]) -> Vec<u64> {
        frames
            .iter()
            .map(|frame| match frame {
                AckFrame::Durable { acked_bytes } => *acked_bytes,
                AckFrame::Failed { message } => panic!("failed: {message}"),
            })
            .collect()
    }

    #[test]
    fn frames_need_no_newline_between_them_and_unknown_keys_mean_nothing() {
        // The stimulus that the stock client was seen to accept.
        let (frames, end) = decode(&[br#"{}{"ack":1}  {"ack":2,"new":[1]}"#]);
        assert_eq!((acks(&frames), end), (vec![0, 1, 2], Ok(())));
    }

    #[test]
    fn white_space_alone_is_no_frame() {
        assert_eq!(decode(&[b" \r\n\t "]), (vec![], Ok(())));
    }

    #[test]
    fn brackets_and_quotes_inside_a_string_do_not_end_the_frame() {
        let (frames, end) = decode(&[br#"{"note":"}\"]\\","ack":7}{"ack":8}"#]);
        assert_eq!((acks(&frames), end), (vec![7, 8], Ok(())));
    }

    #[test]
    fn an_error_frame_is_a_failure_and_an_empty_error_is_not() {
        let failed = AckFrame::Failed {
            message: "disk full".to_owned(),
        };
        assert_eq!(
            decode(&[br#"{"error":"disk full"}"#]),
            (vec![failed], Ok(()))
        );
        let (frames, _) = decode(&[br#"{"ack":3,"error":""}"#]);
        assert_eq!(acks(&frames), [3]);
    }

    #[test]
    fn what_a_stock_client_refuses_is_refused() {
        for bytes in [
            &b"{\"ack\":\"5\"}"[..],
            b"{\"ack\":5.5}",
            b"{\"ack\":[5]}",
            b"{\"error\":5}",
            b"{\"ack\":18446744073709551616}",
            b"{ack:5}",
            b"{\"ack\":5]",
            b"{\"ack\":5",
            b"hello",
            b"5",
            b"[]",
            b"\x00",
            b"{\"ack\":1}x",
        ] {
            let (_, end) = decode(&[bytes]);
            assert!(end.is_err(), "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn an_answer_that_ends_inside_a_frame_is_told_from_one_that_ends_between_two() {
        let (frames, end) = decode(&[br#"{"ack":1}{"ac"#]);
        assert_eq!(acks(&frames), [1]);
        assert!(end.unwrap_err().contains("after 4 bytes"));
    }

    #[test]
    fn a_frame_longer_than_the_limit_is_refused_at_the_limit() {
        let mut bytes = br#"{"new":""#.to_vec();
        bytes.resize(FRAME_BYTES_MAX - 2, b'x');
        bytes.extend_from_slice(br#""}"#);
        assert_eq!(acks(&decode(&[&bytes]).0), [0]);
        bytes.insert(8, b'x');
        assert!(decode(&[&bytes]).1.unwrap_err().contains("more than 65536"));
    }

    #[test]
    fn a_frame_nested_too_deep_is_refused() {
        let mut bytes = br#"{"new":"#.to_vec();
        bytes.resize(bytes.len() + FRAME_DEPTH_MAX, b'[');
        assert!(decode(&[&bytes]).1.unwrap_err().contains("deep"));
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_frames(
            offsets in prop::collection::vec(any::<u64>(), 0..8),
            message in ".{1,12}",
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let mut bytes = Vec::new();
            for offset in &offsets {
                bytes.extend(serde_json::to_vec(&serde_json::json!({"ack": offset, "more": message})).unwrap());
            }
            bytes.extend(serde_json::to_vec(&serde_json::json!({"error": message})).unwrap());
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
            let (mut frames, end) = decode(&pieces);
            prop_assert_eq!(end, Ok(()));
            prop_assert_eq!(frames.pop(), Some(AckFrame::Failed { message }));
            prop_assert_eq!(acks(&frames), offsets);
        }

        #[test]
        fn bent_bytes_never_panic_and_split_or_whole_they_say_the_same(
            mut bytes in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..64),
                Just(br#"{"ack":1}{"ack":2,"new":[1,{"a":"\"}"}]} {"error":"x"}"#.to_vec()),
            ],
            at in any::<prop::sample::Index>(),
            bent in any::<u8>(),
        ) {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = bent;
            }
            let whole = decode(&[&bytes]);
            let pieces: Vec<&[u8]> = bytes.chunks(1).collect();
            prop_assert_eq!(whole, decode(&pieces));
        }
    }
}
