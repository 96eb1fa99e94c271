//! An event: one request that a Kubernetes proxy reports, kept as one line below `events/`.
//!
//! Invariant: what the sender wrote is kept verbatim inside the line, which is one line of valid JSON whatever it wrote;
//! a frame in the journal is a line, the name of an object that holds a long line, or the mark of a roll. Pure. Called by
//! ingest, which makes events, and by `events.rs`, which commits and rolls them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use jiff::Timestamp;
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::error::StoreError;
use crate::access::Identity;
use crate::ids::{EpochId, EventId, RecorderId};
use crate::recording::manifest::rfc3339;
use crate::recording::seal::HexDigest;

/// The body is no JSON; it is kept as text.
const FLAG_NOT_JSON: &str = "not_json";
/// The body is JSON of more than one line; it is kept as text.
const FLAG_NOT_ONE_LINE: &str = "not_one_line";

/// An event as it arrived.
#[derive(Debug, Clone)]
pub struct Event {
    /// When, by the recorder's clock.
    pub received_at: Timestamp,
    /// The authenticated identity of the sender: the destination that the event does not name itself.
    pub uploader: Identity,
    /// The body, verbatim.
    pub body: Bytes,
}

/// The whole line, in the order of its keys.
#[derive(Serialize)]
struct Line<'a> {
    id: EventId,
    #[serde(with = "rfc3339")]
    received: Timestamp,
    uploader: &'a Identity,
    destination: Destination<'a>,
    #[serde(flatten)]
    event: Body<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flags: Option<[&'static str; 1]>,
}

/// What the event itself leaves open, for its recorder to fill in.
#[derive(Serialize)]
struct Destination<'a> {
    node: &'a str,
    #[serde(rename = "nodeID")]
    node_id: &'a str,
}

/// The body in the one form that keeps it whole.
enum Body<'a> {
    Json(&'a RawValue),
    Text(&'a str),
    Bytes(&'a [u8]),
}

/// What every frame of an event begins with, whatever else it holds.
#[derive(Debug, Deserialize)]
pub(super) struct LineHead {
    pub(super) id: EventId,
    #[serde(with = "rfc3339")]
    pub(super) received: Timestamp,
    pub(super) uploader: LineUploader,
    /// Set when the line is too long for a frame: the object that holds it.
    #[serde(default)]
    pub(super) object: Option<String>,
    /// Its length.
    #[serde(default)]
    pub(super) bytes: Option<u64>,
    /// Its digest.
    #[serde(default)]
    pub(super) sha256: Option<HexDigest>,
}

/// Whose it is.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct LineUploader {
    pub(super) stable_id: String,
}

/// The frame of an event whose line is an object of its own.
#[derive(Serialize)]
struct LongLine<'a> {
    id: EventId,
    #[serde(with = "rfc3339")]
    received: Timestamp,
    uploader: LineUploader,
    object: &'a str,
    bytes: u64,
    sha256: HexDigest,
}

/// What is lost of events.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Lost {
    /// Whatever events stood in these objects of a journal.
    Journal {
        recorder: RecorderId,
        epoch: EpochId,
        /// Runs of numbers, each with its first and its last.
        numbers: Vec<(u64, u64)>,
    },
    /// An event whose line was an object of its own.
    Event {
        event: EventId,
        object: String,
        bytes: Option<u64>,
        sha256: Option<HexDigest>,
    },
}

/// The line that declares a loss.
#[derive(Serialize)]
struct LostLine<'a> {
    id: EventId,
    #[serde(with = "rfc3339")]
    received: Timestamp,
    uploader: LineUploader,
    lost: &'a Lost,
}

/// The mark of a roll: the events in these objects need the journal no more.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Rolled {
    pub(super) objects: Vec<String>,
    pub(super) events: u64,
}

#[derive(Serialize, Deserialize)]
struct Mark {
    rolled: Rolled,
}

