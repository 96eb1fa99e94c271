//! Facts from whole, cut, overlong and foreign streams.

use proptest::prelude::*;
use sha2::{Digest, Sha256};

use super::*;

const HEADER: &[u8] = b"{\"version\":2,\"width\":80,\"height\":24,\"sshUser\":\"root\"}\n";

#[test]
fn a_clean_recording_has_its_header_its_count_and_no_flag() {
    let facts = facts_of(&[HEADER, b"[0.5,\"o\",\"a\\r\\n\"]\n[1.25,\"r\",\"80x24\"]\n"]);
    assert_eq!(facts.event_count, 2);
    assert_eq!(facts.last_event_seconds, Some(1.25));
    assert_eq!(facts.header.unwrap()["sshUser"], "root");
    assert_eq!(facts.flags, []);
}

#[test]
fn the_transcript_is_the_text_of_all_output_and_of_nothing_else() {
    let facts = facts_of(&[
        HEADER,
        b"[0.5,\"o\",\"h\xc3\xa9llo\\r\\n\"]\n[1,\"i\",\"typed\"]\n[1.25,\"r\",\"80x24\"]\n[2,\"o\",\"\\u001b[0m$ \"]\n",
    ]);
    let expected: [u8; 32] = Sha256::digest("h\u{e9}llo\r\n\u{1b}[0m$ ").into();
    assert_eq!(facts.transcript_sha256, Some(expected));
    assert_eq!(facts_of(&[b"no header\n"]).transcript_sha256, None);
    let long = [
        b"[3,\"o\",\"".as_slice(),
        &vec![b'x'; LINE_BYTES_MAX],
        b"\"]\n",
    ]
    .concat();
    assert_eq!(facts_of(&[HEADER, &long]).transcript_sha256, None);
}

#[test]
fn zero_bytes_are_legal() {
    assert_eq!(facts_of(&[]), Facts::default());
    assert_eq!(facts_of(&[b""]), Facts::default());
}

#[test]
fn a_missing_last_newline_is_flagged_and_the_line_counts_if_it_is_whole() {
    let whole = facts_of(&[HEADER, b"[1,\"o\",\"x\"]"]);
    assert_eq!(
        (whole.event_count, whole.flags),
        (1, vec![Flag::TruncatedLine])
    );
    let half = facts_of(&[HEADER, b"[1,\"o\",\"x"]);
    assert_eq!(
        (half.event_count, half.flags),
        (0, vec![Flag::TruncatedLine])
    );
}

#[test]
fn noise_is_flagged() {
    let table: [&[&[u8]]; 8] = [
        &[b"\xff\xfe\x00 noise\n"],
        &[b"GET / HTTP/1.1\r\n\r\n"],
        &[b"[2]\n"],
        &[b"{\"version\":3}\n"],
        &[b"{\"version\":2,\"x\":\"\xff\"}\n"],
        &[HEADER, b"\n"],
        &[HEADER, b"[1,\"o\",\"\xff\"]\n"],
        &[HEADER, b"[1,\"o\",5]\n[1,\"o\",\"x\"]\n"],
    ];
    for stream in table {
        assert_eq!(facts_of(stream).flags, [Flag::NotAsciicast], "{stream:?}");
    }
    let unfinished = facts_of(&[b"no header and no newline"]);
    assert_eq!(unfinished.flags, [Flag::NotAsciicast, Flag::TruncatedLine]);
}

#[test]
fn a_line_is_parsed_up_to_its_limit_and_flagged_beyond() {
    let frame = b"[1,\"o\",\"\"]".len();
    for (length, count, flags) in [
        (LINE_BYTES_MAX, 1, vec![]),
        (LINE_BYTES_MAX + 1, 0, vec![Flag::LineTooLong]),
    ] {
        let long = format!("[1,\"o\",\"{}\"]\n", "x".repeat(length - frame));
        for piece_bytes in [1 << 12, 1 << 22] {
            let mut parser = Parser::new();
            parser.handle_bytes(HEADER);
            for piece in long.as_bytes().chunks(piece_bytes) {
                parser.handle_bytes(piece);
                assert!(parser.held_bytes() <= 2 * LINE_BYTES_MAX + HEADER_BYTES_MAX);
            }
            assert!(parser.held_bytes() <= LINE_BYTES_IDLE + HEADER.len());
            parser.handle_bytes(b"[2,\"o\",\"after\"]\n");
            let facts = parser.facts();
            assert_eq!(facts.event_count, count + 1);
            assert_eq!(facts.flags, flags);
            assert!(facts.header.is_some());
        }
    }
}

