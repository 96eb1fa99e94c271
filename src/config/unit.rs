//! Sizes and times as people write them: `64MiB`, `25s`.
//!
//! Invariant: what is shown reads back as the same value; a number without a unit is refused, since 30 may be seconds or minutes (a bare `0`
//! is zero in any unit). Called by `setting.rs` and whoever shows values.

use std::time::Duration;

const SIZES: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// Units in milliseconds.
const TIMES: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
    ("ms", 1),
];

/// `64MiB`, `4096B`; binary units only.
pub(super) fn parse_bytes(text: &str) -> Option<u64> {
    parse(text, &SIZES)
}

/// `25s`, `10m`, `250ms`.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    parse(text, &TIMES).map(Duration::from_millis)
}

/// In the largest unit that gives a whole number.
pub(super) fn show_bytes(bytes: u64) -> String {
    show(bytes, &SIZES)
}

/// In the largest unit that gives a whole number, of whole milliseconds.
pub(super) fn show_duration(time: Duration) -> String {
    match u64::try_from(time.as_millis()).unwrap_or(u64::MAX) {
        0 => "0s".into(),
        millis => show(millis, &TIMES),
    }
}

fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|sign: char| !sign.is_ascii_digit());
    let (number, unit) = text.split_at_checked(digits.unwrap_or(text.len()))?;
    let number: u64 = number.parse().ok()?;
    let unit = unit.trim_start();
    if unit.is_empty() {
        return (number == 0).then_some(0);
    }
    let (_, size) = units.iter().find(|(name, _)| *name == unit)?;
    number.checked_mul(*size)
}

fn show(value: u64, units: &[(&str, u64)]) -> String {
    let whole = |size: u64| value.checked_rem(size) == Some(0) && value >= size;
    let unit = units.iter().find(|(_, size)| whole(*size));
    match unit.or(units.last()) {
        Some((name, size)) => format!("{}{name}", value.checked_div(*size).unwrap_or(value)),
        None => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_and_times_read_as_people_write_them() {
        for (text, bytes) in [
            ("64MiB", Some(64 << 20)),
            ("1 KiB", Some(1024)),
            ("0", Some(0)),
            ("7B", Some(7)),
            ("64", None),
            ("64MB", None),
            ("-1B", None),
            ("", None),
            ("MiB", None),
            ("99999999999TiB", None),
        ] {
            assert_eq!(parse_bytes(text), bytes, "{text:?}");
        }
        for (text, millis) in [
            ("25s", Some(25_000)),
            ("10m", Some(600_000)),
            ("250ms", Some(250)),
            ("30d", Some(2_592_000_000)),
            ("30", None),
            ("1.5s", None),
        ] {
            let time = millis.map(Duration::from_millis);
            assert_eq!(parse_duration(text), time, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back_as_the_same(value: u64) {
            prop_assert_eq!(parse_bytes(&show_bytes(value)), Some(value));
            let time = Duration::from_millis(value);
            prop_assert_eq!(parse_duration(&show_duration(time)), Some(time));
        }

        #[test]
        fn no_text_makes_the_readers_panic(text: String) {
            let read = parse_bytes(&text).is_some() || parse_duration(&text).is_some();
            prop_assert!(!read || text.contains(|sign: char| sign.is_ascii_digit()));
        }
    }
}
