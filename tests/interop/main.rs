//! Stock peers as judges, on loopback: the Go library's own uploader, `tailscaled` and `derper`, built from the pinned module in
//! `peers/tailscale`. Needs Go and the Go module proxy, so it is behind the feature `interop`; `just interop` runs it.
//!
//! Every scenario runs against the reference tailnet, which is made of stock parts only, and then against ours.

mod bench;
mod derp;
mod devnet;
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
use crate::log_lines::Explained;
use crate::recclient::{Cast, Job, Report};
use crate::recorder::OwnRecorder;
use crate::reference::Reference;
use crate::tailnet::Tailnet;

/// Enough for several windows of TCP and HTTP/2 flow control.
const GENERATED_BYTES: u64 = 1 << 20;

/// Long enough to see the daemon join, settle on a path and check its network a second time.
const REFERENCE_SOAK_DEFAULT: Duration = Duration::from_secs(30);

/// What only the reference's control server makes a healthy daemon print.
const REFERENCE_EXPLAINED: [Explained; 1] = [Explained {
    text: "[unexpected] delta-adjusted current time is before hardcoded epoch",
    reason: "the reference control server sends no current time",
}];

#[test]
fn a_stock_client_uploads_to_the_reference_recorder() {
    judge("reference_upload", |bench| {
        let derper = Derper::start(bench)?;
        let reference = Reference::start(bench, &derper.map())?;
        for (hostname, cast) in [
            ("uploader-shell", shell_cast()),
            ("uploader-large", Cast::Generated(GENERATED_BYTES)),
        ] {
            let job = Job::new(hostname, cast);
            let report = scenarios::a_stock_client_uploads(bench, reference.tailnet(), &job)?;
            assert_stored(&reference, &report)?;
        }
        Ok(())
    });
}

#[test]
fn our_recorder_serves_stock_clients() {
    judge("own", |bench| {
        let derper = Derper::start(bench)?;
        let control = OwnControl::start(derper.map())?;
        let recorder = OwnRecorder::start(bench, &control)?;
        let tailnet = Tailnet {
            control_url: control.url(),
            auth_key: control.client_key().to_owned(),
            recorder: recorder.address(true)?,
        };
        for job in [
            Job::new("shell", shell_cast()),
            Job {
                warm: false,
                ..Job::new("cold", shell_cast())
            },
        ] {
            let report = scenarios::a_stock_client_uploads(bench, &tailnet, &job)?;
            recorder.assert_stored(&report)?;
        }
        recorder.stop()
    });
}

fn assert_stored(reference: &Reference, report: &Report) -> anyhow::Result<()> {
    for upload in &report.uploads {
        let stored = reference.stored()?;
        ensure!(
            stored.error.is_empty()
                && stored.bytes == upload.bytes_sent
                && stored.sha256 == upload.sha256_sent,
            "sent and stored differ: {upload:?} {stored:?}"
        );
    }
    Ok(())
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
