//! The table of `ls`, fitted to the terminal.
//!
//! Invariant: a line is never wider than the terminal, and no name in it can steer it: uploaders choose some of them. Pure. Called by `ls`.

use crate::catalog::Entry;
use crate::status::{printable, time_text};

const HEADINGS: [&str; 7] = ["ID", "RECEIVED", "NODE", "USER", "SIZE", "TIME", "FLAGS"];
/// The columns that give way when the line is too wide.
const NODE: usize = 2;
const USER: usize = 3;
const FLAGS: usize = 6;
/// A column that gives way keeps at least so much.
const WIDTH_MIN: usize = 6;

/// The lines, with a heading; `columns` is the width of the terminal, if there is one.
pub(super) fn of(entries: &[Entry], columns: Option<usize>) -> String {
    let headings = HEADINGS.map(str::to_owned);
    let rows: Vec<[String; 7]> = std::iter::once(headings)
        .chain(entries.iter().map(row))
        .collect();
    let widths = fitted(natural(&rows), columns);
    rows.iter().map(|row| line(row, &widths)).collect()
}

fn row(entry: &Entry) -> [String; 7] {
    let user = entry.user.as_ref().or(entry.owner.as_ref());
    // What is complete needs no word.
    let flags: Vec<&str> = entry
        .flags
        .iter()
        .map(String::as_str)
        .filter(|flag| *flag != "complete")
        .collect();
    [
        entry.id.to_string(),
        entry.received_at.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
        entry.node.clone(),
        user.cloned().unwrap_or_else(|| "-".to_owned()),
        size(entry.bytes),
        time_text(entry.duration().as_secs()),
        flags.join(","),
    ]
    .map(|cell| printable(&cell))
}

fn natural(rows: &[[String; 7]]) -> [usize; 7] {
    let mut widths = [0; 7];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    widths
}

/// Takes from flags, then from the longer of node and user, until the line fits.
fn fitted(mut widths: [usize; 7], columns: Option<usize>) -> [usize; 7] {
    let Some(columns) = columns else {
        return widths;
    };
    let gaps = 2 * HEADINGS.len().saturating_sub(1);
    loop {
        let whole = widths.iter().sum::<usize>().saturating_add(gaps);
        let widest = [NODE, USER, FLAGS]
            .into_iter()
            .filter_map(|column| Some((*widths.get(column)?, column)))
            .max();
        match widest {
            Some((width, column)) if whole > columns && width > WIDTH_MIN => {
                if let Some(width) = widths.get_mut(column) {
                    *width = width.saturating_sub(1);
                }
            }
            _ => return widths,
        }
    }
}

fn line(row: &[String; 7], widths: &[usize; 7]) -> String {
    let cells = row.iter().zip(widths).map(|(cell, width)| {
        let shown: String = match cell.chars().count() > *width {
            true => cell
                .chars()
                .take(width.saturating_sub(1))
                .chain(['…'])
                .collect(),
            false => cell.clone(),
        };
        format!("{shown:width$}")
    });
    let cells: Vec<String> = cells.collect();
    format!("{}\n", cells.join("  ").trim_end())
}

/// With one decimal, in the unit that leaves one to four digits.
fn size(bytes: u64) -> String {
    let mut tenths = u128::from(bytes).saturating_mul(10);
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        if tenths < 10 * 1024 {
            return match unit {
                "B" => format!("{bytes} B"),
                _ => format!("{}.{} {unit}", tenths / 10, tenths % 10),
            };
        }
        tenths /= 1024;
    }
    format!("{} TiB", tenths.saturating_mul(1024) / 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::manifest::Manifest;

    fn entry() -> Entry {
        let manifest = include_bytes!("../../tests/vectors/manifest.json");
        let mut entry = Entry::of(Manifest::decode(manifest).unwrap(), "x.json".into());
        entry.user = Some("alice@example.com".into());
        entry
    }

    #[test]
    fn a_wide_terminal_shows_all() {
        let mut flagged = entry();
        flagged.flags = vec!["incomplete".into(), "not_asciicast".into()];
        flagged.user = None;
        assert_eq!(
            of(&[entry(), flagged], None),
            "ID                RECEIVED              NODE                   USER               SIZE  TIME  FLAGS\n\
             aaaqeayeaudaocaj  2026-11-20 10:15:00Z  web.tail-scale.ts.net  alice@example.com  6 B   59s\n\
             aaaqeayeaudaocaj  2026-11-20 10:15:00Z  web.tail-scale.ts.net  -                  6 B   59s   incomplete,not_asciicast\n"
        );
    }

    #[test]
    fn a_narrow_terminal_shortens_names_and_keeps_the_id() {
        let text = of(&[entry()], Some(80));
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines.iter().all(|line| line.chars().count() <= 80),
            "{text}"
        );
        assert!(lines[1].starts_with("aaaqeayeaudaocaj  2026-11-20 10:15:00Z  web"));
        assert!(lines[1].contains('…'));
    }

    #[test]
    fn a_claimed_name_cannot_steer_the_terminal() {
        let mut hostile = entry();
        hostile.user = Some("\u{1b}]0;owned\u{7}".into());
        let text = of(&[hostile], None);
        assert!(!text.contains('\u{1b}') && text.contains("·]0;owned·"));
    }

    #[test]
    fn sizes_have_at_most_four_digits() {
        for (bytes, shown) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (10 << 20, "10.0 MiB"),
            (5 << 40, "5.0 TiB"),
        ] {
            assert_eq!(size(bytes), shown);
        }
        assert!(size(u64::MAX).ends_with(" TiB"));
    }
}
