//! The table of `ls`, fitted to the terminal.
//!
//! Invariants: what the tailnet says of the uploader (NODE, OWNER) and what the uploader claims (CLAIMED USER) never share a column; a line is never wider
//! than the terminal, and no name in it can steer it: uploaders choose some of them. Pure. Called by `ls`.

use crate::catalog::Entry;
use crate::status::time_text;
use crate::tell::printable;

const COLUMNS: usize = 8;
const HEADINGS: [&str; COLUMNS] = [
    "ID",
    "RECEIVED",
    "NODE",
    "OWNER",
    "CLAIMED USER",
    "SIZE",
    "TIME",
    "FLAGS",
];
/// The columns that give way when the line is too wide.
const NODE: usize = 2;
const OWNER: usize = 3;
const CLAIMED: usize = 4;
const FLAGS: usize = 7;
/// A column that gives way keeps at least so much.
const WIDTH_MIN: usize = 4;
/// What a cell has that says nothing.
const NOTHING: &str = "-";

/// The lines, with a heading; `columns` is the width of the terminal, if there is one.
pub(super) fn of(entries: &[Entry], columns: Option<usize>) -> String {
    let cells: Vec<[String; COLUMNS]> = entries.iter().map(row).collect();
    let headings = [HEADINGS.map(str::to_owned)];
    let rows: Vec<_> = headings.iter().chain(&cells).collect();
    let widths = natural(&rows);
    let widths = match columns {
        Some(columns) => fitted(widths, &cells, columns),
        None => widths,
    };
    let columns = columns.unwrap_or(usize::MAX);
    rows.iter().map(|row| line(row, &widths, columns)).collect()
}

fn row(entry: &Entry) -> [String; COLUMNS] {
    let said = |text: String| match text.is_empty() {
        true => NOTHING.to_owned(),
        false => text,
    };
    // A tagged node belongs to its tags and to nobody else.
    let owner = entry.owner.clone().unwrap_or_else(|| entry.tags.join(","));
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
        said(entry.node.clone()),
        said(owner),
        said(entry.claimed.user.clone().unwrap_or_default()),
        size(entry.bytes),
        time_text(entry.duration().as_secs()),
        flags.join(","),
    ]
    .map(|cell| printable(&cell))
}

fn natural(rows: &[&[String; COLUMNS]]) -> [usize; COLUMNS] {
    let mut widths = [0; COLUMNS];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(*row) {
            *width = cell.chars().count().max(*width);
        }
    }
    widths
}

/// The width of a whole line; a column without any has no gap either.
fn whole(widths: &[usize; COLUMNS]) -> usize {
    let shown = widths.iter().filter(|width| **width > 0);
    let gaps = 2 * shown.count().saturating_sub(1);
    widths.iter().sum::<usize>().saturating_add(gaps)
}

/// Leaves out columns in which no recording has anything, then takes from the longest of those that may give way, until the line fits.
fn fitted(
    mut widths: [usize; COLUMNS],
    cells: &[[String; COLUMNS]],
    columns: usize,
) -> [usize; COLUMNS] {
    for column in [FLAGS, OWNER, CLAIMED] {
        let mut said = cells.iter().filter_map(|row| row.get(column));
        let says_nothing = said.all(|cell| cell.is_empty() || cell == NOTHING);
        if says_nothing
            && whole(&widths) > columns
            && let Some(width) = widths.get_mut(column)
        {
            *width = 0;
        }
    }
    loop {
        let widest = [NODE, OWNER, CLAIMED, FLAGS]
            .into_iter()
            .filter_map(|column| Some((*widths.get(column)?, column)))
            .max();
        match widest {
            Some((width, column)) if whole(&widths) > columns && width > WIDTH_MIN => {
                if let Some(width) = widths.get_mut(column) {
                    *width = width.saturating_sub(1);
                }
            }
            _ => return widths,
        }
    }
}

fn line(row: &[String; COLUMNS], widths: &[usize; COLUMNS], columns: usize) -> String {
    let shown = row.iter().zip(widths).filter(|(_, width)| **width > 0);
    let cells: Vec<String> = shown
        .map(|(cell, width)| format!("{:width$}", shortened(cell, *width)))
        .collect();
    let line = cells.join("  ");
    format!("{}\n", shortened(line.trim_end(), columns))
}

fn shortened(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept = text.chars().take(width.saturating_sub(1));
    kept.chain(['…']).collect()
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
        entry.claimed.user = Some("alice@example.com".into());
        entry
    }

    #[test]
    fn what_is_proven_and_what_is_claimed_stand_in_columns_of_their_own() {
        let mut owned = entry();
        owned.flags = vec!["incomplete".into(), "not_asciicast".into()];
        owned.owner = Some("bob@example.com".into());
        owned.tags = Vec::new();
        owned.claimed.user = None;
        let expected = "\
ID                RECEIVED              NODE                   OWNER            CLAIMED USER       SIZE  TIME  FLAGS
aaaqeayeaudaocaj  2026-11-20 10:15:00Z  web.tail-scale.ts.net  tag:ssh          alice@example.com  6 B   59s
aaaqeayeaudaocaj  2026-11-20 10:15:00Z  web.tail-scale.ts.net  bob@example.com  -                  6 B   59s   incomplete,not_asciicast
";
        assert_eq!(of(&[entry(), owned], None), expected);
    }

    #[test]
    fn a_claim_never_stands_where_the_owner_does() {
        let mut nobodys = entry();
        nobodys.tags = Vec::new();
        nobodys.owner = None;
        let text = of(&[nobodys], None);
        let columns: Vec<&str> = text.lines().last().unwrap().split("  ").collect();
        let said: Vec<&str> = columns
            .into_iter()
            .filter(|cell| !cell.is_empty())
            .collect();
        assert_eq!(said[3].trim(), "-", "{text}");
        assert_eq!(said[4], "alice@example.com");
    }

    #[test]
    fn a_narrow_terminal_shortens_names_and_keeps_the_id() {
        let mut full = entry();
        full.flags = vec!["incomplete".into(), "not_asciicast".into()];
        for (entry, columns) in [(entry(), 80), (full.clone(), 80), (full, 40)] {
            let text = of(&[entry], Some(columns));
            let lines: Vec<&str> = text.lines().collect();
            assert!(
                lines.iter().all(|line| line.chars().count() <= columns),
                "{text}"
            );
            assert!(lines[1].starts_with("aaaqeayeaudaocaj  2026-11-20 10:15:00Z"));
            assert!(lines[1].contains('…'));
        }
        assert!(
            !of(&[entry()], Some(80)).contains("FLAGS"),
            "no flag to show"
        );
    }

    #[test]
    fn a_claimed_name_cannot_steer_the_terminal() {
        let mut hostile = entry();
        hostile.claimed.user = Some("\u{1b}]0;owned\u{7}\u{202e}\u{200b}".into());
        let text = of(&[hostile], None);
        assert!(!text.contains('\u{1b}') && text.contains("·]0;owned···"));
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
