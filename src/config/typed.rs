//! The checked settings, and what each part of the recorder gets of them.
//!
//! Invariant: a [`Config`] is complete and its values agree with one another; what it holds of the auth key shows nowhere. Made by
//! [`load`](super::load), read by `serve`.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use netstack::io::control_conn::permits_plain_http;
use netstack::tcpip::TcpConfig;

use super::layers::{Effective, Source};
use super::{ConfigError, Environment, Secret, Value, environment};
use crate::access::{CAPABILITY, Rule};
use crate::ids::LogKey;
use crate::ingest::upload::UploadConfig;
use crate::ingest::{IngestConfig, UploadPolicy};
use crate::store::{StoreConfig, StoreUrl};
use crate::tell::{is_like_a_key, without_secrets};

/// Variables that may hold the auth key itself, strongest first.
const AUTH_KEY_VARIABLES: [&str; 3] = ["TAILTAPE_AUTH_KEY", "TS_AUTHKEY", "TS_AUTH_KEY"];
/// What is wrong with a control server at a public address.
const PUBLIC_CONTROL: &str = "plain HTTP is for control servers on loopback or a private network: at a public address anyone on the way could pose as control. \
     HTTPS is not in this version";
/// What is wrong with one directory for both.
const KEYS_IN_STORE: &str =
    "give the keys a directory of their own: who copies or shares the store would have them too";
/// What belongs into the file of the auth key.
const AUTH_KEY_REMEDY: &str = "write the auth key into it, on one line, and nothing else";
/// The longest auth key file; a key has some sixty bytes.
const AUTH_KEY_BYTES_MAX: u64 = 4096;
/// Shown in place of a key.
const HIDDEN: &str = "…";
/// The longest label of a name (RFC 1035).
const HOSTNAME_BYTES_MAX: usize = 63;
/// The longest path of a Unix socket on Linux, which ends in a zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// All settings of `tailtape serve`. Sizes in bytes.
#[derive(Debug, Clone)]
pub struct Config {
    /// See [`SETTINGS`](super::SETTINGS) for the meaning of each.
    pub store: StoreUrl,
    /// `http://host[:port]`.
    pub control_url: String,
    /// The key itself; none when the node has joined before.
    pub auth_key: Option<Secret>,
    /// The wanted name.
    pub hostname: String,
    /// An absolute path.
    pub state: PathBuf,
    /// An absolute path.
    pub socket: PathBuf,
    /// A filter that was found readable.
    pub log: String,
    /// At most one address per family; none: those that lead to control.
    pub udp_address: Vec<IpAddr>,
    /// 0: any.
    pub udp_port: u16,
    /// See the table.
    pub drain_limit: Duration,
    /// See the table.
    pub commit_interval: Duration,
    /// See the table.
    pub commit_bytes: usize,
    /// See the table.
    pub buffer_bytes_max: usize,
    /// At most `buffer_bytes_max`.
    pub upload_buffer_bytes_max: usize,
    /// See the table.
    pub store_stall_limit: Duration,
    /// See the table.
    pub journal_bytes_max: u64,
    /// See the table.
    pub disk_free_min: u64,
    /// See the table.
    pub recordings_max: usize,
    /// See the table.
    pub recordings_per_node_max: usize,
    /// See the table.
    pub recording_bytes_max: u64,
    /// See the table.
    pub recording_duration_max: Duration,
    /// See the table.
    pub connections_per_peer_max: usize,
    /// See the table.
    pub request_head_bytes_max: usize,
    /// See the table.
    pub request_head_timeout: Duration,
    /// Who may upload.
    pub upload: UploadPolicy,
    /// Whether `/v2/event` is served.
    pub events: bool,
    /// See the table.
    pub events_in_flight_bytes_max: usize,
    /// Who may look, by configuration.
    pub access: Vec<Rule>,
    /// Each value and where it came from, for `--check` and for telling what a reload cannot change.
    pub effective: Effective,
    /// Where the auth key came from.
    pub auth_key_source: Option<Source>,
    /// What was asked for in vain, to be logged.
    pub notes: Vec<String>,
}

