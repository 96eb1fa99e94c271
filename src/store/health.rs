//! Whether the store takes new recordings now, and why not: one word that everyone watches.
//!
//! Invariant: `Ready` is said only while commits get through; what is said here never loses a byte, it only decides who
//! is refused and who is sent away. Called by the journal, which says it, and by ingest and the wiring, which watch it.

use std::sync::Arc;

use super::error::StoreError;

/// What an uploader can expect of the store.
#[derive(Debug, Clone, Default)]
pub enum StoreHealth {
    /// Recordings are taken.
    #[default]
    Ready,
    /// New recordings are refused, running ones go on: the journal or the disk is nearly full.
    Refusing(Arc<StoreError>),
    /// No commit got through for the stall limit: new recordings are refused, running ones are to end as far as they came.
    /// What was taken of them stays in the buffer and is committed when the store is back.
    Stalled(Arc<StoreError>),
    /// The journal has ended for good (closed, fenced).
    Ended(Arc<StoreError>),
}

impl StoreHealth {
    /// Why new recordings are refused, if they are.
    #[must_use]
    pub fn refusal(&self) -> Option<&Arc<StoreError>> {
        match self {
            Self::Ready => None,
            Self::Refusing(why) | Self::Stalled(why) | Self::Ended(why) => Some(why),
        }
    }

    /// Why running recordings are to end now, if they are.
    #[must_use]
    pub fn ends_running(&self) -> Option<&Arc<StoreError>> {
        match self {
            Self::Ready | Self::Refusing(_) => None,
            Self::Stalled(why) | Self::Ended(why) => Some(why),
        }
    }
}
