//! `ls` and `cat`: reads a store without a recorder, also beside one that runs.
//!
//! Invariants: nothing is written to the store; no byte of a recording goes out before its block was proven, and a file appears only when the whole was.
//! `main` calls it.

mod table;

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use anyhow::Context;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};

use crate::admin::{Output, OutputError, columns, say};
use crate::catalog::{self, Query};
use crate::cli::CatArgs;
use crate::store::{StoreError, StoreReader, StoreUrl};
use crate::tell::{printable, printable_json};

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
            text.push_str(&printable_json(&serde_json::to_string(entry)?));
            text.push('\n');
        }
    } else if listing.entries.is_empty() {
        writeln!(stderr, "no recording matches")?;
    } else {
        text = table::of(&listing.entries, columns());
    }
    say(&text)?;
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
            "tailtape: {} is not listed: {}\n  to do: {}",
            printable(name),
            printable(&error.with_causes()),
            error.to_do()
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
    let copied = match &args.output {
        None => copy(&mut plain, &mut io::stdout(), &Output::Stdout).await,
        Some(path) if path == Path::new("-") => {
            copy(&mut plain, &mut io::stdout(), &Output::Stdout).await
        }
        Some(path) => write_file(&mut plain, path).await,
    };
    match copied {
        // The recording was read; it is its copy that went wrong.
        Err(error) if error.is::<OutputError>() => Err(error),
        copied => copied.with_context(context).map(|()| true),
    }
}

async fn open(url: &StoreUrl) -> anyhow::Result<StoreReader> {
    let opened = StoreReader::open(url).await;
    opened.with_context(|| format!("cannot open the store {url}"))
}

async fn copy(
    plain: &mut (impl Stream<Item = Result<Bytes, StoreError>> + Unpin),
    out: &mut impl Write,
    output: &Output,
) -> anyhow::Result<()> {
    while let Some(block) = plain.next().await {
        let block = block?;
        let written = out.write_all(&block).and_then(|()| out.flush());
        written.map_err(|error| OutputError::of(output, error))?;
    }
    Ok(())
}

/// Writes beside `path` and takes the name only when all was proven.
async fn write_file(
    plain: &mut (impl Stream<Item = Result<Bytes, StoreError>> + Unpin),
    path: &Path,
) -> anyhow::Result<()> {
    let output = Output::File(path.to_owned());
    let failed = |error| OutputError::of(&output, error);
    let there = fs::metadata(path);
    // A device or a pipe keeps its name: to take it would replace it with a file.
    if there
        .as_ref()
        .is_ok_and(|there| !there.is_file() && !there.is_dir())
    {
        let device = fs::OpenOptions::new().write(true).open(path);
        return copy(plain, &mut device.map_err(failed)?, &output).await;
    }
    // The name is taken at the end: what would be in its way then is better told now.
    let name = match path.file_name() {
        Some(name) if !there.is_ok_and(|there| there.is_dir()) => name,
        Some(_) | None => return Err(failed(io::ErrorKind::IsADirectory.into()).into()),
    };
    let mut part = std::ffi::OsString::from(".");
    part.push(name);
    part.push(".part");
    let part = path.with_file_name(part);
    let mut file = fs::File::create(&part).map_err(failed)?;
    let kept = match copy(plain, &mut file, &output).await {
        // Some file systems tell only here that they had no room.
        Ok(()) => file
            .sync_all()
            .and_then(|()| fs::rename(&part, path))
            .map_err(|error| failed(error).into()),
        Err(error) => Err(error),
    };
    if kept.is_err() {
        // The part may be gone already; the error that counts is the one above.
        drop(fs::remove_file(&part));
    }
    kept
}
