//! `ls` and `cat`: reads a store without a recorder, also beside one that runs.
//!
//! Invariants: nothing is written to the store; no byte of a recording goes out before its block was proven, and a file appears only when the whole was.
//! `main` calls it.

mod table;

use std::io::{self, Write};
use std::path::Path;

use anyhow::Context;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};

use crate::admin::columns;
use crate::catalog::{self, Query};
use crate::cli::CatArgs;
use crate::ids::RecordingId;
use crate::store::{StoreError, StoreReader, StoreUrl};

/// `tailtape ls`: true if every manifest could be read.
///
/// # Errors
/// The store cannot be read, or stdout not be written.
pub async fn ls(url: &StoreUrl, query: &Query, as_json: bool) -> anyhow::Result<bool> {
    let reader = open(url).await?;
    let listing = catalog::list(&reader, query)
        .await
        .with_context(|| format!("cannot list {url}"))?;
    let mut text = String::new();
    let mut stderr = io::stderr();
    if as_json {
        for entry in &listing.entries {
            text.push_str(&serde_json::to_string(entry)?);
            text.push('\n');
        }
    } else if listing.entries.is_empty() {
        writeln!(stderr, "no recording matches")?;
    } else {
        text = table::of(&listing.entries, columns());
    }
    unless_closed(io::stdout().write_all(text.as_bytes()))?;
    if listing.more > 0 {
        writeln!(
            stderr,
            "older recordings that match too: {}; --limit shows more",
            listing.more
        )?;
    }
    for (name, error) in &listing.unreadable {
        writeln!(
            stderr,
            "tailtape: {name} is not listed: {}",
            error.with_causes()
        )?;
    }
    Ok(listing.unreadable.is_empty())
}

/// `tailtape cat`.
///
/// # Errors
/// There is no such recording, what is stored is not what was sealed, or the output cannot be written.
pub async fn cat(url: &StoreUrl, args: &CatArgs) -> anyhow::Result<bool> {
    let reader = open(url).await?;
    let context = || format!("cannot read recording {} from {url}", args.id);
    let manifest = reader.find(args.id).await.with_context(context)?;
    let mut plain = Box::pin(reader.read_plain(manifest));
    match &args.output {
        None => copy(&mut plain, &mut io::stdout(), args.id).await,
        Some(path) => write_file(&mut plain, path, args.id).await,
    }
    .with_context(context)?;
    Ok(true)
}

async fn open(url: &StoreUrl) -> anyhow::Result<StoreReader> {
    let opened = StoreReader::open(url).await;
    opened.with_context(|| format!("cannot open the store {url}"))
}

async fn copy(
    plain: &mut (impl Stream<Item = Result<Bytes, StoreError>> + Unpin),
    out: &mut impl Write,
    id: RecordingId,
) -> anyhow::Result<()> {
    while let Some(block) = plain.next().await {
        let block = block?;
        // A pager that was quit has what it wanted.
        if !unless_closed(out.write_all(&block).and_then(|()| out.flush()))? {
            tracing::debug!(%id, "the reader has had enough");
            return Ok(());
        }
    }
    Ok(())
}

/// Writes beside `path` and takes the name only when all was proven.
async fn write_file(
    plain: &mut (impl Stream<Item = Result<Bytes, StoreError>> + Unpin),
    path: &Path,
    id: RecordingId,
) -> anyhow::Result<()> {
    let context = || format!("cannot write {}", path.display());
    let name = path.file_name().with_context(context)?;
    let mut part = std::ffi::OsString::from(".");
    part.push(name);
    part.push(".part");
    let part = path.with_file_name(part);
    let mut file = std::fs::File::create(&part).with_context(context)?;
    let copied = copy(plain, &mut file, id).await;
    let kept = match copied {
        Ok(()) => std::fs::rename(&part, path).with_context(context),
        Err(error) => Err(error),
    };
    if kept.is_err() {
        // The part may be gone already; the error that counts is the one above.
        drop(std::fs::remove_file(&part));
    }
    kept
}

/// True if it was written, false if nobody reads any more.
fn unless_closed(written: io::Result<()>) -> anyhow::Result<bool> {
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("cannot write to the output"),
    }
}
