//! Stock peers as judges, on loopback: the Go library's own uploader, `tailscaled` and `derper`, built from the pinned module in
//! `peers/tailscale`. Needs Go and the Go module proxy, so it is behind the feature `interop`; `just interop` runs it.
//!
//! An upload runs against the reference tailnet first, which is made of stock parts only, to see that the judge is sane; then
//! everything runs against ours.

mod bench;
mod conformance;
mod derp;
mod devnet;
mod endpoints;
mod log_lines;
mod process;
mod recclient;
mod recorder;
mod reference;
mod scenarios;
mod tailnet;
mod tailscaled;
mod toolchain;

use std::path::Path;
use std::time::Duration;

use anyhow::ensure;

use crate::bench::{Bench, judge};
use crate::derp::Derper;
use crate::devnet::OwnControl;
use crate::recclient::{Cast, Endpoint, Job, Report, Running};
use crate::recorder::OwnRecorder;
use crate::reference::Reference;
use crate::scenarios::Soak;
use crate::tailnet::Tailnet;

/// Enough for several windows of TCP and HTTP/2 flow control.
const GENERATED_BYTES: u64 = 1 << 20;

/// More than the largest windows and buffers together, and several segments' worth of parts.
const LARGE_BYTES: u64 = 100 << 20;

/// Uploads of one node at the same time.
const MANY_UPLOADS: usize = 20;

/// How long a stock daemon is watched by default: it rekeys, asks STUN and checks its network several times.
const SOAK_DEFAULT: Duration = Duration::from_secs(300);

/// A client gives up after 30 s without a frame; the shell's user thinks for longer.
const IDLE: Duration = Duration::from_secs(35);

/// What the long session needs besides its pauses.
const SESSION_MARGIN: Duration = Duration::from_secs(15);

/// Lines of `tests/vectors/shell.cast`.
const SHELL_CAST_LINES: u32 = 218;

/// Between two lines of a short session.
const SHELL_PACE: Duration = Duration::from_millis(5);

#[test]
fn a_stock_client_uploads_to_the_reference_recorder() {
    judge("reference_upload", |bench| {
        let derper = Derper::start(bench)?;
        let reference = Reference::start(bench, &derper.map())?;
        for job in [
            short_session("shell"),
            Job::new("medium", Cast::Generated(GENERATED_BYTES)),
        ] {
            let report = between_stock_nodes(bench, &reference, &job)?;
            assert_stored(&reference, &job, &report)?;
        }
        for endpoint in endpoints::ALL {
            let job = endpoints::job(bench, endpoint, shell_cast())?;
            let report = between_stock_nodes(bench, &reference, &job)?;
            assert_stored(&reference, &job, &report)?;
        }
        Ok(())
    });
}

/// An upload, or an event, from one stock node to another. Their handshakes may cross, and then wireguard-go can keep a session that hears
/// nothing: the client's probe or dial times out. It falls back to v1 with a recording if that comes in time; else it gives up. None of
/// that is ours, so it has five tries, each as a new node: the recorder greets one that restarts at once, and crosses it again.
#[expect(clippy::print_stderr, reason = "what a run shows is for people")]
fn between_stock_nodes(
    bench: &Bench,
    reference: &Reference,
    job: &Job<'_>,
) -> anyhow::Result<Report> {
    let tries_max = 5;
    let mut tries = 1;
    loop {
        let hostname = format!("{}-{tries}", job.hostname);
        let job = Job {
            hostname: &hostname,
            ..job.clone()
        };
        let error = match scenarios::a_stock_client_uploads(bench, reference.tailnet(), &job) {
            Ok(report) => return Ok(report),
            Err(error) => error,
        };
        let text = error.to_string();
        let fell_back = text.contains("fell back to v1");
        let gave_up = text.contains("deadline exceeded");
        if tries == tries_max || !(fell_back || gave_up) {
            return Err(error);
        }
        eprintln!(
            "interop: {}: the stock nodes crossed their handshakes; once more",
            job.hostname
        );
        tries += 1;
        if fell_back {
            // The upload over v1 went through: its line must not be taken for the next try's.
            let stored = reference.stored()?;
            ensure!(stored.endpoint == Endpoint::RecordV1.path(), "{stored:?}");
        }
    }
}

