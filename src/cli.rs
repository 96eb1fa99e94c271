//! The command line: what can be asked for, and nothing of how it is done.
//!
//! The invariant: every command and flag here does something today. `main` reads it; the completions are made from it.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// The open session recorder for tailnets: durable before acknowledged.
#[derive(Debug, Parser)]
#[command(name = "tailtape", version, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// What to log to stderr: a level, or levels by room, as in `warn,tailtape::capture=debug`
    #[arg(
        long,
        global = true,
        env = "TAILTAPE_LOG",
        value_name = "FILTER",
        default_value = "warn"
    )]
    pub log: String,

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
        Cli::try_parse_from(command_line).map(|cli| match cli.command {
            Command::Dev(args) => args,
            Command::Completions { .. } => panic!("not dev"),
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
            assert!(
                script.contains("dev") && script.contains("once"),
                "{shell:?}"
            );
        }
    }
}
