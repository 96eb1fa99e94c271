//! Bytes to facts about an asciicast, line by line, bounded, resumable at any byte.
//!
//! Invariants: the same bytes give the same facts however they are cut; memory stays under [`LINE_BYTES_MAX`] twice over plus the header;
//! no byte is ever changed or refused. Ingest's upload machine feeds it; what is odd becomes a [`Flag`].

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::recording::hash::{ResumableSha256, SavedHash};

/// Longest line that is parsed; a longer one is only counted and flagged. A 32 KiB read of a terminal makes at most 197 kB.
pub const LINE_BYTES_MAX: usize = 1024 * 1024;
/// Longest header that is kept. A command reaches the shell as one argument, 128 KiB at most on Linux, and escapes about double it.
pub const HEADER_BYTES_MAX: usize = 256 * 1024;
/// Line buffer kept between lines, so that an idle recording holds next to nothing.
const LINE_BYTES_IDLE: usize = 8 * 1024;

/// Something about the content that a reader of the recording should know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Flag {
    /// The first line is no version 2 header, or a later one is no event.
    NotAsciicast,
    /// A line was longer than is parsed, or the header longer than is kept.
    LineTooLong,
    /// The last line has no newline.
    TruncatedLine,
}

impl Flag {
    /// The name that manifests carry.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NotAsciicast => "not_asciicast",
            Self::LineTooLong => "line_too_long",
            Self::TruncatedLine => "truncated_line",
        }
    }
}

impl fmt::Display for Flag {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// What was learned from all lines.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// Lines that are events.
    pub event_count: u64,
    /// Time of the last event, seconds since the start of the recording.
    pub last_event_seconds: Option<f64>,
    /// The header as sent, unknown keys included.
    pub header: Option<serde_json::Value>,
    /// SHA-256 of the text of all output events, joined, as UTF-8. `None` without a header, or when a
    /// line was too long to be read or is lost.
    pub transcript_sha256: Option<[u8; 32]>,
    /// In order of declaration, each at most once.
    pub flags: Vec<Flag>,
}

/// Call [`handle_bytes`](Self::handle_bytes) as bytes come, then [`facts`](Self::facts) once at the end.
#[derive(Default)]
pub struct Parser {
    /// The line that has not ended yet.
    line: Vec<u8>,
    /// That line was too long: its rest is skipped.
    skipping: bool,
    /// The first line has ended.
    past_header: bool,
    /// Kept as text, since a parsed value may take thirty times its bytes.
    header: Option<Box<[u8]>>,
    event_count: u64,
    last_event_seconds: Option<f64>,
    transcript: ResumableSha256,
    not_asciicast: bool,
    line_too_long: bool,
    /// Bytes are missing: the transcript is not whole.
    lost: bool,
}

/// A parser put down between two lines: JSON in a cut record.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct SavedParser {
    skipping: bool,
    past_header: bool,
    header: Option<String>,
    event_count: u64,
    last_event_seconds: Option<f64>,
    transcript: SavedHash,
    not_asciicast: bool,
    line_too_long: bool,
    lost: bool,
}

impl Parser {
    /// A parser at byte 0.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes, cut anywhere.
    pub fn handle_bytes(&mut self, bytes: &[u8]) {
        let mut lines = bytes.split(|byte| *byte == b'\n');
        // `split` yields what follows the last newline too, and that is not a line yet.
        let Some(unfinished) = lines.next_back() else {
            return;
        };
        for line in lines {
            self.handle_line_end(line);
        }
        self.hold(unfinished);
    }

    /// Bytes are missing here: what follows is read from the next line on.
    pub fn handle_gap(&mut self) {
        self.line = Vec::new();
        // Where in a line the stream goes on is not known, so the rest of that line is left out.
        self.skipping = true;
        self.past_header = true;
        self.lost = true;
    }

    /// Whether it can be put down here: it holds no part of a line.
    #[must_use]
    pub fn is_between_lines(&self) -> bool {
        self.line.is_empty()
    }

    /// Puts it down; `None` in the middle of a line.
    #[must_use]
    pub fn save(&self) -> Option<SavedParser> {
        if !self.is_between_lines() {
            return None;
        }
        // A header is kept only if it is JSON, which is UTF-8.
        let header = self
            .header
            .as_deref()
            .map(|header| String::from_utf8(header.to_vec()));
        Some(SavedParser {
            skipping: self.skipping,
            past_header: self.past_header,
            header: header.transpose().ok()?,
            event_count: self.event_count,
            last_event_seconds: self.last_event_seconds,
            transcript: self.transcript.save(),
            not_asciicast: self.not_asciicast,
            line_too_long: self.line_too_long,
            lost: self.lost,
        })
    }

