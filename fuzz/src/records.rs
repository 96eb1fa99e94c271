//! The JSON records in journal frames: what a recorder that died has left, read by whoever recovers it.
//!
//! Seeds: one record of each kind, and a cut whose parts contradict one another.

use serde::Serialize;
use serde::de::DeserializeOwned;
use tailtape::asciicast::parser::Parser;
use tailtape::recording::hash::ResumableSha256;
use tailtape::recording::manifest::SourceNode;
use tailtape::recording::records::{CloseRecord, CutRecord, FenceRecord, OpenRecord};

/// The bytes are a record of any kind.
pub fn records_json(data: &[u8]) {
    read_back::<OpenRecord>(data);
    read_back::<CloseRecord>(data);
    read_back::<FenceRecord>(data);
    read_back::<SourceNode>(data);
    if let Some(cut) = read_back::<CutRecord>(data) {
        go_on_from(&cut);
    }
}

fn read_back<T: Serialize + DeserializeOwned + PartialEq>(data: &[u8]) -> Option<T> {
    let record: T = serde_json::from_slice(data).ok()?;
    let written = serde_json::to_vec(&record).expect("what was JSON has a JSON form");
    let again: T = serde_json::from_slice(&written).expect("we read what we write");
    assert!(again == record);
    Some(record)
}

fn go_on_from(cut: &CutRecord) {
    let _either = cut.adds_up();
    if let Some(mut hash) = ResumableSha256::resume(&cut.cast) {
        assert!(hash.save() == cut.cast);
        hash.update(b"and on");
        let _digest = hash.finalize();
    }
    if let Some(mut parser) = Parser::resume(&cut.parser) {
        assert!(parser.save().as_ref() == Some(&cut.parser));
        parser.handle_bytes(b"[1,\"o\",\"x\"]\n");
        let _facts = parser.facts();
    }
}
