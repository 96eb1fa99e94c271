//! The command line: what can be asked for, and nothing of how it is done.
//!
//! The invariant: every command and flag here does something today. `main` reads it; the completions are made from it.

mod serve_args;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
pub use serve_args::ServeArgs;

use crate::ids::RecordingId;

/// The default of `serve` stands in the table of settings, that of all others in `config`.
const LOG_HELP: &str = "What to log to stderr: a level, or levels by room, as in `warn,tailtape::capture=debug` [env: TAILTAPE_LOG] \
     [default: info for serve, warn otherwise]";

/// The open session recorder for tailnets: durable before acknowledged.
#[derive(Debug, Parser)]
#[command(name = "tailtape", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// What to log to stderr: a level, or levels by room, as in `warn,tailtape::capture=debug`
    #[arg(long, global = true, value_name = "FILTER", help = LOG_HELP)]
    pub log: Option<String>,

    /// No colours, as the variable NO_COLOR asks for when it is not empty
    #[arg(
        long,
        global = true,
        env = "NO_COLOR",
        num_args = 0,
        default_missing_value = "1",
        hide_env = true
    )]
    no_color: Option<String>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Record: join the tailnet, take the sessions that nodes send, keep them in the store
    ///
    /// Settings come from flags, from the environment (TAILTAPE_STORE for --store, and so on) and from the file of --config, in this order; the auth key
    /// comes from --auth-key-file or from TAILTAPE_AUTH_KEY. SIGTERM drains and ends, a second one ends at once; SIGHUP reads access rules and
    /// the log level again. `-h` shows the settings that a start needs, `--help` all.
    Serve(ServeArgs),
    /// List the recordings of a store, newest first
    ///
    /// Reads the store itself: no recorder needs to run. A recording is listed once it has ended.
    ///
    /// NODE and OWNER are what the tailnet says of the node that uploaded, proven by its keys; OWNER is a login name, or the tags of a tagged node. CLAIMED
    /// USER is whose session it is as that node says, and nothing proves it. With --json the claims stand below `claimed`; `source_node` is what the
    /// tailnet says of the node that they name.
    Ls(LsArgs),
    /// Write a recording as it was sent, an asciicast; every byte is proven against what was sealed
    Cat(CatArgs),
    /// Show what the recorder on this machine does
    Status {
        /// As one JSON object
        #[arg(long)]
        json: bool,
        /// Which recorder
        #[command(flatten)]
        at: SocketArgs,
    },
    /// Ask whether sessions can be recorded now: exit code 0 if so, else 1 and the reasons
    Health {
        /// Which recorder
        #[command(flatten)]
        at: SocketArgs,
    },
    /// Make the recorder refuse new uploads; running ones go on for at most its drain_limit
    Drain {
        /// Return only when no upload is left
        #[arg(long)]
        wait: bool,
        /// Which recorder
        #[command(flatten)]
        at: SocketArgs,
    },
    /// Show it all in one process: a tailnet on loopback, a recorder, and a session that is recorded
    Dev(DevArgs),
    /// Print the completions of this command line for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// `tailtape dev`.
#[derive(Args, Clone, Debug)]
pub struct DevArgs {
    /// Where recordings are kept
    #[arg(long, value_name = "DIR", default_value = "./tailtape-data")]
    pub data: PathBuf,

    /// Record one session and exit: 0 only if the stored bytes are the bytes sent. Without it, each line typed is a command
    /// line that is recorded too
    #[arg(long)]
    pub once: bool,

    /// End each session with one JSON object on stdout, instead of a summary for people
    #[arg(long)]
    pub json: bool,

    /// The command to record, after `--`; a short shell session if there is none
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// `tailtape ls`.
#[derive(Args, Clone, Debug)]
pub struct LsArgs {
    /// The store: file:///absolute/path or a directory [env: TAILTAPE_STORE]
    #[arg(long, value_name = "URL", alias = "dst")]
    pub store: Option<String>,

