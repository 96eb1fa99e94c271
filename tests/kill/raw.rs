//! A store as files: what is there by the words of docs/format.md, read without a line of the recorder's own reader.
//!
//! Invariant: nothing here is shared with what wrote the store but the document. Used by the rounds and the judge.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use sha2::{Digest, Sha256};

/// More than the age from which a segment without a manifest may go.
const ORPHAN_AGE: Duration = Duration::from_secs(25 * 3600);
const BLOCK_BYTES: usize = 256 * 1024;
/// Where the number stands in a journal object.
const NUMBER: std::ops::Range<usize> = 58..66;
/// Where the kind of the first frame does: after the header of 114 bytes, magic and version.
const FIRST_KIND: usize = 114 + 5;
const KIND_FENCE: u8 = 7;

/// What is below a store, by name.
#[derive(Debug, Default)]
pub(crate) struct Names {
    pub(crate) manifests: BTreeSet<String>,
    pub(crate) segments: BTreeSet<String>,
    pub(crate) journal: BTreeSet<String>,
    pub(crate) events: BTreeSet<String>,
    /// Writes that did not come to their end.
    pub(crate) staged: BTreeSet<String>,
    /// What starts that were killed had proven the store with.
    pub(crate) probes: BTreeSet<String>,
    pub(crate) others: BTreeSet<String>,
}

impl Names {
    pub(crate) fn below(store: &Path) -> Self {
        let mut names = Self::default();
        names.collect(store, "");
        names
    }

    fn collect(&mut self, store: &Path, folder: &str) {
        for entry in fs::read_dir(store.join(folder)).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let name = match folder {
                "" => name,
                _ => format!("{folder}/{name}"),
            };
            if entry.file_type().unwrap().is_dir() {
                self.collect(store, &name);
                continue;
            }
            let recording = name.starts_with("recordings/");
            let kind = if name.contains('#') {
                &mut self.staged
            } else if name.starts_with("journal/") {
                &mut self.journal
            } else if name.starts_with("events/") && name.ends_with(".ndjson") {
                &mut self.events
            } else if recording && name.ends_with(".json") {
                &mut self.manifests
            } else if recording && name.ends_with(".cast") {
                &mut self.segments
            } else if name.starts_with("store/probe-") {
                &mut self.probes
            } else {
                &mut self.others
            };
            kind.insert(name);
        }
    }
}

/// The names of all manifests.
pub(crate) fn manifests_below(store: &Path) -> BTreeSet<String> {
    Names::below(store).manifests
}

/// The segments that no manifest refers to.
pub(crate) fn orphans(store: &Path) -> BTreeSet<String> {
    let mut names = Names::below(store);
    for name in &names.manifests {
        let manifest: Value = serde_json::from_slice(&fs::read(store.join(name)).unwrap()).unwrap();
        for segment in manifest["segments"].as_array().into_iter().flatten() {
            names.segments.remove(segment["name"].as_str().unwrap());
        }
    }
    names.segments
}

/// Makes a day pass for the segments of a store.
pub(crate) fn age_segments(store: &Path) {
    for name in Names::below(store).segments {
        let file = File::options().write(true).open(store.join(name)).unwrap();
        let written = file.metadata().unwrap().modified().unwrap();
        file.set_modified(written - ORPHAN_AGE).unwrap();
    }
}

/// Reads a manifest and the bytes that it tells of, and proves each of its digests.
///
/// # Errors
/// What is not as the manifest says.
pub(crate) fn read(store: &Path, name: &str) -> Result<(Value, Vec<u8>), String> {
    let text = fs::read(store.join(name)).unwrap();
    let manifest: Value = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    let gaps = manifest.get("gaps").and_then(Value::as_array);
    if let Some(gaps) = gaps.filter(|gaps| !gaps.is_empty()) {
        return Err(format!("has gaps: {gaps:?}"));
    }
    let mut stream = Vec::new();
    for segment in manifest["segments"].as_array().into_iter().flatten() {
        let segment_name = segment["name"].as_str().unwrap_or_default();
        let read = fs::read(store.join(segment_name));
        let bytes = read.map_err(|error| format!("{segment_name}: {error}"))?;
        let blocks: Vec<String> = bytes.chunks(BLOCK_BYTES).map(hex_digest).collect();
        let as_told = segment["plain_offset"] == stream.len()
            && segment["plain_bytes"] == bytes.len()
            && segment["stored_bytes"] == bytes.len()
            && segment["sha256"] == hex_digest(&bytes)
            && segment["blocks"] == Value::from(blocks);
        if !as_told {
            return Err(format!("{segment_name} is not what the manifest says"));
        }
        stream.extend_from_slice(&bytes);
    }
    if manifest["bytes"] != stream.len() || manifest["cast_sha256"] != hex_digest(&stream) {
        return Err("the stream is not what the manifest says".to_owned());
    }
    Ok((manifest, stream))
}

/// The lines of an object of events, each of which ends with its newline.
///
/// # Errors
/// What is no line of JSON.
pub(crate) fn lines(store: &Path, name: &str) -> Result<Vec<(String, Value)>, String> {
    let text = fs::read_to_string(store.join(name)).map_err(|error| error.to_string())?;
    let whole = text.strip_suffix('\n').ok_or("ends within a line")?;
    let lines = whole.split('\n').map(|line| {
        let json = serde_json::from_str(line).map_err(|error| error.to_string())?;
        Ok((line.to_owned(), json))
    });
    lines.collect()
}

/// Whether a journal object is one that stays: an opener or a fence.
pub(crate) fn stays(object: &[u8]) -> bool {
    let number = object
        .get(NUMBER)
        .and_then(|bytes| bytes.try_into().ok())
        .map(u64::from_be_bytes);
    number == Some(0) || object.get(FIRST_KIND) == Some(&KIND_FENCE)
}

/// The recording of a segment's or manifest's name: `<uploader>/<date>/<time>-<id>`, then a dot.
pub(crate) fn recording_of(name: &str) -> &str {
    let file = name.rsplit('/').next().unwrap_or(name);
    let id = file.split_once('-').map_or(file, |(_, id)| id);
    id.split('.').next().unwrap_or(id)
}

fn hex_digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
