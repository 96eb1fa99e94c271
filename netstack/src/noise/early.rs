//! The early payload: what a server may say before HTTP/2 begins. Called by both ends of ts2021.
//!
//! Invariant: what is not early payload passes through unchanged, whatever way the bytes are split.
//!
//! ```text
//! ff ff ff 'T' 'S' │ length u32 BE │ JSON {"nodeKeyChallenge":"chalpub:…"} │ HTTP/2 …
//! ```
//!
//! An HTTP/2 frame head has nine bytes too, and can never begin with ff ff ff (a length that no
//! peer may use), which is how the two are told apart. Source: control.md §2.4.

use super::{EARLY_PAYLOAD_BYTES_MAX, NoiseError};

const MAGIC: [u8; 5] = *b"\xff\xff\xffTS";
const HEAD_BYTES: usize = MAGIC.len() + 4;

/// Strips the early payload from the server's first plaintext bytes. Its content, a challenge that
/// no client answers, is discarded.
#[derive(Debug, Default)]
pub struct EarlyPayloadReader {
    state: State,
}

#[derive(Debug)]
enum State {
    /// Bytes of the head seen so far, fewer than nine.
    Head(Vec<u8>),
    /// Bytes of JSON still to be skipped.
    Skip(usize),
    Done,
}

impl Default for State {
    fn default() -> Self {
        Self::Head(Vec::new())
    }
}

impl EarlyPayloadReader {
    /// Takes plaintext as it comes and appends to `out` what belongs to HTTP/2.
    ///
    /// # Errors
    /// [`NoiseError::EarlyPayloadLength`] beyond [`EARLY_PAYLOAD_BYTES_MAX`].
    pub fn handle_plain(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), NoiseError> {
        let mut rest = plain;
        if let State::Head(head) = &mut self.state {
            let (taken, after) = rest.split_at(rest.len().min(HEAD_BYTES - head.len()));
            head.extend_from_slice(taken);
            rest = after;
            let Some((magic, length)) = head.split_first_chunk::<5>() else {
                return Ok(());
            };
            let Ok(length) = <[u8; 4]>::try_from(length) else {
                return Ok(());
            };
            let length = u32::from_be_bytes(length);
            self.state = if *magic != MAGIC {
                out.append(head);
                State::Done
            } else {
                let skip = usize::try_from(length).unwrap_or(usize::MAX);
                if skip > EARLY_PAYLOAD_BYTES_MAX {
                    return Err(NoiseError::EarlyPayloadLength { length });
                }
                State::Skip(skip)
            };
        }
        if let State::Skip(left) = &mut self.state {
            let (skipped, after) = rest.split_at(rest.len().min(*left));
            *left -= skipped.len();
            rest = after;
            if *left == 0 {
                self.state = State::Done;
            }
        }
        if matches!(self.state, State::Done) {
            out.extend_from_slice(rest);
        }
        Ok(())
    }
}

/// The early payload's bytes for `json`; the caller seals them as the first records.
///
/// # Errors
/// [`NoiseError::EarlyPayloadLength`] beyond [`EARLY_PAYLOAD_BYTES_MAX`].
pub fn encode_early_payload(json: &[u8]) -> Result<Vec<u8>, NoiseError> {
    let length = u32::try_from(json.len()).unwrap_or(u32::MAX);
    if json.len() > EARLY_PAYLOAD_BYTES_MAX {
        return Err(NoiseError::EarlyPayloadLength { length });
    }
    let mut out = Vec::with_capacity(HEAD_BYTES + json.len());
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(json);
    Ok(out)
}
