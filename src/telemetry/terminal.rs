//! The log's way to a terminal: a line of the log stays one line there, and steers nothing.
//!
//! Invariant: of signs that are not shown, only colours and the end of the line go out. The formatter escapes some in messages, and none in values that are
//! logged by their `Display`. Called by the log for people.

use std::io::{self, Write};

use tracing_subscriber::fmt::MakeWriter;

use crate::tell::{UNSHOWN, printable};

const ESC: char = '\u{1b}';

/// Makes a writer for each line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terminal {
    /// Whether the formatter writes colours.
    pub(super) color: bool,
}

/// Writes one line to stderr.
#[derive(Debug)]
pub(super) struct Line {
    color: bool,
}

impl<'a> MakeWriter<'a> for Terminal {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { color: self.color }
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let line = shown(&String::from_utf8_lossy(bytes), self.color);
        io::stderr().write_all(line.as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

fn shown(line: &str, color: bool) -> String {
    let (text, end) = match line.strip_suffix('\n') {
        Some(text) => (text, "\n"),
        None => (line, ""),
    };
    let mut parts = text.split(ESC);
    let mut shown = printable(parts.next().unwrap_or_default());
    for part in parts {
        shown.push(if color && begins_with_color(part) {
            ESC
        } else {
            UNSHOWN
        });
        shown.push_str(&printable(part));
    }
    shown + end
}

/// Whether it goes on as the formatter's colours do. In a value such a sequence can tint what follows, and no more: not hide, move or erase it.
fn begins_with_color(text: &str) -> bool {
    let parameters = text.strip_prefix('[').and_then(|rest| rest.split_once('m'));
    let is_tint = |parameter: &str| {
        let number: Option<u8> = parameter.parse().ok();
        number.is_some_and(|number| matches!(number, 0..=4 | 30..=37))
    };
    parameters.is_some_and(|(parameters, _)| parameters.split(';').all(is_tint))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::tell::is_shown;

    #[test]
    fn a_line_stays_one_line_and_keeps_its_colours() {
        let line = "\u{1b}[1;33m WARN\u{1b}[0m who=\u{202e}eve\nINFO all is well\r\n";
        assert_eq!(
            shown(line, true),
            "\u{1b}[1;33m WARN\u{1b}[0m who=·eve·INFO all is well·\n"
        );
        assert_eq!(
            shown(line, false),
            "·[1;33m WARN·[0m who=·eve·INFO all is well·\n"
        );
        for steering in [
            "]0;x\u{7}",
            "[2J",
            "[8m",
            "[31;8m",
            "[",
            "[m",
            "c",
            "[38;5;1m",
            "",
        ] {
            let shown = shown(&format!("a\u{1b}{steering}\n"), true);
            assert!(shown.starts_with("a·"), "{shown:?}");
        }
    }

    /// What reaches the terminal of what was logged, with the formatter that `start` uses.
    #[derive(Debug, Clone, Default)]
    struct Kept(Arc<Mutex<String>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let line = shown(&String::from_utf8_lossy(bytes), false);
            self.0.lock().unwrap().push_str(&line);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nothing_that_a_peer_chose_steers_the_terminal() {
        let kept = Kept::default();
        let writer = kept.clone();
        let log = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .finish();
        tracing::subscriber::with_default(log, || {
            let name = "x\u{1b}]0;owned\u{7}\u{9b}2J\u{202e}\r\n\u{feff}";
            tracing::warn!(name, shown = %name, "told of {name}");
        });
        let lines = kept.0.lock().unwrap().clone();
        assert_eq!(lines.matches('\n').count(), 1, "{lines:?}");
        assert!(lines.trim_end().chars().all(is_shown), "{lines:?}");
        assert_eq!(lines.matches("owned").count(), 3, "{lines:?}");
    }
}