    /// One JSON object per line
    #[arg(long)]
    pub json: bool,

    /// Of this node, by StableID, name, or first part of the name: the one that uploaded (proven), or the one that the session is claimed to come from
    #[arg(long, value_name = "NODE")]
    pub node: Option<String>,

    /// Of this user, a login name: who owns the uploading node (OWNER, proven), or whose session it is claimed to be (CLAIMED USER)
    #[arg(long, value_name = "LOGIN")]
    pub user: Option<String>,

    /// Received at this time or later: 2026-11-20T10:15:00Z, 2026-11-20 (UTC), or how long ago, as in 12h or 7d
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,

    /// Received before this time
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,

    /// At most so many, the newest; 1 or more
    #[arg(long, value_name = "NUMBER", default_value_t = 1000, value_parser = limit)]
    pub limit: usize,
}

/// `tailtape cat`.
#[derive(Args, Clone, Debug)]
pub struct CatArgs {
    /// The recording's id, as `ls` shows it
    #[arg(value_name = "ID", value_parser = recording_id)]
    pub id: RecordingId,

    /// The store: file:///absolute/path or a directory [env: TAILTAPE_STORE]
    #[arg(long, value_name = "URL", alias = "dst")]
    pub store: Option<String>,

    /// Write into this file, which appears when all was proven, and not to stdout; - is stdout
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Which recorder a command speaks to.
#[derive(Args, Clone, Debug, Default)]
pub struct SocketArgs {
    /// The recorder's Unix socket [env: TAILTAPE_SOCKET] [default: tailtape.sock in its state]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,

    /// The recorder's state directory [env: TAILTAPE_STATE]
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
}

/// Shells that completions are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Shell {
    /// bash
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
}

fn limit(text: &str) -> Result<usize, &'static str> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or("give how many recordings to list at most: a number, 1 or more")
}

fn recording_id(text: &str) -> Result<RecordingId, &'static str> {
    text.parse().map_err(
        |_| "this is no recording's id: it has 16 letters and digits, as `tailtape ls` shows it",
    )
}

impl Cli {
    /// Whether colours are permitted, as far as the user has a say.
    #[must_use]
    pub fn permits_color(&self) -> bool {
        self.no_color.as_deref().is_none_or(str::is_empty)
    }
}

