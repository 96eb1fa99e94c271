//! The promises, as tests: over the real tunnel, on a real disk, or of the binary itself. One module per promise.
//!
//! The rest are what they are made with: `tailnet` (a devnet, a recorder, an uploader), `bench` (ingest without a tunnel, and a store that does as it
//! is told), `uploader` (HTTP/2 by the byte) under its `witness`, `old_uploader` (HTTP/1.1), `process` (the binary as a child), `service` (`serve` as a child).

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test program: to panic is to fail"
)]

mod bench;
mod demo;
mod durable_ack;
mod endpoints;
mod hostile;
mod old_uploader;
mod process;
mod serve;
mod service;
mod settings;
mod stock_clients;
mod storm;
mod tailnet;
mod uploader;
mod witness;
mod wrong_input;

use std::future::Future;
use std::time::Duration;

/// What takes longer than this is broken; nothing here takes a quarter of it.
const PATIENCE: Duration = Duration::from_secs(30);

/// The future's output; panics if it does not come.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("{what}: not within {PATIENCE:?}"),
    }
}