/// A frame of kind `event`, read back.
#[derive(Debug)]
pub(super) enum EventRecord {
    /// A line, or the name of the object that holds it.
    Line(LineHead),
    /// The mark of a roll.
    Rolled(Rolled),
}

/// The line of an event, with its newline.
pub(super) fn line_of(id: EventId, event: &Event) -> Result<Bytes, StoreError> {
    let (body, flags) = body_of(&event.body);
    let line = Line {
        id,
        received: event.received_at,
        uploader: &event.uploader,
        destination: Destination {
            node: &event.uploader.node_name,
            node_id: &event.uploader.stable_id,
        },
        event: body,
        flags: flags.map(|flag| [flag]),
    };
    to_line(&line)
}

/// The frame of an event whose line was stored as `object`.
pub(super) fn long_line_of(
    id: EventId,
    event: &Event,
    object: &str,
    bytes: u64,
    sha256: HexDigest,
) -> Result<Bytes, StoreError> {
    let stable_id = event.uploader.stable_id.clone();
    to_line(&LongLine {
        id,
        received: event.received_at,
        uploader: LineUploader { stable_id },
        object,
        bytes,
        sha256,
    })
}

/// The line that declares `lost`, with its newline.
pub(super) fn lost_line_of(
    id: EventId,
    received: Timestamp,
    uploader: &str,
    lost: &Lost,
) -> Result<Bytes, StoreError> {
    to_line(&LostLine {
        id,
        received,
        uploader: LineUploader {
            stable_id: uploader.into(),
        },
        lost,
    })
}

/// The mark that `events` of one uploader stand in `objects`.
pub(super) fn mark_of(objects: &[Path], events: usize) -> Result<Bytes, StoreError> {
    let rolled = Rolled {
        objects: objects.iter().map(ToString::to_string).collect(),
        events: u64::try_from(events).unwrap_or(u64::MAX),
    };
    to_line(&Mark { rolled })
}

/// Reads a frame of kind `event`.
///
/// # Errors
/// [`StoreError::EventLine`].
pub(super) fn read_record(frame: &[u8]) -> Result<EventRecord, StoreError> {
    if let Ok(mark) = serde_json::from_slice::<Mark>(frame) {
        return Ok(EventRecord::Rolled(mark.rolled));
    }
    serde_json::from_slice(frame)
        .map(EventRecord::Line)
        .map_err(StoreError::EventLine)
}

fn to_line(value: &impl Serialize) -> Result<Bytes, StoreError> {
    let mut line = serde_json::to_vec(value).map_err(|source| StoreError::Json {
        what: "an event",
        source,
    })?;
    line.push(b'\n');
    Ok(line.into())
}

fn body_of(body: &[u8]) -> (Body<'_>, Option<&'static str>) {
    let Ok(text) = std::str::from_utf8(body) else {
        return (Body::Bytes(body), Some(FLAG_NOT_JSON));
    };
    let trimmed = text.strip_suffix('\n').unwrap_or(text);
    let Ok(json) = serde_json::from_str::<&RawValue>(trimmed) else {
        return (Body::Text(text), Some(FLAG_NOT_JSON));
    };
    if trimmed.contains(['\n', '\r']) {
        return (Body::Text(text), Some(FLAG_NOT_ONE_LINE));
    }
    (Body::Json(json), None)
}

