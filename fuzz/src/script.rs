//! The fuzzed bytes as a list of instructions, and as bytes that arrive in pieces.
//!
//! Invariant: the same bytes make the same script on every machine. Called by the targets that drive
//! a state machine.

use std::sync::LazyLock;
use std::time::Instant;

/// Instructions that one input may hold: enough to fill every table, few enough to stay fast.
const STEPS_MAX: usize = 256;

/// Takes instructions off the front of the bytes.
pub struct Script<'a> {
    rest: &'a [u8],
    steps: usize,
}

impl<'a> Script<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Self {
            rest: data,
            steps: 0,
        }
    }

    /// The next instruction's code; `None` at the end.
    pub fn step(&mut self) -> Option<u8> {
        self.steps += 1;
        if self.steps > STEPS_MAX {
            return None;
        }
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    /// One byte, 0 behind the end.
    pub fn byte(&mut self) -> u8 {
        let [byte] = self.array();
        byte
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// `N` bytes, zeros behind the end.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let (taken, rest) = self.rest.split_at(self.rest.len().min(N));
        self.rest = rest;
        let mut bytes = [0; N];
        for (to, from) in bytes.iter_mut().zip(taken) {
            *to = *from;
        }
        bytes
    }

    /// A length (u16, little-endian) and as many bytes, or what there is.
    pub fn piece(&mut self) -> &'a [u8] {
        let length = usize::from(self.u16());
        let (piece, rest) = self.rest.split_at(self.rest.len().min(length));
        self.rest = rest;
        piece
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }
}

/// Cuts `data` in a way that `seed` decides; 0 cuts between all bytes.
pub fn pieces(mut data: &[u8], seed: u8) -> Vec<&[u8]> {
    let mut state = u32::from(seed);
    let mut cut = Vec::new();
    while !data.is_empty() {
        state = state.wrapping_mul(1_664_525).wrapping_add(u32::from(seed));
        let length = usize::try_from(state >> 22).unwrap_or(0).max(1);
        let (piece, rest) = data.split_at(data.len().min(length));
        cut.push(piece);
        data = rest;
    }
    cut
}

/// Changes one byte of `bytes`: which one and how, the script says. Whether it did.
pub fn bend(script: &mut Script<'_>, bytes: &mut [u8]) -> bool {
    let (at, change) = (usize::from(script.u16()), script.byte());
    match bytes.get_mut(at) {
        Some(byte) => {
            *byte ^= change;
            change != 0
        }
        None => false,
    }
}

/// The zero of virtual time.
pub fn epoch() -> Instant {
    #[expect(
        clippy::disallowed_methods,
        reason = "an Instant can be had in no other way, and only differences to it count"
    )]
    static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);
    *EPOCH
}

/// Lets go of an outcome: success or refusal, what matters is what the state looks like afterwards.
pub fn whatever<T>(_outcome: T) {}
