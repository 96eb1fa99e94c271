//! The way of a command's result to stdout or into a file.
//!
//! Invariant: who closed stdout, as `head` does, is told apart from an output that failed. Called by the commands; `main` tells what went wrong.

use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;

use thiserror::Error;

/// Where a result goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Stdout.
    Stdout,
    /// A file.
    File(PathBuf),
}

/// Why a result did not get there.
#[derive(Debug, Error)]
pub enum OutputError {
    /// The reader of stdout closed it before the end: it has what it wanted.
    #[error("nobody reads stdout any more")]
    Closed,
    /// The system refused.
    #[error("cannot write to {output}")]
    Failed {
        /// Where to.
        output: Output,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl OutputError {
    /// What became of a write to `output`.
    #[must_use]
    pub fn of(output: &Output, source: io::Error) -> Self {
        if source.kind() == ErrorKind::BrokenPipe && *output == Output::Stdout {
            return Self::Closed;
        }
        Self::Failed {
            output: output.clone(),
            source,
        }
    }

    /// What to do about it; none where nothing went wrong.
    #[must_use]
    pub fn remedy(&self) -> Option<&'static str> {
        let Self::Failed { output, source } = self else {
            return None;
        };
        let is_file = matches!(output, Output::File(_));
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "the system has many kinds, and most of them leave but one thing to do"
        )]
        Some(match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                "free some room where the output goes, or send it elsewhere"
            }
            ErrorKind::NotFound if is_file => {
                "make the directory first, or name a file in one that is there"
            }
            ErrorKind::IsADirectory | ErrorKind::NotADirectory | ErrorKind::InvalidFilename => {
                "name a file, in a directory that is there"
            }
            _ if is_file => "name a file in a directory that this user may write",
            _ => "see where stdout leads, or send it elsewhere",
        })
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("stdout"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// Writes to stdout.
///
/// # Errors
/// [`OutputError`].
pub fn say(text: &str) -> Result<(), OutputError> {
    let mut out = io::stdout();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| OutputError::of(&Output::Stdout, error))
}

/// The same for a command whose exit code is its answer: that holds whether or not anybody reads the words.
///
/// # Errors
/// [`OutputError::Failed`].
pub(super) fn say_besides(text: &str) -> Result<(), OutputError> {
    match say(text) {
        Err(OutputError::Closed) => Ok(()),
        said => said,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_has_a_remedy_and_a_closed_stdout_is_none() {
        let file = Output::File("/there/out.cast".into());
        for (output, kind, remedy) in [
            (Output::Stdout, ErrorKind::StorageFull, "free some room"),
            (Output::Stdout, ErrorKind::PermissionDenied, "stdout leads"),
            (file.clone(), ErrorKind::NotFound, "make the directory"),
            (file.clone(), ErrorKind::PermissionDenied, "may write"),
            (file.clone(), ErrorKind::IsADirectory, "name a file"),
            (file.clone(), ErrorKind::BrokenPipe, "may write"),
        ] {
            let error = OutputError::of(&output, kind.into());
            assert!(error.remedy().unwrap().contains(remedy), "{error:?}");
            assert!(error.to_string().ends_with(&output.to_string()));
        }
        let closed = OutputError::of(&Output::Stdout, ErrorKind::BrokenPipe.into());
        assert!(matches!(closed, OutputError::Closed) && closed.remedy().is_none());
    }
}