#[test]
fn an_endless_line_holds_no_memory() {
    let mut parser = Parser::new();
    let piece = [b'['; 64 * 1024];
    for _ in 0..160 {
        parser.handle_bytes(&piece);
        assert!(parser.held_bytes() <= 2 * LINE_BYTES_MAX);
    }
    assert_eq!(parser.held_bytes(), 0);
    let flags = parser.facts().flags;
    assert_eq!(flags, [Flag::LineTooLong, Flag::TruncatedLine]);
}

#[test]
fn a_header_too_long_to_keep_is_flagged_and_events_still_count() {
    let header = format!(
        "{{\"version\":2,\"command\":\"{}\"}}\n",
        "x".repeat(HEADER_BYTES_MAX)
    );
    let facts = facts_of(&[header.as_bytes(), b"[1,\"o\",\"\"]\n"]);
    assert_eq!((facts.header, facts.event_count), (None, 1));
    assert_eq!(facts.flags, [Flag::LineTooLong]);
}

proptest! {
    #[test]
    fn the_facts_are_the_same_for_any_cut(
        lines in prop::collection::vec(prop_oneof![
            Just(HEADER.to_vec()),
            any::<Vec<u8>>(),
            (0.0..1e6, any::<Vec<u8>>()).prop_map(|(time, data)| crate::asciicast::encode_event(time, "o", &data)),
            Just(b"\n".to_vec()),
        ], 0..12),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let stream = lines.concat();
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        at.extend([0, stream.len()]);
        at.sort_unstable();
        let pieces: Vec<&[u8]> = at.windows(2).map(|ends| &stream[ends[0]..ends[1]]).collect();
        prop_assert_eq!(facts_of(&pieces), facts_of(&[&stream]));
    }
}

#[test]
fn what_follows_a_gap_is_read_from_the_next_line_on() {
    let mut parser = Parser::new();
    parser.handle_bytes(HEADER);
    parser.handle_bytes(b"[0.5,\"o\",\"a\"]\n[0.6,\"o\",\"los");
    parser.handle_gap();
    parser.handle_bytes(b"und\"]\n[0.7,\"o\",\"b\"]\n");
    let facts = parser.facts();
    assert_eq!((facts.event_count, facts.transcript_sha256), (2, None));
    assert!(facts.header.is_some());
    assert_eq!(facts.flags, []);

    let mut headless = Parser::new();
    headless.handle_gap();
    headless.handle_bytes(b"er\":24}\n[0.7,\"o\",\"b\"]\n");
    let facts = headless.facts();
    assert_eq!(
        (facts.event_count, facts.header, facts.flags),
        (1, None, vec![])
    );
}

proptest! {
    #[test]
    fn a_parser_put_down_between_lines_goes_on_as_if_it_had_not_been(
        lines in prop::collection::vec(prop_oneof![
            Just(HEADER.to_vec()),
            prop::collection::vec(any::<u8>(), 0..40).prop_map(|mut line| { line.push(b'\n'); line }),
            (0.0..1e6, any::<Vec<u8>>()).prop_map(|(time, data)| crate::asciicast::encode_event(time, "o", &data)),
        ], 0..12),
    ) {
        let mut parser = Parser::new();
        for line in &lines {
            parser.handle_bytes(line);
            let saved = serde_json::to_vec(&parser.save().unwrap()).unwrap();
            parser = Parser::resume(&serde_json::from_slice(&saved).unwrap()).unwrap();
        }
        prop_assert_eq!(parser.facts(), facts_of(&[&lines.concat()]));
    }
}

#[test]
fn a_parser_is_put_down_within_a_line_only_while_it_skips_it() {
    let mut parser = Parser::new();
    parser.handle_bytes(HEADER);
    parser.handle_bytes(b"[1,\"o\",\"");
    assert_eq!(parser.save(), None);
    parser.handle_bytes(&vec![b'x'; LINE_BYTES_MAX]);
    let mut resumed = Parser::resume(&parser.save().unwrap()).unwrap();
    resumed.handle_bytes(b"\"]\n[2,\"o\",\"after\"]\n");
    let facts = resumed.facts();
    assert_eq!(
        (facts.event_count, facts.flags),
        (1, vec![Flag::LineTooLong])
    );
}

fn facts_of(pieces: &[&[u8]]) -> Facts {
    let mut parser = Parser::new();
    for piece in pieces {
        parser.handle_bytes(piece);
    }
    parser.facts()
}
