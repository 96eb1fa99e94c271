//! zstd with a ceiling on what it may unpack to.
//!
//! Invariant: every input is compressed alone, never with a context shared between recordings (a
//! common frame would be an oracle across tenants). Called by [`super::frame`] and its writer.

use thiserror::Error;

/// Below this, compression gains less than its own header costs.
pub const COMPRESS_BYTES_MIN: usize = 512;

/// Level 1: ratio 8.0 against 8.5 at level 3 on terminal text, at 1.5 times the speed.
const LEVEL: i32 = 1;

/// Why bytes could not be packed or unpacked.
#[derive(Debug, Error)]
pub enum CompressionError {
    /// The compressor could not be made: out of memory.
    #[error("make a compressor")]
    Make(#[source] std::io::Error),
    /// The bytes are not zstd, or unpack to more than `plain_bytes`.
    #[error("unpack to at most {plain_bytes} bytes")]
    Unpack {
        /// The ceiling.
        plain_bytes: usize,
        /// What zstd said.
        #[source]
        source: std::io::Error,
    },
    /// The bytes unpack to less than was declared.
    #[error("unpacked {unpacked_bytes} bytes where {plain_bytes} were declared")]
    Length {
        /// The declared length.
        plain_bytes: usize,
        /// The length found.
        unpacked_bytes: usize,
    },
}

/// One compression context, reused for every frame of one committer. Frames share its memory, not its history.
pub struct Compressor(zstd::bulk::Compressor<'static>);

impl Compressor {
    /// Makes one.
    ///
    /// # Errors
    /// [`CompressionError::Make`] when out of memory.
    pub fn new() -> Result<Self, CompressionError> {
        let compressor = zstd::bulk::Compressor::new(LEVEL).map_err(CompressionError::Make)?;
        Ok(Self(compressor))
    }

    /// Compresses `plain` alone; `None` when it is short, or when the result would not be smaller.
    pub fn compress(&mut self, plain: &[u8]) -> Option<Vec<u8>> {
        if plain.len() < COMPRESS_BYTES_MIN {
            return None;
        }
        // A failure here costs size, never the bytes: they are stored plain.
        let packed = self.0.compress(plain).ok()?;
        (packed.len() < plain.len()).then_some(packed)
    }
}

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Compressor")
    }
}

/// Unpacks one frame to exactly `plain_bytes`, allocating no more than that.
///
/// # Errors
/// [`CompressionError::Unpack`] and [`CompressionError::Length`].
pub fn unpack(packed: &[u8], plain_bytes: usize) -> Result<Vec<u8>, CompressionError> {
    let plain =
        zstd::bulk::decompress(packed, plain_bytes).map_err(|source| CompressionError::Unpack {
            plain_bytes,
            source,
        })?;
    if plain.len() != plain_bytes {
        let unpacked_bytes = plain.len();
        return Err(CompressionError::Length {
            plain_bytes,
            unpacked_bytes,
        });
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha20Rng;
    use rand_core::{RngCore, SeedableRng};

    use super::*;

    #[test]
    fn what_is_short_or_would_grow_stays_plain() {
        let mut compressor = Compressor::new().unwrap();
        assert_eq!(compressor.compress(&[b'a'; COMPRESS_BYTES_MIN - 1]), None);
        // Random bytes, from a seed, do not get smaller.
        let mut noise = vec![0; 1024];
        ChaCha20Rng::seed_from_u64(1).fill_bytes(&mut noise);
        assert_eq!(compressor.compress(&noise), None);
    }

    #[test]
    fn unpacking_stops_at_the_declared_length() {
        let mut compressor = Compressor::new().unwrap();
        let plain = vec![b'a'; 100_000];
        let packed = compressor.compress(&plain).unwrap();
        assert!(packed.len() < 1000);
        assert_eq!(unpack(&packed, plain.len()).unwrap(), plain);
        assert!(matches!(
            unpack(&packed, 99_999),
            Err(CompressionError::Unpack { .. })
        ));
        assert!(matches!(
            unpack(&packed, 100_001),
            Err(CompressionError::Length { .. })
        ));
    }

    #[test]
    fn a_frame_does_not_depend_on_what_was_compressed_before() {
        let plain = b"one tenant's terminal ".repeat(100);
        let alone = Compressor::new().unwrap().compress(&plain).unwrap();
        let mut used = Compressor::new().unwrap();
        assert!(
            used.compress(&b"another tenant's terminal ".repeat(100))
                .is_some()
        );
        assert_eq!(used.compress(&plain).unwrap(), alone);
    }
}
