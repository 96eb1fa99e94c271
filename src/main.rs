//! The command: parses arguments, runs one command, and says how it ended.
//!
//! The invariant: exit code 0 is success, 1 failure, 2 a mistake in usage or configuration, 75 a recorder that was fenced; an error is told as what failed, to
//! what, why, and what to do about it, on stderr. Nothing calls it but the operating system.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use netstack::io::TailnetError;
use netstack::io::keystore::KeyStoreError;
use tailtape::capture::{ConnectError, PtyError};
use tailtape::catalog::{self, Query, TimeError};
use tailtape::cli::{Cli, Command, LsArgs, ServeArgs, SocketArgs};
use tailtape::config::{self, ConfigError, Environment};
use tailtape::status::{Client, StatusError};
use tailtape::store::StoreError;
use tailtape::telemetry::{LogFormat, TelemetryError};
use tailtape::{admin, archive, dev, serve, shutdown, telemetry};

/// How long tasks may take to end once the command has; a read of stdin never does.
const RUNTIME_END_MAX: Duration = Duration::from_secs(1);

const FAILURE: u8 = 1;
const MISTAKE: u8 = 2;
/// Another recorder took our epoch over (EX_TEMPFAIL): a service manager may start us again.
const FENCED: u8 = 75;

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Recordings hold what people saw: what this process makes is its user's alone, in a directory of whatever mode.
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
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
    let environment = Environment::of_process();
    let color = cli.permits_color();
    match &cli.command {
        Command::Serve(args) => serve(cli, args, &environment),
        Command::Dev(args) => {
            start_log(cli, &environment)?;
            in_runtime(async {
                let shutdown = shutdown::listen().context("cannot listen for signals")?;
                dev::run(args, color, &shutdown).await
            })
        }
        Command::Ls(args) => {
            start_log(cli, &environment)?;
            let url = config::store_url(args.store.as_deref(), &environment)?;
            let query = query(args)?;
            in_runtime(archive::ls(&url, &query, args.json))
        }
        Command::Cat(args) => {
            start_log(cli, &environment)?;
            let url = config::store_url(args.store.as_deref(), &environment)?;
            in_runtime(archive::cat(&url, args))
        }
        Command::Status { json, at } => {
            start_log(cli, &environment)?;
            let client = client(at, &environment)?;
            in_runtime(admin::status(&client, *json))
        }
        Command::Health { at } => {
            start_log(cli, &environment)?;
            let client = client(at, &environment)?;
            in_runtime(admin::health(&client))
        }
        Command::Drain { wait, at } => {
            start_log(cli, &environment)?;
            let client = client(at, &environment)?;
            in_runtime(admin::drain(&client, *wait))
        }
        Command::Completions { shell } => {
            let written = std::io::stdout().write_all(&shell.completions());
            written.context("cannot write the completions to stdout")?;
            Ok(true)
        }
    }
}

/// Settings first: what they say of the log holds from its first line.
fn serve(cli: &Cli, args: &ServeArgs, environment: &Environment) -> anyhow::Result<bool> {
    let mut flags = args.flags.clone();
    if let Some(log) = &cli.log {
        flags.values.insert("log", log.clone());
    }
    let mut config = config::load(&flags, environment)?;
    if args.ui {
        let note = "--ui: there is no console in this version";
        config.notes.push(note.to_owned());
    }
    let log = telemetry::start(&config.log, log_format(cli))?;
    if args.check {
        return in_runtime(serve::check(&config, args.json, std::io::stdout()));
    }
    in_runtime(async {
        let shutdown = shutdown::listen().context("cannot listen for signals")?;
        let start = serve::Start {
            flags: &flags,
            environment,
            config,
            log: &log,
        };
        serve::run(start, &shutdown).await
    })
}

fn start_log(cli: &Cli, environment: &Environment) -> anyhow::Result<()> {
    let filter = config::log_filter(cli.log.as_deref(), environment);
    telemetry::start(&filter, log_format(cli))?;
    Ok(())
}

