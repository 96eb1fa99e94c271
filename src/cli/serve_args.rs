//! The arguments of `tailtape serve`: a flag for each row of the table of settings.
//!
//! Invariant: flags carry text only; [`config`](crate::config) alone reads it. A secret has no flag. `cli` flattens it, `main` hands it to `config`.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use crate::config::{Flags, Group, SETTINGS, Setting};

const CONFIG: &str = "config";
const CHECK: &str = "check";
const JSON: &str = "json";
const UI: &str = "ui";

/// `tailtape serve`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServeArgs {
    /// The settings that were given, and the file.
    pub flags: Flags,
    /// Show the settings, prove the store, look at what else a start needs, and end.
    pub check: bool,
    /// With `check`: as JSON.
    pub json: bool,
    /// tsrecorder's switch, which has no effect yet.
    pub ui: bool,
}

impl Args for ServeArgs {
    fn augment_args(command: Command) -> Command {
        let switch = |name, help| {
            Arg::new(name)
                .long(name)
                .action(ArgAction::SetTrue)
                .help(help)
        };
        let command = command
            .arg(
                Arg::new(CONFIG)
                    .long(CONFIG)
                    .value_name("FILE")
                    .value_parser(clap::value_parser!(std::path::PathBuf))
                    .help("The settings file, in TOML [env: TAILTAPE_CONFIG]"),
            )
            .arg(switch(
                CHECK,
                "Show the settings in force, without secrets; prove the store; look at what else a start needs; and end",
            ))
            .arg(switch(JSON, "With --check: as one JSON object").requires(CHECK))
            .arg(
                switch(
                    UI,
                    "Accepted from tsrecorder's users; there is no console yet",
                )
                .hide(true),
            );
        SETTINGS
            .iter()
            .filter(|setting| !is_global(setting))
            .map(flag)
            .fold(command, Command::arg)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// `--log` belongs to every command.
fn is_global(setting: &Setting) -> bool {
    setting.name == "log"
}

fn flag(setting: &'static Setting) -> Arg {
    let help = match setting.default {
        "" => setting.doc.to_owned(),
        default => format!("{} [default: {default}]", setting.doc),
    };
    Arg::new(setting.name)
        .long(setting.flag())
        .aliases(setting.alias_flags.iter().copied())
        .value_name(setting.placeholder())
        .help_heading(setting.group.heading())
        .help(help)
        // A size may look like a flag to nobody, but `-1` is a value that deserves its own error.
        .allow_hyphen_values(true)
        .value_parser(value)
        .hide_short_help(setting.group != Group::Service)
}

/// A flag whose value was forgotten would swallow the next one.
fn value(text: &str) -> Result<String, &'static str> {
    match text.starts_with("--") {
        true => Err(
            "this is a flag, and no value was given before it; a path that begins so is written ./--name",
        ),
        false => Ok(text.to_owned()),
    }
}

impl FromArgMatches for ServeArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let values = SETTINGS.iter().filter(|setting| !is_global(setting));
        let values = values.filter_map(|setting| {
            let text = matches.get_one::<String>(setting.name)?;
            Some((setting.name, text.clone()))
        });
        Ok(Self {
            flags: Flags {
                values: values.collect(),
                file: matches.get_one(CONFIG).cloned(),
            },
            check: matches.get_flag(CHECK),
            json: matches.get_flag(JSON),
            ui: matches.get_flag(UI),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