impl Config {
    pub(super) fn new(
        mut effective: Effective,
        access: Vec<Rule>,
        environment: &Environment,
    ) -> Result<Self, ConfigError> {
        fit(&mut effective)?;
        let values = Values(&effective);
        if environment.text("TSRECORDER_BUCKET").is_some() {
            return Err(values.wrong(
                "store",
                "S3 buckets are not in this version: unset TSRECORDER_BUCKET and give a directory",
            ));
        }
        let ui = environment
            .text("TSRECORDER_UI")
            .is_some_and(|text| text != "false");
        let note = "TSRECORDER_UI: there is no console in this version".to_owned();
        let store = store(&values)?;
        let control_url = control_url(&values)?;
        let state = match values.optional_text("state") {
            Some(text) if text.starts_with("kube:") => {
                return Err(values.wrong(
                    "state",
                    "Kubernetes Secrets are not in this version: give a directory",
                ));
            }
            Some(text) => absolute("state", text, &values)?,
            None => environment::state_directory(environment)?,
        };
        if matches!(&store, StoreUrl::Local(root) if is_same(root, &state)) {
            return Err(values.wrong("state", KEYS_IN_STORE));
        }
        let socket = match values.optional_text("socket") {
            Some(text) => absolute("socket", text, &values)?,
            None => state.join(environment::SOCKET_NAME),
        };
        if socket.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            return Err(ConfigError::value(
                "socket",
                &socket.to_string_lossy(),
                values.source("socket"),
                &format!("give --socket a path of at most {SOCKET_PATH_BYTES_MAX} bytes"),
            ));
        }
        let log = values.text("log");
        if crate::telemetry::check(&log).is_err() {
            return Err(values.wrong("log", "give a level (error, warn, info, debug, trace), or levels by room, as in warn,tailtape::ingest=debug"));
        }
        let (auth_key, auth_key_source) = auth_key(&values, environment)?;
        let config = Self {
            store,
            control_url,
            auth_key,
            hostname: hostname(&values)?,
            state,
            socket,
            log,
            udp_address: udp_address(&values)?,
            udp_port: u16::try_from(values.count("udp_port")).unwrap_or_default(),
            drain_limit: values.duration("drain_limit"),
            commit_interval: values.duration("commit_interval"),
            commit_bytes: values.size("commit_bytes"),
            buffer_bytes_max: values.size("buffer_bytes_max"),
            upload_buffer_bytes_max: values.size("upload_buffer_bytes_max"),
            store_stall_limit: values.duration("store_stall_limit"),
            journal_bytes_max: values.count("journal_bytes_max"),
            disk_free_min: values.count("disk_free_min"),
            recordings_max: values.size("recordings_max"),
            recordings_per_node_max: values.size("recordings_per_node_max"),
            recording_bytes_max: values.count("recording_bytes_max"),
            recording_duration_max: values.duration("recording_duration_max"),
            connections_per_peer_max: values.size("connections_per_peer_max"),
            request_head_bytes_max: values.size("request_head_bytes_max"),
            request_head_timeout: values.duration("request_head_timeout"),
            upload: upload(&values)?,
            events: values.text("events") == "on",
            events_in_flight_bytes_max: values.size("events_in_flight_bytes_max"),
            access,
            auth_key_source,
            notes: ui.then_some(note).into_iter().collect(),
            effective: Effective::new(),
        };
        if config.commit_interval >= config.store_stall_limit {
            return Err(values.wrong("commit_interval", "give less than store_stall_limit"));
        }
        Ok(Self {
            effective,
            ..config
        })
    }

    /// The error of a place that the settings chose and the system refuses: theirs if another place would help, else `error` alone.
    #[must_use]
    pub fn refused_place<E>(
        &self,
        name: &'static str,
        place: &Path,
        said: ErrorKind,
        error: E,
    ) -> anyhow::Error
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let is_misplaced = matches!(
            said,
            ErrorKind::PermissionDenied
                | ErrorKind::NotFound
                | ErrorKind::NotADirectory
                | ErrorKind::ReadOnlyFilesystem
                | ErrorKind::Unsupported
        );
        if !is_misplaced {
            return error.into();
        }
        ConfigError::Place {
            name,
            value: without_secrets(&place.to_string_lossy()),
            from: Values(&self.effective).source(name),
            source: Box::new(error),
        }
        .into()
    }

    /// Whether the addresses that control's name has can be control's: the first is dialled first, and none may be public.
    ///
    /// # Errors
    /// [`ConfigError::Value`].
    pub fn check_control(&self, address: IpAddr) -> Result<(), ConfigError> {
        match permits_plain_http(address) {
            true => Ok(()),
            false => Err(Values(&self.effective).wrong("control_url", PUBLIC_CONTROL)),
        }
    }

    /// The store's part.
    #[must_use]
    pub fn store_config(&self, log_key: LogKey) -> StoreConfig {
        StoreConfig {
            commit_interval: self.commit_interval,
            commit_bytes: self.commit_bytes,
            buffer_bytes_max: self.buffer_bytes_max,
            upload_buffer_bytes_max: self.upload_buffer_bytes_max,
            store_stall_limit: self.store_stall_limit,
            journal_bytes_max: self.journal_bytes_max,
            disk_free_bytes_min: self.disk_free_min,
            events_in_flight_bytes_max: self.events_in_flight_bytes_max,
            ..StoreConfig::new(self.store.clone(), log_key)
        }
    }

    /// The part of ingest.
    #[must_use]
    pub fn ingest_config(&self) -> IngestConfig {
        IngestConfig {
            header_read_timeout: self.request_head_timeout,
            request_head_bytes_max: u32::try_from(self.request_head_bytes_max).unwrap_or(u32::MAX),
            drain_limit: self.drain_limit,
            upload: UploadConfig {
                recording_bytes_max: Some(self.recording_bytes_max),
                recording_duration_max: Some(self.recording_duration_max),
                ..UploadConfig::default()
            },
            policy: self.upload.clone(),
            recordings_max: count(self.recordings_max),
            recordings_per_node_max: count(self.recordings_per_node_max),
            connections_per_peer_max: count(self.connections_per_peer_max),
            events: self.events,
            events_in_flight_bytes_max: count(self.events_in_flight_bytes_max),
            ..IngestConfig::default()
        }
    }

    /// The tunnel's part.
    #[must_use]
    pub fn tcp_config(&self) -> TcpConfig {
        TcpConfig {
            connections_per_peer_max: self.connections_per_peer_max,
            ..TcpConfig::default()
        }
    }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// A setting, and the one that it has a part of: more of it than of the whole could not be reached. A whole stands before its own parts.
