//! The command: parses arguments, runs one command, and says how it ended.
//!
//! The invariant: exit code 0 is success, 1 failure, 2 a mistake in usage or configuration, 75 a recorder that was fenced; an error is told as what failed, to
//! what, why, and what to do about it, on stderr. Nothing calls it but the operating system.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use netstack::io::keystore::KeyStoreError;
use tailtape::capture::{ConnectError, PtyError};
use tailtape::cli::{Cli, Command};
use tailtape::store::StoreError;
use tailtape::telemetry::{LogFormat, TelemetryError};
use tailtape::{dev, shutdown, telemetry};

/// How long tasks may take to end once the command has; a read of stdin never does.
const RUNTIME_END_MAX: Duration = Duration::from_secs(1);

const FAILURE: u8 = 1;
const MISTAKE: u8 = 2;
/// Another recorder took our epoch over (EX_TEMPFAIL): a service manager may start us again.
const FENCED: u8 = 75;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(FAILURE),
        Err(error) => {
            let told = std::io::stderr().write_all(told(&error).as_bytes());
            // Without a stderr to tell it to, the exit code says all there is to say.
            drop(told);
            ExitCode::from(exit_code(&error))
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<bool> {
    let on_terminal = std::io::stderr().is_terminal();
    let color = cli.permits_color();
    let format = match on_terminal {
        true => LogFormat::Human { color },
        false => LogFormat::Json,
    };
    telemetry::start(&cli.log, format)?;
    match &cli.command {
        Command::Dev(args) => in_runtime(async {
            let shutdown = shutdown::listen().context("cannot listen for signals")?;
            dev::run(args, color, &shutdown).await
        }),
        Command::Completions { shell } => {
            let written = std::io::stdout().write_all(&shell.completions());
            written.context("cannot write the completions to stdout")?;
            Ok(true)
        }
    }
}

fn in_runtime(command: impl Future<Output = anyhow::Result<bool>>) -> anyhow::Result<bool> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime's threads")?;
    let end = runtime.block_on(command);
    runtime.shutdown_timeout(RUNTIME_END_MAX);
    end
}

/// The error and its causes, a line each, and what to do if that is known. Libraries that repeat their source's text are told once.
fn told(error: &anyhow::Error) -> String {
    let mut causes: Vec<String> = error.chain().map(ToString::to_string).collect();
    causes.dedup();
    let mut told = format!("tailtape: {}\n", causes.join("\n  because: "));
    if let Some(advice) = advice(error) {
        told.push_str("  to do: ");
        told.push_str(advice);
        told.push('\n');
    }
    told
}

fn advice(error: &anyhow::Error) -> Option<&'static str> {
    if error.is::<TelemetryError>() {
        return Some("give --log a level, or levels by room, as in `warn,tailtape::capture=debug`");
    }
    if let Some(KeyStoreError::InUse { .. }) = error.downcast_ref() {
        return Some("end the other process, or give another directory with --data");
    }
    if let Some(KeyStoreError::File { .. }) = error.downcast_ref() {
        return Some("make the directory writable, or give another one with --data");
    }
    if let Some(StoreError::UnfitFileSystem { .. } | StoreError::Object { .. }) =
        error.downcast_ref()
    {
        return Some("look at its room and its permissions, or give another directory with --data");
    }
    if let Some(PtyError::Spawn { .. }) = error.downcast_ref() {
        return Some("check the command after `--`: it is run as it stands, without a shell");
    }
    if let Some(ConnectError { .. }) = error.downcast_ref() {
        return Some("run again with `--log tailtape=debug` to see each attempt");
    }
    None
}

fn exit_code(error: &anyhow::Error) -> u8 {
    let fenced = |cause: &(dyn std::error::Error + 'static)| {
        matches!(cause.downcast_ref(), Some(StoreError::Fenced { .. }))
    };
    if error.chain().any(fenced) {
        return FENCED;
    }
    match error.downcast_ref() {
        Some(TelemetryError::Filter { .. }) => MISTAKE,
        Some(TelemetryError::Start(_) | TelemetryError::Change(_)) | None => FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_told_with_its_causes_and_what_to_do() {
        let error = PtyError::Spawn {
            program: "nope".into(),
            source: std::io::ErrorKind::NotFound.into(),
        };
        let error = anyhow::Error::from(error).context("cannot record the session");
        assert_eq!(
            told(&error),
            "tailtape: cannot record the session\n  because: cannot run nope\n  because: entity not found\n  \
             to do: check the command after `--`: it is run as it stands, without a shell\n"
        );
        assert_eq!(exit_code(&error), FAILURE);
    }

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
        let error = error.into();
        assert_eq!(exit_code(&error), MISTAKE);
        assert_eq!(told(&error).matches("because").count(), 1);
    }
}
