//! Builds the stock peers with the machine's Go, once per run: our uploader `recclient`, our reference tailnet `stocknet`, our
//! `conformance` cases, and upstream's `tailscaled`, `tailscale` and `derper`, all of the one version that `peers/tailscale/go.mod` pins. What is built
//! stays in `target/interop/bin`; Go's own cache makes the second build short. Called by `bench.rs`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, anyhow, bail};

use crate::process::{now, output_of};

/// What `peers/tailscale/go.mod` and its dependencies ask for.
const GO_VERSION_MIN: (u32, u32, u32) = (1, 26, 6);

/// What is built, as Go names its packages.
const PACKAGES: [&str; 6] = [
    "./cmd/recclient",
    "./cmd/conformance",
    "./cmd/stocknet",
    "tailscale.com/cmd/tailscaled",
    "tailscale.com/cmd/tailscale",
    "tailscale.com/cmd/derper",
];

/// The built programs.
#[derive(Debug, Clone)]
pub(crate) struct Peers {
    directory: PathBuf,
}

impl Peers {
    /// A command that runs the program with this name.
    pub(crate) fn command(&self, name: &str) -> Command {
        Command::new(self.directory.join(name))
    }
}

/// Builds the peers on the first call; later calls return the same answer.
pub(crate) fn peers() -> anyhow::Result<Peers> {
    static PEERS: OnceLock<Result<Peers, String>> = OnceLock::new();
    PEERS
        .get_or_init(|| build().map_err(|error| format!("{error:?}")))
        .clone()
        .map_err(|error| anyhow!(error))
}

/// `go test` with `arguments` in the module that pins the Kubernetes operator, of the same version as everything else here.
pub(crate) fn operator_tests(arguments: &[&str]) -> anyhow::Result<String> {
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/peers/k8s");
    let mut vet = Command::new("go");
    vet.current_dir(&module).args(["vet", "./..."]);
    output_of(vet).context("vetting the pins of the operator")?;
    let mut test = Command::new("go");
    test.current_dir(&module).arg("test").args(arguments);
    output_of(test).context("running the operator's own tests")
}

/// `target/interop`: programs and logs.
pub(crate) fn interop_directory() -> PathBuf {
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
    scratch.parent().unwrap_or(scratch).join("interop")
}

#[expect(
    clippy::print_stderr,
    reason = "the run says which foreign versions judged it"
)]
fn build() -> anyhow::Result<Peers> {
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/peers/tailscale");
    let go_version = check_go(&module)?;
    let directory = interop_directory().join("bin");
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("making {}", directory.display()))?;

    // As released binaries are: unstamped ones call themselves "ERR-BuildInfo" to control and peers.
    let mut pinned = Command::new("go");
    pinned
        .current_dir(&module)
        .args(["list", "-m", "-f", "{{.Version}}", "tailscale.com"]);
    let pinned = output_of(pinned).context("asking for the pinned version")?;
    let pinned = pinned.trim().trim_start_matches('v');

    let started = now();
    let mut vet = Command::new("go");
    vet.current_dir(&module).args(["vet", "./..."]);
    output_of(vet).context("vetting our programs")?;

    let mut build = Command::new("go");
    build
        .current_dir(&module)
        .args(["build", "-trimpath"])
        .arg(format!(
            "-ldflags=-s -w -X tailscale.com/version.longStamp={pinned} -X tailscale.com/version.shortStamp={pinned}"
        ))
        .arg("-o")
        .arg(&directory)
        .args(PACKAGES);
    output_of(build).context("building the stock peers")?;
    let peers = Peers { directory };

    let mut version = peers.command("tailscale");
    version.arg("version");
    let tailscale = output_of(version)?;
    eprintln!(
        "interop: {go_version}, tailscale {}, vetted and built in {} s",
        tailscale.lines().next().unwrap_or("?"),
        started.elapsed().as_secs()
    );
    Ok(peers)
}

/// Returns Go's version, or what to install.
fn check_go(module: &Path) -> anyhow::Result<String> {
    let (major, minor, patch) = GO_VERSION_MIN;
    let wanted = || {
        format!(
            "the stock peers need Go {major}.{minor}.{patch} or later: install it from https://go.dev/dl/ and put `go` on the PATH"
        )
    };
    let mut command = Command::new("go");
    command.current_dir(module).args(["env", "GOVERSION"]);
    let version = output_of(command).with_context(wanted)?;
    let version = version.trim();
    match parse_go_version(version) {
        Some(found) if found >= GO_VERSION_MIN => Ok(version.to_owned()),
        Some(_) | None => bail!("found {version:?}, but {}", wanted()),
    }
}

/// `go1.26.6`, `go1.27` and `go1.27rc1` to numbers; what is missing counts as 0.
fn parse_go_version(text: &str) -> Option<(u32, u32, u32)> {
    let mut numbers = text.strip_prefix("go")?.split('.').map(|part| {
        let digits = part
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(part.len());
        part.get(..digits)?.parse().ok()
    });
    Some((
        numbers.next()??,
        numbers.next().flatten().unwrap_or(0),
        numbers.next().flatten().unwrap_or(0),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_versions_are_compared_as_numbers() {
        assert_eq!(parse_go_version("go1.26.8"), Some((1, 26, 8)));
        assert_eq!(parse_go_version("go1.27rc1"), Some((1, 27, 0)));
        assert_eq!(
            parse_go_version("go1.30.1-custom X:loopvar"),
            Some((1, 30, 1))
        );
        assert_eq!(parse_go_version("devel"), None);
        assert!(parse_go_version("go1.9.10").is_some_and(|found| found < GO_VERSION_MIN));
    }
}