impl Serialize for Body<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap as _;
        let mut map = serializer.serialize_map(Some(1))?;
        match self {
            Self::Json(json) => map.serialize_entry("event", json)?,
            Self::Text(text) => map.serialize_entry("event_text", text)?,
            Self::Bytes(bytes) => map.serialize_entry("event_base64", &STANDARD.encode(bytes))?,
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use rand_core::SeedableRng;

    use super::*;

    fn event(body: &'static [u8]) -> Event {
        Event {
            received_at: "2026-11-20T10:15:00.123Z".parse().unwrap(),
            uploader: Identity {
                stable_id: "nProxy".into(),
                node_name: "proxy.ts.net".into(),
                user: None,
                tags: vec!["tag:k8s".into()],
                address: "100.64.0.9".parse().unwrap(),
                capabilities: std::collections::BTreeMap::new(),
            },
            body: Bytes::from_static(body),
        }
    }

    fn id() -> EventId {
        EventId::random(1000, &mut rand_chacha::ChaCha20Rng::seed_from_u64(1))
    }

    #[test]
    fn a_line_holds_the_body_verbatim_and_who_sent_it() {
        // A number that a parser would round, keys out of order, spaces: all of it stays.
        let body =
            b"{\"type\":\"kubernetes-api-request\", \"id\":\"\",\"n\":1.0000000000000000001}\n";
        let line = line_of(id(), &event(body)).unwrap();
        let text = std::str::from_utf8(&line).unwrap();
        let sent = std::str::from_utf8(body).unwrap().trim_end();
        assert!(text.contains(&format!("\"event\":{sent}")), "{text}");
        assert!(text.ends_with("}\n") && text.matches('\n').count() == 1);
        assert!(text.starts_with(&format!(
            "{{\"id\":\"{}\",\"received\":\"2026-11-20T10:15:00.123Z\"",
            id()
        )));
        assert!(text.contains("\"destination\":{\"node\":\"proxy.ts.net\",\"nodeID\":\"nProxy\"}"));
        assert!(!text.contains("flags"));
    }

    #[test]
    fn whatever_is_sent_becomes_one_line_of_json_that_keeps_it() {
        let rows: [(&[u8], &str, Option<&str>); 7] = [
            (b"{}", "event", None),
            (b"{\n \"a\": 1\n}\n", "event_text", Some("not_one_line")),
            (b"", "event_text", Some("not_json")),
            (b"{\"a\":1}{\"b\":2}", "event_text", Some("not_json")),
            (b"{\"a\":1", "event_text", Some("not_json")),
            (b"no json\n\n", "event_text", Some("not_json")),
            (b"\xff\xfe{}", "event_base64", Some("not_json")),
        ];
        for (body, key, flag) in rows {
            let line = line_of(id(), &event(body)).unwrap();
            assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
            let json: serde_json::Value = serde_json::from_slice(&line).unwrap();
            assert_eq!(json["flags"][0].as_str(), flag, "{json}");
            match key {
                "event_text" => assert_eq!(json[key].as_str().unwrap().as_bytes(), body),
                "event_base64" => {
                    assert_eq!(STANDARD.decode(json[key].as_str().unwrap()).unwrap(), body);
                }
                _ => assert!(json[key].is_object(), "{json}"),
            }
        }
    }

    #[test]
    fn a_frame_tells_a_line_a_long_line_and_a_mark_apart() {
        // What the sender wrote stands below `event`: it cannot pass for a mark.
        let line = line_of(
            id(),
            &event(b"{\"rolled\":{\"objects\":[\"x\"],\"events\":1}}"),
        )
        .unwrap();
        let EventRecord::Line(head) = read_record(&line).unwrap() else {
            panic!()
        };
        assert_eq!((head.id, head.object), (id(), None));
        assert_eq!(head.uploader.stable_id, "nProxy");
        let long = long_line_of(id(), &event(b"{}"), "events/a", 3, HexDigest([0; 32])).unwrap();
        let EventRecord::Line(head) = read_record(&long).unwrap() else {
            panic!()
        };
        assert_eq!(head.object.as_deref(), Some("events/a"));
        let EventRecord::Rolled(rolled) =
            read_record(&mark_of(&[Path::from("events/b")], 2).unwrap()).unwrap()
        else {
            panic!()
        };
        assert_eq!((rolled.objects[0].as_str(), rolled.events), ("events/b", 2));
        assert!(matches!(
            read_record(b"noise"),
            Err(StoreError::EventLine(_))
        ));
    }
}
