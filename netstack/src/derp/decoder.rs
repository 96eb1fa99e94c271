//! Frames out of a stream of bytes that arrives in pieces of any size.
//!
//! Invariant: a header that announces too much is refused before its payload is waited for, so at most
//! one payload ([`PAYLOAD_BYTES_MAX`](super::PAYLOAD_BYTES_MAX)) and one piece are kept; what is skipped
//! is not kept at all. Called by both ends of a connection.

use bytes::{Buf as _, Bytes, BytesMut};

use super::{DerpError, Frame, HEADER_BYTES, is_known, payload_bytes_max};

/// Collects bytes and yields frames.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
    /// Bytes of a frame of unknown kind that are still to come.
    skip_bytes: usize,
    skipped_frames: u64,
}

impl Decoder {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next piece of the stream. Take out all frames before the next one.
    pub fn push(&mut self, mut piece: &[u8]) {
        let skipped = self.skip_bytes.min(piece.len());
        piece.advance(skipped);
        self.skip_bytes -= skipped;
        self.buffer.extend_from_slice(piece);
    }

    /// The next frame; `None` until more bytes arrive. Its packet shares our buffer.
    ///
    /// # Errors
    /// [`DerpError`]; the stream cannot be read any further then.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, DerpError> {
        while let Some((kind, length)) = self.header()? {
            if !is_known(kind) {
                self.skipped_frames = self.skipped_frames.saturating_add(1);
                self.buffer.advance(HEADER_BYTES);
                let here = length.min(self.buffer.len());
                self.buffer.advance(here);
                self.skip_bytes = length - here;
                continue;
            }
            if self.buffer.len() < HEADER_BYTES + length {
                return Ok(None);
            }
            self.buffer.advance(HEADER_BYTES);
            let payload: Bytes = self.buffer.split_to(length).freeze();
            return Frame::parse(kind, payload);
        }
        Ok(None)
    }

    /// Frames of unknown kind so far.
    pub fn skipped_frames(&self) -> u64 {
        self.skipped_frames
    }

    /// Bytes that wait for the rest of their frame.
    pub fn waiting_bytes(&self) -> usize {
        self.buffer.len()
    }

    fn header(&self) -> Result<Option<(u8, usize)>, DerpError> {
        let Some(&[kind, a, b, c, d]) = self.buffer.first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let max = payload_bytes_max(kind);
        // A length that does not fit a usize is too long as well.
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if length > max {
            return Err(DerpError::TooLong { kind, length, max });
        }
        Ok(Some((kind, length)))
    }
}
