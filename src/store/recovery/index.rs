//! What an epoch's journal holds of each recording: where its frames are, and what they say of its opening and end.
//!
//! Invariant: memory held is one span per recording and object, and one per event, whatever their bytes. Objects come in any order; a frame may
//! stand twice (a compaction copies frames), never in part. Pure. Called by `epoch.rs`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use jiff::Timestamp;
use serde::de::DeserializeOwned;

use super::super::events::EventIndex;
use super::super::state::{ObjectPlace, Span};
use crate::ids::{JournalNumber, RecordingId};
use crate::recording::frame::{Frame, FrameKind};
use crate::recording::journal_object::{JournalObject, OBJECT_HEADER_BYTES};
use crate::recording::manifest::{Gap, SourceNode};
use crate::recording::records::{CloseRecord, CutRecord, OpenRecord};

/// An epoch's recordings.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) recordings: BTreeMap<RecordingId, Found>,
    /// What stands among them and belongs to none.
    pub(super) events: EventIndex,
    /// Numbers of objects that are lost or damaged.
    pub(super) lost: Vec<JournalNumber>,
}

/// One recording.
#[derive(Debug, Default)]
pub(super) struct Found {
    open: Option<OpenRecord>,
    pub(super) close: Option<CloseRecord>,
    /// The one that reaches farthest.
    pub(super) cut: Option<CutRecord>,
    note: Option<(JournalNumber, SourceNode)>,
    spans: Vec<PlacedSpan>,
    newest: JournalNumber,
    /// When its newest object was stored, by the backend's clock.
    pub(super) stored_at: Timestamp,
}

/// Frames side by side in one object, without a gap between their bytes.
#[derive(Debug)]
struct PlacedSpan {
    plain: Range<u64>,
    span: Span,
}

/// What can be read of a recording, in order.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) gaps: Vec<Gap>,
    pub(super) length: u64,
}

impl Index {
    /// Takes a whole object.
    pub(super) fn handle_object(
        &mut self,
        place: &Arc<ObjectPlace>,
        object: &JournalObject<'_>,
        stored_at: Timestamp,
    ) {
        let mut position = OBJECT_HEADER_BYTES;
        // The frames were walked when the object was read: none is bent.
        for frame in object.frames().flatten() {
            let start = position;
            position = position.saturating_add(frame.encoded_bytes());
            match frame.kind {
                FrameKind::Opener | FrameKind::Fence => continue,
                FrameKind::Event => {
                    let bytes = narrow(start)..narrow(position);
                    self.events.handle_frame(place, &frame, bytes);
                    continue;
                }
                FrameKind::Open
                | FrameKind::Data
                | FrameKind::Close
                | FrameKind::Cut
                | FrameKind::Note => {}
            }
            let found = self.recordings.entry(frame.recording).or_default();
            if place.number >= found.newest {
                found.newest = place.number;
                found.stored_at = found.stored_at.max(stored_at);
            }
            found.handle_frame(place, &frame, start..position);
        }
    }

    /// An object of that number is lost.
    pub(super) fn handle_lost(&mut self, number: JournalNumber) {
        self.lost.push(number);
    }
}

impl Found {
    fn handle_frame(&mut self, place: &Arc<ObjectPlace>, frame: &Frame<'_>, bytes: Range<usize>) {
        match frame.kind {
            FrameKind::Data => self.handle_data(place, frame, bytes),
            FrameKind::Open => self.open = self.open.take().or_else(|| record(place, frame)),
            FrameKind::Close => self.close = self.close.take().or_else(|| record(place, frame)),
            FrameKind::Note => {
                let newer = self.note.as_ref().is_none_or(|(at, _)| *at <= place.number);
                if newer && let Some(note) = record(place, frame) {
                    self.note = Some((place.number, note));
                }
            }
            FrameKind::Cut => {
                let cut: Option<CutRecord> = record(place, frame);
                let reach = self.cut.as_ref().map_or(0, |cut| cut.offset);
                if let Some(cut) = cut.filter(|cut| cut.adds_up() && cut.offset > reach) {
                    self.cut = Some(cut);
                }
            }
            FrameKind::Opener | FrameKind::Fence | FrameKind::Event => {}
        }
    }

