//! The status for a person at a terminal.
//!
//! Invariant: a name that control or a peer chose cannot steer the terminal. Pure. Called by `client.rs`, and by the wiring for its own tables.

use std::fmt::Write;

use super::harm;
use super::report::{OpenRecording, Phase, Status};
use crate::tell::printable;

/// How many open recordings are shown; `--json` has more.
const RECORDINGS_SHOWN_MAX: usize = 20;
/// Columns of the table of recordings.
const HEADINGS: [&str; 6] = ["ID", "SINCE", "NODE", "OWNER", "RECEIVED", "DURABLE"];
/// Where the text of a line begins, behind what it is about.
const INDENT: usize = 11;

pub(super) fn status(status: &Status, columns: Option<usize>) -> String {
    let mut lines = vec![
        format!("recorder   {}", recorder(status)),
        format!("node       {}", node(status)),
        format!("control    {}", control(status)),
        format!("network    {}", network(status)),
        format!("store      {}", store(status)),
        format!("uploads    {}", uploads(status)),
    ];
    let harm = harm::of_ingest(&status.ingest);
    let told = [
        ("cut short  ", harm.cut_short),
        ("refused    ", harm.refused),
        ("trouble    ", harm.other),
    ];
    let told = told.into_iter().filter(|(_, counted)| !counted.is_empty());
    lines.extend(told.map(|(about, counted)| format!("{about}{}", counted.join(", "))));
    lines.push(format!("access     {}", access(status)));
    let columns = columns.unwrap_or(usize::MAX);
    let lines = lines.iter().map(|line| printable(line));
    let mut lines: Vec<String> = lines.flat_map(|line| wrapped(&line, columns)).collect();
    if status.recordings_open > 0 {
        lines.push(String::new());
        lines.extend(recordings(&status.recordings));
        let shown = status.recordings.len().min(RECORDINGS_SHOWN_MAX);
        let shown = u64::try_from(shown).unwrap_or(u64::MAX);
        let more = status.recordings_open.saturating_sub(shown);
        if more > 0 {
            lines.push(format!("and {more} more"));
        }
    }
    let mut text = String::new();
    for line in lines {
        text.push_str(cut(&printable(&line), columns).trim_end());
        text.push('\n');
    }
    text
}

fn recorder(status: &Status) -> String {
    let phase = match status.phase {
        Phase::Starting => "starting",
        Phase::Running => "running",
        Phase::Draining => "draining",
        Phase::Drained => "drained",
    };
    let mut text = format!(
        "{phase}, version {}, up {}",
        status.version,
        time_text(status.uptime_seconds)
    );
    let withheld = status.log_lines_withheld;
    if withheld > 0 {
        // Writing to a String does not fail.
        let _infallible = write!(text, ", {withheld} log lines withheld");
    }
    text
}

fn node(status: &Status) -> String {
    let node = &status.node;
    if node.name.is_empty() {
        return "not joined yet".into();
    }
    let addresses: Vec<String> = node.addresses.iter().map(ToString::to_string).collect();
    let tunnel: Vec<String> = node.tunnel.iter().map(ToString::to_string).collect();
    format!(
        "{}  {}  tunnel on {}  {} peers",
        node.name,
        addresses.join(" "),
        tunnel.join(" "),
        node.peers
    )
}

fn control(status: &Status) -> String {
    let control = &status.control;
    let state = match (&control.trouble, control.joined) {
        (Some(trouble), _) => trouble,
        (None, true) => "joined",
        (None, false) => "joining",
    };
    format!("{}  {state}", control.url)
}

/// What was dropped, most first, under the names that `--json` has.
fn network(status: &Status) -> String {
    let network = &status.network;
    let datagrams = network.counted.get("node_datagrams_in");
    let dropped = harm::listed(network.dropped.iter());
    let dropped = match dropped.is_empty() {
        true => "none".to_owned(),
        false => dropped.join(", "),
    };
    let datagrams = datagrams.copied().unwrap_or_default();
    format!("{datagrams} datagrams; dropped: {dropped}")
}

