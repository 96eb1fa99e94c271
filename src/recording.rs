//! The stored form of a recording on one page; `docs/format.md` is its specification.
//!
//! Pure: bytes in, bytes out. [`frame`] is a piece of one recording, [`journal_object`] one group
//! commit of frames, [`seal`] turns the plain stream into a segment's digests, [`manifest`] is the
//! first and last word about a recording. The store calls all of it and adds the world.

pub mod compression;
pub mod frame;
pub mod hash;
pub mod journal_object;
pub mod manifest;
pub mod records;
pub mod seal;