const PARTS: [(&str, &str); 4] = [
    ("buffer_bytes_max", "journal_bytes_max"),
    ("upload_buffer_bytes_max", "buffer_bytes_max"),
    ("commit_bytes", "buffer_bytes_max"),
    ("recordings_per_node_max", "recordings_max"),
];

/// A part that is larger than its whole is a mistake if somebody asked for it; a default gives way.
fn fit(effective: &mut Effective) -> Result<(), ConfigError> {
    for (part, whole) in PARTS {
        let values = Values(effective);
        if values.count(part) <= values.count(whole) {
            continue;
        }
        if values.source(part) != Source::Default {
            return Err(values.wrong(part, &format!("give at most {whole}")));
        }
        let fitting = effective.get(whole).map(|given| given.value.clone());
        if let Some((given, value)) = effective.get_mut(part).zip(fitting) {
            given.value = value;
        }
    }
    Ok(())
}

/// Typed looks at merged values. A setting with a default always has a value of its kind: `layers` saw to it, and a test asks for each.
struct Values<'a>(&'a Effective);

impl Values<'_> {
    fn optional_text(&self, name: &str) -> Option<&str> {
        match self.0.get(name).map(|given| &given.value) {
            Some(Value::Text(text)) => Some(text),
            Some(Value::List(_) | Value::Count(_) | Value::Bytes(_) | Value::Duration(_))
            | None => None,
        }
    }

    fn required_text(&self, name: &'static str) -> Result<&str, ConfigError> {
        let text = self.optional_text(name).filter(|text| !text.is_empty());
        text.ok_or(ConfigError::Missing {
            name,
            in_file: true,
        })
    }

    fn text(&self, name: &str) -> String {
        self.optional_text(name).unwrap_or_default().to_owned()
    }

    fn list(&self, name: &str) -> Vec<String> {
        match self.0.get(name).map(|given| &given.value) {
            Some(Value::List(items)) => items.clone(),
            Some(Value::Text(_) | Value::Count(_) | Value::Bytes(_) | Value::Duration(_))
            | None => Vec::new(),
        }
    }

    fn count(&self, name: &str) -> u64 {
        match self.0.get(name).map(|given| &given.value) {
            Some(Value::Count(number) | Value::Bytes(number)) => *number,
            Some(Value::Text(_) | Value::List(_) | Value::Duration(_)) | None => 0,
        }
    }

    fn size(&self, name: &str) -> usize {
        usize::try_from(self.count(name)).unwrap_or(usize::MAX)
    }

    fn duration(&self, name: &str) -> Duration {
        match self.0.get(name).map(|given| &given.value) {
            Some(Value::Duration(time)) => *time,
            Some(Value::Text(_) | Value::List(_) | Value::Count(_) | Value::Bytes(_)) | None => {
                Duration::ZERO
            }
        }
    }

    fn source(&self, name: &str) -> Source {
        let given = self.0.get(name);
        given.map_or(Source::Default, |given| given.source.clone())
    }

    /// Where a relative path begins: beside the file that it stands in, else in the working directory.
    fn base(&self, name: &str) -> &Path {
        match self.0.get(name).map(|given| &given.source) {
            Some(Source::File(file)) => file.parent().unwrap_or(Path::new("")),
            Some(Source::Flag(_) | Source::Variable(_) | Source::Default) | None => Path::new(""),
        }
    }

    fn wrong(&self, name: &str, remedy: &str) -> ConfigError {
        let given = self.0.get(name);
        let value = given.map(|given| given.value.to_string());
        ConfigError::value(name, &value.unwrap_or_default(), self.source(name), remedy)
    }
}

