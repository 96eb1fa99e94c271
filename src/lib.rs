//! tailtape: the open session recorder for tailnets.
//!
//! Rooms look downward only: `store` keeps what `recording` encodes, and neither knows who calls it.

pub mod access;
pub mod ids;
pub mod recording;
pub mod store;
