//! The status for a person at a terminal.
//!
//! Invariant: a name that control or a peer chose cannot steer the terminal: control characters are shown as `·`. Pure. Called by `client.rs`, and by the wiring for its own tables.

use std::fmt::Write;

use super::report::{OpenRecording, Phase, Status};

/// How many open recordings are shown; `--json` has more.
const RECORDINGS_SHOWN_MAX: usize = 20;
/// Columns of the table of recordings.
const HEADINGS: [&str; 6] = ["ID", "SINCE", "NODE", "USER", "RECEIVED", "DURABLE"];

pub(super) fn status(status: &Status, columns: Option<usize>) -> String {
    let mut lines = vec![
        format!("recorder   {}", recorder(status)),
        format!("node       {}", node(status)),
        format!("control    {}", control(status)),
        format!("network    {}", network(status)),
        format!("store      {}", store(status)),
        format!("uploads    {}", uploads(status)),
        format!("access     {}", access(status)),
    ];
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
        text.push_str(cut(&printable(&line), columns.unwrap_or(usize::MAX)).trim_end());
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
    let mut dropped: Vec<_> = network
        .dropped
        .iter()
        .filter(|(_, count)| **count > 0)
        .collect();
    dropped.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let dropped: Vec<String> = dropped
        .into_iter()
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
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
    let refused = status.ingest.iter();
    let refused = refused.filter(|(name, _)| name.starts_with("refused_"));
    let refused: u64 = refused.map(|(_, count)| *count).sum();
    format!(
        "{} open, {} begun, {} whole, {} given up by the store; {} events; {refused} refused",
        status.recordings_open,
        counted("recordings"),
        counted("ended_complete"),
        counted("ended_failed"),
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

/// A text without anything that a terminal would obey.
pub(crate) fn printable(line: &str) -> String {
    let shown = |sign: char| if sign.is_control() { '·' } else { sign };
    line.chars().map(shown).collect()
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
    fn a_line_is_cut_at_a_sign_and_cannot_steer_the_terminal() {
        assert_eq!(cut("äöü", 2), "äö");
        assert_eq!(cut("ab", 9), "ab");
        assert_eq!(printable("a\u{1b}[2Jb\n"), "a·[2Jb·");
    }
}