fn log_format(cli: &Cli) -> LogFormat {
    match std::io::stderr().is_terminal() {
        true => LogFormat::Human {
            color: cli.permits_color(),
        },
        false => LogFormat::Json,
    }
}

fn query(args: &LsArgs) -> Result<Query, TimeError> {
    let now = jiff::Timestamp::now();
    let time = |text: &Option<String>| {
        let text = text.as_deref();
        text.map(|text| catalog::parse_time(text, now)).transpose()
    };
    Ok(Query {
        node: args.node.clone(),
        user: args.user.clone(),
        since: time(&args.since)?,
        until: time(&args.until)?,
        limit: args.limit,
    })
}

fn client(at: &SocketArgs, environment: &Environment) -> anyhow::Result<Client> {
    let path = config::socket_path(at.socket.as_deref(), at.state.as_deref(), environment)?;
    Ok(Client::new(&path))
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
        told.push_str(&advice);
        told.push('\n');
    }
    told
}

/// What to do about the first cause that we know a remedy for.
fn advice(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(advice_on)
}

fn advice_on(cause: &(dyn std::error::Error + 'static)) -> Option<String> {
    if let Some(error) = cause.downcast_ref::<ConfigError>() {
        return Some(error.remedy());
    }
    let advice = if cause.is::<TelemetryError>() {
        "give --log a level, or levels by room, as in `warn,tailtape::capture=debug`"
    } else if let Some(error) = cause.downcast_ref::<KeyStoreError>() {
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
            KeyStoreError::Name { .. } | KeyStoreError::Full { .. } => return None,
        }
    } else if let Some(error) = cause.downcast_ref::<StoreError>() {
        advice_on_store(error)?
    } else if let Some(error) = cause.downcast_ref::<StatusError>() {
        match error {
            StatusError::NotServed { .. } => {
                "start it with `tailtape serve`, or name its --socket or --state; the socket is for its user and root alone"
            }
            StatusError::InUse { .. } => "end the other recorder, or give --socket another path",
            StatusError::NoSocket { .. } | StatusError::System { .. } => {
                "give --socket a path in a directory that this user may write"
            }
            StatusError::Unanswered { .. } | StatusError::Http { .. } => {
                "look at the recorder's log"
            }
            StatusError::Answer { .. } => "use the program that the recorder was started from",
        }
    } else if let Some(TailnetError::Bind { .. }) = cause.downcast_ref() {
        "give another udp_port, or an udp_address that this host has"
    } else if cause.is::<serve::Refused>() {
        "make a new auth key that permits the recorder's tag, and give it with --auth-key-file or TAILTAPE_AUTH_KEY"
    } else if let Some(PtyError::Spawn { .. }) = cause.downcast_ref() {
        "check the command after `--`: it is run as it stands, without a shell"
    } else if cause.is::<ConnectError>() {
        "run again with `--log tailtape=debug` to see each attempt"
    } else {
        return None;
    };
    Some(advice.to_owned())
}

fn advice_on_store(error: &StoreError) -> Option<&'static str> {
    let advice = if let StoreError::UnfitFileSystem { .. } | StoreError::Object { .. } = error {
        "look at its room and its permissions, or give another directory with --store (for dev: --data)"
    } else if let StoreError::NoStore { .. } = error {
        "give --store the URL or directory that the recorder has"
    } else if let StoreError::NotFound { .. } = error {
        "look for its id with `tailtape ls`; a recording is listed once it has ended"
    } else if let StoreError::Fenced { .. } = error {
        "another recorder took over; start again to record under a new epoch"
    } else {
        return None;
    };
    Some(advice)
}

fn exit_code(error: &anyhow::Error) -> u8 {
    let fenced = |cause: &(dyn std::error::Error + 'static)| {
        matches!(cause.downcast_ref(), Some(StoreError::Fenced { .. }))
    };
    if error.chain().any(fenced) {
        return FENCED;
    }
    let mistake = |cause: &&(dyn std::error::Error + 'static)| {
        cause.is::<ConfigError>() || cause.is::<TimeError>()
    };
    if error.chain().any(|cause| mistake(&cause)) {
        return MISTAKE;
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