    /// Takes it up; `None` when the saved parts contradict one another.
    #[must_use]
    pub fn resume(saved: &SavedParser) -> Option<Self> {
        Some(Self {
            line: Vec::new(),
            skipping: saved.skipping,
            past_header: saved.past_header,
            header: saved.header.as_ref().map(|header| header.as_bytes().into()),
            event_count: saved.event_count,
            last_event_seconds: saved.last_event_seconds,
            transcript: ResumableSha256::resume(&saved.transcript)?,
            not_asciicast: saved.not_asciicast,
            line_too_long: saved.line_too_long,
            lost: saved.lost,
        })
    }

    /// The bytes that a line needed so far; for tests of the memory bound.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.line.capacity() + self.header.as_ref().map_or(0, |header| header.len())
    }

    /// Ends the stream here and says what it held.
    #[must_use]
    pub fn facts(mut self) -> Facts {
        let truncated = self.skipping || !self.line.is_empty();
        if truncated {
            let knew = self.not_asciicast || !self.past_header;
            self.handle_line_end(b"");
            // Half an event is expected of a line that was cut; only half a header makes the whole unreadable.
            self.not_asciicast &= knew;
        }
        let flags = [
            (self.not_asciicast, Flag::NotAsciicast),
            (self.line_too_long, Flag::LineTooLong),
            (truncated, Flag::TruncatedLine),
        ];
        Facts {
            event_count: self.event_count,
            last_event_seconds: self.last_event_seconds,
            transcript_sha256: (self.header.is_some() && !self.line_too_long && !self.lost)
                .then(|| self.transcript.finalize()),
            header: self
                .header
                .and_then(|header| serde_json::from_slice(&header).ok()),
            flags: flags
                .into_iter()
                .filter_map(|(set, flag)| set.then_some(flag))
                .collect(),
        }
    }

    fn hold(&mut self, part: &[u8]) {
        if self.skipping {
            return;
        }
        if self.line.len().saturating_add(part.len()) > LINE_BYTES_MAX {
            self.skipping = true;
            self.line_too_long = true;
            self.line = Vec::new();
        } else {
            self.line.extend_from_slice(part);
        }
    }

    fn handle_line_end(&mut self, part: &[u8]) {
        if self.line.is_empty() && !self.skipping && part.len() <= LINE_BYTES_MAX {
            self.read_line(part);
        } else {
            self.hold(part);
            if self.skipping {
                self.past_header = true;
            } else {
                let mut line = std::mem::take(&mut self.line);
                self.read_line(&line);
                if line.capacity() <= LINE_BYTES_IDLE {
                    line.clear();
                    self.line = line;
                }
            }
            self.skipping = false;
        }
    }

    fn read_line(&mut self, line: &[u8]) {
        if !std::mem::replace(&mut self.past_header, true) {
            self.read_header(line);
        } else if let Some((seconds, output)) = event(line) {
            self.event_count = self.event_count.saturating_add(1);
            self.last_event_seconds = Some(seconds);
            if let Some(text) = output {
                self.transcript.update(text.as_bytes());
            }
        } else {
            self.not_asciicast = true;
        }
    }

    fn read_header(&mut self, line: &[u8]) {
        if line.len() > HEADER_BYTES_MAX {
            self.line_too_long = true;
        } else if is_header(line) {
            self.header = Some(line.into());
        } else {
            self.not_asciicast = true;
        }
    }
}

impl fmt::Debug for Parser {
    /// Leaves the content out: it is what people typed and saw.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Parser")
            .field("event_count", &self.event_count)
            .field("held_bytes", &self.held_bytes())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for SavedParser {
    /// Leaves the content out, as the parser's own does.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("SavedParser")
            .field("event_count", &self.event_count)
            .finish_non_exhaustive()
    }
}

/// An event's time, and its text if it is output.
fn event(line: &[u8]) -> Option<(f64, Option<Cow<'_, str>>)> {
    // serde_json skips strings without checking their UTF-8, hence the check up front.
    let text = std::str::from_utf8(line).ok()?;
    let (time, Text(code), Text(data)): (&RawValue, Text<'_>, Text<'_>) =
        serde_json::from_str(text).ok()?;
    let seconds = super::parse_time(time)?;
    Some((seconds, (code == super::CODE_OUTPUT).then_some(data)))
}

/// Parses all of it once, so that the same call at the end cannot fail.
fn is_header(line: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(line)
        .is_ok_and(|header| header.get("version").and_then(serde_json::Value::as_u64) == Some(2))
}

/// A JSON string, copied only if it has escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests;