fn store(status: &Status) -> String {
    let store = &status.store;
    let counter = |name: &str| store.counters.get(name).copied().unwrap_or_default();
    let mut text = format!(
        "{}  {} commits, {} sealed",
        store.url,
        counter("commits"),
        counter("sealed")
    );
    let failed = counter("seals_failed");
    if failed > 0 {
        // Writing to a String does not fail.
        let _infallible = write!(text, ", {failed} NOT SEALED");
    }
    let harm = harm::of_store(&store.counters);
    if !harm.is_empty() {
        let _infallible = write!(text, ", {}", harm.join(", "));
    }
    if let Some(millis) = store.commit_running_ms {
        let _infallible = write!(text, ", a commit is under way for {millis} ms");
    }
    if let Some(recovery) = store.recovery.as_ref().filter(|state| *state != "done") {
        let _infallible = write!(text, ", recovery {recovery}");
    }
    if let Some(reason) = &store.halted {
        let _infallible = write!(text, ", HALTED: {reason}");
    }
    text
}

fn uploads(status: &Status) -> String {
    let counted = |name: &str| status.ingest.get(name).copied().unwrap_or_default();
    format!(
        "{} open, {} begun, {} whole; {} events",
        status.recordings_open,
        counted("recordings"),
        counted("ended_complete"),
        counted("events"),
    )
}

fn access(status: &Status) -> String {
    match status.access_rules {
        0 => "no rule in the settings".into(),
        1 => "1 rule in the settings".into(),
        rules => format!("{rules} rules in the settings"),
    }
}

fn recordings(open: &[OpenRecording]) -> Vec<String> {
    let headings = HEADINGS.map(str::to_owned);
    let rows = open.iter().take(RECORDINGS_SHOWN_MAX).map(|recording| {
        [
            recording.id.to_string(),
            recording.since.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
            recording.node.clone(),
            recording.user.clone().unwrap_or_else(|| "-".into()),
            recording.received_bytes.to_string(),
            recording.durable_bytes.to_string(),
        ]
    });
    let rows: Vec<[String; 6]> = std::iter::once(headings).chain(rows).collect();
    let mut widths = [0; 6];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let line = |row: &[String; 6]| {
        let cells = row.iter().zip(widths);
        let cells: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        cells.join("  ")
    };
    rows.iter().map(line).collect()
}

/// A number of seconds in its two largest units.
pub(crate) fn time_text(seconds: u64) -> String {
    let units = [(86_400, "d"), (3600, "h"), (60, "m"), (1, "s")];
    let mut rest = seconds;
    let mut parts = Vec::new();
    for (size, unit) in units {
        let count = rest / size;
        rest %= size;
        if count > 0 || (unit == "s" && parts.is_empty()) {
            parts.push(format!("{count}{unit}"));
        }
    }
    parts.truncate(2);
    parts.join(" ")
}

/// The line in pieces of at most `columns`, cut between words; what follows the first is indented. A longer word has a line of its own.
fn wrapped(line: &str, columns: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut current = String::new();
    let mut width = 0_usize;
    for (place, word) in line.split(' ').enumerate() {
        let more = word.chars().count().saturating_add(usize::from(place > 0));
        let is_text = width > INDENT;
        if is_text && width.saturating_add(more) > columns && !word.is_empty() {
            lines.push(current.trim_end().to_owned());
            current = format!("{:INDENT$}{word}", "");
            width = INDENT.saturating_add(word.chars().count());
            continue;
        }
        if place > 0 {
            current.push(' ');
        }
        current.push_str(word);
        width = width.saturating_add(more);
    }
    lines.push(current);
    let unbound = |line: String| line.replace(harm::NO_BREAK, " ");
    lines.into_iter().map(unbound).collect()
}

fn cut(line: &str, columns: usize) -> &str {
    let end = line.char_indices().nth(columns).map(|(at, _)| at);
    end.and_then(|end| line.get(..end)).unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_in_their_two_largest_units() {
        for (seconds, shown) in [
            (0, "0s"),
            (61, "1m 1s"),
            (3600, "1h"),
            (90_061, "1d 1h"),
            (86_400 * 3 + 5, "3d 5s"),
        ] {
            assert_eq!(time_text(seconds), shown);
        }
    }

    #[test]
    fn a_long_line_goes_on_below_its_text() {
        let line = "network    12 datagrams; dropped: a 1, b 2";
        assert_eq!(
            wrapped(line, 30),
            ["network    12 datagrams;", "           dropped: a 1, b 2"]
        );
        assert_eq!(wrapped(line, usize::MAX), [line]);
        let narrow = wrapped(line, 4);
        let words = narrow.iter().flat_map(|line| line.split_whitespace());
        assert!(words.eq(line.split_whitespace()), "{narrow:?}");
    }

    #[test]
    fn a_line_is_cut_at_a_sign() {
        assert_eq!(cut("äöü", 2), "äö");
        assert_eq!(cut("ab", 9), "ab");
    }
}
