//! Command lines as the user types them, one at a time.
//!
//! The invariant: at most [`LINE_BYTES_MAX`] bytes are held, and a line that is longer is refused whole, never cut into a different
//! command. `dev` reads them between sessions.

use std::io;

use tokio::io::{AsyncBufRead, AsyncBufReadExt};

/// The longest command line; what a terminal lets a user type is 4 KiB, and a pipe may bring more.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// Lines of a reader.
#[derive(Debug)]
pub struct CommandLines<R> {
    input: R,
    held: Vec<u8>,
    too_long: bool,
}

/// What the user typed.
#[derive(Debug, PartialEq, Eq)]
pub enum Typed {
    /// A line without its end; never blank.
    Line(String),
    /// A line that is longer than the limit, or not UTF-8.
    Unusable,
}

impl<R: AsyncBufRead + Unpin> CommandLines<R> {
    /// Reads from `input`.
    pub fn new(input: R) -> Self {
        Self {
            input,
            held: Vec::new(),
            too_long: false,
        }
    }

    /// The next line that is not blank; none at the end of the input. Cancel-safe.
    ///
    /// # Errors
    /// The input cannot be read.
    pub async fn next(&mut self) -> io::Result<Option<Typed>> {
        loop {
            let available = self.input.fill_buf().await?;
            let at_end = available.is_empty();
            let line_end = available.iter().position(|&byte| byte == b'\n');
            let part = available.split_at(line_end.unwrap_or(available.len())).0;
            self.too_long |= self.held.len() + part.len() > LINE_BYTES_MAX;
            if self.too_long {
                self.held.clear();
            } else {
                self.held.extend_from_slice(part);
            }
            let taken = part.len() + usize::from(line_end.is_some());
            self.input.consume(taken);
            if (line_end.is_some() || at_end)
                && let Some(typed) = self.take_line()
            {
                return Ok(Some(typed));
            }
            if at_end {
                return Ok(None);
            }
        }
    }

    fn take_line(&mut self) -> Option<Typed> {
        let line = std::mem::take(&mut self.held);
        if std::mem::take(&mut self.too_long) {
            return Some(Typed::Unusable);
        }
        let Ok(line) = String::from_utf8(line) else {
            return Some(Typed::Unusable);
        };
        let line = line.trim();
        (!line.is_empty()).then(|| Typed::Line(line.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::BufReader;

    use super::*;

    async fn lines(input: &[u8]) -> Vec<Typed> {
        // A small buffer, so that lines come in pieces.
        let mut lines = CommandLines::new(BufReader::with_capacity(7, input));
        let mut all = Vec::new();
        while let Some(typed) = lines.next().await.unwrap() {
            all.push(typed);
        }
        all
    }

    fn line(text: &str) -> Typed {
        Typed::Line(text.to_owned())
    }

    #[tokio::test]
    async fn each_line_is_given_once_blank_ones_are_not_and_the_last_needs_no_end() {
        let typed = lines(b"ls -l /some/where\n\n   \r\n uname \nlast").await;
        assert_eq!(
            typed,
            [line("ls -l /some/where"), line("uname"), line("last")]
        );
        assert!(lines(b"").await.is_empty());
    }

    #[tokio::test]
    async fn a_line_too_long_is_refused_whole_and_the_next_one_is_read() {
        let mut input = vec![b'x'; LINE_BYTES_MAX];
        input.push(b'\n');
        assert_eq!(lines(&input).await, [line(&"x".repeat(LINE_BYTES_MAX))]);
        input.insert(0, b'x');
        input.extend(b"ls\n");
        assert_eq!(lines(&input).await, [Typed::Unusable, line("ls")]);
    }

    #[tokio::test]
    async fn a_line_that_is_not_text_is_refused() {
        assert_eq!(lines(b"\xFF\nls\n").await, [Typed::Unusable, line("ls")]);
    }
}
