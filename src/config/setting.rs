//! The one table of settings: name, kind, default, range, meaning.
//!
//! Invariant: a setting exists exactly if it has a row here; its flag is the name with `-`, its variable `TAILTAPE_` and the name in capitals,
//! its file key the name. Read by the rest of the room, by `cli` for flags, and by the test of docs/operations.md.

use std::time::Duration;

use super::unit;

/// One row.
#[derive(Debug)]
pub struct Setting {
    /// The key in the file.
    pub name: &'static str,
    /// Where it stands in help and documents.
    pub group: Group,
    /// What its values are, and their range.
    pub kind: Kind,
    /// As one would write it; empty when there is none, or when it follows from something else.
    pub default: &'static str,
    /// What it means, in one line.
    pub doc: &'static str,
    /// Names that tsrecorder has for it: flags, without dashes.
    pub alias_flags: &'static [&'static str],
    /// Names that tsrecorder, or tailscaled, has for its variable; the first that is set counts.
    pub alias_variables: &'static [&'static str],
}

/// Parts of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Joining, keeping, telling.
    Service,
    /// The journal and the store.
    Store,
    /// What one node, and all together, may take.
    Limits,
    /// Who may upload, and what.
    Uploads,
}

/// What values a setting has. Ranges include both ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Several texts: a list in the file, with commas elsewhere.
    List,
    /// A number.
    Count {
        /// Least.
        min: u64,
        /// Most.
        max: u64,
    },
    /// A size such as `64MiB`.
    Bytes {
        /// Least.
        min: u64,
        /// Most.
        max: u64,
    },
    /// A time such as `25s`.
    Duration {
        /// Least.
        min: Duration,
        /// Most.
        max: Duration,
    },
}

/// A value of the kind of its setting, within its range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Of [`Kind::Text`] and [`Kind::Choice`].
    Text(String),
    /// Of [`Kind::List`].
    List(Vec<String>),
    /// Of [`Kind::Count`].
    Count(u64),
    /// Of [`Kind::Bytes`].
    Bytes(u64),
    /// Of [`Kind::Duration`].
    Duration(Duration),
}

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;
const TIB: u64 = 1024 * GIB;

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// As many connections as ingest takes in all, which is no setting. A recording needs one, so more of them could not be there.
const CONNECTIONS_MAX: u64 = 12_000;
/// Each node has a share of 64 MiB, the largest event that is taken: with less in all, an event that is permitted could never be recorded.
const EVENTS_IN_FLIGHT_BYTES_MIN: u64 = 64 * MIB;

