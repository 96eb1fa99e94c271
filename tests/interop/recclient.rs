//! Runs `recclient` (`peers/tailscale/cmd/recclient`) to its end: a stock tsnet node that joins, finds the direct path to the
//! recorder and streams casts with `sessionrecording.ConnectToRecorder`, or sends an event. Called by the upload scenarios.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::bench::Bench;
use crate::process::Process;
use crate::reference::stdout_json;
use crate::tailnet::Tailnet;

/// How long one that is waited for may still take beside its own pauses. Its own limits add up to this: 60 s to join, 60 s to
/// warm the path, 30 s to connect, 60 s for the end, and the stream.
const RUN_LIMIT: Duration = Duration::from_secs(240);

/// What is streamed.
#[derive(Debug, Clone)]
pub(crate) enum Cast {
    /// This file.
    File(PathBuf),
    /// A made-up session of at least this many bytes.
    Generated(u64),
}

/// Where a client sends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// `POST /v2/record`, found by its probe.
    RecordV2,
    /// `POST /record`: the probe for v2 fails.
    RecordV1,
    /// `POST /v2/event`; the cast is a file that holds the event.
    EventV2,
}

impl Endpoint {
    /// As requests name it.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::RecordV2 => "/v2/record",
            Self::RecordV1 => "/record",
            Self::EventV2 => "/v2/event",
        }
    }
}

/// What one client does.
#[derive(Debug, Clone)]
pub(crate) struct Job<'a> {
    /// The name under which it joins.
    pub(crate) hostname: &'a str,
    /// What it streams; generated ones of one client all differ.
    pub(crate) cast: Cast,
    /// Where to.
    pub(crate) endpoint: Endpoint,
    /// How many of them at once.
    pub(crate) uploads: usize,
    /// Pause between two lines.
    pub(crate) pace: Duration,
    /// Silence before the last line.
    pub(crate) idle: Duration,
    /// Pings the recorder before it uploads. A node that serves SSH does not.
    pub(crate) warm: bool,
}

impl<'a> Job<'a> {
    /// One upload over a proven path, without a pause.
    pub(crate) fn new(hostname: &'a str, cast: Cast) -> Self {
        Self {
            hostname,
            cast,
            endpoint: Endpoint::RecordV2,
            uploads: 1,
            pace: Duration::ZERO,
            idle: Duration::ZERO,
            warm: true,
        }
    }
}

/// What the client says about its run. All durations are milliseconds.
#[derive(Debug, Deserialize)]
pub(crate) struct Report {
    /// Version of the Go library.
    pub(crate) version: String,
    /// The StableID that control gave it.
    pub(crate) stable_id: String,
    /// Its tailnet addresses.
    pub(crate) addresses: Vec<IpAddr>,
    /// From start to Running.
    pub(crate) join_ms: u64,
    /// How the first packets to the recorder fared.
    pub(crate) warm: Warm,
    /// In no order of time. None, if it sent an event.
    pub(crate) uploads: Vec<Upload>,
    /// What it sent instead of an upload.
    pub(crate) event: Option<SentEvent>,
    /// The path after the uploads.
    pub(crate) path: PeerPath,
}

/// What the client says about one upload.
#[derive(Debug, Deserialize)]
pub(crate) struct Upload {
    /// One per recorder that was tried, in order.
    pub(crate) attempts: Vec<Attempt>,
    /// Body bytes whose write succeeded.
    pub(crate) bytes_sent: u64,
    /// Lines in them.
    pub(crate) lines_sent: u64,
    /// SHA-256 of those bytes, lower-case hexadecimal.
    pub(crate) sha256_sent: String,
    /// From the first dial to a recorder that takes the upload.
    pub(crate) connect_ms: u64,
    /// From first write to the end of the upload.
    pub(crate) stream_ms: u64,
    /// Empty: every write succeeded and the upload ended without error.
    pub(crate) error: String,
    /// `v2` or `v1`.
    pub(crate) protocol: String,
    /// Ack frames seen on the wire.
    pub(crate) ack_frames: u64,
    /// Value of the last of them.
    pub(crate) last_ack: u64,
    /// No ack was smaller than the one before.
    pub(crate) acks_monotonic: bool,
    /// Text of the recorder's error frame.
    pub(crate) frame_error: String,
    /// The recorder ended the response itself, by END_STREAM.
    pub(crate) clean_end: bool,
    /// The watcher could not follow the bytes on the wire.
    pub(crate) watch_error: String,
    /// Of all responses over HTTP/1.1, `100 Continue` included.
    pub(crate) statuses: Vec<u16>,
    /// The last of them has `Connection: close`.
    pub(crate) says_it_ends: bool,
}