impl Shell {
    /// The completion script of this command line.
    #[must_use]
    pub fn completions(self) -> Vec<u8> {
        let shell = match self {
            Self::Bash => clap_complete::Shell::Bash,
            Self::Zsh => clap_complete::Shell::Zsh,
            Self::Fish => clap_complete::Shell::Fish,
        };
        let mut command = <Cli as clap::CommandFactory>::command();
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut command, "tailtape", &mut script);
        script
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn dev(arguments: &[&str]) -> Result<DevArgs, clap::Error> {
        let command_line = ["tailtape", "dev"].iter().chain(arguments);
        Cli::try_parse_from(command_line).map(|cli| {
            let Command::Dev(args) = cli.command else {
                panic!("not dev");
            };
            args
        })
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn dev_needs_no_argument_at_all() {
        let args = dev(&[]).unwrap();
        assert_eq!(args.data, PathBuf::from("./tailtape-data"));
        assert!(!args.once && !args.json && args.command.is_empty());
    }

    #[test]
    fn everything_after_the_two_dashes_is_the_command() {
        let args = dev(&["--once", "--json", "--", "ls", "--json", "--", "-l"]).unwrap();
        assert!(args.once && args.json);
        assert_eq!(
            args.command,
            ["ls", "--json", "--", "-l"].map(OsString::from)
        );
        assert!(
            dev(&["ls"]).is_err(),
            "a command without the two dashes is a mistake"
        );
    }

    fn serve(arguments: &[&str]) -> ServeArgs {
        let command_line = ["tailtape", "serve"].iter().chain(arguments);
        let Command::Serve(args) = Cli::try_parse_from(command_line).unwrap().command else {
            panic!("not serve");
        };
        args
    }

    #[test]
    fn each_setting_has_a_flag_and_those_of_tsrecorder_are_taken_too() {
        for setting in crate::config::SETTINGS {
            if setting.name == "log" {
                continue;
            }
            let own = format!("--{}", setting.flag());
            let aliases = setting.alias_flags.iter().map(|flag| format!("--{flag}"));
            for flag in aliases.chain([own]) {
                let args = serve(&[&flag, "-1"]);
                assert_eq!(args.flags.values, [(setting.name, "-1".to_owned())].into());
            }
        }
        assert!(serve(&["--ui"]).ui);
        let args = serve(&["--config", "a.toml", "--check", "--json"]);
        assert_eq!(args.flags.file, Some(PathBuf::from("a.toml")));
        assert!(args.check && args.json);
        let json_alone = Cli::try_parse_from(["tailtape", "serve", "--json"]);
        assert!(json_alone.is_err());
    }

    #[test]
    fn a_flag_without_its_value_does_not_swallow_the_next_one() {
        for given in [
            ["--store", "--check"],
            ["--udp-port", "--json"],
            ["--config", "--check"],
        ] {
            let command_line = ["tailtape", "serve"].iter().chain(&given);
            let error = Cli::try_parse_from(command_line).unwrap_err().to_string();
            assert!(
                error.contains(given[0]) && error.contains("value"),
                "{error}"
            );
        }
    }

    #[test]
    fn help_can_be_asked_for_as_people_do() {
        for asked in [
            &["help"][..],
            &["help", "serve"],
            &["--help"],
            &["serve", "-h"],
        ] {
            let command_line = ["tailtape"].iter().chain(asked);
            let help = Cli::try_parse_from(command_line).unwrap_err();
            assert_eq!(
                help.kind(),
                clap::error::ErrorKind::DisplayHelp,
                "{asked:?}"
            );
        }
    }

    #[test]
    fn what_is_no_id_is_told_where_ids_are_shown() {
        let error = Cli::try_parse_from(["tailtape", "cat", "xyz"]).unwrap_err();
        assert!(error.to_string().contains("tailtape ls"), "{error}");
        assert!(Cli::try_parse_from(["tailtape", "cat", "aaaqeayeaudaocaj"]).is_ok());
    }

    #[test]
    fn a_list_of_no_recordings_is_a_mistake_that_says_so() {
        let limit = |text| Cli::try_parse_from(["tailtape", "ls", "--limit", text]);
        for bad in ["0", "many", "1.5"] {
            let error = limit(bad).unwrap_err().to_string();
            assert!(error.contains("a number, 1 or more"), "{error}");
        }
        assert!(limit("1").is_ok() && limit("1000000").is_ok());
    }

    #[test]
    fn no_flag_takes_a_secret() {
        for flag in ["--auth-key", "--authkey", "--access-key", "--secret-key"] {
            assert!(Cli::try_parse_from(["tailtape", "serve", flag, "x"]).is_err());
        }
    }

    #[test]
    fn no_color_permits_none_and_an_empty_one_says_nothing() {
        let permits = |arguments: &[&str]| {
            let cli = Cli::try_parse_from(["tailtape", "dev"].iter().chain(arguments));
            cli.unwrap().permits_color()
        };
        assert!(!permits(&["--no-color"]));
        let mut cli = Cli::try_parse_from(["tailtape", "dev"]).unwrap();
        for (value, permitted) in [(None, true), (Some(""), true), (Some("0"), false)] {
            cli.no_color = value.map(str::to_owned);
            assert_eq!(cli.permits_color(), permitted, "{value:?}");
        }
    }

    #[test]
    fn each_shell_gets_completions_that_know_the_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = String::from_utf8(shell.completions()).unwrap();
            let words = ["dev", "once", "serve", "control-url", "drain", "wait"];
            for word in words {
                assert!(script.contains(word), "{word} for {shell:?}");
            }
        }
    }
}
