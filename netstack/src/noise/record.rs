//! The record layer after the handshake. Called by both ends of ts2021.
//!
//! Invariant: each direction's counter only grows, and after one failure nothing is opened any more.
//!
//! ```text
//! 04 │ length u16 BE (16..=4093) │ ChaCha20-Poly1305 ciphertext, no associated data
//! nonce: 00 00 00 00 │ counter u64 BIG endian, where the Noise specification has little endian
//! ```

use chacha20poly1305::aead::AeadInPlace;
use chacha20poly1305::{ChaCha20Poly1305, Key, KeyInit, Nonce, Tag};

use super::{
    HEADER_BYTES, NoiseError, RECORD_BYTES_MAX, RECORD_PLAIN_BYTES_MAX, TAG_BYTES, TYPE_RECORD,
};

/// Both directions of an established connection. Keys are wiped on drop.
pub struct Records {
    sealing: Direction,
    opening: Direction,
    /// The record that is arriving: at most [`RECORD_BYTES_MAX`] bytes.
    partial: Vec<u8>,
    dead: bool,
}

impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Records(..)")
    }
}

impl Records {
    pub(super) fn new(seal_key: &[u8; 32], open_key: &[u8; 32]) -> Self {
        Self {
            sealing: Direction::new(seal_key),
            opening: Direction::new(open_key),
            partial: Vec::new(),
            dead: false,
        }
    }

    /// Appends one record that holds `plain`, at most [`RECORD_PLAIN_BYTES_MAX`] bytes, to `out`.
    ///
    /// # Errors
    /// [`NoiseError::PlainLength`], or [`NoiseError::Exhausted`] after 2^64 − 1 records.
    pub fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), NoiseError> {
        let length = plain.len();
        if length > RECORD_PLAIN_BYTES_MAX {
            return Err(NoiseError::PlainLength { length });
        }
        let Ok(sealed_length) = u16::try_from(length + TAG_BYTES) else {
            return Err(NoiseError::PlainLength { length });
        };
        let nonce = self.sealing.next_nonce()?;
        out.push(TYPE_RECORD);
        out.extend_from_slice(&sealed_length.to_be_bytes());
        let start = out.len();
        out.extend_from_slice(plain);
        let body = out.get_mut(start..).unwrap_or_default();
        let tag = self
            .sealing
            .cipher
            .encrypt_in_place_detached(&nonce, b"", body)
            .map_err(|_| NoiseError::PlainLength { length })?;
        out.extend_from_slice(&tag);
        Ok(())
    }

    /// Takes received bytes, split in any way, and appends the plaintext of every record that is now
    /// complete to `out`. Empty records add nothing.
    ///
    /// # Errors
    /// Any malformed or unauthentic record; all later calls fail too.
    pub fn open(&mut self, received: &[u8], out: &mut Vec<u8>) -> Result<(), NoiseError> {
        if self.dead {
            return Err(NoiseError::Dead);
        }
        let result = self.open_all(received, out);
        self.dead = result.is_err();
        result
    }

    /// Whether part of a record has arrived, so that an end of the stream here is a truncation.
    pub fn is_mid_record(&self) -> bool {
        !self.partial.is_empty()
    }

    fn open_all(&mut self, received: &[u8], out: &mut Vec<u8>) -> Result<(), NoiseError> {
        let mut rest = received;
        loop {
            let wanted = self.wanted_bytes()?;
            let (taken, after) = rest.split_at(rest.len().min(wanted - self.partial.len()));
            self.partial.extend_from_slice(taken);
            rest = after;
            if self.partial.len() < wanted {
                // A wrong type is told at its first byte, however the bytes are cut.
                return self.wanted_bytes().map(|_| ());
            }
            if wanted > HEADER_BYTES {
                self.open_partial(out)?;
            }
        }
    }

    /// How long the arriving record is, as far as its header tells; always more than has arrived,
    /// or exactly that when the record is complete. The length is checked before its body is kept.
    fn wanted_bytes(&self) -> Result<usize, NoiseError> {
        if let Some(&kind) = self.partial.first()
            && kind != TYPE_RECORD
        {
            return Err(NoiseError::NotARecord { kind });
        }
        let Some((&[_, high, low], _)) = self.partial.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(HEADER_BYTES);
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if !(TAG_BYTES..=RECORD_BYTES_MAX - HEADER_BYTES).contains(&length) {
            return Err(NoiseError::RecordLength { length });
        }
        Ok(HEADER_BYTES + length)
    }

    fn open_partial(&mut self, out: &mut Vec<u8>) -> Result<(), NoiseError> {
        let counter = self.opening.counter;
        let nonce = self.opening.next_nonce()?;
        let body = self.partial.get_mut(HEADER_BYTES..).unwrap_or_default();
        let Some((plain, tag)) = body.split_last_chunk_mut::<TAG_BYTES>() else {
            return Err(NoiseError::Open { counter });
        };
        self.opening
            .cipher
            .decrypt_in_place_detached(&nonce, b"", plain, Tag::from_slice(tag))
            .map_err(|_| NoiseError::Open { counter })?;
        out.extend_from_slice(plain);
        self.partial.clear();
        Ok(())
    }
}

struct Direction {
    cipher: ChaCha20Poly1305,
    counter: u64,
}

impl Direction {
    fn new(key: &[u8; 32]) -> Self {
        Self {
            cipher: ChaCha20Poly1305::new(Key::from_slice(key)),
            counter: 0,
        }
    }

    fn next_nonce(&mut self) -> Result<Nonce, NoiseError> {
        let counter = self.counter;
        // The last value is invalid by definition and must never be used.
        self.counter = counter.checked_add(1).ok_or(NoiseError::Exhausted)?;
        let mut nonce = Nonce::default();
        for (byte, value) in nonce.iter_mut().skip(4).zip(counter.to_be_bytes()) {
            *byte = value;
        }
        Ok(nonce)
    }
}
