//! One journal frame: a piece of one recording inside a journal object.
//!
//! ```text
//!  0  4  "ttfr"
//!  4  1  version = 1
//!  5  1  kind: 0 opener, 1 open, 2 data, 3 close, 4 cut, 6 event, 7 fence, 8 note; 5 reserved
//!  6  1  flags: bit 0 = the bytes are one zstd frame; other bits 0
//!  7  1  reserved = 0
//!  8  4  key id (0 = plain)
//! 12 10  recording id (0 when the frame is of no recording)
//! 22  8  plain offset: where in the recording's stream the first plain byte stands
//! 30  4  plain length
//! 34  4  stored length L
//! 38  L  bytes
//!  …  8  the first 8 bytes of SHA-256 over all of the above
//! ```
//!
//! Integers are big-endian. Invariant: a [`Frame`] that was decoded is whole, of this version, and within
//! the limits; unpacking it allocates at most [`FRAME_PLAIN_BYTES_MAX`]. Called by [`super::journal_object`] and the store.

use thiserror::Error;

use super::compression::{CompressionError, Compressor, unpack};
use super::hash::Sha256;
use crate::ids::{RecordingId, StreamOffset};

/// What one frame may hold, unpacked: independent frames of 256 KiB compress nearly as well as a stream (ratio 7.7 of 8.0).
pub const FRAME_PLAIN_BYTES_MAX: usize = 256 * 1024;
/// The fixed part in front of the bytes.
pub const FRAME_HEADER_BYTES: usize = 38;
/// The check behind the bytes.
pub const FRAME_CHECK_BYTES: usize = 8;
/// Header and check together.
pub const FRAME_OVERHEAD_BYTES: usize = FRAME_HEADER_BYTES + FRAME_CHECK_BYTES;

const MAGIC: [u8; 4] = *b"ttfr";
const VERSION: u8 = 1;
const FLAG_ZSTD: u8 = 1;
const KEY_PLAIN: u32 = 0;

/// What a frame is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FrameKind {
    /// The first frame of an epoch: who writes here (JSON).
    Opener,
    /// A recording began: who uploads it (JSON).
    Open,
    /// Bytes of the recording.
    Data,
    /// The recording ended: how (JSON).
    Close,
    /// What stands before this offset is in segments: where to go on (JSON).
    Cut,
    /// An event that is no recording (JSON); the recording id is zero.
    Event,
    /// The last frame of an epoch: nothing beyond this object counts (JSON).
    Fence,
    /// Something that was learned about the recording after it opened (JSON).
    Note,
}

impl FrameKind {
    const fn code(self) -> u8 {
        match self {
            Self::Opener => 0,
            Self::Open => 1,
            Self::Data => 2,
            Self::Close => 3,
            Self::Cut => 4,
            Self::Event => 6,
            Self::Fence => 7,
            Self::Note => 8,
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Opener),
            1 => Some(Self::Open),
            2 => Some(Self::Data),
            3 => Some(Self::Close),
            4 => Some(Self::Cut),
            6 => Some(Self::Event),
            7 => Some(Self::Fence),
            8 => Some(Self::Note),
            _ => None,
        }
    }
}

