//! What is written, byte for byte.

use super::*;

const TERMINAL: ScreenStyle = ScreenStyle {
    terminal_columns: Some(80),
    color: true,
};
const LOG_FILE: ScreenStyle = ScreenStyle {
    terminal_columns: None,
    color: true,
};

#[expect(
    clippy::disallowed_methods,
    reason = "any instant serves as the origin of a table"
)]
fn origin() -> Instant {
    Instant::now()
}

fn written(style: ScreenStyle, draw: impl FnOnce(&mut Screen<&mut Vec<u8>>)) -> String {
    let mut out = Vec::new();
    draw(&mut Screen::new(&mut out, style));
    String::from_utf8(out).unwrap()
}

fn sent(sent_bytes: u64) -> Progress {
    Progress {
        sent_bytes,
        acked_bytes: sent_bytes / 2,
        last_ack: Some(Duration::from_micros(12_340)),
    }
}

#[test]
fn a_step_is_one_line_and_coloured_only_on_a_terminal_that_may() {
    let step = |style| written(style, |screen| screen.step("joined in 212 ms").unwrap());
    assert_eq!(step(TERMINAL), "\x1b[32m✓\x1b[0m joined in 212 ms\n");
    assert_eq!(step(LOG_FILE), "✓ joined in 212 ms\n");
    let plain = ScreenStyle {
        color: false,
        ..TERMINAL
    };
    assert_eq!(step(plain), "✓ joined in 212 ms\n");
}

#[test]
fn the_live_line_is_redrawn_in_place_and_gone_before_the_next_step() {
    let t0 = origin();
    let text = written(TERMINAL, |screen| {
        screen.live(t0, sent(0), 0).unwrap();
        screen
            .live(t0 + Duration::from_secs(1), sent(2048), 7)
            .unwrap();
        screen.step("done").unwrap();
        screen.end_live().unwrap();
    });
    assert_eq!(
        text,
        "\r\x1b[2K● 2.0 KiB sent, 1.0 KiB durable, 7 events, 2.0 KiB/s, last ack 12.3 ms\r\x1b[2K\x1b[32m✓\x1b[0m done\n"
    );
}

#[test]
fn the_live_line_is_drawn_at_most_ten_times_a_second() {
    let t0 = origin();
    let text = written(TERMINAL, |screen| {
        for ms in 0..=1000 {
            screen
                .live(t0 + Duration::from_millis(ms), sent(ms), ms)
                .unwrap();
        }
    });
    assert_eq!(text.matches('\r').count(), 10);
}

#[test]
fn the_live_line_never_reaches_the_last_column() {
    for columns in [0, 1, 2, 20, 40] {
        let style = ScreenStyle {
            terminal_columns: Some(columns),
            color: true,
        };
        let text = written(style, |screen| {
            let t0 = origin();
            screen.live(t0, sent(0), 0).unwrap();
            screen
                .live(t0 + Duration::from_secs(1), sent(u64::MAX), u64::MAX)
                .unwrap();
        });
        let line = text.strip_prefix("\r\x1b[2K").unwrap();
        assert_eq!(line.chars().count(), usize::from(columns.saturating_sub(1)));
    }
}

#[test]
fn a_log_file_gets_no_control_byte_and_a_plain_line_every_five_seconds() {
    let t0 = origin();
    let text = written(LOG_FILE, |screen| {
        for second in 0..=11 {
            screen
                .live(
                    t0 + Duration::from_secs(second),
                    sent(second * 1024),
                    second,
                )
                .unwrap();
        }
        screen.step("done").unwrap();
    });
    assert_eq!(text.lines().count(), 3);
    assert!(
        text.starts_with("  5.0 KiB sent, 2.5 KiB durable, 5 events, 1.0 KiB/s"),
        "{text}"
    );
    assert!(
        text.chars()
            .all(|character| character == '\n' || !character.is_control())
    );
}

#[test]
fn control_characters_of_a_command_are_shown_and_not_sent() {
    let text = written(LOG_FILE, |screen| {
        screen.step("ran \x1b]0;evil\x07 ls\n").unwrap()
    });
    assert_eq!(text, "✓ ran \u{FFFD}]0;evil\u{FFFD} ls\u{FFFD}\n");
}

#[test]
fn sizes_keep_one_decimal_up_to_the_largest() {
    for (bytes, expected) in [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1024 * 1024, "1.0 MiB"),
        (u64::MAX, "15.9 EiB"),
    ] {
        assert_eq!(size(bytes), expected);
    }
    assert_eq!(rate(100, Duration::ZERO), 100_000);
}
