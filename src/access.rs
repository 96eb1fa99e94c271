//! May this identity do this to that recording? So far the room holds only who is at the other end.
//!
//! Pure: identities are handed in by the wiring, which asked the tailnet; nothing here looks one up.

mod identity;

pub use identity::{Identity, UserIdentity};
