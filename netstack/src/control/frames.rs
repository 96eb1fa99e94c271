//! Framing of the map stream. Called by `control::stream`.
//!
//! Invariant: a length is checked before anything is kept for it, so the buffer never outgrows one
//! message.
//!
//! ```text
//! length u32 LE, 1..=16 MiB │ that many bytes of JSON (we never ask for compression)
//! ```

/// Largest message that we accept: about 10,000 peers.
pub const MAP_FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A message's length lies outside 1..=16 MiB.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("map message of {length} bytes")]
pub(super) struct FrameLengthError {
    pub(super) length: u32,
}

/// Cuts a byte stream into messages.
#[derive(Debug, Default)]
pub(super) struct FrameReader {
    buffer: Vec<u8>,
}

impl FrameReader {
    /// Takes as much of `bytes` as belongs to the current message and hands the message to `each`
    /// when it is whole; goes on until `bytes` is used up or `each` says stop.
    pub(super) fn handle_bytes<E: From<FrameLengthError>>(
        &mut self,
        bytes: &[u8],
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut rest = bytes;
        loop {
            let wanted = self.wanted_bytes()?;
            let (taken, after) = rest.split_at(rest.len().min(wanted - self.buffer.len()));
            self.buffer.extend_from_slice(taken);
            rest = after;
            if self.buffer.len() < wanted {
                return Ok(());
            }
            if let Some((_, message)) = self.buffer.split_first_chunk::<4>()
                && !message.is_empty()
            {
                each(message)?;
                // A huge first message must not hold its memory for the life of the stream.
                self.buffer = Vec::new();
            }
        }
    }

    /// Bytes of the current message with its head, as far as is known: never less than is held.
    fn wanted_bytes(&self) -> Result<usize, FrameLengthError> {
        let Some((head, _)) = self.buffer.split_first_chunk::<4>() else {
            return Ok(4);
        };
        let length = u32::from_le_bytes(*head);
        match usize::try_from(length) {
            Ok(bytes) if (1..=MAP_FRAME_BYTES_MAX).contains(&bytes) => Ok(4 + bytes),
            _ => Err(FrameLengthError { length }),
        }
    }
}