/// The clients' side of the conversation: what they do when a recorder misbehaves, and what they send.
#[test]
fn stock_clients_do_what_a_recorder_relies_on() {
    judge(
        "conformance",
        conformance::every_case_runs_and_ends_as_stated,
    );
}

/// One run of our recorder. While a stock daemon soaks beside it and a session as long as that is recorded, other stock clients
/// come and go.
#[test]
fn our_recorder_serves_stock_clients() {
    judge("own", |bench| {
        let soak =
            seconds_from_environment("TAILTAPE_INTEROP_SOAK_SECONDS")?.unwrap_or(SOAK_DEFAULT);
        let derper = Derper::start(bench)?;
        let control = OwnControl::start(derper.map())?;
        let mut recorder = OwnRecorder::start(bench, &control)?;
        let tailnet = Tailnet {
            control_url: control.url(),
            auth_key: control.client_key().to_owned(),
            recorder: recorder.address(true)?,
        };
        let over_ipv6 = Tailnet {
            recorder: recorder.address(false)?,
            ..tailnet.clone()
        };

        let daemon = Soak::begin(bench, &tailnet)?;
        let session = Job {
            pace: soak.saturating_sub(IDLE + SESSION_MARGIN) / SHELL_CAST_LINES,
            idle: IDLE,
            ..Job::new("session", shell_cast())
        };
        let session_running = Running::start(bench, &tailnet, &session)?;

        let cold = Job {
            warm: false,
            ..short_session("cold")
        };
        let many = Job {
            uploads: MANY_UPLOADS,
            ..Job::new("many", Cast::Generated(GENERATED_BYTES))
        };
        for (tailnet, job) in [
            (&tailnet, short_session("shell")),
            (&tailnet, cold.clone()),
            // Its node has restarted: same keys, but for disco's, and no session with us.
            (&tailnet, cold),
            (&over_ipv6, short_session("ipv6")),
            (
                &tailnet,
                Job::new("medium", Cast::Generated(GENERATED_BYTES)),
            ),
            (&tailnet, Job::new("large", Cast::Generated(LARGE_BYTES))),
            (&over_ipv6, many),
        ] {
            let report = scenarios::a_stock_client_uploads(bench, tailnet, &job)?;
            recorder.assert_stored(&report)?;
        }

        for endpoint in endpoints::ALL {
            let job = endpoints::job(bench, endpoint, shell_cast())?;
            let report = endpoints::a_stock_client_tries(bench, &tailnet, &job)?;
            if let Some(report) = report.filter(|_| endpoint == Endpoint::RecordV1) {
                recorder.assert_stored(&report)?;
            }
        }

        let report = scenarios::a_running_client_ends_well(session_running, &tailnet, &session)?;
        recorder.assert_stored(&report)?;
        daemon.end(soak)?;

        let mut recorder = recorder.restart(bench, &control)?;
        daemon.reaches_the_restarted_recorder()?;
        let job = short_session("again");
        let report = scenarios::a_stock_client_uploads(bench, &tailnet, &job)?;
        recorder.assert_stored(&report)?;
        recorder.stop()
    });
}

fn assert_stored(reference: &Reference, job: &Job<'_>, report: &Report) -> anyhow::Result<()> {
    let uploads = report.uploads.iter();
    let sent = uploads.map(|upload| (upload.bytes_sent, &upload.sha256_sent));
    let event = report.event.iter();
    for (bytes, sha256) in sent.chain(event.map(|event| (event.bytes_sent, &event.sha256_sent))) {
        let stored = reference.stored()?;
        ensure!(
            stored.error.is_empty()
                && stored.endpoint == job.endpoint.path()
                && stored.bytes == bytes
                && stored.sha256 == *sha256,
            "sent and stored differ: {report:?} {stored:?}"
        );
    }
    Ok(())
}

/// The session of [`shell_cast`], a few times faster than it was.
fn short_session(hostname: &str) -> Job<'_> {
    Job {
        pace: SHELL_PACE,
        ..Job::new(hostname, shell_cast())
    }
}

/// A short session of a real shell, committed with the tests.
fn shell_cast() -> Cast {
    Cast::File(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/shell.cast"))
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long a test soaks is the caller's choice, and no setting of the program"
)]
fn seconds_from_environment(name: &str) -> anyhow::Result<Option<Duration>> {
    match std::env::var(name) {
        Ok(text) => Ok(Some(Duration::from_secs(text.parse()?))),
        Err(_) => Ok(None),
    }
}
