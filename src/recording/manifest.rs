//! The manifest: the first and last word about a recording, one JSON object.
//!
//! Invariant: its create is the commit point of a seal, and it is the only thing that refers to segments. What
//! the uploader claims (`claimed`) and what the tailnet says (`uploader`) stand apart. Unknown fields are left to
//! newer versions; a newer `version` is refused. Called by the store's writer and reader.

use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::seal::HexDigest;
use crate::access::{Identity, UserIdentity};
use crate::ids::{RecorderId, RecordingId, StoreId};

/// The version of this form.
pub const MANIFEST_VERSION: u32 = 1;
/// The largest manifest that is read: the block digests of a segment of 32 GiB, and a header of 1 MiB.
pub const MANIFEST_BYTES_MAX: usize = 12 * 1024 * 1024;
/// The flag of a recording whose upload had a clean end.
pub const FLAG_COMPLETE: &str = "complete";
/// The flag of a recording whose upload was cut off.
pub const FLAG_INCOMPLETE: &str = "incomplete";

/// The flag of a recording that was sealed after its recorder had stopped.
pub const FLAG_RECOVERED: &str = "recovered";
/// The flag of a recording of which bytes are lost: `gaps` says which.
pub const FLAG_GAPS: &str = "gaps";
/// The flag of a recording whose opening is lost: who uploaded it is not known.
pub const FLAG_OPENING_LOST: &str = "opening_lost";

/// Why bytes are not a manifest.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// Not the JSON of a manifest.
    #[error("parse the manifest")]
    Parse(#[source] serde_json::Error),
    /// Written by a newer version.
    #[error("the manifest's version {0} is unknown to this version")]
    UnknownVersion(u32),
    /// Its segments and gaps do not follow one another, or do not add up.
    #[error("the manifest's segments and gaps do not add up to its bytes")]
    Segments,
    /// More than [`MANIFEST_BYTES_MAX`].
    #[error("the manifest has {0} bytes, the limit is {MANIFEST_BYTES_MAX}")]
    TooLarge(usize),
}

/// What is known about a sealed recording.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`MANIFEST_VERSION`].
    pub version: u32,
    /// The recording.
    pub recording_id: RecordingId,
    /// The store that it was made in.
    pub store_id: StoreId,
    /// The recorder that sealed it.
    pub recorder: RecorderId,
    /// The endpoint that took it, such as `/v2/record`.
    pub endpoint: String,
    /// When the upload opened, by the recorder's clock.
    #[serde(with = "rfc3339")]
    pub received_at: Timestamp,
    /// When it ended, by the recorder's clock.
    #[serde(with = "rfc3339")]
    pub ended_at: Timestamp,
    /// Whether the end was clean.
    pub clean: bool,
    /// Why it ended, in words.
    pub reason: String,
    /// `complete` or `incomplete`, and what else was noticed, sorted.
    pub flags: Vec<String>,
    /// The length of the plain stream, with its gaps.
    pub bytes: u64,
    /// What of the stream is lost, in order; empty but for a damaged journal.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gaps: Vec<Gap>,
    /// SHA-256 of the plain stream; with gaps, of what is left of it, joined.
    pub cast_sha256: HexDigest,
    /// The events of the asciicast.
    pub event_count: u64,
    /// SHA-256 of the text of all output events, joined, as UTF-8. Absent when there was no header, or
    /// a line was too long to be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transcript_sha256: Option<HexDigest>,
    /// Who uploaded, as the tailnet says.
    pub uploader: Identity,
    /// The asciicast's header: what the uploader claims. Absent when there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed: Option<serde_json::Value>,
    /// What the tailnet said of the node that the header claims as the person's; absent when nobody looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_node: Option<SourceNode>,
    /// `plain`: the stored segments, joined, are the stream.
    pub format: Format,
    /// The segments in order; at least one, even of an empty recording.
    pub segments: Vec<Segment>,
}

/// Bytes of the stream that are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// Where in the stream.
    pub offset: u64,
    /// How many; absent at the end of a recording of which nobody knows how long it was.
    pub bytes: Option<u64>,
}