fn store(values: &Values<'_>) -> Result<StoreUrl, ConfigError> {
    let text = values.required_text("store")?;
    environment::read_store(text, values.base("store"))
        .map_err(|remedy| values.wrong("store", remedy))
}

fn control_url(values: &Values<'_>) -> Result<String, ConfigError> {
    let text = values.required_text("control_url")?;
    let wrong = |remedy| Err(values.wrong("control_url", remedy));
    let Ok(url) = url::Url::parse(text) else {
        return wrong("give http://host[:port]");
    };
    match url.scheme() {
        "http" => {}
        "https" => {
            return wrong(
                "https is not in this version: give the http:// address of a control server such as Headscale",
            );
        }
        _ => return wrong("give http://host[:port]"),
    }
    let bare = matches!(url.path(), "" | "/") && url.query().is_none() && url.fragment().is_none();
    let nobody = url.username().is_empty() && url.password().is_none();
    if !bare || !nobody || url.host_str().is_none_or(str::is_empty) {
        return wrong("give http://host[:port] and nothing more");
    }
    let literal = match url.host() {
        Some(url::Host::Ipv4(address)) => Some(IpAddr::from(address)),
        Some(url::Host::Ipv6(address)) => Some(address.into()),
        Some(url::Host::Domain(_)) | None => None,
    };
    if literal.is_some_and(|address| !permits_plain_http(address)) {
        return wrong(PUBLIC_CONTROL);
    }
    Ok(text.trim_end_matches('/').to_owned())
}

fn hostname(values: &Values<'_>) -> Result<String, ConfigError> {
    let text = values.required_text("hostname")?;
    let fits = text.len() <= HOSTNAME_BYTES_MAX
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
        // Everyone in the tailnet would see it.
        && !is_like_a_key(text);
    if fits {
        return Ok(text.to_owned());
    }
    Err(values.wrong(
        "hostname",
        "give 1 to 63 letters, digits and dashes, with no dash at an end",
    ))
}

fn udp_address(values: &Values<'_>) -> Result<Vec<IpAddr>, ConfigError> {
    let wrong = |remedy| values.wrong("udp_address", remedy);
    let list = values.list("udp_address");
    let addresses: Result<Vec<IpAddr>, _> = list.iter().map(|text| text.parse()).collect();
    let addresses = addresses.map_err(|_| wrong("give IP addresses of this host"))?;
    if addresses.iter().any(IpAddr::is_unspecified) {
        return Err(wrong(
            "name an address of this host: peers are told of it, so 0.0.0.0 and [::] do not serve",
        ));
    }
    let is_many = |address: &IpAddr| match address {
        IpAddr::V4(address) => address.is_multicast() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_multicast(),
    };
    if addresses.iter().any(is_many) {
        return Err(wrong(
            "name an address of this host alone: this one is of many hosts",
        ));
    }
    let of_v4 = addresses.iter().filter(|address| address.is_ipv4()).count();
    if of_v4 > 1 || addresses.len().saturating_sub(of_v4) > 1 {
        return Err(wrong("give at most one address per family"));
    }
    Ok(addresses)
}

