//! An event: one request that a Kubernetes proxy reports, kept as one line below `events/`.
//!
//! Invariant: what the sender wrote is kept verbatim inside the line. Called by ingest, which makes events, and by the
//! journal, which commits them.

use bytes::Bytes;
use jiff::Timestamp;

use crate::access::Identity;

/// An event as it arrived.
#[derive(Debug, Clone)]
pub struct Event {
    /// When, by the recorder's clock.
    pub received_at: Timestamp,
    /// The authenticated identity of the sender: the destination that the event does not name itself.
    pub uploader: Identity,
    /// The body, verbatim.
    pub body: Bytes,
}
