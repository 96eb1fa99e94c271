//! A stock `tailscaled` in userspace, without privileges, and its command-line client. Called by the soak scenario.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use serde::Deserialize;

use crate::bench::Bench;
use crate::log_lines::{Suspect, suspect};
use crate::process::{Line, Process, output_of};
use crate::tailnet::Tailnet;

const START_LIMIT: Duration = Duration::from_secs(20);
/// `tailscale up` gives up after this long.
const UP_TIMEOUT: &str = "60s";
/// `tailscale ping` stops at the first direct answer; it waits 5 s for each.
const PING_COUNT: &str = "12";
/// WireGuard tries a handshake again after 5 s.
const TUNNEL_PING_COUNT: &str = "10";

/// The running daemon.
#[derive(Debug)]
pub(crate) struct Tailscaled {
    process: Process,
    // Read while it started, and judged with the rest.
    first_lines: Vec<String>,
    program: Command,
    socket: PathBuf,
}

/// The part of `tailscale status --json` that is judged.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Status {
    /// `Running` when all is well.
    pub(crate) backend_state: String,
    /// What the daemon itself finds unhealthy, in words.
    #[serde(default)]
    pub(crate) health: Option<Vec<String>>,
    #[serde(default)]
    peer: Option<std::collections::BTreeMap<String, Peer>>,
}

/// One peer as the daemon sees it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Peer {
    #[serde(rename = "TailscaleIPs", default)]
    tailscale_ips: Vec<std::net::IpAddr>,
    /// As control says.
    pub(crate) online: bool,
    /// `ip:port` of the direct path, or empty.
    pub(crate) cur_addr: String,
}

impl Status {
    /// The peer with this address.
    pub(crate) fn peer(&self, ip: std::net::IpAddr) -> Option<&Peer> {
        self.peer
            .iter()
            .flat_map(std::collections::BTreeMap::values)
            .find(|peer| peer.tailscale_ips.contains(&ip))
    }
}

impl Tailscaled {
    /// Starts the daemon and waits until its socket answers.
    pub(crate) fn start(bench: &Bench, name: &str) -> anyhow::Result<Self> {
        let directory = bench.directory(name)?;
        let socket = directory.join("s");
        let mut command = bench.peers().command("tailscaled");
        command
            .args(["--tun=userspace-networking", "--port=0"])
            .arg(format!("--statedir={}", directory.display()))
            .arg(format!("--socket={}", socket.display()))
            // Run by root it would look under /var/lib as well.
            .env("TS_LOGS_DIR", &directory);
        let process = Process::start(bench, name, command)?;
        let mut first_lines = Vec::new();
        process.wait_for("its back end", START_LIMIT, |line| {
            let text = text_of(line);
            first_lines.push(text.to_owned());
            text.contains("got LocalBackend").then_some(())
        })?;
        Ok(Self {
            process,
            first_lines,
            program: bench.peers().command("tailscale"),
            socket,
        })
    }

    /// Joins the tailnet; returns when the node is Running.
    pub(crate) fn up(
        &self,
        bench: &Bench,
        tailnet: &Tailnet,
        hostname: &str,
    ) -> anyhow::Result<()> {
        let key = bench.file(&format!("{hostname}.key"), &tailnet.auth_key)?;
        self.tailscale(&[
            "up",
            &format!("--login-server={}", tailnet.control_url),
            &format!("--auth-key=file:{}", key.display()),
            &format!("--hostname={hostname}"),
            "--accept-dns=false",
            &format!("--timeout={UP_TIMEOUT}"),
        ])
        .map(drop)
    }

    /// What the daemon says about itself and its peers.
    pub(crate) fn status(&self) -> anyhow::Result<Status> {
        let json = self.tailscale(&["status", "--json"])?;
        serde_json::from_str(&json).context("reading the status")
    }

    /// Pings with disco until an answer comes directly; fails if none does. Returns what was printed.
    pub(crate) fn ping_directly(&self, ip: std::net::IpAddr) -> anyhow::Result<String> {
        self.tailscale(&["ping", "--until-direct", "-c", PING_COUNT, &ip.to_string()])
    }

    /// Pings over WireGuard, which disco does not touch, until an answer comes; fails if none does. The first ping of an idle
    /// daemon is lost when it no longer knows a path and there is no relay; TCP would send it again.
    pub(crate) fn ping_through_the_tunnel(&self, ip: std::net::IpAddr) -> anyhow::Result<String> {
        self.tailscale(&[
            "ping",
            "--tsmp",
            "--timeout=1s",
            "-c",
            TUNNEL_PING_COUNT,
            &ip.to_string(),
        ])
    }

    /// Reads the daemon's log for `duration` and returns the suspicious lines since its start.
    pub(crate) fn watch(&self, duration: Duration) -> anyhow::Result<Vec<Suspect>> {
        let mut suspects: Vec<Suspect> = self
            .first_lines
            .iter()
            .filter_map(|line| suspect(line))
            .collect();
        self.process.watch(duration, |line| {
            suspects.extend(suspect(text_of(line)));
        })?;
        Ok(suspects)
    }

    fn tailscale(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(self.program.get_program());
        command
            .arg(format!("--socket={}", self.socket.display()))
            .args(arguments);
        output_of(command)
    }
}

fn text_of(line: &Line) -> &str {
    match line {
        Line::Stdout(text) | Line::Stderr(text) => text,
    }
}
