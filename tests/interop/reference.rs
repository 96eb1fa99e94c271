//! The reference tailnet: upstream's test control server and a recorder on stock tsnet, in one process (`peers/tailscale/cmd/
//! stocknet`). An upload runs against it first: what fails here is not our fault, and what passes here is possible.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use netstack::tailcfg::DerpMap;
use serde::Deserialize;

use crate::bench::Bench;
use crate::process::{Line, Process};
use crate::tailnet::Tailnet;

const START_LIMIT: Duration = Duration::from_secs(60);
const STORED_LIMIT: Duration = Duration::from_secs(30);

/// The running reference tailnet.
#[derive(Debug)]
pub(crate) struct Reference {
    process: Process,
    tailnet: Tailnet,
}

/// What its recorder says about one finished recording, or about an event.
#[derive(Debug, Deserialize)]
pub(crate) struct Stored {
    /// Path of the request.
    pub(crate) endpoint: String,
    /// Length of the request body.
    pub(crate) bytes: u64,
    /// SHA-256 of the request body, lower-case hexadecimal.
    pub(crate) sha256: String,
    /// Empty: the body ended as it should.
    pub(crate) error: String,
}

impl Reference {
    /// Starts control and recorder and waits until the recorder listens.
    pub(crate) fn start(bench: &Bench, derp_map: &DerpMap) -> anyhow::Result<Self> {
        let map = serde_json::to_string(derp_map).context("writing the DERP map")?;
        let mut command = bench.peers().command("stocknet");
        command
            .arg("-derp-map")
            .arg(bench.file("derp-map.json", &map)?);
        Self::launch(bench, command)
    }

    fn launch(bench: &Bench, mut command: Command) -> anyhow::Result<Self> {
        #[derive(Deserialize)]
        struct Ready {
            control_url: String,
            auth_key: String,
            recorder: SocketAddr,
        }

        command.arg("-state").arg(bench.directory("stocknet")?);
        let process = Process::start(bench, "stocknet", command)?;
        let ready: Ready = process.wait_for("its address", START_LIMIT, stdout_json)?;
        Ok(Self {
            process,
            tailnet: Tailnet {
                control_url: ready.control_url,
                auth_key: ready.auth_key,
                recorder: ready.recorder,
            },
        })
    }

    /// Where it is.
    pub(crate) fn tailnet(&self) -> &Tailnet {
        &self.tailnet
    }

    /// Waits for the next finished recording, or event.
    pub(crate) fn stored(&self) -> anyhow::Result<Stored> {
        self.process
            .wait_for("a finished recording", STORED_LIMIT, stdout_json)
    }
}

/// A line on standard output as JSON, if it is such.
pub(crate) fn stdout_json<T: for<'a> Deserialize<'a>>(line: &Line) -> Option<T> {
    match line {
        Line::Stdout(line) => serde_json::from_str(line).ok(),
        Line::Stderr(_) => None,
    }
}
