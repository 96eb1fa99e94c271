//! One journal object: a group commit, with the new bytes of all active recordings.
//!
//! ```text
//!   0   6  "ttjrnl"
//!   6   2  format version = 1
//!   8  26  recorder (base32 text)
//!  34   8  epoch: milliseconds          42  16  epoch: random bits
//!  58   8  number N
//!  66  32  SHA-256 of object N-1, all its bytes (zero for N = 0)
//!  98   8  oldest needed: objects below it (but for 0) may be gone
//! 106   4  frame count
//! 110   4  length of all frames F
//! 114   F  frames (see frame.rs), each recording's side by side
//!   …  32  SHA-256 of all of the above
//! ```
//!
//! Integers are big-endian. Invariant: a decoded object is whole and within [`OBJECT_BYTES_MAX`]; its frames are
//! checked when they are walked. Called by the store's journal, its writer and its reader.

use bytes::Bytes;
use thiserror::Error;

use super::compression::Compressor;
use super::frame::{self, Frame, FrameError, FrameKind};
use super::hash::Sha256;
use crate::ids::{EpochId, JournalNumber, RecorderId, RecordingId, StreamOffset};

/// The largest object: what a link of 15 Mbit/s can put within the 10 s that a create may take.
pub const OBJECT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The fixed part in front of the frames.
pub const OBJECT_HEADER_BYTES: usize = 114;
/// The digest behind the frames.
pub const OBJECT_TRAILER_BYTES: usize = 32;

const MAGIC: [u8; 6] = *b"ttjrnl";
const VERSION: u16 = 1;

/// SHA-256 of a whole journal object; zero stands for "none before".
pub type ObjectDigest = [u8; 32];

/// Why bytes are not a journal object.
#[derive(Debug, Error)]
pub enum ObjectError {
    /// Less bytes than the object says it has.
    #[error("the journal object is cut off")]
    CutOff,
    /// Not a journal object, or damaged.
    #[error("the journal object's {0} is wrong")]
    Malformed(&'static str),
    /// Written by a newer version.
    #[error("the journal object's version {0} is unknown to this version")]
    UnknownVersion(u16),
    /// More than [`OBJECT_BYTES_MAX`].
    #[error("the journal object has {0} bytes, the limit is {OBJECT_BYTES_MAX}")]
    TooLarge(usize),
    /// One of its frames.
    #[error("journal frame {index}")]
    Frame {
        /// Which, from 0.
        index: u32,
        /// Why.
        #[source]
        source: FrameError,
    },
}

/// The place of an object: whose, in which epoch, where in the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectHeader {
    /// Who wrote it.
    pub recorder: RecorderId,
    /// In which life.
    pub epoch: EpochId,
    /// Where in that life.
    pub number: JournalNumber,
    /// SHA-256 of the object before it.
    pub previous: ObjectDigest,
    /// Objects below this one may be gone, but for the opener.
    pub oldest_needed: JournalNumber,
}

/// An object under construction.
#[derive(Debug)]
pub struct ObjectWriter {
    bytes: Vec<u8>,
    frame_count: u32,
}

impl ObjectWriter {
    /// Begins the object that `header` describes.
    pub fn new(header: &ObjectHeader) -> Self {
        let mut bytes = Vec::with_capacity(1024);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_be_bytes());
        bytes.extend_from_slice(header.recorder.as_bytes());
        bytes.extend_from_slice(&header.epoch.started_ms().to_be_bytes());
        bytes.extend_from_slice(header.epoch.random_bits());
        bytes.extend_from_slice(&header.number.0.to_be_bytes());
        bytes.extend_from_slice(&header.previous);
        bytes.extend_from_slice(&header.oldest_needed.0.to_be_bytes());
        bytes.extend_from_slice(&[0; 8]);
        Self {
            bytes,
            frame_count: 0,
        }
    }

    /// Where in the object the next frame will stand.
    pub fn position(&self) -> usize {
        self.bytes.len()
    }

    /// Adds one frame.
    ///
    /// # Errors
    /// [`ObjectError::Frame`] when the frame is too large, [`ObjectError::TooLarge`] when the object has become so.
    pub fn push(
        &mut self,
        compressor: Option<&mut Compressor>,
        kind: FrameKind,
        recording: RecordingId,
        offset: StreamOffset,
        plain: &[u8],
    ) -> Result<(), ObjectError> {
        let index = self.frame_count;
        frame::encode(&mut self.bytes, compressor, kind, recording, offset, plain)
            .map_err(|source| ObjectError::Frame { index, source })?;
        self.frame_count = self.frame_count.saturating_add(1);
        let whole = self.bytes.len().saturating_add(OBJECT_TRAILER_BYTES);
        if whole > OBJECT_BYTES_MAX {
            return Err(ObjectError::TooLarge(whole));
        }
        Ok(())
    }

    /// Adds frames that were encoded before, `frame_count` of them, byte for byte.
    ///
    /// # Errors
    /// [`ObjectError::TooLarge`] when the object has become so.
    pub fn push_encoded(&mut self, frames: &[u8], frame_count: u32) -> Result<(), ObjectError> {
        self.bytes.extend_from_slice(frames);
        self.frame_count = self.frame_count.saturating_add(frame_count);
        let whole = self.bytes.len().saturating_add(OBJECT_TRAILER_BYTES);
        if whole > OBJECT_BYTES_MAX {
            return Err(ObjectError::TooLarge(whole));
        }
        Ok(())
    }

    /// Closes the object: its bytes, fixed for ever, and their digest.
    pub fn finish(mut self) -> (Bytes, ObjectDigest) {
        let frames_bytes = self.bytes.len().saturating_sub(OBJECT_HEADER_BYTES);
        // `push` keeps the object below OBJECT_BYTES_MAX, so the length fits.
        let frames_bytes = u32::try_from(frames_bytes).unwrap_or(u32::MAX);
        if let Some(lengths) = self
            .bytes
            .get_mut(OBJECT_HEADER_BYTES - 8..OBJECT_HEADER_BYTES)
        {
            lengths.copy_from_slice(
                &[self.frame_count.to_be_bytes(), frames_bytes.to_be_bytes()].concat(),
            );
        }
        let mut hasher = Sha256::default();
        hasher.update(&self.bytes);
        let trailer: [u8; OBJECT_TRAILER_BYTES] = hasher.clone().finalize();
        self.bytes.extend_from_slice(&trailer);
        // One pass serves both digests: the whole object's goes on where the trailer's stopped.
        hasher.update(&trailer);
        (self.bytes.into(), hasher.finalize())
    }
}

