//! What stock peers must be able to do on any tailnet that claims to be one. Each scenario takes the tailnet as an argument, so
//! that the same words judge the reference and us. Times are printed, never asserted. Called by the tests in `main.rs`.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::bench::Bench;
use crate::process::now;
use crate::recclient::{Attempt, Endpoint, Job, Report, Running, SentEvent, Upload};
use crate::tailnet::Tailnet;
use crate::tailscaled::Tailscaled;

/// A stock client joins, reaches the recorder directly and uploads; all that the client can see of it is in order. What was
/// stored is compared by the caller with the report.
pub(crate) fn a_stock_client_uploads(
    bench: &Bench,
    tailnet: &Tailnet,
    job: &Job<'_>,
) -> anyhow::Result<Report> {
    let running = Running::start(bench, tailnet, job)?;
    a_running_client_ends_well(running, tailnet, job)
}

/// The second half of [`a_stock_client_uploads`].
#[expect(clippy::print_stderr, reason = "the run shows what it measured")]
pub(crate) fn a_running_client_ends_well(
    running: Running,
    tailnet: &Tailnet,
    job: &Job<'_>,
) -> anyhow::Result<Report> {
    let report = running.report()?;
    eprintln!(
        "interop: {} ({}): joined in {} ms, {} upload(s) to {}, path {} {}",
        job.hostname,
        report.version,
        report.join_ms,
        report.uploads.len(),
        tailnet.recorder,
        report.path.cur_addr,
        if job.warm {
            format!("proven after {} ms", report.warm.ms)
        } else {
            "not sought before".to_owned()
        },
    );
    match job.endpoint {
        Endpoint::RecordV2 | Endpoint::RecordV1 => {
            ensure!(
                report.uploads.len() == job.uploads && report.event.is_none(),
                "uploads are missing: {report:?}"
            );
            eprintln!("interop: {}: {}", job.hostname, summary(&report.uploads));
            for upload in &report.uploads {
                went_well(upload, job.endpoint, tailnet)?;
            }
        }
        Endpoint::EventV2 => {
            let event = report.event.as_ref().context("no event was sent")?;
            eprintln!(
                "interop: {}: an event of {} bytes was taken in {} ms, sha256 {}",
                job.hostname, event.bytes_sent, event.ms, event.sha256_sent
            );
            was_taken(event, tailnet)?;
        }
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

/// The slowest of each, and the sum of the bytes and the acks.
fn summary(uploads: &[Upload]) -> String {
    let slowest = |of: fn(&Upload) -> u64| uploads.iter().map(of).max().unwrap_or_default();
    let sum = |of: fn(&Upload) -> u64| uploads.iter().map(of).sum::<u64>();
    let hashes: Vec<&str> = uploads
        .iter()
        .map(|upload| upload.sha256_sent.as_str())
        .collect();
    format!(
        "connected in {} ms, {} bytes in {} ms, {} ack frames, acked {}, sha256 {}",
        slowest(|upload| upload.connect_ms),
        sum(|upload| upload.bytes_sent),
        slowest(|upload| upload.stream_ms),
        sum(|upload| upload.ack_frames),
        sum(|upload| upload.last_ack),
        match hashes.as_slice() {
            [only] => (*only).to_owned(),
            several => format!("of {} casts", several.len()),
        }
    )
}

/// Acks, protocol and end of one upload are as they should be.
fn went_well(upload: &Upload, endpoint: Endpoint, tailnet: &Tailnet) -> anyhow::Result<()> {
    ensure!(
        upload.error.is_empty() && upload.frame_error.is_empty(),
        "the upload failed: {upload:?}"
    );
    ensure!(
        upload.watch_error.is_empty(),
        "the wire was not HTTP: {upload:?}"
    );
    at_the_first_attempt(&upload.attempts, tailnet)?;
    if endpoint == Endpoint::RecordV1 {
        ensure!(
            upload.protocol == "v1" && upload.statuses == [100, 200] && upload.says_it_ends,
            "not 100, then 200 and the end of the connection: {upload:?}"
        );
        return Ok(());
    }
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

/// Support was found, the event was sent on the same connection, and the recorder ends that.
fn was_taken(event: &SentEvent, tailnet: &Tailnet) -> anyhow::Result<()> {
    at_the_first_attempt(&event.attempts, tailnet)?;
    ensure!(
        event.watch_error.is_empty() && event.statuses == [200, 200] && event.says_it_ends,
        "not 200, then 200 and the end of the connection: {event:?}"
    );
    Ok(())
}

fn at_the_first_attempt(attempts: &[Attempt], tailnet: &Tailnet) -> anyhow::Result<()> {
    let tried: Vec<_> = attempts
        .iter()
        .map(|attempt| (attempt.recorder.as_str(), attempt.error.as_str()))
        .collect();
    ensure!(
        tried == [(tailnet.recorder.to_string().as_str(), "")],
        "the recorder was not reached at the first attempt: {tried:?}"
    );
    Ok(())
}

/// Stock `tailscaled` in a tailnet, to be looked at again after a while.
#[derive(Debug)]
pub(crate) struct Soak {
    daemon: Tailscaled,
    recorder: IpAddr,
    begun: Instant,
    first_pong: String,
}

impl Soak {
    /// It joins and reaches the recorder directly.
    pub(crate) fn begin(bench: &Bench, tailnet: &Tailnet) -> anyhow::Result<Self> {
        let recorder = tailnet.recorder.ip();
        let daemon = Tailscaled::start(bench, "tailscaled")?;
        daemon.up(bench, tailnet, "daemon")?;
        let first_pong = daemon.ping_directly(recorder)?;
        Ok(Self {
            daemon,
            recorder,
            begun: now(),
            first_pong,
        })
    }

    /// Waits until `soak` has passed since the beginning. It is Running still; it sees the recorder online and reaches it
    /// directly; and its log holds no line that the machine does not explain.
    #[expect(clippy::print_stderr, reason = "the run shows what it saw")]
    pub(crate) fn end(&self, soak: Duration) -> anyhow::Result<()> {
        let (daemon, recorder) = (&self.daemon, self.recorder);
        daemon.ping_through_the_tunnel(recorder)?;
        let suspects = daemon.watch(soak.saturating_sub(self.begun.elapsed()))?;
        let mut listed = String::new();
        for found in &suspects {
            listed.push_str(&format!("\n  [{}] {}", found.alarm, found.line));
        }
        ensure!(
            suspects.is_empty(),
            "{} suspicious lines:{listed}",
            suspects.len()
        );

        // An idle peer has no current address, so the pings come before the status.
        let last_pong = daemon.ping_directly(recorder)?;
        daemon.ping_through_the_tunnel(recorder)?;
        let status = daemon.status()?;
        eprintln!(
            "interop: tailscaled after {} s: {}, health {:?}, first: {}, last: {}",
            self.begun.elapsed().as_secs(),
            status.backend_state,
            status.health,
            self.first_pong.trim(),
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

    /// The recorder was restarted: the daemon's session with it is worth nothing, its path leads nowhere. It gets through all
    /// the same.
    #[expect(clippy::print_stderr, reason = "the run shows what it saw")]
    pub(crate) fn reaches_the_restarted_recorder(&self) -> anyhow::Result<()> {
        let begun = now();
        self.daemon.ping_through_the_tunnel(self.recorder)?;
        eprintln!(
            "interop: tailscaled is through to the restarted recorder after {} ms",
            begun.elapsed().as_millis()
        );
        Ok(())
    }
}