/// The person's node as the netmap knew it when the recording began: beside what the header claims of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceNode {
    /// The StableID by which it was looked up: the header's claim.
    pub stable_id: String,
    /// Whether the netmap knew it; if not, the following are empty.
    pub found: bool,
    /// Its MagicDNS name.
    pub node_name: String,
    /// Who owns it; absent for a tagged node.
    pub user: Option<UserIdentity>,
    /// Its tags.
    pub tags: Vec<String>,
    /// Its tailnet addresses.
    pub addresses: Vec<IpAddr>,
    /// Which fields of the header say otherwise.
    pub mismatch: Vec<String>,
}

/// How segments are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Format {
    /// As they came.
    Plain,
}

/// One stored segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Its object's full name in the store.
    pub name: String,
    /// Where its first byte stands in the plain stream.
    pub plain_offset: u64,
    /// How many plain bytes it has.
    pub plain_bytes: u64,
    /// How many bytes its object has.
    pub stored_bytes: u64,
    /// SHA-256 of its object.
    pub sha256: HexDigest,
    /// SHA-256 of each 256 KiB of its object.
    pub blocks: Vec<HexDigest>,
    /// The RFC 6962 root over `blocks`.
    pub root: HexDigest,
}

impl Manifest {
    /// The bytes of its object: JSON for people too, with a newline at the end.
    ///
    /// # Errors
    /// [`ManifestError::TooLarge`]; [`ManifestError::Parse`] if a value has no JSON form.
    pub fn encode(&self) -> Result<Vec<u8>, ManifestError> {
        let mut bytes = serde_json::to_vec_pretty(self).map_err(ManifestError::Parse)?;
        bytes.push(b'\n');
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLarge(bytes.len()));
        }
        Ok(bytes)
    }

    /// Takes the bytes of its object.
    ///
    /// # Errors
    /// Every variant of [`ManifestError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLarge(bytes.len()));
        }
        // The version first: a newer form may not parse as this one, and deserves its own error.
        let Version { version } = serde_json::from_slice(bytes).map_err(ManifestError::Parse)?;
        if version != MANIFEST_VERSION {
            return Err(ManifestError::UnknownVersion(version));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(ManifestError::Parse)?;
        manifest
            .adds_up()
            .then_some(manifest)
            .ok_or(ManifestError::Segments)
    }

    /// Every byte of the stream stands in exactly one segment or one declared gap.
    fn adds_up(&self) -> bool {
        let mut gaps = self.gaps.iter().peekable();
        let mut end = Some(0_u64);
        let mut past_gaps = |mut end: Option<u64>| {
            while let (Some(at), Some(gap)) = (end, gaps.peek()) {
                // Only the last gap may be of unknown length; nothing can follow it.
                if gap.offset != at || gap.bytes == Some(0) {
                    break;
                }
                end = gap.bytes.map_or(Some(at), |bytes| at.checked_add(bytes));
                let known = gap.bytes.is_some();
                gaps.next();
                if !known {
                    break;
                }
            }
            end
        };
        for segment in &self.segments {
            if end != Some(segment.plain_offset) {
                end = past_gaps(end);
            }
            if end != Some(segment.plain_offset) {
                return false;
            }
            end = segment.plain_offset.checked_add(segment.plain_bytes);
        }
        end = past_gaps(end);
        !self.segments.is_empty() && end == Some(self.bytes) && gaps.next().is_none()
    }
}

