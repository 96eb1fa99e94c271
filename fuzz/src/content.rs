//! The recording language: the parser that ingest feeds, and the lines that capture writes.
//!
//! Seeds: a real session, odd lines, and headers with fields that we do not know.

use tailtape::asciicast::parser::{Facts, Flag, HEADER_BYTES_MAX, LINE_BYTES_MAX, Parser};
use tailtape::asciicast::{Event, Header, encode_event, encode_header};

use super::script::pieces;

/// The bytes are a recording.
pub fn asciicast(data: &[u8]) {
    let whole = facts([data]);
    let seed = data.len().to_le_bytes()[0];
    assert_eq!(facts(pieces(data, seed)), whole);
    assert_eq!(facts(pieces(data, 0)), whole);

    assert_eq!(facts_put_down(pieces(data, seed)), whole);

    let mut lines = data.split(|byte| *byte == b'\n');
    let first = lines.next().unwrap_or_default();
    // What follows the last newline is a line only if there is something.
    let events = lines.filter_map(|line| Event::parse(line).ok());
    let events: Vec<Event> = events.collect();
    assert_eq!(u64::try_from(events.len()), Ok(whole.event_count));
    let last = events.last().map(|event| event.time_seconds);
    assert_eq!(last, whole.last_event_seconds);
    for event in &events {
        let line = encode_event(event.time_seconds, &event.code, event.data.as_bytes());
        let again = Event::parse(&line).expect("we read what we write");
        assert_eq!(again, *event);
    }

    if whole.header.is_some() {
        assert!(!whole.flags.contains(&Flag::LineTooLong) || data.len() > LINE_BYTES_MAX);
    }
    if let Ok(header) = Header::parse(first) {
        let line = encode_header(&header).expect("what was JSON has a JSON form");
        let again = Header::parse(&line).expect("we read what we write");
        assert_eq!(again, header);
        assert_eq!(encode_header(&again).ok(), Some(line));
    }
}

/// Puts the parser down and takes it up wherever that can be done.
fn facts_put_down<'a>(stream: impl IntoIterator<Item = &'a [u8]>) -> Facts {
    let mut parser = Parser::new();
    for piece in stream {
        parser.handle_bytes(piece);
        if let Some(saved) = parser.save() {
            let text = serde_json::to_vec(&saved).expect("what was learned has a JSON form");
            let saved = serde_json::from_slice(&text).expect("we read what we write");
            parser = Parser::resume(&saved).expect("it was put down whole");
        }
    }
    parser.facts()
}

fn facts<'a>(stream: impl IntoIterator<Item = &'a [u8]>) -> Facts {
    let mut parser = Parser::new();
    for piece in stream {
        parser.handle_bytes(piece);
        assert!(parser.held_bytes() <= 2 * LINE_BYTES_MAX + HEADER_BYTES_MAX);
    }
    parser.facts()
}
