//! Text that others chose, made safe for a terminal and for the eyes before it.
//!
//! Invariant: what is shown has no sign that a terminal obeys, that reorders its neighbours, or that is not to be seen: of Unicode's general categories none of
//! Cc, Cf, Zl, Zp, Co, Cs and Cn. Pure. Called by whoever writes for people what a peer, control or a file may have chosen.

use std::fmt::Write;

use icu_properties::CodePointMapData;
use icu_properties::props::GeneralCategory;

/// What stands for a sign that is not shown.
pub const UNSHOWN: char = '·';

/// The text, with `·` for each sign that a terminal would obey or that could deceive who reads it.
#[must_use]
pub fn printable(text: &str) -> String {
    let shown = |sign| if is_shown(sign) { sign } else { UNSHOWN };
    text.chars().map(shown).collect()
}

/// The same JSON, with such signs written as `\uXXXX`: a program reads what it would have read, and a terminal obeys nothing.
#[must_use]
pub fn printable_json(json: &str) -> String {
    let mut shown = String::with_capacity(json.len());
    for sign in json.chars() {
        if is_shown(sign) || sign.is_ascii_whitespace() {
            shown.push(sign);
            continue;
        }
        for unit in sign.encode_utf16(&mut [0; 2]) {
            // Writing to a String does not fail.
            let _infallible = write!(shown, "\\u{unit:04x}");
        }
    }
    shown
}

/// Whether the sign is shown as it is.
#[must_use]
pub fn is_shown(sign: char) -> bool {
    if sign.is_ascii() {
        return !sign.is_ascii_control();
    }
    let category = CodePointMapData::<GeneralCategory>::new().get(sign);
    ![
        GeneralCategory::Control,
        GeneralCategory::Format,
        GeneralCategory::LineSeparator,
        GeneralCategory::ParagraphSeparator,
        GeneralCategory::PrivateUse,
        GeneralCategory::Surrogate,
        GeneralCategory::Unassigned,
    ]
    .contains(&category)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_sign_steers_a_terminal_or_hides_from_the_reader() {
        for sign in [
            '\u{1b}',
            '\n',
            '\r',
            '\u{7f}',
            '\u{9b}', // controls, of both kinds
            '\u{ad}',
            '\u{61c}',
            '\u{200b}',
            '\u{200f}',
            '\u{202e}',
            '\u{2066}',
            '\u{2069}',
            '\u{feff}',
            '\u{fff9}',
            '\u{110bd}',
            '\u{e0001}',
            '\u{e0041}', // format
            '\u{2028}',
            '\u{2029}',
            '\u{e000}',
            '\u{f0000}',
            '\u{10fffd}', // separators, private
            '\u{378}',
            '\u{fdd0}',
            '\u{ffff}',
            '\u{10ffff}', // of no meaning yet, or ever
        ] {
            let text = format!("a{sign}b");
            assert_eq!(printable(&text), "a·b", "{:x}", u32::from(sign));
        }
        for plain in [
            "alice@example.com",
            "äöü",
            "日本語",
            "a b",
            "Ελλάδα",
            "🦀",
            "é",
        ] {
            assert_eq!(printable(plain), plain);
        }
    }

    #[test]
    fn json_says_the_same_and_is_seen_whole() {
        let value = serde_json::json!({"user": "a\u{202e}b\u{9b}\u{e0041}\n\"ä"});
        let shown = printable_json(&format!("{value}\n"));
        assert!(
            shown.contains("\\u202e") && shown.contains("\\u009b"),
            "{shown}"
        );
        assert!(shown.chars().all(|sign| is_shown(sign) || sign == '\n'));
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&shown).unwrap(),
            value
        );
    }
}
