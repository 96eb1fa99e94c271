//! The environment, read once, and what follows from it.
//!
//! Invariant: nothing else in the program reads a variable (clap reads NO_COLOR alone). Called by `main` and [`load`](super::load).

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::{ConfigError, SETTINGS, Setting, Source, layers};
use crate::store::StoreUrl;
use crate::tell::{is_like_a_key, printable, without_secrets};

/// How the variables of this program begin.
pub(super) const PREFIX: &str = "TAILTAPE_";

/// How many misspelt variables are named.
const NOTES_MAX: usize = 16;

/// Name of the socket in the state directory.
pub(super) const SOCKET_NAME: &str = "tailtape.sock";

/// A store that begins so is a URL with a slip in it, and no directory of that name.
const SCHEMES: [&str; 10] = [
    "file", "memory", "s3", "s3a", "gs", "gcs", "az", "azure", "http", "https",
];

/// What is logged by commands that are not `serve`, unless it is said.
const LOG_DEFAULT: &str = "warn";

/// Variables besides those of the settings.
const OTHER_VARIABLES: [&str; 8] = [
    "TAILTAPE_CONFIG",
    "TAILTAPE_AUTH_KEY",
    "TS_AUTHKEY",
    "TS_AUTH_KEY",
    "TSRECORDER_BUCKET",
    "TSRECORDER_UI",
    "XDG_STATE_HOME",
    "HOME",
];

/// The variables that matter here. Some are secrets, so `Debug` shows names only.
#[derive(Clone, Default)]
pub struct Environment {
    variables: BTreeMap<String, String>,
    /// What is wrong with the others that begin as ours do.
    notes: Vec<String>,
    root: bool,
}

impl Environment {
    /// That of the process. Variables that are not text, or empty, count as not set.
    #[must_use]
    pub fn of_process() -> Self {
        let variables = std::env::vars_os();
        let variables = variables.map(|(name, value)| (name.to_string_lossy().into_owned(), value));
        Self::of_all(variables, rustix::process::geteuid().is_root())
    }

    fn of_all(all: impl Iterator<Item = (String, OsString)>, root: bool) -> Self {
        let names = SETTINGS.iter().flat_map(|setting| {
            let aliases = setting
                .alias_variables
                .iter()
                .map(|name| (*name).to_owned());
            aliases.chain([setting.variable()])
        });
        let known: BTreeSet<String> = names.chain(OTHER_VARIABLES.map(str::to_owned)).collect();
        let mut variables = BTreeMap::new();
        let mut notes = BTreeMap::new();
        for (name, value) in all {
            match (known.contains(&name), value.into_string()) {
                (true, Ok(value)) => drop(variables.insert(name, value)),
                (true, Err(_)) => drop(notes.insert(
                    name.clone(),
                    format!("{name} in the environment is not text, and is ignored"),
                )),
                (false, value) if is_ours(&name, value.as_deref().unwrap_or_default()) => {
                    let note = unknown(&name, &known);
                    drop(notes.insert(name, note));
                }
                (false, _) => {}
            }
        }
        let more = notes.len().saturating_sub(NOTES_MAX);
        let more = (more > 0).then(|| {
            format!("{more} more variables in the environment are no settings, and are ignored")
        });
        let notes = notes.into_values().take(NOTES_MAX).chain(more);
        Self {
            variables,
            notes: notes.collect(),
            root,
        }
    }

    /// Which variables were given in vain, and what is to be done about each. Their values, which may be secrets, are not in it.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// One with these variables, for an ordinary user.
    #[must_use]
    pub fn of(variables: &[(&str, &str)]) -> Self {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).into());
        Self::of_all(variables.iter().map(owned), false)
    }

    /// The variable, if it is set and not empty.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        let value = self.variables.get(name).map(String::as_str);
        value.filter(|value| !value.is_empty())
    }

    /// The variable of a setting that is set, its own before its aliases, and its text.
    #[must_use]
    pub fn of_setting(&self, setting: &Setting) -> Option<(String, &str)> {
        let aliases = setting
            .alias_variables
            .iter()
            .map(|name| (*name).to_owned());
        let mut names = std::iter::once(setting.variable()).chain(aliases);
        names.find_map(|name| {
            let text = self.text(&name)?;
            Some((name, text))
        })
    }
}

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.variables.keys()).finish()
    }
}

