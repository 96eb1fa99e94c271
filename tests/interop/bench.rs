//! The bench that one scenario works on: its logs, its scratch directory, and the logs' last lines on standard error when the
//! scenario fails. Called by the tests in `main.rs`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::Context;
use tempfile::TempDir;

use crate::toolchain::{self, Peers};

/// How much of each log is printed after a failure; the whole stays in the file.
const LOG_TAIL_LINES: usize = 60;

/// Where a scenario keeps what it makes.
#[derive(Debug)]
pub(crate) struct Bench {
    logs: PathBuf,
    // Under the system's temporary directory, since a Unix socket's path may have at most 107 bytes.
    scratch: TempDir,
    peers: Peers,
}

/// Runs one scenario on a bench of its own; panics with its error, after its logs were printed.
pub(crate) fn judge(name: &str, scenario: impl FnOnce(&Bench) -> anyhow::Result<()>) {
    let bench = match Bench::new(name) {
        Ok(bench) => bench,
        Err(error) => panic!("{name}: {error:?}"),
    };
    if let Err(error) = scenario(&bench) {
        panic!("{name}: {error:?}");
    }
}

impl Bench {
    fn new(name: &str) -> anyhow::Result<Self> {
        let peers = toolchain::peers()?;
        let logs = toolchain::interop_directory().join("logs").join(name);
        if logs.exists() {
            fs::remove_dir_all(&logs).with_context(|| format!("clearing {}", logs.display()))?;
        }
        fs::create_dir_all(&logs).with_context(|| format!("making {}", logs.display()))?;
        let scratch = tempfile::Builder::new()
            .prefix("tt-")
            .tempdir()
            .context("making a scratch directory")?;
        Ok(Self {
            logs,
            scratch,
            peers,
        })
    }

    /// The stock programs.
    pub(crate) fn peers(&self) -> &Peers {
        &self.peers
    }

    /// A fresh directory that goes away with the bench.
    pub(crate) fn directory(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.scratch.path().join(name);
        fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(path)
    }

    /// Writes a small file into the scratch directory and returns its path.
    pub(crate) fn file(&self, name: &str, contents: &str) -> anyhow::Result<PathBuf> {
        let path = self.scratch.path().join(name);
        fs::write(&path, contents).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    /// Opens the log of a process, empty.
    pub(crate) fn create_log(&self, name: &str) -> anyhow::Result<File> {
        let path = self.log(name);
        File::create(&path).with_context(|| format!("creating {}", path.display()))
    }

    /// Where the log of a process is.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if std::thread::panicking() {
            print_log_tails(&self.logs);
        }
    }
}

#[expect(
    clippy::print_stderr,
    reason = "a failed test tells what its peers said"
)]
fn print_log_tails(logs: &Path) {
    let mut paths: Vec<PathBuf> = match fs::read_dir(logs) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(error) => {
            eprintln!("reading {}: {error}", logs.display());
            return;
        }
    };
    paths.sort();
    for path in paths {
        let text = fs::read(&path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        eprintln!("--- {} ({} lines)", path.display(), lines.len());
        let skipped = lines.len().saturating_sub(LOG_TAIL_LINES);
        for line in lines.iter().skip(skipped) {
            eprintln!("{line}");
        }
    }
}
