//! Text that others chose, made safe for a terminal and for the eyes before it.
//!
//! Invariant: what is shown has no sign that a terminal obeys, that reorders its neighbours, or that is not to be seen: of Unicode's general categories none of
//! Cc, Cf, Zl, Zp, Co, Cs and Cn, of its Default_Ignorable_Code_Points none, nor the empty Braille pattern; and that no stack of marks covers its neighbours. Pure. Called by whoever writes for people what a peer, control or a file may have chosen.

use std::fmt::Write;

use icu_properties::props::{DefaultIgnorableCodePoint, GeneralCategory};
use icu_properties::{CodePointMapData, CodePointSetData};

/// What stands for a sign that is not shown.
pub const UNSHOWN: char = '·';

/// How many marks may stand on one letter: no written language needs more, and a stack of them covers the lines around.
const MARKS_MAX: u32 = 4;
/// Empty, and no space to Unicode.
const BRAILLE_BLANK: char = '\u{2800}';

/// The text, with `·` for each sign that a terminal would obey or that could deceive who reads it.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut marks = Marks::default();
    let shown = |sign| match is_shown(sign) && marks.has_room(sign) {
        true => sign,
        false => UNSHOWN,
    };
    text.chars().map(shown).collect()
}

/// The same JSON, with such signs written as `\uXXXX`: a program reads what it would have read, and a terminal obeys nothing.
#[must_use]
pub fn printable_json(json: &str) -> String {
    let mut shown = String::with_capacity(json.len());
    let mut marks = Marks::default();
    for sign in json.chars() {
        let is_seen = is_shown(sign) && marks.has_room(sign);
        if is_seen || sign.is_ascii_whitespace() {
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

/// The marks in a row that were seen last.
#[derive(Default)]
struct Marks(u32);

impl Marks {
    /// Whether the next sign is no mark too many.
    fn has_room(&mut self, sign: char) -> bool {
        let is_mark = !sign.is_ascii() && {
            let category = CodePointMapData::<GeneralCategory>::new().get(sign);
            [
                GeneralCategory::NonspacingMark,
                GeneralCategory::EnclosingMark,
            ]
            .contains(&category)
        };
        self.0 = match is_mark {
            true => self.0.saturating_add(1),
            false => 0,
        };
        self.0 <= MARKS_MAX
    }
}

/// Whether the sign is shown as it is, as far as it alone says.
#[must_use]
pub fn is_shown(sign: char) -> bool {
    if sign.is_ascii() {
        return !sign.is_ascii_control();
    }
    if sign == BRAILLE_BLANK || CodePointSetData::new::<DefaultIgnorableCodePoint>().contains(sign)
    {
        return false;
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
            '\u{34f}',
            '\u{115f}',
            '\u{1160}',
            '\u{17b4}',
            '\u{180b}',
            '\u{fe0f}',
            '\u{3164}',
            '\u{ffa0}',
            '\u{e0100}',
            '\u{2800}', // fillers, joiners, selectors: letters and marks that are empty
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
            "e\u{301}",
            "⠃",
            "ก็",
            "ệ".repeat(9).as_str(),
        ] {
            assert_eq!(printable(plain), plain);
        }
    }

    #[test]
    fn a_letter_has_four_marks_at_most() {
        let text = |marks| format!("a{}b{}", "\u{301}".repeat(marks), "\u{20dd}".repeat(marks));
        assert_eq!(printable(&text(4)), text(4));
        let more = "·".repeat(96);
        let four = ("\u{301}".repeat(4), "\u{20dd}".repeat(4));
        assert_eq!(
            printable(&text(100)),
            format!("a{}{more}b{}{more}", four.0, four.1)
        );
        let json = serde_json::json!([text(5)]);
        let shown = printable_json(&json.to_string());
        assert!(
            shown.contains("\\u0301b") && shown.contains("\\u20dd\""),
            "{shown}"
        );
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&shown).unwrap(),
            json
        );
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