/// Every setting, in the order in which they are shown.
pub const SETTINGS: &[Setting] = &[
    Setting {
        alias_flags: &["dst"],
        alias_variables: &["TSRECORDER_DST"],
        ..row(
            "store",
            Group::Service,
            Kind::Text,
            "",
            "Where recordings are kept: file:///absolute/path, a directory, or memory:// (gone with the process)",
        )
    },
    Setting {
        alias_variables: &["TSRECORDER_LOGIN_SERVER"],
        ..row(
            "control_url",
            Group::Service,
            Kind::Text,
            "",
            "The control server of the tailnet, http://host[:port]",
        )
    },
    Setting {
        alias_variables: &["TS_AUTHKEY_FILE"],
        ..row(
            "auth_key_file",
            Group::Service,
            Kind::Text,
            "",
            "A file with the auth key, needed at the first start only",
        )
    },
    Setting {
        alias_variables: &["TSRECORDER_HOSTNAME"],
        ..row(
            "hostname",
            Group::Service,
            Kind::Text,
            "recorder",
            "The name to have in the tailnet; control may add a number",
        )
    },
    Setting {
        alias_flags: &["statedir"],
        alias_variables: &["TS_STATE_DIR", "TS_STATE"],
        ..row(
            "state",
            Group::Service,
            Kind::Text,
            "",
            "The directory of keys; default /var/lib/tailtape for root, else $XDG_STATE_HOME/tailtape",
        )
    },
    row(
        "socket",
        Group::Service,
        Kind::Text,
        "",
        "The Unix socket of status, health and drain; default tailtape.sock in the state",
    ),
    row(
        "log",
        Group::Service,
        Kind::Text,
        "info",
        "What to log to stderr: a level, or levels by room, as in warn,tailtape::ingest=debug",
    ),
    row(
        "udp_address",
        Group::Service,
        Kind::List,
        "",
        "This host's addresses for the tunnel, one per family; default those that lead to control",
    ),
    row(
        "udp_port",
        Group::Service,
        Kind::Count {
            min: 0,
            max: 65_535,
        },
        "0",
        "The tunnel's UDP port; 0 takes a free one",
    ),
    row(
        "drain_limit",
        Group::Service,
        Kind::Duration {
            min: Duration::ZERO,
            max: DAY,
        },
        "20s",
        "How long running uploads may go on once the recorder drains",
    ),
    row(
        "commit_interval",
        Group::Store,
        Kind::Duration {
            min: MILLISECOND,
            max: Duration::from_secs(10),
        },
        "1s",
        "Least time between the starts of two journal commits",
    ),
    row(
        "commit_bytes",
        Group::Store,
        Kind::Bytes {
            min: 64 * KIB,
            max: 16 * MIB,
        },
        "4MiB",
        "As many waiting bytes start a commit before its time",
    ),
    row(
        "buffer_bytes_max",
        Group::Store,
        Kind::Bytes { min: MIB, max: TIB },
        "64MiB",
        "Bytes of all uploads that may wait for a commit",
    ),
    row(
        "upload_buffer_bytes_max",
        Group::Store,
        Kind::Bytes {
            min: 64 * KIB,
            max: GIB,
        },
        "1MiB",
        "Bytes of one upload that may wait for a commit; then its flow control closes",
    ),
    row(
        "store_stall_limit",
        Group::Store,
        Kind::Duration {
            min: SECOND,
            max: HOUR,
        },
        "25s",
        "How long the store may go without a commit before uploads are ended and refused",
    ),
    row(
        "journal_bytes_max",
        Group::Store,
        Kind::Bytes {
            min: 64 * MIB,
            max: 1024 * TIB,
        },
        "16GiB",
        "Journal bytes above which new uploads are refused",
    ),
    row(
        "disk_free_min",
        Group::Store,
        Kind::Bytes {
            min: 0,
            max: 1024 * TIB,
        },
        "1GiB",
        "Free bytes on the disk of a file:// store below which new uploads are refused",
    ),
    row(
        "recordings_max",
        Group::Limits,
        Kind::Count {
            min: 1,
            max: CONNECTIONS_MAX,
        },
        "10000",
        "Recordings open at once",
    ),
    row(
        "recordings_per_node_max",
        Group::Limits,
        Kind::Count {
            min: 1,
            max: CONNECTIONS_MAX,
        },
        "1000",
        "Recordings of one node open at once",
    ),
    row(
        "recording_bytes_max",
        Group::Limits,
        Kind::Bytes {
            min: MIB,
            max: 32 * GIB,
        },
        "16GiB",
        "Bytes at which a recording is ended",
    ),
    row(
        "recording_duration_max",
        Group::Limits,
        Kind::Duration {
            min: MINUTE,
            max: Duration::from_secs(366 * 24 * 3600),
        },
        "30d",
        "Time after which a recording is ended",
    ),
    row(
        "connections_per_peer_max",
        Group::Limits,
        Kind::Count {
            min: 1,
            max: CONNECTIONS_MAX,
        },
        "2048",
        "TCP connections of one peer",
    ),
    row(
        "request_head_bytes_max",
        Group::Limits,
        Kind::Bytes {
            min: 8 * KIB,
            max: MIB,
        },
        "16KiB",
        "Bytes of a request head",
    ),
    row(
        "request_head_timeout",
        Group::Limits,
        Kind::Duration {
            min: SECOND,
            max: MINUTE,
        },
        "10s",
        "Time that a peer may take for a request head",
    ),
    row(
        "upload",
        Group::Uploads,
        Kind::Choice(&["any", "tags", "capability"]),
        "any",
        "Who may upload: any peer that the packet filter lets in, nodes with upload_tags, or nodes with the capability",
    ),
    row(
        "upload_tags",
        Group::Uploads,
        Kind::List,
        "",
        "Tags whose nodes may upload when upload = \"tags\"",
    ),
    row(
        "events",
        Group::Uploads,
        Kind::Choice(&["on", "off"]),
        "on",
        "Whether Kubernetes API events are taken",
    ),
    row(
        "events_in_flight_bytes_max",
        Group::Uploads,
        Kind::Bytes {
            min: EVENTS_IN_FLIGHT_BYTES_MIN,
            max: 64 * GIB,
        },
        "128MiB",
        "Bytes of all events that may be in memory at once",
    ),
];