    fn handle_data(&mut self, place: &Arc<ObjectPlace>, frame: &Frame<'_>, bytes: Range<usize>) {
        let bytes = narrow(bytes.start)..narrow(bytes.end);
        let start = frame.offset.0;
        let end = start.saturating_add(u64::from(frame.plain_bytes()));
        if let Some(last) = self.spans.last_mut()
            && Arc::ptr_eq(&last.span.object, place)
            && last.span.bytes.end == bytes.start
            && last.plain.end == start
        {
            last.span.bytes.end = bytes.end;
            last.plain.end = end;
            return;
        }
        self.spans.push(PlacedSpan {
            plain: start..end,
            span: Span {
                object: Arc::clone(place),
                bytes,
            },
        });
    }

    /// Takes out where its bytes are, in order, without what stands twice; and what is missing of them.
    pub(super) fn plan(&mut self, lost: &[JournalNumber]) -> (Vec<Span>, Plan) {
        let mut placed = std::mem::take(&mut self.spans);
        placed.sort_by_key(|placed| (placed.plain.start, std::cmp::Reverse(placed.plain.end)));
        let mut spans = Vec::new();
        let mut gaps = Vec::new();
        // What stands before the cut is in segments, whether or not the journal still has it.
        let mut end = self.cut.as_ref().map_or(0, |cut| cut.offset);
        for PlacedSpan { plain, span } in placed {
            if plain.end <= end {
                continue;
            }
            if plain.start > end {
                gaps.push(gap(end, plain.start));
            }
            end = plain.end;
            spans.push(span);
        }
        let sent = self.close.as_ref().map(|close| close.bytes);
        match sent {
            Some(sent) if sent > end => {
                gaps.push(gap(end, sent));
                end = sent;
            }
            Some(_) => {}
            // Without its end, what a later object had of it cannot be known.
            None if lost.iter().any(|number| *number > self.newest) => gaps.push(Gap {
                offset: end,
                bytes: None,
            }),
            None => {}
        }
        (spans, Plan { gaps, length: end })
    }

    pub(super) fn take_source_node(&mut self) -> Option<SourceNode> {
        let noted = self.note.take().map(|(_, note)| note);
        noted.or_else(|| self.cut.as_ref()?.source_node.clone())
    }

    /// Its opening, from its own frame or from a cut.
    pub(super) fn opening(&self) -> Option<&OpenRecord> {
        let cut = self.cut.as_ref().map(|cut| &cut.opening);
        self.open.as_ref().or(cut)
    }
}

/// An object is 16 MiB at most, so its positions fit.
fn narrow(position: usize) -> u32 {
    u32::try_from(position).unwrap_or(u32::MAX)
}

fn gap(start: u64, end: u64) -> Gap {
    Gap {
        offset: start,
        bytes: Some(end.saturating_sub(start)),
    }
}

/// A record that is whole and yet not what it should be was written by somebody else's hand: it is left out, and said.
fn record<T: DeserializeOwned>(place: &ObjectPlace, frame: &Frame<'_>) -> Option<T> {
    let plain = frame.plain().ok()?;
    serde_json::from_slice(&plain)
        .inspect_err(|error| {
            tracing::error!(name = %place.name, recording = %frame.recording, kind = ?frame.kind, error = crate::tell::with_causes(error), "a record in the journal cannot be read");
        })
        .ok()
}

#[cfg(test)]
mod tests {
    use object_store::path::Path;

    use super::*;
    use crate::ids::{EpochId, RecorderId, StreamOffset};
    use crate::recording::journal_object::{ObjectHeader, ObjectWriter};

    const ID: RecordingId = RecordingId::from_bytes([1; 10]);