/// Times as RFC 3339 text in UTC.
pub(crate) mod rfc3339 {
    use jiff::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(
        time: &Timestamp,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(time)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Timestamp, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const GOLDEN: &str = include_str!("../../tests/vectors/manifest.json");

    fn manifest() -> Manifest {
        Manifest {
            version: MANIFEST_VERSION,
            recording_id: "aaaqeayeaudaocaj".parse().unwrap(),
            store_id: "caireeyuculbogazdinryhi6d4".parse().unwrap(),
            recorder: RecorderId::from_log_key(b"key"),
            endpoint: "/v2/record".into(),
            received_at: "2026-11-20T10:15:00.123Z".parse().unwrap(),
            ended_at: "2026-11-20T10:16:00Z".parse().unwrap(),
            clean: true,
            reason: "end of body".into(),
            flags: vec![FLAG_COMPLETE.into()],
            bytes: 6,
            gaps: vec![],
            cast_sha256: digest("5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"),
            event_count: 0,
            transcript_sha256: None,
            uploader: Identity {
                stable_id: "nAbCdEfCNTRL".into(),
                node_name: "web.tail-scale.ts.net".into(),
                user: None,
                tags: vec!["tag:ssh".into()],
                address: "100.64.0.7".parse().unwrap(),
                capabilities: BTreeMap::new(),
            },
            claimed: Some(serde_json::json!({"version": 2})),
            source_node: None,
            format: Format::Plain,
            segments: vec![Segment {
                name: "recordings/nAbCdEfCNTRL/2026-11-20/101500.123Z-aaaqeayeaudaocaj.mzxw6ytb.0.cast".into(),
                plain_offset: 0,
                plain_bytes: 6,
                stored_bytes: 6,
                sha256: digest("5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"),
                blocks: vec![digest("5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03")],
                // python3: sha256(b"\0" + sha256(b"hello\n").digest())
                root: digest("780e1db7af3adac20c7b8b4e7d22e80132f1fbb89f021476b1353ca0b07fb507"),
            }],
        }
    }

    fn digest(text: &str) -> HexDigest {
        serde_json::from_value(text.into()).unwrap()
    }

    #[test]
    fn a_manifest_has_the_bytes_that_the_format_document_shows() {
        assert_eq!(
            String::from_utf8(manifest().encode().unwrap()).unwrap(),
            GOLDEN
        );
        assert_eq!(Manifest::decode(GOLDEN.as_bytes()).unwrap(), manifest());
    }

    #[test]
    fn segments_that_do_not_add_up_are_refused() {
        let mut gap = manifest();
        gap.segments[0].plain_offset = 1;
        let mut short = manifest();
        short.bytes = 7;
        let mut none = manifest();
        none.segments.clear();
        none.bytes = 0;
        for wrong in [gap, short, none] {
            assert!(matches!(
                Manifest::decode(&wrong.encode().unwrap()),
                Err(ManifestError::Segments)
            ));
        }
    }

    #[test]
    fn gaps_fill_exactly_what_the_segments_leave_out() {
        let with = |gaps: &[(u64, Option<u64>)], segments: &[(u64, u64)], bytes| {
            let mut with = manifest();
            let segment = with.segments[0].clone();
            with.segments = segments
                .iter()
                .map(|(plain_offset, plain_bytes)| Segment {
                    plain_offset: *plain_offset,
                    plain_bytes: *plain_bytes,
                    ..segment.clone()
                })
                .collect();
            with.gaps = gaps
                .iter()
                .map(|(offset, bytes)| Gap {
                    offset: *offset,
                    bytes: *bytes,
                })
                .collect();
            with.bytes = bytes;
            Manifest::decode(&with.encode().unwrap()).is_ok()
        };
        assert!(with(&[(0, Some(2))], &[(2, 4)], 6), "at the start");
        assert!(with(&[(2, Some(1))], &[(0, 2), (3, 3)], 6), "in the middle");
        assert!(with(&[(4, Some(2))], &[(0, 4)], 6), "at the end");
        assert!(
            with(&[(4, None)], &[(0, 4)], 4),
            "at the end, nobody knows how much"
        );
        assert!(with(&[(0, Some(6))], &[(0, 0)], 6), "all of it");
        assert!(!with(&[(2, Some(2))], &[(0, 2), (3, 3)], 6), "too long");
        assert!(!with(&[(1, Some(1))], &[(0, 2), (3, 3)], 6), "elsewhere");
        assert!(!with(&[], &[(0, 2), (3, 3)], 6), "undeclared");
        assert!(
            !with(&[(2, None)], &[(0, 2), (3, 3)], 6),
            "unknown in the middle"
        );
        assert!(!with(&[(3, Some(9))], &[(0, 6)], 6), "declared and there");
        assert!(!with(&[(0, Some(0))], &[(0, 6)], 6), "of nothing");
    }

    #[test]
    fn a_newer_version_is_named_and_an_unknown_field_is_left_alone() {
        let newer = br#"{"version": 2}"#;
        assert!(matches!(
            Manifest::decode(newer),
            Err(ManifestError::UnknownVersion(2))
        ));
        let extended = GOLDEN.replacen('{', "{\"of_tomorrow\": \"…\",", 1);
        assert_eq!(Manifest::decode(extended.as_bytes()).unwrap(), manifest());
    }

    proptest! {
        #[test]
        fn no_bent_manifest_makes_the_decoder_panic(place in 0..1000_usize, byte: u8) {
            let mut bytes = GOLDEN.as_bytes().to_vec();
            bytes[place] = byte;
            if let Ok(read) = Manifest::decode(&bytes) {
                prop_assert_eq!(read.bytes, 6);
            }
        }
    }
}
