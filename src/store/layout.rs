//! Object names; no other file spells one.
//!
//! ```text
//! store/id                                                       made once
//! store/probe-<16 base32>                                        for the time of a probe
//! journal/<recorder>/<epoch>/<10 digits>                         group commits
//! recordings/<uploader>/<yyyy-mm-dd>/<hhmmss.mmmZ>-<id>.json     the manifest
//! recordings/…/<hhmmss.mmmZ>-<id>.<attempt>.<n>.cast             segment n of one seal attempt
//! events/<uploader>/<yyyy-mm-dd>/<hhmm>-<id>.ndjson              events, named by the first of them
//! ```
//!
//! Invariant: nothing that an uploader claims enters a name; its StableID, which control gives, does so escaped;
//! no name has a `:`. Pure. Called by the rest of the store.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use object_store::path::Path;
use sha2::{Digest, Sha256};

use crate::ids::{AttemptId, EpochId, EventId, JournalNumber, RecorderId, RecordingId};

/// An escaped StableID longer than this is cut and gets a digest: file systems take names of 255 bytes.
const UPLOADER_CHARS_MAX: usize = 120;
const UPLOADER_CHARS_KEPT: usize = 80;
/// The digits of a journal number: 10^10 commits at one a millisecond are four months of an epoch, and one a second 300 years.
const NUMBER_DIGITS: usize = 10;

pub(super) fn store() -> Path {
    Path::from("store")
}

pub(super) fn store_id() -> Path {
    Path::from("store/id")
}

pub(super) fn probe(random: &RecordingId) -> Path {
    Path::from(format!("store/probe-{random}"))
}

/// Whether `name` is a probe.
pub(super) fn is_probe(name: &Path) -> bool {
    let random = name.as_ref().strip_prefix("store/probe-");
    random.is_some_and(|random| random.parse::<RecordingId>().is_ok())
}

pub(super) fn journal() -> Path {
    Path::from("journal")
}

pub(super) fn epoch(recorder: &RecorderId, epoch: &EpochId) -> Path {
    Path::from(format!("journal/{recorder}/{epoch}"))
}

/// Whose journal object `name` is, in which epoch, with which number; `None` when it is none.
pub(super) fn journal_place_of(name: &Path) -> Option<(RecorderId, EpochId, JournalNumber)> {
    let mut parts = name.as_ref().strip_prefix("journal/")?.split('/');
    let (recorder, epoch, number) = (parts.next()?, parts.next()?, parts.next()?);
    let well_formed = number.len() == NUMBER_DIGITS
        && number.bytes().all(|byte| byte.is_ascii_digit())
        && parts.next().is_none();
    if !well_formed {
        return None;
    }
    Some((
        recorder.parse().ok()?,
        epoch.parse().ok()?,
        JournalNumber(number.parse().ok()?),
    ))
}

pub(super) fn journal_of(recorder: &RecorderId) -> Path {
    Path::from(format!("journal/{recorder}"))
}

pub(super) fn journal_object(
    recorder: &RecorderId,
    epoch: &EpochId,
    number: JournalNumber,
) -> Path {
    Path::from(format!("journal/{recorder}/{epoch}/{:010}", number.0))
}

pub(super) fn recordings() -> Path {
    Path::from("recordings")
}

/// What a recorder writes to besides the store's own directory.
pub(super) fn written_to() -> Vec<Path> {
    vec![journal(), recordings(), Path::from("events")]
}

pub(super) fn manifest(uploader: &str, received_at: Timestamp, id: &RecordingId) -> Path {
    Path::from(format!("{}.json", recording(uploader, received_at, id)))
}

pub(super) fn segment(
    uploader: &str,
    received_at: Timestamp,
    id: &RecordingId,
    attempt: &AttemptId,
    index: u32,
) -> Path {
    Path::from(format!(
        "{}.{attempt}.{index}.cast",
        recording(uploader, received_at, id)
    ))
}

/// Events of one uploader, the first of which is `first`.
pub(super) fn events(uploader: &str, received_at: Timestamp, first: &EventId) -> Path {
    let time = received_at.to_zoned(TimeZone::UTC);
    let day = time.strftime("%Y-%m-%d");
    let clock = time.strftime("%H%M");
    let uploader = escape(uploader);
    Path::from(format!("events/{uploader}/{day}/{clock}-{first}.ndjson"))
}

pub(super) fn all_events() -> Path {
    Path::from("events")
}

/// Whether `name` is an object of events.
pub(super) fn is_events(name: &Path) -> bool {
    let first = || {
        let name = name.filename()?.strip_suffix(".ndjson")?;
        name.rsplit_once('-')?.1.parse::<EventId>().ok()
    };
    name.prefix_matches(&all_events()) && first().is_some()
}

/// Whether `name` is the manifest of a recording, and of which.
pub(super) fn manifest_of(name: &Path) -> Option<RecordingId> {
    let (_, id) = name.filename()?.strip_suffix(".json")?.rsplit_once('-')?;
    id.parse().ok()
}

