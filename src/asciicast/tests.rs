//! The codec against lines that Go 1.26 made, and against itself.

use proptest::prelude::*;

use super::*;

/// Header lines as the client's own structs marshal them.
const HEADERS: [&str; 3] = [
    r#"{"version":2,"width":120,"height":40,"timestamp":1770000000,"srcNode":"laptop.tail-scale.ts.net","srcNodeID":"nAbCdEfCNTRL","srcNodeUserID":30585448562688899,"srcNodeUser":"alice@example.com","env":{"TERM":"xterm-256color"},"sshUser":"root","localUser":"root","connectionID":"ssh-conn-20260201T101500-0123456789"}"#,
    r#"{"version":2,"width":0,"height":0,"timestamp":1770000000,"command":"echo a \u0026\u0026 b","srcNode":"ci.tail-scale.ts.net","srcNodeID":"nXyZCNTRL","srcNodeTags":["tag:ci"],"env":{"TERM":"xterm-256color"},"sshUser":"root","localUser":"root","connectionID":"ssh-conn-20260201T101500-0123456789"}"#,
    r#"{"version":2,"width":120,"height":40,"timestamp":1770000000,"command":"sh","srcNode":"laptop.tail-scale.ts.net","srcNodeID":"nAbCdEfCNTRL","srcNodeUserID":7,"srcNodeUser":"alice@example.com","env":null,"sshUser":"","localUser":"","connectionID":"","kubernetes":{"PodName":"web-0","Namespace":"default","Container":"app","SessionType":"exec"}}"#,
];

#[test]
fn an_event_is_written_as_go_writes_it() {
    let table: [(f64, &[u8], &str); 21] = [
        (821844694380087.3, b"x", r#"[821844694380087.2,"o","x"]"#),
        (-9007199254740992.0, b"x", r#"[-9007199254740992,"o","x"]"#),
        (1.0, b"bad:\xff\xfe ok", r#"[1,"o","bad:\ufffd\ufffd ok"]"#),
        (1.0, b"\xe2\x82", r#"[1,"o","\ufffd\ufffd"]"#),
        (1.0, b"\xac", r#"[1,"o","\ufffd"]"#),
        (
            1.0,
            br#"a<b>&"c""#,
            r#"[1,"o","a\u003cb\u003e\u0026\"c\""]"#,
        ),
        (
            0.0,
            "\0\u{1}\u{8}\u{c}\t\n\r\u{1b}[0m\u{7f}\u{80}\u{2028}\u{2029}\u{feff}\u{fffd}/\\"
                .as_bytes(),
            "[0,\"o\",\"\\u0000\\u0001\\b\\f\\t\\n\\r\\u001b[0m\u{7f}\u{80}\\u2028\\u2029\u{feff}\u{fffd}/\\\\\"]",
        ),
        (3600.0, b"", r#"[3600,"o",""]"#),
        (0.456997416, b"x", r#"[0.456997416,"o","x"]"#),
        (1.6682777500000001, b"x", r#"[1.6682777500000001,"o","x"]"#),
        (9.99e-7, b"x", r#"[9.99e-7,"o","x"]"#),
        (1e-6, b"x", r#"[0.000001,"o","x"]"#),
        (1e21, b"x", r#"[1e+21,"o","x"]"#),
        (1e20, b"x", r#"[100000000000000000000,"o","x"]"#),
        (123456789.12345679, b"x", r#"[123456789.12345679,"o","x"]"#),
        (2.5e-10, b"x", r#"[2.5e-10,"o","x"]"#),
        (-0.0, b"x", r#"[-0,"o","x"]"#),
        (f64::MAX, b"x", r#"[1.7976931348623157e+308,"o","x"]"#),
        (5e-324, b"x", r#"[5e-324,"o","x"]"#),
        (
            1.0,
            b"\xed\xa0\x80\xf4\x90\x80\x80\xc0\x80\xf0\x9f\x98A",
            r#"[1,"o","\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd\ufffdA"]"#,
        ),
        (1.0, "日本 😀".as_bytes(), r#"[1,"o","日本 😀"]"#),
    ];
    for (time, data, line) in table {
        let written = encode_event(time, CODE_OUTPUT, data);
        assert_eq!(String::from_utf8(written).unwrap(), format!("{line}\n"));
    }
}

#[test]
fn a_stock_header_is_read_and_written_back_byte_for_byte() {
    for line in HEADERS {
        let header = Header::parse(line.as_bytes()).unwrap();
        assert!(header.extra.is_empty());
        let written = encode_header(&header).unwrap();
        assert_eq!(String::from_utf8(written).unwrap(), format!("{line}\n"));
    }
}

#[test]
fn an_old_or_a_newer_header_is_read_and_unknown_keys_are_kept() {
    let line = br#"{"version":2,"width":80,"height":24,"timestamp":1,"srcNodeTags":null,"srcNode":"a","idle":{"x":"<"}}"#;
    let header = Header::parse(line).unwrap();
    assert_eq!(header.src_node, "a");
    assert!(header.src_node_tags.is_empty());
    let written = String::from_utf8(encode_header(&header).unwrap()).unwrap();
    assert!(
        written.ends_with(",\"idle\":{\"x\":\"\\u003c\"}}\n"),
        "{written}"
    );
}

#[test]
fn lines_of_another_shape_are_errors() {
    for line in [
        "",
        "[]",
        "{}",
        "[1,\"o\"]",
        "[\"1\",\"o\",\"\"]",
        "[1,2,\"\"]",
    ] {
        assert!(Event::parse(line.as_bytes()).is_err(), "{line}");
    }
    assert!(matches!(
        Event::parse(b"[1e999,\"o\",\"\"]"),
        Err(Error::ReadTime)
    ));
    assert!(Header::parse(b"[2]").is_err());
    assert!(Header::parse(b"{\"version\":\"2\"}").is_err());
}

proptest! {
    #[test]
    fn a_written_event_reads_back_with_the_same_time_and_text(
        time in proptest::num::f64::NORMAL | proptest::num::f64::ZERO | proptest::num::f64::SUBNORMAL,
        code in "[a-z]{1,3}",
        text in any::<String>(),
    ) {
        let line = encode_event(time, &code, text.as_bytes());
        prop_assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        let event = Event::parse(&line).unwrap();
        prop_assert_eq!(event, Event { time_seconds: time, code, data: text });
    }

    #[test]
    fn any_bytes_make_one_line_of_valid_json(data in any::<Vec<u8>>()) {
        let line = encode_event(1.0, CODE_OUTPUT, &data);
        prop_assert!(line.len() <= data.len() * 6 + 12);
        prop_assert!(Event::parse(&line).is_ok());
    }

    #[test]
    fn bent_lines_never_panic(
        line in prop::sample::select(HEADERS.to_vec()),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bent = line.as_bytes().to_vec();
        let at = at.index(bent.len());
        bent[at] = byte;
        bent.truncate(cut.index(bent.len() + 1));
        if let Ok(header) = Header::parse(&bent) {
            prop_assert!(encode_header(&header).is_ok());
        }
        prop_assert!(Event::parse(&bent).is_err());
    }
}
