//! What one fsync costs on this disk, and one durable file: create, fsync, rename, fsync of the directory.
//!
//! The invariant: the same folder as the store's, so the same disk. `main` shows it beside the acks from `file://`.

use std::fs::{File, rename};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use tokio::time::Instant;

/// Bytes of one file: a journal object with the lines of some sessions.
const FILE_BYTES: usize = 4096;

/// The time of each of `count` appends with their fsync, ascending.
pub(crate) fn syncs(folder: &Path, count: usize) -> anyhow::Result<Vec<Duration>> {
    let mut file = File::create(folder.join("appended"))?;
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let begin = Instant::now();
        file.write_all(&[b'x'; FILE_BYTES])?;
        file.sync_all()?;
        times.push(begin.elapsed());
    }
    times.sort_unstable();
    Ok(times)
}

/// The time of each of `count` commits, ascending.
pub(crate) fn commits(folder: &Path, count: usize) -> anyhow::Result<Vec<Duration>> {
    let directory = File::open(folder).context("cannot open the folder")?;
    let mut times = Vec::with_capacity(count);
    for number in 0..count {
        let begin = Instant::now();
        let staged = folder.join("staged");
        let mut file = File::create(&staged)?;
        file.write_all(&[b'x'; FILE_BYTES])?;
        file.sync_all()?;
        rename(&staged, folder.join(format!("probe-{number}")))?;
        directory.sync_all()?;
        times.push(begin.elapsed());
    }
    times.sort_unstable();
    Ok(times)
}