    fn take(index: &mut Index, number: u64, frames: &[(FrameKind, u64, &[u8])]) {
        let header = ObjectHeader {
            recorder: RecorderId::from_log_key(b"key"),
            epoch: EpochId::from_parts(1, [0; 16]).unwrap(),
            number: JournalNumber(number),
            previous: [0; 32],
            oldest_needed: JournalNumber(1),
        };
        let mut writer = ObjectWriter::new(&header);
        for (kind, offset, plain) in frames {
            writer
                .push(None, *kind, ID, StreamOffset(*offset), plain)
                .unwrap();
        }
        let place = Arc::new(ObjectPlace {
            name: Path::from(format!("{number}")),
            number: header.number,
            epoch_index: 0,
        });
        let (bytes, _) = writer.finish();
        let object = JournalObject::decode(&bytes).unwrap();
        index.handle_object(&place, &object, Timestamp::UNIX_EPOCH);
    }

    fn close(bytes: u64) -> Vec<u8> {
        format!(
            r#"{{"clean":true,"reason":"","ended_at":"2026-11-20T10:16:00Z","bytes":{bytes},"cast_sha256":"{}","flags":[]}}"#,
            "0".repeat(64)
        )
        .into_bytes()
    }

    type Gaps = [(u64, Option<u64>)];
    /// Data frames, the length that the end says, lost objects; then gaps and length.
    type Row<'a> = (&'a [(u64, &'a [u8])], Option<u64>, &'a [u64], &'a Gaps, u64);

    fn plan(index: &mut Index) -> (Vec<String>, Box<Gaps>, u64) {
        let lost = index.lost.clone();
        let found = index.recordings.get_mut(&ID).unwrap();
        let (spans, plan) = found.plan(&lost);
        let names = spans.iter().map(|span| span.object.name.to_string());
        let gaps = plan.gaps.iter().map(|gap| (gap.offset, gap.bytes));
        (names.collect(), gaps.collect(), plan.length)
    }

    #[test]
    fn objects_in_any_order_are_read_in_the_order_of_their_bytes() {
        let mut index = Index::default();
        take(&mut index, 3, &[(FrameKind::Data, 4, b"ef")]);
        take(&mut index, 2, &[(FrameKind::Data, 2, b"cd")]);
        take(&mut index, 1, &[(FrameKind::Data, 0, b"ab")]);
        let expected = ["1", "2", "3"].map(String::from).to_vec();
        assert_eq!(plan(&mut index), (expected, Box::from([]), 6));
    }

    #[test]
    fn frames_that_a_compaction_copied_count_once() {
        let mut index = Index::default();
        let copied: [(FrameKind, u64, &[u8]); 3] = [
            (FrameKind::Data, 0, b"ab"),
            (FrameKind::Data, 2, b"cd"),
            (FrameKind::Data, 6, b"gh"),
        ];
        take(&mut index, 9, &copied);
        take(&mut index, 3, &[(FrameKind::Data, 4, b"ef")]);
        take(&mut index, 2, &[(FrameKind::Data, 2, b"cd")]);
        let expected = ["9", "3", "9"].map(String::from).to_vec();
        assert_eq!(plan(&mut index), (expected, Box::from([]), 8));
    }

    #[test]
    fn what_is_missing_is_a_gap_wherever_it_was() {
        let rows: [Row<'_>; 6] = [
            (&[(3, b"d")], None, &[1], &[(0, Some(3))], 4),
            (&[(0, b"a"), (3, b"d")], None, &[2], &[(1, Some(2))], 4),
            (&[(0, b"a")], Some(5), &[2], &[(1, Some(4))], 5),
            (&[], Some(5), &[1], &[(0, Some(5))], 5),
            (&[(0, b"a")], None, &[99], &[(1, None)], 1),
            (&[(0, b"a")], Some(1), &[99], &[], 1),
        ];
        for (data, end, lost, gaps, length) in rows {
            let mut index = Index::default();
            for ((offset, plain), number) in data.iter().zip(1..) {
                take(&mut index, number, &[(FrameKind::Data, *offset, plain)]);
            }
            if let Some(end) = end {
                take(&mut index, 50, &[(FrameKind::Close, end, &close(end))]);
            }
            lost.iter()
                .for_each(|number| index.handle_lost(JournalNumber(*number)));
            let (_, found, found_length) = plan(&mut index);
            assert_eq!((&*found, found_length), (gaps, length));
        }
    }
}