const fn row(
    name: &'static str,
    group: Group,
    kind: Kind,
    default: &'static str,
    doc: &'static str,
) -> Setting {
    Setting {
        name,
        group,
        kind,
        default,
        doc,
        alias_flags: &[],
        alias_variables: &[],
    }
}

impl Setting {
    /// The row of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        SETTINGS.iter().find(|setting| setting.name == name)
    }

    /// Its flag, without the dashes.
    #[must_use]
    pub fn flag(&self) -> String {
        self.name.replace('_', "-")
    }

    /// Its environment variable.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("TAILTAPE_{}", self.name.to_uppercase())
    }

    /// What stands for a value in help.
    #[must_use]
    pub fn placeholder(&self) -> &'static str {
        match (self.kind, self.name) {
            (Kind::Text, "store" | "control_url") => "URL",
            (Kind::Text, "auth_key_file") => "FILE",
            (Kind::Text, "state") => "DIR",
            (Kind::Text, "socket") => "PATH",
            (Kind::Text, _) => "TEXT",
            (Kind::Choice(_), _) => "WORD",
            (Kind::List, _) => "LIST",
            (Kind::Count { .. }, _) => "NUMBER",
            (Kind::Bytes { .. }, _) => "SIZE",
            (Kind::Duration { .. }, _) => "TIME",
        }
    }
}

impl Group {
    /// All, in the order of the table.
    pub const ALL: [Self; 4] = [Self::Service, Self::Store, Self::Limits, Self::Uploads];

    /// The heading of the part.
    #[must_use]
    pub const fn heading(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::Store => "Store and journal",
            Self::Limits => "Limits",
            Self::Uploads => "Uploads",
        }
    }
}

impl Kind {
    /// What may be given, for people.
    #[must_use]
    pub fn range(self) -> String {
        match self {
            Self::Text => "text".into(),
            Self::List => "list of texts".into(),
            Self::Choice(words) => words.join(", "),
            Self::Count { min, max } => format!("{min} to {max}"),
            Self::Bytes { min, max } => {
                format!("{} to {}", unit::show_bytes(min), unit::show_bytes(max))
            }
            Self::Duration { min, max } => {
                format!(
                    "{} to {}",
                    unit::show_duration(min),
                    unit::show_duration(max)
                )
            }
        }
    }

    /// Reads a value as it stands in a flag or variable; the error says what would be right.
    ///
    /// # Errors
    /// What may be given instead.
    pub fn parse(self, text: &str) -> Result<Value, String> {
        let value = match self {
            Self::Text | Self::Choice(_) => Some(Value::Text(text.to_owned())),
            Self::List => {
                let items = text.split(',').map(str::trim);
                let items = items.filter(|item| !item.is_empty()).map(str::to_owned);
                Some(Value::List(items.collect()))
            }
            Self::Count { .. } => text.parse().ok().map(Value::Count),
            Self::Bytes { .. } => unit::parse_bytes(text).map(Value::Bytes),
            Self::Duration { .. } => unit::parse_duration(text).map(Value::Duration),
        };
        value
            .filter(|value| self.holds(value))
            .ok_or_else(|| self.remedy())
    }

    /// Whether `value` is of this kind and within its range.
    #[must_use]
    pub fn holds(self, value: &Value) -> bool {
        match (self, value) {
            (Self::Text, Value::Text(_)) | (Self::List, Value::List(_)) => true,
            (Self::Choice(words), Value::Text(word)) => words.contains(&word.as_str()),
            (Self::Count { min, max }, Value::Count(given))
            | (Self::Bytes { min, max }, Value::Bytes(given)) => (min..=max).contains(given),
            (Self::Duration { min, max }, Value::Duration(given)) => (min..=max).contains(given),
            _ => false,
        }
    }

    /// What to do about a value that cannot be used.
    #[must_use]
    pub fn remedy(self) -> String {
        match self {
            Self::Text => "give a text".into(),
            Self::List => "give a list of texts".into(),
            Self::Choice(_) => format!("give one of: {}", self.range()),
            Self::Count { .. } => format!("give a number, {}", self.range()),
            Self::Bytes { .. } => format!("give a size such as 64MiB, {}", self.range()),
            Self::Duration { .. } => format!("give a time such as 25s or 10m, {}", self.range()),
        }
    }
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::List(items) => f.write_str(&items.join(",")),
            Self::Count(count) => write!(f, "{count}"),
            Self::Bytes(bytes) => f.write_str(&unit::show_bytes(*bytes)),
            Self::Duration(time) => f.write_str(&unit::show_duration(*time)),
        }
    }
}