/// An object that was read: its trailer is proven, its frames are not yet walked.
#[derive(Debug, Clone, Copy)]
pub struct JournalObject<'a> {
    /// Where it stands.
    pub header: ObjectHeader,
    frame_count: u32,
    frames: &'a [u8],
}

impl<'a> JournalObject<'a> {
    /// Takes `bytes`, which must be one whole object.
    ///
    /// # Errors
    /// Every variant of [`ObjectError`] but [`ObjectError::Frame`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, ObjectError> {
        if bytes.len() > OBJECT_BYTES_MAX {
            return Err(ObjectError::TooLarge(bytes.len()));
        }
        let (magic, rest) = bytes.split_first_chunk::<6>().ok_or(ObjectError::CutOff)?;
        let (version, rest) = rest.split_first_chunk::<2>().ok_or(ObjectError::CutOff)?;
        if *magic != MAGIC {
            return Err(ObjectError::Malformed("magic"));
        }
        match u16::from_be_bytes(*version) {
            VERSION => {}
            unknown => return Err(ObjectError::UnknownVersion(unknown)),
        }
        let (recorder, rest) = rest.split_first_chunk().ok_or(ObjectError::CutOff)?;
        let (epoch_ms, rest) = rest.split_first_chunk().ok_or(ObjectError::CutOff)?;
        let (epoch_random, rest) = rest.split_first_chunk().ok_or(ObjectError::CutOff)?;
        let (number, rest) = rest.split_first_chunk().ok_or(ObjectError::CutOff)?;
        let (previous, rest) = rest.split_first_chunk().ok_or(ObjectError::CutOff)?;
        let (oldest_needed, rest) = rest.split_first_chunk().ok_or(ObjectError::CutOff)?;
        let (frame_count, rest) = rest.split_first_chunk().ok_or(ObjectError::CutOff)?;
        let (frames_bytes, rest) = rest.split_first_chunk().ok_or(ObjectError::CutOff)?;
        let frames_bytes = usize::try_from(u32::from_be_bytes(*frames_bytes)).unwrap_or(usize::MAX);
        let (frames, trailer) = rest
            .split_at_checked(frames_bytes)
            .ok_or(ObjectError::CutOff)?;
        let (digest, behind) = trailer
            .split_first_chunk::<OBJECT_TRAILER_BYTES>()
            .ok_or(ObjectError::CutOff)?;
        if !behind.is_empty() {
            return Err(ObjectError::Malformed("length"));
        }
        let before_trailer = bytes
            .get(..OBJECT_HEADER_BYTES.saturating_add(frames_bytes))
            .ok_or(ObjectError::CutOff)?;
        if *digest != Sha256::digest(before_trailer) {
            return Err(ObjectError::Malformed("digest"));
        }
        let header = ObjectHeader {
            recorder: RecorderId::from_bytes(*recorder)
                .ok_or(ObjectError::Malformed("recorder"))?,
            epoch: EpochId::from_parts(u64::from_be_bytes(*epoch_ms), *epoch_random)
                .ok_or(ObjectError::Malformed("epoch"))?,
            number: JournalNumber(u64::from_be_bytes(*number)),
            previous: *previous,
            oldest_needed: JournalNumber(u64::from_be_bytes(*oldest_needed)),
        };
        Ok(Self {
            header,
            frame_count: u32::from_be_bytes(*frame_count),
            frames,
        })
    }

    /// Walks the frames; ends after the first error.
    pub fn frames(&self) -> Frames<'a> {
        Frames {
            index: 0,
            frame_count: self.frame_count,
            rest: self.frames,
        }
    }
}

/// The frames of one object, in order; also fails when their count is not the declared one.
#[derive(Debug)]
pub struct Frames<'a> {
    index: u32,
    frame_count: u32,
    rest: &'a [u8],
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, ObjectError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            let declared = std::mem::take(&mut self.frame_count);
            let found = std::mem::take(&mut self.index);
            return (declared != found).then_some(Err(ObjectError::Malformed("frame count")));
        }
        let index = self.index;
        match Frame::decode(self.rest) {
            Ok((frame, rest)) => {
                self.rest = rest;
                self.index = index.saturating_add(1);
                Some(Ok(frame))
            }
            Err(source) => {
                *self = Frames {
                    index: 0,
                    frame_count: 0,
                    rest: &[],
                };
                Some(Err(ObjectError::Frame { index, source }))
            }
        }
    }
}

/// The digest by which the next object names this one.
pub fn digest_of(object: &[u8]) -> ObjectDigest {
    Sha256::digest(object)
}

#[cfg(test)]
mod tests;
