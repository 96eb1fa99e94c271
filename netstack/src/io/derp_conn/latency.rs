//! How long a relay takes to answer a small HTTPS request: what is left to measure by where UDP is blocked.
//!
//! Invariant: from the request to the first byte of the answer, one round trip and nothing else; what it says does not matter. Called by
//! `io/probes.rs`.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

use super::DerpDialer;
use super::dial::dial;
use crate::netcheck::LATENCY_CHECK_PATH;
use crate::tailcfg::{DerpNode, DerpRegion};

/// Times one request; `None` when there is no answer. The caller limits the time that it may take.
pub(in crate::io) async fn time_https(dialer: &DerpDialer, node: DerpNode) -> Option<Duration> {
    let region = DerpRegion {
        region_id: node.region_id,
        nodes: vec![node],
        ..DerpRegion::default()
    };
    let dialed = dial(&region, &dialer.roots, false).await.ok()?;
    let mut stream = dialed.stream;
    let host = &dialed.host;
    let request =
        format!("GET {LATENCY_CHECK_PATH} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let sent_at = Instant::now();
    stream.write_all(request.as_bytes()).await.ok()?;
    stream.flush().await.ok()?;
    let mut first = [0; 1];
    let read = stream.read(&mut first).await.ok()?;
    (read > 0).then(|| sent_at.elapsed())
}
