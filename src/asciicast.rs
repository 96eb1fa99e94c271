//! The recording language: asciicast v2 with Tailscale's header fields, one JSON value a line.
//!
//! ```text
//! {"version":2,"width":120,"height":40,"timestamp":1770000000,"srcNode":"laptop.ts.net",…}\n
//! [0.456997416,"o","$ ls\r\n"]\n
//! [<seconds since start>,"<code>","<data>"]\n
//! ```
//!
//! Invariant: what [`encode_event`] and [`encode_header`] write is what a stock Go client writes for the same values, byte for byte.
//! Reading is lenient: unknown keys are kept. Called by ingest (facts), capture (writing), and later by console and export.

pub mod parser;

use std::collections::BTreeMap;
use std::io;

use serde::de::Deserializer;
use serde::{Deserialize, Serialize};
use serde_json::ser::Formatter;
use serde_json::value::RawValue;

/// Code of an event that carries terminal output.
pub const CODE_OUTPUT: &str = "o";
/// Code of a resize event. Kubernetes recordings carry `<rows>x<cols>` here, the reverse of plain asciicast.
pub const CODE_RESIZE: &str = "r";

/// Why a line is not in the recording language.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The line is not a JSON object with the fields of a header.
    #[error("reading an asciicast header")]
    ReadHeader(#[source] serde_json::Error),
    /// The line is not `[seconds, code, data]`.
    #[error("reading an asciicast event")]
    ReadEvent(#[source] serde_json::Error),
    /// The first element of an event is no finite number.
    #[error("reading the time of an asciicast event")]
    ReadTime,
    /// A value kept in [`Header::extra`] does not serialize.
    #[error("writing an asciicast header")]
    WriteHeader(#[source] serde_json::Error),
}

/// The first line of a recording, in the order a stock client emits (`sessionrecording/header.go`).
///
/// Everything here is a claim of the uploader; what the tailnet says about it is stored elsewhere.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Header {
    /// 2 in every recording a stock client sends.
    pub version: u32,
    /// Columns; 0 without a pty.
    #[serde(deserialize_with = "null_as_default")]
    pub width: u32,
    /// Rows; 0 without a pty.
    #[serde(deserialize_with = "null_as_default")]
    pub height: u32,
    /// Start of the session in Unix seconds, on the uploader's clock.
    #[serde(deserialize_with = "null_as_default")]
    pub timestamp: i64,
    /// Words of the exec request joined by spaces; empty for a shell.
    #[serde(
        skip_serializing_if = "String::is_empty",
        deserialize_with = "null_as_default"
    )]
    pub command: String,
    /// MagicDNS name of the person's node, without the trailing dot.
    #[serde(rename = "srcNode", deserialize_with = "null_as_default")]
    pub src_node: String,
    /// Stable id of the person's node.
    #[serde(rename = "srcNodeID", deserialize_with = "null_as_default")]
    pub src_node_id: String,
    /// Tags of the person's node, if it is tagged.
    #[serde(
        rename = "srcNodeTags",
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_as_default"
    )]
    pub src_node_tags: Vec<String>,
    /// User id, if the node is not tagged; exceeds 2^53 in reality.
    #[serde(
        rename = "srcNodeUserID",
        skip_serializing_if = "is_zero",
        deserialize_with = "null_as_default"
    )]
    pub src_node_user_id: i64,
    /// Login name, if the node is not tagged.
    #[serde(
        rename = "srcNodeUser",
        skip_serializing_if = "String::is_empty",
        deserialize_with = "null_as_default"
    )]
    pub src_node_user: String,
    /// Environment, in practice `TERM` alone; `None` is written as `null` (Kubernetes).
    pub env: Option<BTreeMap<String, String>>,
    /// User name as typed to SSH.
    #[serde(rename = "sshUser", deserialize_with = "null_as_default")]
    pub ssh_user: String,
    /// Local account that the session ran as.
    #[serde(rename = "localUser", deserialize_with = "null_as_default")]
    pub local_user: String,
    /// Shared by the sessions of one SSH connection; not unique.
    #[serde(rename = "connectionID", deserialize_with = "null_as_default")]
    pub connection_id: String,
    /// Present when a Kubernetes proxy recorded the session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<Kubernetes>,
    /// Keys that this version does not know, kept and written back at the end.
    #[serde(flatten)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}

/// Where in a cluster a `kubectl exec` or `attach` ran.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Kubernetes {
    /// Name of the pod.
    pub pod_name: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Container; may be empty.
    pub container: String,
    /// `exec` or `attach`; empty before client 1.88.
    pub session_type: String,
}

impl Header {
    /// Reads one header line, with or without its newline.
    ///
    /// # Errors
    /// [`Error::ReadHeader`] when it is no JSON object or a known field has another type.
    pub fn parse(line: &[u8]) -> Result<Self, Error> {
        serde_json::from_slice(line).map_err(Error::ReadHeader)
    }
}

/// One event line.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Seconds since the start of the recording.
    pub time_seconds: f64,
    /// `o`, `r` and whatever else a client may send.
    pub code: String,
    /// The text, unescaped.
    pub data: String,
}

impl Event {
    /// Reads one event line, with or without its newline.
    ///
    /// # Errors
    /// [`Error::ReadEvent`] when it is not `[number, string, string]`, [`Error::ReadTime`] when the number is not finite.
    pub fn parse(line: &[u8]) -> Result<Self, Error> {
        let (time, code, data): (&RawValue, String, String) =
            serde_json::from_slice(line).map_err(Error::ReadEvent)?;
        Ok(Self {
            time_seconds: parse_time(time).ok_or(Error::ReadTime)?,
            code,
            data,
        })
    }
}

