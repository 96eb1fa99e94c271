//! The JSON records in journal frames that are none of a recording's bytes: how it opened, how it ended, what closed an epoch.
//!
//! Invariant: unknown fields are left to newer versions; what is read back is what was written. `docs/format.md` specifies
//! them. Called by the store, which writes them while a recording runs and reads them when it recovers one.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::hash::SavedHash;
use super::manifest::{SourceNode, rfc3339};
use super::seal::HexDigest;
use crate::access::Identity;
use crate::asciicast::parser::SavedParser;
use crate::ids::{EpochId, RecorderId};

/// The version of a fence record.
pub const FENCE_VERSION: u32 = 1;

/// The JSON in an `open` frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenRecord {
    /// The authenticated identity of the uploader.
    pub uploader: Identity,
    /// The endpoint that takes the upload, such as `/v2/record`.
    pub endpoint: String,
    /// When it opened, by the recorder's clock.
    #[serde(with = "rfc3339")]
    pub received_at: Timestamp,
}

/// The JSON in a `close` frame: what the stream itself does not tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloseRecord {
    /// Whether the upload had a clean end of body.
    pub clean: bool,
    /// Why it ended, in words.
    pub reason: String,
    /// When it ended, by the recorder's clock.
    #[serde(with = "rfc3339")]
    pub ended_at: Timestamp,
    /// The length of the plain stream.
    pub bytes: u64,
    /// SHA-256 of the plain stream as it was received.
    pub cast_sha256: HexDigest,
    /// What was special about the upload.
    pub flags: Vec<String>,
}

/// The version of a cut record.
pub const CUT_VERSION: u32 = 1;

/// The JSON in a `cut` frame: what stands before its offset is in segments, and the journal is needed only from there on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CutRecord {
    /// [`CUT_VERSION`].
    pub version: u32,
    /// Where in the plain stream to go on: between two lines, or within one that is too long to be read.
    pub offset: u64,
    /// The opening, whose own frame may be gone.
    pub opening: OpenRecord,
    /// What was learned of the person's node, whose own frame may be gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_node: Option<SourceNode>,
    /// The segments so far, in order; at least one.
    pub segments: Vec<CutSegment>,
    /// The hash of the stream up to the offset.
    pub cast: SavedHash,
    /// What was learned from the content up to the offset.
    pub parser: SavedParser,
}

/// A segment that a cut names. Its block digests are made when the recording is sealed, from what the store then holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutSegment {
    /// Its object's full name in the store.
    pub name: String,
    /// Where its first byte stands in the plain stream.
    pub plain_offset: u64,
    /// How many plain bytes it has.
    pub plain_bytes: u64,
    /// SHA-256 of its object.
    pub sha256: HexDigest,
}

impl CutRecord {
    /// Whether its segments follow one another up to its offset, and its parts agree.
    #[must_use]
    pub fn adds_up(&self) -> bool {
        let end = self.segments.iter().try_fold(0_u64, |end, segment| {
            (segment.plain_offset == end)
                .then(|| end.checked_add(segment.plain_bytes))
                .flatten()
        });
        self.version == CUT_VERSION && end == Some(self.offset) && self.cast.length == self.offset
    }
}

/// The JSON in a `fence` frame: who ended the epoch, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceRecord {
    /// [`FENCE_VERSION`].
    pub version: u32,
    /// The recorder that wrote the fence.
    pub by: RecorderId,
    /// The epoch in which it lived then.
    pub by_epoch: EpochId,
    /// Why.
    pub reason: FenceReason,
    /// When, by that recorder's clock.
    #[serde(with = "rfc3339")]
    pub at: Timestamp,
}

/// Why an epoch got a fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FenceReason {
    /// Its own recorder closed it.
    Closed,
    /// Its recorder was dead, or held for dead.
    TakenOver,
    /// Everything in it is sealed: the second fence of an epoch that had one.
    Recovered,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_the_form_that_the_format_document_shows() {
        let fence = FenceRecord {
            version: FENCE_VERSION,
            by: RecorderId::from_log_key(b"key"),
            by_epoch: "1764000000123-caireeyuculbogazdinryhi6d4".parse().unwrap(),
            reason: FenceReason::TakenOver,
            at: "2026-11-20T10:20:00Z".parse().unwrap(),
        };
        let text = r#"{"version":1,"by":"fryock32azdpsitz6qt4pm4oom","by_epoch":"1764000000123-caireeyuculbogazdinryhi6d4","reason":"taken-over","at":"2026-11-20T10:20:00Z"}"#;
        assert_eq!(serde_json::to_string(&fence).unwrap(), text);
        assert_eq!(serde_json::from_str::<FenceRecord>(text).unwrap(), fence);

        let cut = r#"{"version":1,"offset":6,"opening":{"uploader":{"stable_id":"nAbCdEfCNTRL","node_name":"web.tail-scale.ts.net","user":null,"tags":["tag:ssh"],"address":"100.64.0.7","capabilities":{}},"endpoint":"/v2/record","received_at":"2026-11-20T10:15:00.123Z"},"segments":[{"name":"recordings/nAbCdEfCNTRL/2026-11-20/101500.123Z-aaaqeayeaudaocaj.mzxw6ytb.0.cast","plain_offset":0,"plain_bytes":6,"sha256":"5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"}],"cast":{"chaining":[1779033703,3144134277,1013904242,2773480762,1359893119,2600822924,528734635,1541459225],"pending":[104,101,108,108,111,10],"length":6},"parser":{"skipping":false,"past_header":true,"header":null,"event_count":0,"last_event_seconds":null,"transcript":{"chaining":[1779033703,3144134277,1013904242,2773480762,1359893119,2600822924,528734635,1541459225],"pending":[],"length":0},"not_asciicast":true,"line_too_long":false,"lost":false}}"#;
        let mut read: CutRecord = serde_json::from_str(cut).unwrap();
        assert!(read.adds_up());
        assert_eq!(serde_json::to_string(&read).unwrap(), cut);
        read.offset = 7;
        assert!(!read.adds_up());

        let close = r#"{"clean":true,"reason":"end of body","ended_at":"2026-11-20T10:16:00Z","bytes":6,"cast_sha256":"5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03","flags":[],"of_tomorrow":1}"#;
        let read: CloseRecord = serde_json::from_str(close).unwrap();
        assert_eq!((read.bytes, read.clean), (6, true));
    }
}
