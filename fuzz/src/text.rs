//! Texts that stand for ids and keys: in object names, manifests, settings and on the wire.
//!
//! Seeds: one of each.

use std::fmt::Display;
use std::str::FromStr;

use netstack::key::{DiscoPublic, MachinePrivate, MachinePublic, NodePrivate, NodePublic};
use tailtape::ids::{AttemptId, EpochId, RecorderId, RecordingId, StoreId};

/// The bytes are a text.
pub fn text_forms(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    // Ids have one form.
    same::<RecordingId>(text, str::to_owned);
    same::<AttemptId>(text, str::to_owned);
    same::<StoreId>(text, str::to_owned);
    same::<RecorderId>(text, str::to_owned);
    same::<EpochId>(text, str::to_owned);
    // Keys may come in capitals, and are written without.
    same::<MachinePublic>(text, str::to_lowercase);
    same::<NodePublic>(text, str::to_lowercase);
    same::<DiscoPublic>(text, str::to_lowercase);
    // Private ones are written as they are used, some bits set (RFC 7748 §5).
    if let Ok(key) = MachinePrivate::from_text(text) {
        let again = MachinePrivate::from_text(&key.to_text()).map(|key| key.public());
        assert_eq!(again.ok(), Some(key.public()));
    }
    if let Ok(key) = NodePrivate::from_text(text) {
        let again = NodePrivate::from_text(&key.to_text()).map(|key| key.public());
        assert_eq!(again.ok(), Some(key.public()));
    }
}

fn same<T: FromStr + Display>(text: &str, canonical: fn(&str) -> String) {
    if let Ok(value) = text.parse::<T>() {
        assert_eq!(value.to_string(), canonical(text));
    }
}