/// The part of a name that a recording's manifest and segments share, and the attempt if it is a segment; `None` when it is
/// neither.
pub(super) fn parts_of(name: &Path) -> Option<(String, Option<AttemptId>)> {
    if manifest_of(name).is_some() {
        let base = name.as_ref().strip_suffix(".json")?;
        return Some((base.into(), None));
    }
    let rest = name.as_ref().strip_suffix(".cast")?;
    let (rest, index) = rest.rsplit_once('.')?;
    let (base, attempt) = rest.rsplit_once('.')?;
    let _index: u32 = index.parse().ok()?;
    Some((base.into(), Some(attempt.parse().ok()?)))
}

fn recording(uploader: &str, received_at: Timestamp, id: &RecordingId) -> String {
    let time = received_at.to_zoned(TimeZone::UTC);
    let day = time.strftime("%Y-%m-%d");
    let clock = time.strftime("%H%M%S%.3f");
    format!("recordings/{}/{day}/{clock}Z-{id}", escape(uploader))
}

/// Keeps letters, digits, `.` and `-`; every other byte, and a leading `.`, becomes `_` and two hexadecimal digits.
fn escape(stable_id: &str) -> String {
    let mut escaped = String::new();
    for (place, byte) in stable_id.bytes().enumerate() {
        match byte {
            b'.' if place == 0 => escaped.push_str("_2e"),
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' => escaped.push(char::from(byte)),
            other => escaped.push_str(&format!("_{other:02x}")),
        }
    }
    if escaped.is_empty() {
        // No escape ends in a bare `_`, so this stands for the empty id alone.
        escaped.push('_');
    }
    if escaped.len() > UPLOADER_CHARS_MAX {
        let digest = RecorderId::from_log_key(&Sha256::digest(stable_id));
        escaped.truncate(UPLOADER_CHARS_KEPT);
        // `_-` is no escape, so a cut name never equals an escaped one.
        escaped.push_str(&format!("_-{digest}"));
    }
    escaped
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at() -> Timestamp {
        "2026-11-20T10:15:00.123456789Z".parse().unwrap()
    }

    #[test]
    fn names_are_those_of_the_format_document() {
        let id = RecordingId::from_bytes([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        let attempt = "mzxw6ytb".parse().unwrap();
        let recorder = RecorderId::from_log_key(b"key");
        let epoch = "1764000000123-caireeyuculbogazdinryhi6d4".parse().unwrap();
        assert_eq!(
            manifest("nAbCdEfCNTRL", at(), &id).as_ref(),
            "recordings/nAbCdEfCNTRL/2026-11-20/101500.123Z-aaaqeayeaudaocaj.json"
        );
        assert_eq!(
            segment("nAbCdEfCNTRL", at(), &id, &attempt, 0).as_ref(),
            "recordings/nAbCdEfCNTRL/2026-11-20/101500.123Z-aaaqeayeaudaocaj.mzxw6ytb.0.cast"
        );
        assert_eq!(
            journal_object(&recorder, &epoch, JournalNumber(12)).as_ref(),
            "journal/fryock32azdpsitz6qt4pm4oom/1764000000123-caireeyuculbogazdinryhi6d4/0000000012"
        );
        let place = (recorder, epoch, JournalNumber(12));
        assert_eq!(
            journal_place_of(&journal_object(&place.0, &place.1, place.2)),
            Some(place)
        );
        assert_eq!(journal_place_of(&journal_of(&recorder)), None);
        let named = manifest("x", at(), &id);
        let base = named.as_ref().strip_suffix(".json").unwrap();
        assert_eq!(parts_of(&named), Some((base.into(), None)));
        let named = segment("x", at(), &id, &attempt, 7);
        assert_eq!(parts_of(&named), Some((base.into(), Some(attempt))));
        assert_eq!(manifest_of(&manifest("x", at(), &id)), Some(id));
        let first = "01JD3WXYZ00000000000000000".parse().unwrap();
        assert!(is_events(&events("x", at(), &first)));
        assert!(!is_events(&Path::from("events/x/2026-11-20/1015-x.ndjson")));
        assert_eq!(manifest_of(&segment("x", at(), &id, &attempt, 0)), None);
    }

    #[test]
    fn a_stable_id_cannot_leave_its_place() {
        assert_eq!(escape("../../etc"), "_2e._2f.._2fetc");
        assert_eq!(escape(".."), "_2e.");
        assert_eq!(escape("a:b#1"), "a_3ab_231");
        assert_eq!(escape(""), "_");
        assert_eq!(
            escape(&"n".repeat(1000)).len(),
            UPLOADER_CHARS_KEPT + 2 + RecorderId::CHARS
        );
    }

    proptest! {
        #[test]
        fn any_stable_id_makes_one_safe_segment_of_a_name(one in ".{0,100}", other in ".{0,100}") {
            let id = RecordingId::from_bytes([0; 10]);
            let name = manifest(&one, at(), &id);
            prop_assert_eq!(name.parts().count(), 4);
            // Nothing was left for the backend to escape in its own way.
            prop_assert!(!name.as_ref().contains([':', '%', '#']));
            prop_assert_eq!(one == other, escape(&one) == escape(&other));
        }
    }
}
