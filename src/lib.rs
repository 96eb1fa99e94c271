//! tailtape: the open session recorder for tailnets.

pub mod asciicast;
pub mod ingest;
