//! What to do about an error, and which exit code it ends the program with.
//!
//! Invariant: pure; docs/operations.md has each of these texts, and the table of exit codes. Called by `main` for whatever ended a command.

use std::error::Error;
use std::sync::Arc;

use netstack::io::TailnetError;
use netstack::io::keystore::KeyStoreError;
use tailtape::admin::OutputError;
use tailtape::capture::{ConnectError, PtyError};
use tailtape::catalog::TimeError;
use tailtape::config::ConfigError;
use tailtape::serve::Refused;
use tailtape::status::StatusError;
use tailtape::store::StoreError;
use tailtape::telemetry::TelemetryError;

const FAILURE: u8 = 1;
/// A restart would not help.
pub(crate) const MISTAKE: u8 = 2;
/// Stdout was closed before the end: as a shell shows the death by SIGPIPE, of which other tools die there.
const UNREAD: u8 = 128 + 13;
/// Another recorder took our epoch over (EX_TEMPFAIL): a service manager may start us again.
const FENCED: u8 = 75;

/// What to do about the first cause that we know a remedy for.
pub(crate) fn on(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(on_cause)
}

fn on_cause(cause: &(dyn Error + 'static)) -> Option<String> {
    if let Some(error) = cause.downcast_ref::<ConfigError>() {
        return Some(error.remedy());
    }
    if let Some(error) = cause.downcast_ref::<OutputError>() {
        return error.remedy().map(str::to_owned);
    }
    let advice = if let Some(error) = cause.downcast_ref::<StoreError>() {
        error.to_do()
    } else if let Some(error) = cause.downcast_ref::<Arc<StoreError>>() {
        error.to_do()
    } else if let Some(error) = cause.downcast_ref::<KeyStoreError>() {
        on_state(error)
    } else if let Some(error) = cause.downcast_ref::<StatusError>() {
        on_socket(error)
    } else if let Some(error) = cause.downcast_ref::<TailnetError>() {
        on_tailnet(error)?
    } else if let Some(error) = cause.downcast_ref::<TelemetryError>() {
        match error {
            TelemetryError::Filter { .. }
            | TelemetryError::NoLevel { .. }
            | TelemetryError::NoTarget { .. } => {
                "give --log a level, or levels by room, as in `warn,tailtape::capture=debug`"
            }
            TelemetryError::Thread(_) => "the system is out of processes: raise `ulimit -u`",
            TelemetryError::Start(_) | TelemetryError::Change(_) => {
                "report it, with the log: tailtape did not expect this"
            }
        }
    } else if let Some(error) = cause.downcast_ref::<TimeError>() {
        error.remedy()
    } else if cause.is::<Refused>() {
        "make a new auth key that permits the recorder's tag, and give it with --auth-key-file or TAILTAPE_AUTH_KEY"
    } else if let Some(error) = cause.downcast_ref::<PtyError>() {
        on_terminal(error)
    } else if cause.is::<ConnectError>() {
        "run again with `--log tailtape=debug` to see each attempt"
    } else {
        return None;
    };
    Some(advice.to_owned())
}

fn on_state(error: &KeyStoreError) -> &'static str {
    match error {
        KeyStoreError::InUse { .. } => {
            "end the other process, or give another directory with --state (for dev: --data)"
        }
        KeyStoreError::File { .. } => {
            "make the directory writable, or give another one with --state (for dev: --data)"
        }
        KeyStoreError::OtherControl { .. } => {
            "give the control_url that the state was made for, or another directory with --state"
        }
        KeyStoreError::Damaged { .. } => "restore the file from a backup of the state",
        KeyStoreError::Name { .. } | KeyStoreError::Full { .. } => {
            "remove from the state what is no key of tailtape"
        }
    }
}

fn on_socket(error: &StatusError) -> &'static str {
    match error {
        StatusError::NotServed { .. } => {
            "start it with `tailtape serve`, or name its --socket or --state; the socket is for its user and root alone"
        }
        StatusError::InUse { .. } => "end the other recorder, or give --socket another path",
        StatusError::NoSocket { .. } | StatusError::System { .. } => {
            "give --socket a path in a directory that this user may write"
        }
        StatusError::Unanswered { .. } | StatusError::Http { .. } => "look at the recorder's log",
        StatusError::Answer { .. } => "use the program that the recorder was started from",
    }
}

/// None where the cause below says more.
fn on_tailnet(error: &TailnetError) -> Option<&'static str> {
    match error {
        TailnetError::Bind { .. }
        | TailnetError::BindUnspecified { .. }
        | TailnetError::BindTwice { .. } => {
            Some("give another udp_port, or an udp_address that this host has")
        }
        TailnetError::NotJoined { .. } | TailnetError::Listen { .. } => {
            Some("run again with `--log info,netstack=debug` to see what control says")
        }
        TailnetError::Keys(_) => None,
    }
}

fn on_terminal(error: &PtyError) -> &'static str {
    match error {
        PtyError::Spawn { .. } => {
            "check the command after `--`: it is run as it stands, without a shell"
        }
        PtyError::NoCommand => "give a command after `--`",
        PtyError::Open(_) | PtyError::Wait { .. } => {
            "see whether this user may open a pseudo-terminal, and has processes left (ulimit -u)"
        }
    }
}

/// Whether nothing went wrong but that nobody reads stdout any more: a pager that was quit has what it wanted, and hears nothing.
pub(crate) fn is_unread(error: &anyhow::Error) -> bool {
    let mut chain = error.chain();
    chain.any(|cause| matches!(cause.downcast_ref(), Some(OutputError::Closed)))
}

/// As the table of docs/operations.md has them.
pub(crate) fn exit_code(error: &anyhow::Error) -> u8 {
    let any = |is_one: fn(&(dyn Error + 'static)) -> bool| error.chain().any(is_one);
    if any(|cause| matches!(cause.downcast_ref(), Some(StoreError::Fenced { .. }))) {
        return FENCED;
    }
    if is_unread(error) {
        return UNREAD;
    }
    let is_mistake = any(|cause| {
        let is_filter = matches!(
            cause.downcast_ref(),
            Some(
                TelemetryError::Filter { .. }
                    | TelemetryError::NoLevel { .. }
                    | TelemetryError::NoTarget { .. }
            )
        );
        is_filter || cause.is::<ConfigError>() || cause.is::<TimeError>() || cause.is::<Refused>()
    });
    match is_mistake {
        true => MISTAKE,
        false => FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use tailtape::telemetry::{self, LogFormat};

    use super::*;

    #[test]
    fn a_fenced_recorder_exits_75_whatever_stands_around_the_cause() {
        let number = tailtape::ids::JournalNumber(7);
        let error = anyhow::Error::from(StoreError::Fenced { number }).context("cannot close");
        assert_eq!(exit_code(&error), 75);
        assert_eq!(exit_code(&anyhow::Error::from(StoreError::Closed)), FAILURE);
    }

    #[test]
    fn a_bad_filter_is_a_mistake_of_usage() {
        let error = telemetry::start("tailtape=loud", LogFormat::Json).unwrap_err();
        let error = anyhow::Error::from(error);
        assert_eq!(exit_code(&error), MISTAKE);
        assert!(on(&error).unwrap().contains("--log"));
    }
}