/// What the client says about one event.
#[derive(Debug, Deserialize)]
pub(crate) struct SentEvent {
    /// One per recorder that was tried, in order.
    pub(crate) attempts: Vec<Attempt>,
    /// Length of its JSON.
    pub(crate) bytes_sent: u64,
    /// SHA-256 of those bytes, lower-case hexadecimal.
    pub(crate) sha256_sent: String,
    /// The last recorder said that it takes no events.
    pub(crate) not_supported: bool,
    /// From the first dial to the last answer, milliseconds.
    pub(crate) ms: u64,
    /// Of all responses on the last connection.
    pub(crate) statuses: Vec<u16>,
    /// The last of them has `Connection: close`.
    pub(crate) says_it_ends: bool,
    /// The watcher could not follow the bytes on the wire.
    pub(crate) watch_error: String,
}

/// See [`Report::warm`].
#[derive(Debug, Deserialize)]
pub(crate) struct Warm {
    /// Until the first direct answer, or the limit.
    pub(crate) ms: u64,
    /// The address that answered, or empty.
    pub(crate) endpoint: String,
    /// Of the last ping, if none was answered directly.
    pub(crate) error: String,
}

/// See [`Upload::attempts`].
#[derive(Debug, Deserialize)]
pub(crate) struct Attempt {
    /// `ip:port`.
    pub(crate) recorder: String,
    /// Empty for the one that was used.
    pub(crate) error: String,
}

/// See [`Report::path`].
#[derive(Debug, Deserialize)]
pub(crate) struct PeerPath {
    /// `ip:port` when direct, else empty.
    pub(crate) cur_addr: String,
}

/// A client at work.
#[derive(Debug)]
pub(crate) struct Running {
    process: Process,
    /// What it pauses in all, by its job.
    pauses: Duration,
}

impl Running {
    /// Starts a client that joins `tailnet` and streams to its recorder.
    pub(crate) fn start(bench: &Bench, tailnet: &Tailnet, job: &Job<'_>) -> anyhow::Result<Self> {
        let Job { hostname, .. } = *job;
        let millis = |duration: Duration| format!("{}ms", duration.as_millis());
        let mut command = bench.peers().command("recclient");
        command
            .args(["-control", &tailnet.control_url, "-hostname", hostname])
            .arg("-authkey-file")
            .arg(bench.file(&format!("{hostname}.key"), &tailnet.auth_key)?)
            .arg("-state")
            .arg(bench.directory(hostname)?)
            .args(["-recorder", &tailnet.recorder.to_string(), "-verbose"])
            .args(["-uploads", &job.uploads.to_string()])
            .args(["-pace", &millis(job.pace), "-idle", &millis(job.idle)]);
        if !job.warm {
            command.args(["-warm", "0"]);
        }
        if job.endpoint == Endpoint::RecordV1 {
            command.arg("-v1");
        }
        let lines = match &job.cast {
            Cast::File(path) if job.endpoint == Endpoint::EventV2 => {
                command.arg("-event").arg(path);
                0
            }
            Cast::File(path) => {
                command.arg("-cast").arg(path);
                std::fs::read_to_string(path)?.lines().count()
            }
            Cast::Generated(bytes) => {
                command.arg("-generate-bytes").arg(bytes.to_string());
                anyhow::ensure!(job.pace.is_zero(), "only a file is paced");
                0
            }
        };
        let pauses = job.pace * u32::try_from(lines)? + job.idle;
        let process = Process::start(bench, hostname, command)?;
        Ok(Self { process, pauses })
    }

    /// Waits for its end.
    pub(crate) fn report(self) -> anyhow::Result<Report> {
        let limit = RUN_LIMIT + self.pauses;
        self.process.wait_for("its report", limit, stdout_json)
    }
}