/// Whether a variable that is no setting was probably meant as one. Kubernetes gives each container some of the name of each Service.
fn is_ours(name: &str, value: &str) -> bool {
    let Some(rest) = name.strip_prefix(PREFIX) else {
        return false;
    };
    let rest = format!("_{rest}");
    let is_url = ["tcp://", "udp://", "sctp://"]
        .iter()
        .any(|scheme| value.starts_with(scheme));
    let numbered = rest.split("_PORT_").skip(1);
    let of_service = rest.contains("_SERVICE_HOST")
        || rest.contains("_SERVICE_PORT")
        || (rest.ends_with("_PORT") && is_url)
        || numbered
            .into_iter()
            .any(|behind| behind.starts_with(|sign: char| sign.is_ascii_digit()));
    !of_service
}

fn unknown(name: &str, known: &BTreeSet<String>) -> String {
    let ours = known.iter().map(String::as_str);
    let meant = layers::nearest_of(name, ours.filter(|known| known.starts_with(PREFIX)));
    let name = printable(&without_secrets(name));
    let remedy = match meant {
        Some(meant) => format!("perhaps {meant} is meant"),
        None => "docs/operations.md lists them all".to_owned(),
    };
    format!("{name} in the environment is no setting, and is ignored: {remedy}")
}

/// The log filter of a command without settings of its own: the flag, TAILTAPE_LOG, or `warn`.
#[must_use]
pub fn log_filter(flag: Option<&str>, environment: &Environment) -> String {
    let given = flag.or_else(|| environment.text("TAILTAPE_LOG"));
    given.unwrap_or(LOG_DEFAULT).to_owned()
}

/// Where the state is unless it is said: `/var/lib/tailtape` for root, else below the user's state directory.
///
/// # Errors
/// [`ConfigError::NoStateDirectory`].
pub fn state_directory(environment: &Environment) -> Result<PathBuf, ConfigError> {
    if environment.root {
        return Ok(PathBuf::from("/var/lib/tailtape"));
    }
    let of_xdg = environment.text("XDG_STATE_HOME").map(PathBuf::from);
    let of_home = || {
        let home = environment.text("HOME").map(PathBuf::from)?;
        Some(home.join(".local/state"))
    };
    let states = of_xdg.filter(|path| path.is_absolute()).or_else(of_home);
    let states = states.ok_or(ConfigError::NoStateDirectory)?;
    Ok(states.join("tailtape"))
}

/// The store that a command reads: as given, else by its variable.
///
/// # Errors
/// [`ConfigError::Missing`], [`ConfigError::Value`].
pub fn store_url(flag: Option<&str>, environment: &Environment) -> Result<StoreUrl, ConfigError> {
    let flag = flag.map(|text| (Source::Flag("store".to_owned()), text));
    let of_variable = || {
        let (name, text) = environment.of_setting(Setting::named("store")?)?;
        Some((Source::Variable(name), text))
    };
    let given = flag.or_else(of_variable);
    let (from, text) = given.ok_or(ConfigError::Missing {
        name: "store",
        in_file: false,
    })?;
    let url = read_store(text, Path::new("")).and_then(|url| match url {
        StoreUrl::Memory => Err(
            "give the URL or directory of a store that outlives its recorder: nobody else can read what one has in memory",
        ),
        url @ StoreUrl::Local(_) => Ok(url),
    });
    url.map_err(|remedy| ConfigError::value("store", text, from, remedy))
}

/// A store is a URL, or a directory as tsrecorder takes it; a relative one stands in `base`. The error is the remedy.
pub(super) fn read_store(text: &str, base: &Path) -> Result<StoreUrl, &'static str> {
    const REMEDY: &str = "give file:///absolute/path, a directory, or memory://; object stores are not in this version";
    let scheme = text.split_once(':').map(|(scheme, _)| scheme);
    if text.contains("://") || scheme.is_some_and(|scheme| SCHEMES.contains(&scheme)) {
        return text.parse().map_err(|_| REMEDY);
    }
    if text.is_empty() || is_like_a_key(text) {
        return Err(REMEDY);
    }
    let path = std::path::absolute(base.join(text)).map_err(|_| REMEDY)?;
    Ok(StoreUrl::Local(path))
}

/// The socket of a recorder: as given, else that of the given state, else as the recorder itself would choose.
///
/// # Errors
/// [`ConfigError::NoStateDirectory`].
pub fn socket_path(
    socket: Option<&Path>,
    state: Option<&Path>,
    environment: &Environment,
) -> Result<PathBuf, ConfigError> {
    if let Some(socket) = socket {
        return Ok(socket.to_owned());
    }
    if let Some(state) = state {
        return Ok(state.join(SOCKET_NAME));
    }
    if let Some(socket) = environment.text("TAILTAPE_SOCKET") {
        return Ok(PathBuf::from(socket));
    }
    let setting = Setting::named("state").map(|setting| environment.of_setting(setting));
    let state = match setting.flatten() {
        Some((_, state)) => PathBuf::from(state),
        None => state_directory(environment)?,
    };
    Ok(state.join(SOCKET_NAME))
}
