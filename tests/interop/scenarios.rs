//! What stock peers must be able to do on any tailnet that claims to be one. Each scenario takes the tailnet as an argument, so
//! that the same words judge the reference and us. Times are printed, never asserted. Called by the tests in `main.rs`.

use std::time::Duration;

use anyhow::{Context, ensure};

use crate::bench::Bench;
use crate::log_lines::Explained;
use crate::recclient::{self, Job, Report, Upload};
use crate::tailnet::Tailnet;
use crate::tailscaled::Tailscaled;

/// A stock client joins, reaches the recorder directly and uploads; all that the client can see of it is in order. What was
/// stored is compared by the caller with the report.
#[expect(clippy::print_stderr, reason = "the run shows what it measured")]
pub(crate) fn a_stock_client_uploads(
    bench: &Bench,
    tailnet: &Tailnet,
    job: &Job<'_>,
) -> anyhow::Result<Report> {
    let report = recclient::upload(bench, tailnet, job)?;
    eprintln!(
        "interop: {} ({}): joined in {} ms, path {} {}",
        job.hostname,
        report.version,
        report.join_ms,
        report.path.cur_addr,
        if job.warm {
            format!("proven after {} ms", report.warm.ms)
        } else {
            "not sought before the upload".to_owned()
        },
    );
    ensure!(
        report.uploads.len() == job.uploads,
        "uploads are missing: {report:?}"
    );
    for upload in &report.uploads {
        eprintln!(
            "interop: {}: connected in {} ms, {} bytes in {} ms, {} ack frames, last ack {}, sha256 {}",
            job.hostname,
            upload.connect_ms,
            upload.bytes_sent,
            upload.stream_ms,
            upload.ack_frames,
            upload.last_ack,
            upload.sha256_sent,
        );
        went_well(upload, tailnet)?;
    }
    ensure!(
        !job.warm || !report.warm.endpoint.is_empty(),
        "no direct answer to a disco ping, last error {:?}: {report:?}",
        report.warm.error
    );
    ensure!(
        !report.path.cur_addr.is_empty(),
        "the uploads did not go directly: {report:?}"
    );
    Ok(report)
}

/// Acks, protocol and end of one upload are as they should be.
fn went_well(upload: &Upload, tailnet: &Tailnet) -> anyhow::Result<()> {
    ensure!(
        upload.error.is_empty() && upload.frame_error.is_empty(),
        "the upload failed: {upload:?}"
    );
    ensure!(
        upload.watch_error.is_empty(),
        "the wire was not HTTP/2: {upload:?}"
    );
    let tried: Vec<_> = upload
        .attempts
        .iter()
        .map(|attempt| (attempt.recorder.as_str(), attempt.error.as_str()))
        .collect();
    ensure!(
        tried == [(tailnet.recorder.to_string().as_str(), "")],
        "the recorder was not reached at the first attempt: {tried:?}"
    );
    ensure!(
        upload.protocol == "v2",
        "the client fell back to v1: {upload:?}"
    );
    ensure!(
        upload.ack_frames > 0 && upload.acks_monotonic,
        "acks are missing or shrink: {upload:?}"
    );
    ensure!(
        upload.last_ack == upload.bytes_sent,
        "the last ack is not the length of the body: {upload:?}"
    );
    ensure!(
        upload.clean_end,
        "the recorder did not end the response: {upload:?}"
    );
    Ok(())
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