/// Why bytes are not a frame, or bytes cannot become one.
#[derive(Debug, Error)]
pub enum FrameError {
    /// Less bytes than the frame says it has.
    #[error("the frame is cut off")]
    CutOff,
    /// Not a frame, or damaged.
    #[error("the frame's {0} is wrong")]
    Malformed(&'static str),
    /// Written by a newer version, or of a kind, key or flag that this one does not know.
    #[error("the frame's {field} {value} is unknown to this version")]
    Unknown {
        /// Which field.
        field: &'static str,
        /// Its value.
        value: u32,
    },
    /// More than [`FRAME_PLAIN_BYTES_MAX`].
    #[error("the frame has {0} bytes, the limit is {FRAME_PLAIN_BYTES_MAX}")]
    TooLarge(usize),
    /// The bytes do not unpack.
    #[error("unpack the frame")]
    Unpack(#[source] CompressionError),
}

/// A frame as it stands in an object: its bytes still packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it is about.
    pub kind: FrameKind,
    /// Whose it is; all zero when it is of no recording.
    pub recording: RecordingId,
    /// Where its first plain byte stands in the recording's stream.
    pub offset: StreamOffset,
    plain_bytes: u32,
    packed: bool,
    stored: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Takes one frame off the front of `bytes`; returns it with the rest.
    ///
    /// # Errors
    /// Every variant of [`FrameError`] but [`FrameError::Unpack`].
    pub fn decode(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), FrameError> {
        let whole = bytes;
        let (magic, bytes) = bytes.split_first_chunk::<4>().ok_or(FrameError::CutOff)?;
        let (fixed, bytes) = bytes.split_first_chunk::<4>().ok_or(FrameError::CutOff)?;
        let (key_id, bytes) = bytes.split_first_chunk::<4>().ok_or(FrameError::CutOff)?;
        let (recording, bytes) = bytes.split_first_chunk().ok_or(FrameError::CutOff)?;
        let (offset, bytes) = bytes.split_first_chunk().ok_or(FrameError::CutOff)?;
        let (plain_bytes, bytes) = bytes.split_first_chunk().ok_or(FrameError::CutOff)?;
        let (stored_bytes, bytes) = bytes.split_first_chunk().ok_or(FrameError::CutOff)?;
        let [version, kind, flags, reserved] = *fixed;

        if *magic != MAGIC {
            return Err(FrameError::Malformed("magic"));
        }
        if version != VERSION {
            return Err(FrameError::Unknown {
                field: "version",
                value: version.into(),
            });
        }
        let plain_bytes = u32::from_be_bytes(*plain_bytes);
        let stored_bytes = usize::try_from(u32::from_be_bytes(*stored_bytes)).unwrap_or(usize::MAX);
        // Packed bytes are kept only when smaller, so one limit serves both lengths.
        let largest = stored_bytes.max(usize::try_from(plain_bytes).unwrap_or(usize::MAX));
        if largest > FRAME_PLAIN_BYTES_MAX {
            return Err(FrameError::TooLarge(largest));
        }
        let (stored, bytes) = bytes
            .split_at_checked(stored_bytes)
            .ok_or(FrameError::CutOff)?;
        let checked = whole
            .get(..FRAME_HEADER_BYTES.saturating_add(stored_bytes))
            .ok_or(FrameError::CutOff)?;
        let (check, rest) = bytes
            .split_first_chunk::<FRAME_CHECK_BYTES>()
            .ok_or(FrameError::CutOff)?;
        if *check != check_of(checked) {
            return Err(FrameError::Malformed("check"));
        }

        // From here on the bytes are what was written: what does not fit is a newer format, or a fault of its writer.
        let kind = FrameKind::from_code(kind).ok_or(FrameError::Unknown {
            field: "kind",
            value: kind.into(),
        })?;
        if flags & !FLAG_ZSTD != 0 {
            return Err(FrameError::Unknown {
                field: "flags",
                value: flags.into(),
            });
        }
        if reserved != 0 {
            return Err(FrameError::Unknown {
                field: "reserved byte",
                value: reserved.into(),
            });
        }
        let key_id = u32::from_be_bytes(*key_id);
        if key_id != KEY_PLAIN {
            return Err(FrameError::Unknown {
                field: "key id",
                value: key_id,
            });
        }
        let packed = flags & FLAG_ZSTD != 0;
        if !packed && stored.len() != usize::try_from(plain_bytes).unwrap_or(usize::MAX) {
            return Err(FrameError::Malformed("plain length"));
        }
        let frame = Self {
            kind,
            recording: RecordingId::from_bytes(*recording),
            offset: StreamOffset(u64::from_be_bytes(*offset)),
            plain_bytes,
            packed,
            stored,
        };
        Ok((frame, rest))
    }

    /// The length of the plain bytes.
    pub const fn plain_bytes(&self) -> u32 {
        self.plain_bytes
    }

    /// How many bytes it takes in its object, all in all.
    pub const fn encoded_bytes(&self) -> usize {
        self.stored.len().saturating_add(FRAME_OVERHEAD_BYTES)
    }

    /// The plain bytes.
    ///
    /// # Errors
    /// [`FrameError::Unpack`].
    pub fn plain(&self) -> Result<std::borrow::Cow<'a, [u8]>, FrameError> {
        if !self.packed {
            return Ok(self.stored.into());
        }
        let plain_bytes = usize::try_from(self.plain_bytes).unwrap_or(usize::MAX);
        unpack(self.stored, plain_bytes)
            .map(Into::into)
            .map_err(FrameError::Unpack)
    }
}

/// Writes one frame to the end of `out`, compressed by `compressor` if that makes it smaller.
///
/// # Errors
/// [`FrameError::TooLarge`].
pub fn encode(
    out: &mut Vec<u8>,
    compressor: Option<&mut Compressor>,
    kind: FrameKind,
    recording: RecordingId,
    offset: StreamOffset,
    plain: &[u8],
) -> Result<(), FrameError> {
    let too_large = || FrameError::TooLarge(plain.len());
    if plain.len() > FRAME_PLAIN_BYTES_MAX {
        return Err(too_large());
    }
    let packed = compressor.and_then(|compressor| compressor.compress(plain));
    let flags = if packed.is_some() { FLAG_ZSTD } else { 0 };
    let stored = packed.as_deref().unwrap_or(plain);
    let plain_bytes = u32::try_from(plain.len()).map_err(|_| too_large())?;
    let stored_bytes = u32::try_from(stored.len()).map_err(|_| too_large())?;

    let start = out.len();
    out.reserve(stored.len().saturating_add(FRAME_OVERHEAD_BYTES));
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[VERSION, kind.code(), flags, 0]);
    out.extend_from_slice(&KEY_PLAIN.to_be_bytes());
    out.extend_from_slice(recording.as_bytes());
    out.extend_from_slice(&offset.0.to_be_bytes());
    out.extend_from_slice(&plain_bytes.to_be_bytes());
    out.extend_from_slice(&stored_bytes.to_be_bytes());
    out.extend_from_slice(stored);
    let check = check_of(out.get(start..).unwrap_or_default());
    out.extend_from_slice(&check);
    Ok(())
}

/// A check against damage, not against forgery: the object's digest and the chain are for that.
fn check_of(bytes: &[u8]) -> [u8; FRAME_CHECK_BYTES] {
    Sha256::digest(bytes)
        .first_chunk()
        .copied()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
