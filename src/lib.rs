//! The open session recorder for tailnets: durable before acknowledged.
//!
//! Two flows. Up: a stream from the tunnel, and who is at its other end, go to [`ingest`], which feeds
//! an upload's bytes to the [`store`]; the journal commits the bytes of all recordings together, and
//! only then does an ack frame go back. At the end of a recording the store seals it: a segment, then
//! the manifest that names it. Down: a manifest's name goes to the store, verified blocks come out.
//!
//! Rooms look downward only, from wiring to core; `tests/tidy.rs` holds them to it.
//!
//! ```text
//! wiring      cli · config · serve · dev · admin · archive    alone see netstack
//! edges       ingest · capture · status                       given a stream and an identity, or a way to dial
//! durability  catalog · store
//! core        recording · asciicast · access · ids · tell
//! ```

pub mod access;
pub mod admin;
pub mod archive;
pub mod asciicast;
pub mod capture;
pub mod catalog;
pub mod cli;
pub mod config;
pub mod dev;
pub mod ids;
pub mod ingest;
pub mod recording;
pub mod serve;
pub mod shutdown;
pub mod status;
pub mod store;
pub mod telemetry;
pub mod tell;
#[cfg(test)]
mod turns;
