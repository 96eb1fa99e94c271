//! tailtape: the open session recorder for tailnets.

pub mod access;
pub mod asciicast;
pub mod ids;
pub mod ingest;
pub mod recording;
pub mod store;