/// One event line with its newline, exactly as a stock client (Go ≤ 1.26) writes it.
///
/// `data` is one read of the terminal: every byte that is not part of valid UTF-8 becomes the six characters `\ufffd`,
/// also when the rest of the rune would have come with the next read. A time that is not finite is written as 0.
#[must_use]
pub fn encode_event(time_seconds: f64, code: &str, data: &[u8]) -> Vec<u8> {
    let mut line = Vec::with_capacity(data.len().saturating_add(32));
    line.push(b'[');
    line.extend_from_slice(go_float(time_seconds).as_bytes());
    line.push(b',');
    push_string(&mut line, code.as_bytes());
    line.push(b',');
    push_string(&mut line, data);
    line.extend_from_slice(b"]\n");
    line
}

/// The header line with its newline, exactly as a stock client writes it.
///
/// # Errors
/// [`Error::WriteHeader`]; a header made of strings and integers always serializes.
pub fn encode_header(header: &Header) -> Result<Vec<u8>, Error> {
    let mut line = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut line, GoStrings);
    header
        .serialize(&mut serializer)
        .map_err(Error::WriteHeader)?;
    line.push(b'\n');
    Ok(line)
}

fn parse_time(time: &RawValue) -> Option<f64> {
    let seconds: f64 = time.get().parse().ok()?;
    seconds.is_finite().then_some(seconds)
}

/// Go's `encoding/json` for a float64: shortest decimal that reads back the same, exponent form below 1e-6 and from 1e21.
fn go_float(value: f64) -> String {
    let magnitude = value.abs();
    if !value.is_finite() {
        "0".to_owned()
    } else if magnitude != 0.0 && magnitude < 1e-6 {
        format!("{value:e}")
    } else if magnitude >= TIES_FROM {
        go_large_float(value)
    } else {
        format!("{value}")
    }
}

/// Large numbers can have two decimals that are equally short and equally near: Go takes the even one, Rust the larger one.
/// Met from 2e11 upward; the margin costs nothing, since sessions of 11 days are rare.
const TIES_FROM: f64 = 1e6;

fn go_large_float(value: f64) -> String {
    let shortest = format!("{value:e}");
    let precision = shortest
        .split_once('.')
        .and_then(|(_, tail)| tail.split_once('e'))
        .map_or(0, |(fraction, _)| fraction.len());
    // Given a number of digits, Rust too rounds ties to even.
    let even = format!("{value:.precision$e}");
    if value.abs() >= 1e21 {
        return even.replacen('e', "e+", 1);
    }
    let (mantissa, exponent) = even.split_once('e').unwrap_or((&even, "0"));
    let integer_digits = exponent.parse::<usize>().unwrap_or(0).saturating_add(1);
    let sign = if value < 0.0 { "-" } else { "" };
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    match digits.split_at_checked(integer_digits) {
        Some((integer, fraction)) if !fraction.is_empty() => format!("{sign}{integer}.{fraction}"),
        _ => format!("{sign}{digits:0<integer_digits$}"),
    }
}

fn push_string(out: &mut Vec<u8>, data: &[u8]) {
    out.push(b'"');
    for chunk in data.utf8_chunks() {
        let mut rest = chunk.valid();
        while let Some((plain, tail)) = rest
            .find(is_escaped)
            .and_then(|at| rest.split_at_checked(at))
        {
            out.extend_from_slice(plain.as_bytes());
            let mut characters = tail.chars();
            if let Some(character) = characters.next() {
                out.extend_from_slice(escape(character).as_bytes());
            }
            rest = characters.as_str();
        }
        out.extend_from_slice(rest.as_bytes());
        for _ in chunk.invalid() {
            out.extend_from_slice(b"\\ufffd");
        }
    }
    out.push(b'"');
}

fn is_escaped(character: char) -> bool {
    matches!(character, '\0'..='\u{1f}' | '"' | '\\') || is_escaped_by_go_alone(character)
}

/// Characters that Go escapes and serde_json does not.
fn is_escaped_by_go_alone(character: char) -> bool {
    matches!(character, '<' | '>' | '&' | '\u{2028}' | '\u{2029}')
}

fn escape(character: char) -> String {
    match character {
        '"' => "\\\"".to_owned(),
        '\\' => "\\\\".to_owned(),
        '\u{8}' => "\\b".to_owned(),
        '\u{c}' => "\\f".to_owned(),
        '\n' => "\\n".to_owned(),
        '\r' => "\\r".to_owned(),
        '\t' => "\\t".to_owned(),
        other => format!("\\u{:04x}", u32::from(other)),
    }
}

/// Compact JSON with the extra string escapes of Go's encoder.
struct GoStrings;

impl Formatter for GoStrings {
    fn write_string_fragment<W>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()>
    where
        W: ?Sized + io::Write,
    {
        for part in fragment.split_inclusive(is_escaped_by_go_alone) {
            let mut characters = part.chars();
            match characters.next_back() {
                Some(last) if is_escaped_by_go_alone(last) => {
                    writer.write_all(characters.as_str().as_bytes())?;
                    writer.write_all(escape(last).as_bytes())?;
                }
                _ => writer.write_all(part.as_bytes())?,
            }
        }
        Ok(())
    }
}

fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde's skip_serializing_if passes a reference"
)]
fn is_zero(value: &i64) -> bool {
    *value == 0
}

#[cfg(test)]
mod tests;
