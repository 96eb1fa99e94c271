//! What stock peers must be able to do on any tailnet that claims to be one. Each scenario takes the tailnet as an argument, so
//! that the same words judge the reference and us. Times are printed, never asserted. Called by the tests in `main.rs`.

use std::time::Duration;

use anyhow::{Context, ensure};

use crate::bench::Bench;
use crate::log_lines::Explained;
use crate::recclient::{self, Cast, Report};
use crate::tailnet::Tailnet;
use crate::tailscaled::Tailscaled;

/// A stock client joins, reaches the recorder directly and uploads `cast`; all that the client can see of it is in order.
/// What was stored is compared by the caller with the report.
#[expect(clippy::print_stderr, reason = "the run shows what it measured")]
pub(crate) fn a_stock_client_uploads(
    bench: &Bench,
    tailnet: &Tailnet,
    hostname: &str,
    cast: &Cast,
) -> anyhow::Result<Report> {
    let report = recclient::upload(bench, tailnet, hostname, cast)?;
    eprintln!(
        "interop: {hostname} ({}): joined in {} ms, direct path {} after {} ms, {} bytes in {} ms, {} ack frames, sha256 {}",
        report.version,
        report.join_ms,
        report.warm.endpoint,
        report.warm.ms,
        report.bytes_sent,
        report.stream_ms,
        report.ack_frames,
        report.sha256_sent,
    );
    ensure!(
        report.error.is_empty() && report.frame_error.is_empty(),
        "the upload failed: {report:?}"
    );
    ensure!(
        report.watch_error.is_empty(),
        "the wire was not HTTP/2: {report:?}"
    );
    ensure!(
        !report.warm.endpoint.is_empty(),
        "no direct answer to a disco ping, last error {:?}: {report:?}",
        report.warm.error
    );
    ensure!(
        !report.path.cur_addr.is_empty(),
        "the upload did not go directly: {report:?}"
    );
    let tried: Vec<_> = report
        .attempts
        .iter()
        .map(|attempt| (attempt.recorder.as_str(), attempt.error.as_str()))
        .collect();
    ensure!(
        tried == [(tailnet.recorder.to_string().as_str(), "")],
        "the recorder was not reached at the first attempt: {tried:?}"
    );
    ensure!(
        report.protocol == "v2",
        "the client fell back to v1: {report:?}"
    );
    ensure!(
        report.ack_frames > 0 && report.acks_monotonic,
        "acks are missing or shrink: {report:?}"
    );
    ensure!(
        report.last_ack == report.bytes_sent,
        "the last ack is not the length of the body: {report:?}"
    );
    ensure!(
        report.clean_end,
        "the recorder did not end the response: {report:?}"
    );
    Ok(report)
}

/// Stock `tailscaled` joins and stays Running for `soak`; it sees the recorder online and reaches it directly, at the start
/// and at the end; and its log holds no line that neither the machine nor `also` explains.
#[expect(clippy::print_stderr, reason = "the run shows what it saw")]
pub(crate) fn stock_tailscaled_stays_connected(
    bench: &Bench,
    tailnet: &Tailnet,
    soak: Duration,
    also: &[Explained],
) -> anyhow::Result<()> {
    let recorder = tailnet.recorder.ip();
    let daemon = Tailscaled::start(bench, "tailscaled")?;
    daemon.up(bench, tailnet, "daemon")?;
    let first_pong = daemon.ping_directly(recorder)?;
    let suspects = daemon.watch(soak, also)?;
    let mut listed = String::new();
    for found in &suspects {
        listed.push_str(&format!("\n  [{}] {}", found.alarm, found.line));
    }
    ensure!(
        suspects.is_empty(),
        "{} suspicious lines:{listed}",
        suspects.len()
    );

    // An idle peer has no current address, so the ping comes before the status.
    let last_pong = daemon.ping_directly(recorder)?;
    let status = daemon.status()?;
    eprintln!(
        "interop: tailscaled after {} s: {}, health {:?}, first: {}, last: {}",
        soak.as_secs(),
        status.backend_state,
        status.health,
        first_pong.trim(),
        last_pong.trim()
    );
    ensure!(
        status.backend_state == "Running",
        "it is {}",
        status.backend_state
    );
    ensure!(
        status.health.as_ref().is_none_or(Vec::is_empty),
        "it feels unwell: {:?}",
        status.health
    );
    let peer = status
        .peer(recorder)
        .context("the recorder is not among its peers")?;
    ensure!(peer.online, "it believes that the recorder is offline");
    ensure!(
        !peer.cur_addr.is_empty(),
        "its path to the recorder is not direct"
    );
    Ok(())
}
