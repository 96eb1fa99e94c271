//! Frames as they may arrive: whole, in pieces, too many, and never ending.

use super::*;

const SETTINGS: u8 = 4;
const PING: u8 = 6;
const HEAD_LIMIT: Duration = Duration::from_secs(10);

fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags, 0, 0, 0, 1]);
    frame.extend(payload);
    frame
}

fn begin() -> (Instant, FrameWatch) {
    #[expect(
        clippy::disallowed_methods,
        reason = "an origin for virtual time comes from no other place"
    )]
    let start = Instant::now();
    let mut watch = FrameWatch::new(start, HEAD_LIMIT);
    watch.handle_bytes(start, PREFACE).unwrap();
    (start, watch)
}

#[test]
fn frames_without_content_are_allowed_in_a_burst_and_then_at_a_rate() {
    for bare in [
        frame(SETTINGS, 0, b""),
        frame(PING, 0, b"12345678"),
        frame(DATA, 0, b""),
        frame(HEADERS, END_HEADERS, b"abc"),
        frame(200, 0, b"unknown"),
    ] {
        let (start, mut watch) = begin();
        for _ in 0..BURST_FRAMES {
            watch.handle_bytes(start, &bare).unwrap();
        }
        let flood = watch.handle_bytes(start, &bare);
        assert_eq!(flood, Err(Misbehaviour::Flood));

        let (start, mut watch) = begin();
        for second in 0..3600 {
            let now = start + Duration::from_secs(second);
            for _ in 0..FRAMES_PER_SECOND {
                watch.handle_bytes(now, &bare).unwrap();
            }
        }
    }
}

#[test]
fn content_is_never_a_flood() {
    let (start, mut watch) = begin();
    let keystroke = frame(DATA, 0, b"x");
    for _ in 0..100_000 {
        watch.handle_bytes(start, &keystroke).unwrap();
    }
    assert_eq!(watch.allowance, BURST_FRAMES);
}

#[test]
fn a_request_head_must_end_in_time_however_it_is_cut() {
    let (start, mut watch) = begin();
    let at = |seconds| start + Duration::from_secs(seconds);
    assert_eq!(watch.poll_timeout(), None);
    let head = frame(HEADERS, 0, b"abc");
    for (byte, second) in head.iter().zip(0..) {
        watch.handle_bytes(at(second / 4), &[*byte]).unwrap();
    }
    let begun = at(8 / 4);
    assert_eq!(watch.poll_timeout(), Some(begun + HEAD_LIMIT));
    watch
        .handle_bytes(at(9), &frame(CONTINUATION, 0, b"d"))
        .unwrap();
    assert_eq!(watch.poll_timeout(), Some(begun + HEAD_LIMIT));
    let before = begun + HEAD_LIMIT - Duration::from_nanos(1);
    assert_eq!(watch.handle_timeout(before), Ok(()));
    let late = watch.handle_timeout(begun + HEAD_LIMIT);
    assert_eq!(late, Err(Misbehaviour::SlowHead));

    watch
        .handle_bytes(at(11), &frame(CONTINUATION, END_HEADERS, b"e"))
        .unwrap();
    assert_eq!(watch.poll_timeout(), None);
    assert_eq!(watch.handle_timeout(at(3600)), Ok(()));
}

#[test]
fn what_is_not_http_2_is_not_looked_at() {
    let (start, _) = begin();
    let mut watch = FrameWatch::new(start, HEAD_LIMIT);
    watch
        .handle_bytes(start, b"PRINT / HTTP/1.1\r\n\r\n")
        .unwrap();
    for _ in 0..5000 {
        watch.handle_bytes(start, &[0; 9]).unwrap();
    }
    assert_eq!(watch.poll_timeout(), None);
}

#[test]
fn any_cut_of_the_same_bytes_is_read_the_same() {
    let stream = [
        frame(SETTINGS, 0, b"123456"),
        frame(HEADERS, 0, b"abc"),
        frame(CONTINUATION, END_HEADERS, b""),
        frame(DATA, 0, &[7; 300]),
        frame(DATA, 0, b""),
        frame(HEADERS, 0, b"open"),
    ]
    .concat();
    for size in 1..stream.len() {
        let (start, mut watch) = begin();
        for piece in stream.chunks(size) {
            watch.handle_bytes(start, piece).unwrap();
        }
        assert_eq!(watch.allowance, BURST_FRAMES - 5);
        assert_eq!(watch.poll_timeout(), Some(start + HEAD_LIMIT));
    }
}