fn upload(values: &Values<'_>) -> Result<UploadPolicy, ConfigError> {
    let tags = values.list("upload_tags");
    if tags.iter().any(|tag| !tag.starts_with("tag:")) {
        return Err(values.wrong("upload_tags", "a tag begins with tag:"));
    }
    match values.optional_text("upload") {
        Some("tags") if tags.is_empty() => Err(values.wrong(
            "upload_tags",
            "name at least one tag, for upload is \"tags\"",
        )),
        Some("tags") => Ok(UploadPolicy::Tags(tags)),
        Some(_) | None if !tags.is_empty() => {
            Err(values.wrong("upload_tags", "set upload = \"tags\", or remove them"))
        }
        Some("capability") => Ok(UploadPolicy::Capability(CAPABILITY.into())),
        Some(_) | None => Ok(UploadPolicy::Any),
    }
}

/// The key of a flag's file, else of a variable, else of the file that the other layers name.
fn auth_key(
    values: &Values<'_>,
    environment: &Environment,
) -> Result<(Option<Secret>, Option<Source>), ConfigError> {
    let source = values.source("auth_key_file");
    let text = values.optional_text("auth_key_file");
    if text.is_some_and(is_like_a_key) {
        return Err(values.wrong("auth_key_file", ""));
    }
    let file = text.map(|text| values.base("auth_key_file").join(text));
    let file = file.as_deref();
    let variables = AUTH_KEY_VARIABLES.iter();
    let variable = variables
        .filter_map(|name| Some((*name, environment.text(name)?)))
        .next();
    match (file, variable) {
        (None, None) => Ok((None, None)),
        (Some(path), None) => match read_secret(path, values) {
            // It is needed at the first start only, and then often removed; a node that has no key yet says so when it joins.
            Err(ConfigError::File {
                source: missing, ..
            }) if missing.kind() == ErrorKind::NotFound => Ok((None, None)),
            secret => Ok((Some(secret?), Some(source))),
        },
        (Some(path), Some(_)) if matches!(source, Source::Flag(_)) => {
            Ok((Some(read_secret(path, values)?), Some(source)))
        }
        (_, Some((name, text))) => {
            let source = Source::Variable(name.to_owned());
            let secret = Secret::new(text);
            if !is_one_word(&secret) {
                // Its value is not shown: it is a key, if a bent one.
                return Err(ConfigError::value(
                    name,
                    HIDDEN,
                    source,
                    "give the auth key, and nothing else",
                ));
            }
            Ok((Some(secret), Some(source)))
        }
    }
}

/// Whether it can be a key: keys are letters, digits and signs.
fn is_one_word(secret: &Secret) -> bool {
    let text = secret.expose();
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn read_secret(path: &Path, values: &Values<'_>) -> Result<Secret, ConfigError> {
    let failed = |source| ConfigError::File {
        path: path.to_owned(),
        source,
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut bytes = zeroize::Zeroizing::new(Vec::new());
    let mut limited = std::io::Read::take(file, AUTH_KEY_BYTES_MAX);
    let read = std::io::Read::read_to_end(&mut limited, &mut bytes).map_err(failed)?;
    let is_whole = u64::try_from(read).is_ok_and(|read| read < AUTH_KEY_BYTES_MAX);
    let secret = std::str::from_utf8(&bytes).ok().map(Secret::new);
    let secret = secret.filter(|secret| is_whole && is_one_word(secret));
    secret.ok_or_else(|| values.wrong("auth_key_file", AUTH_KEY_REMEDY))
}

/// Whether both name one directory, also by another way to it where they are there.
fn is_same(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    real(one) == real(other)
}

fn absolute(name: &str, text: &str, values: &Values<'_>) -> Result<PathBuf, ConfigError> {
    std::path::absolute(values.base(name).join(text)).map_err(|_| values.wrong(name, "give a path"))
}
