//! The client of the control plane: registers, follows the map stream, publishes what changed about
//! us, and backs off. A pure state machine; the connection under it belongs to `io::control_conn`.
//!
//! Invariants: at most one request of each kind is in flight; a new node key is handed out
//! ([`ControlEvent::NodeKey`]) before the first request that uses it as ours; the long poll and the
//! lite updates carry the same Hostinfo, disco key and endpoints. Called by `node` and its driver.
//!
//! Order of calls, after each input and whenever [`Control::poll_timeout`] has passed:
//! [`Control::poll_event`] until `None`, then [`Control::poll_request`] until `None`. While a
//! `NodeKey` event waits to be taken no request is given out, so a driver that stores the key as
//! soon as it takes it can never lose a key that control already knows.
//!
//! Sources: control.md §3, §4; tailscale.com `control/controlclient/direct.go`, `auto.go`.

mod backoff;
mod frames;
mod register;
mod stream;

pub use self::frames::MAP_FRAME_BYTES_MAX;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use zeroize::Zeroizing;

use self::register::Registration;
use self::stream::{Stream, Update};
use crate::key::{DiscoPublic, NodePrivate};
use crate::tailcfg::{Hostinfo, MapRequest, MapResponse, NetInfo};

/// Silence on the map stream, or before its head, after which it counts as dead. Servers send a
/// keep-alive every 50 to 60 s; upstream's watchdog has the same value.
pub const STREAM_SILENCE_MAX: Duration = Duration::from_secs(120);
/// How long a register request or a lite update may take. Upstream leaves it to the connection.
pub const REQUEST_DURATION_MAX: Duration = Duration::from_secs(60);
/// Most of a server's error text that is kept for people.
const REASON_CHARS_MAX: usize = 200;
/// Endpoints that we publish at most; upstream hosts rarely have ten.
const ENDPOINTS_MAX: usize = 64;

/// A secret that admits a node to a tailnet. Wiped on drop; `Debug` prints nothing of it.
#[derive(Clone)]
pub struct AuthKey(Zeroizing<String>);

impl AuthKey {
    /// Takes the key as a person gives it: white space around it, and the suffix `--TL…` that only
    /// concerns tailnet lock, are not part of it.
    pub fn new(text: &str) -> Self {
        let text = text.trim();
        let text = text.split_once("--TL").map_or(text, |(key, _)| key);
        Self(Zeroizing::new(text.to_owned()))
    }
}

impl std::fmt::Debug for AuthKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AuthKey(..)")
    }
}

/// How we present ourselves to control.
#[derive(Debug, Clone)]
pub struct ControlConfig {
    /// The name that we want; becomes the MagicDNS label.
    pub hostname: String,
    /// Used only when there is no stored node key, or control no longer accepts it.
    pub auth_key: Option<AuthKey>,
    /// Ask to be removed soon after going offline.
    pub ephemeral: bool,
    /// Short product id (`Hostinfo.App`).
    pub app: String,
    /// Our version, for people (`Hostinfo.IPNVersion`).
    pub version_text: String,
    /// What we claim to speak, normally [`crate::tailcfg::CAPABILITY_VERSION`].
    pub capability_version: u16,
}

/// Names one request, so that its answer finds the way back. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(u64);

/// A `POST` that is to be sent to control, with a JSON body.
pub enum ControlRequest {
    /// To `/machine/register`. Answer with [`Control::handle_response`] and the whole body.
    Register {
        /// For the answer.
        id: RequestId,
        /// JSON; may hold the auth key: never log it.
        body: Vec<u8>,
    },
    /// To `/machine/map`: the long poll. Answer with [`Control::handle_response`] as soon as the
    /// head is there (the body, when the status is not 200), then [`Control::handle_map_bytes`],
    /// and [`Control::handle_failed`] at its end.
    MapStream {
        /// For the answer.
        id: RequestId,
        /// JSON.
        body: Vec<u8>,
    },
    /// To `/machine/map`: publishes what changed. Answer as for `Register`.
    MapUpdate {
        /// For the answer.
        id: RequestId,
        /// JSON.
        body: Vec<u8>,
    },
}

/// Prints where to, and not what: a body may hold the auth key.
impl std::fmt::Debug for ControlRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ControlRequest({:?}, {})", self.id(), self.path())
    }
}

impl ControlRequest {
    /// For the answer.
    pub fn id(&self) -> RequestId {
        match self {
            Self::Register { id, .. } | Self::MapStream { id, .. } | Self::MapUpdate { id, .. } => {
                *id
            }
        }
    }

    /// Where to send it.
    pub fn path(&self) -> &'static str {
        match self {
            Self::Register { .. } => "/machine/register",
            Self::MapStream { .. } | Self::MapUpdate { .. } => "/machine/map",
        }
    }
}

/// What control made of us.
#[derive(Debug)]
pub enum ControlEvent {
    /// A new node key is ours. Store it durably at once: control knows it already.
    NodeKey(NodePrivate),
    /// Control accepted us; the map stream comes next.
    Registered,
    /// A person must visit this address; we wait and go on by ourselves afterwards.
    NeedsLogin {
        /// Given by the server: escape before showing.
        url: String,
    },
    /// Control refuses us; we try again, ever more slowly.
    Refused {
        /// The server's words, cut: escape before showing.
        reason: String,
    },
    /// Control has forgotten us and nothing that we have lets us in again.
    NodeRemoved,
    /// Registering failed in passing; it is tried again.
    RegisterFailed {
        /// Why, for people.
        reason: String,
    },
    /// A new stream's first message is here: the next `Map` starts from nothing.
    StreamUp,
    /// The map stream ended; it will be opened again. The netmap stays as it is.
    StreamDown {
        /// Why, for people.
        reason: String,
    },
    /// A message of the stream that is not a keep-alive, whole or delta.
    Map(Box<MapResponse>),
    /// Give this request up without answering for it.
    Cancel {
        /// The request.
        id: RequestId,
        /// Nothing came in time: give up the connection under it too.
        reconnect: bool,
    },
}

/// The state machine. See the module for the order of calls.
pub struct Control {
    config: ControlConfig,
    disco: DiscoPublic,
    node_key: Option<NodePrivate>,
    endpoints: Vec<(SocketAddr, u8)>,
    net_info: Option<NetInfo>,
    rng: ChaCha20Rng,
    next_id: u64,
    registration: Registration,
    stream: Stream,
    update: Update,
    events: VecDeque<ControlEvent>,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control")
            .field("registered", &self.registration.is_done())
            .field("node_key", &self.node_key)
            .finish_non_exhaustive()
    }
}

impl Control {
    /// Starts where `node_key`, the stored one if any, leaves off. `seed` feeds new node keys and
    /// the jitter: 32 fresh secret random bytes.
    pub fn new(
        config: ControlConfig,
        node_key: Option<NodePrivate>,
        disco: DiscoPublic,
        seed: [u8; 32],
        now: Instant,
    ) -> Self {
        Self {
            registration: Registration::new(node_key.is_some(), now),
            stream: Stream::new(now),
            update: Update::new(now),
            rng: ChaCha20Rng::from_seed(seed),
            config,
            disco,
            node_key,
            endpoints: Vec::new(),
            net_info: None,
            next_id: 0,
            events: VecDeque::new(),
        }
    }

    /// The node key that control last accepted, or the stored one.
    pub fn node_key(&self) -> Option<&NodePrivate> {
        self.node_key.as_ref()
    }

    /// Whether control knows our current endpoints, disco key and NetInfo: only then can peers
    /// reach us.
    pub fn is_published(&self) -> bool {
        self.registration.is_done() && self.update.is_accepted()
    }

    /// What changed about our network: UDP endpoints with their types (0 unknown, 1 local, 2 STUN,
    /// 3 port-mapped, 4 STUN with local port, 5 configured), best first, and the NetInfo. Only a real change is published.
    pub fn set_network(
        &mut self,
        _now: Instant,
        mut endpoints: Vec<(SocketAddr, u8)>,
        net_info: NetInfo,
    ) {
        endpoints.truncate(ENDPOINTS_MAX);
        let net_info = Some(net_info);
        if self.endpoints != endpoints || self.net_info != net_info {
            self.endpoints = endpoints;
            self.net_info = net_info;
            self.update.mark_changed();
        }
    }

    /// The next request that is due, or `None`.
    pub fn poll_request(&mut self, now: Instant) -> Option<ControlRequest> {
        let must_store = |event: &ControlEvent| matches!(event, ControlEvent::NodeKey(_));
        if self.events.iter().any(must_store) {
            return None;
        }
        if !self.registration.is_done() {
            return self.poll_register(now);
        }
        self.poll_stream(now).or_else(|| self.poll_update(now))
    }

    /// An answer has come: the whole body, except for the map stream, see [`ControlRequest`].
    /// Answers to requests that no longer matter are ignored.
    pub fn handle_response(
        &mut self,
        now: Instant,
        id: RequestId,
        status: u16,
        retry_after: Option<Duration>,
        body: &[u8],
    ) {
        let answer = Answer {
            status,
            retry_after,
            body,
        };
        if self.registration.takes(id) {
            self.handle_register_answer(now, &answer);
        } else if self.stream.takes(id) {
            self.handle_stream_head(now, &answer);
        } else if self.update.takes(id) {
            self.handle_update_answer(now, &answer);
        }
    }

    /// Bytes of the map stream, split in any way.
    pub fn handle_map_bytes(&mut self, now: Instant, id: RequestId, bytes: &[u8]) {
        if self.stream.takes(id) {
            self.handle_stream_bytes(now, bytes);
        }
    }

    /// A request failed, or the map stream ended.
    pub fn handle_failed(&mut self, now: Instant, id: RequestId, reason: String) {
        if self.registration.takes(id) {
            self.register_failed(now, reason);
        } else if self.stream.takes(id) {
            self.end_stream(now, reason, None);
        } else if self.update.takes(id) {
            self.update.retry(now, None, &mut self.rng);
        }
    }

    /// The next event, or `None`.
    pub fn poll_event(&mut self) -> Option<ControlEvent> {
        self.events.pop_front()
    }

    /// When [`Control::handle_timeout`] is to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if !self.registration.is_done() {
            return self.registration.deadline();
        }
        let update = self.update.deadline(self.stream.is_in_flight());
        [Some(self.stream.deadline()), update]
            .into_iter()
            .flatten()
            .min()
    }

    /// Time has passed: gives up what took too long. Requests whose time has come are then given
    /// out by [`Control::poll_request`].
    pub fn handle_timeout(&mut self, now: Instant) {
        if let Some(id) = self.registration.overdue(now) {
            let reconnect = true;
            self.events
                .push_back(ControlEvent::Cancel { id, reconnect });
            self.register_failed(now, "no answer to the registration".to_owned());
        }
        if let Some(id) = self.stream.overdue(now) {
            let reconnect = true;
            self.events
                .push_back(ControlEvent::Cancel { id, reconnect });
            self.end_stream(now, "nothing came for too long".to_owned(), None);
        }
        if let Some(id) = self.update.overdue(now) {
            let reconnect = true;
            self.events
                .push_back(ControlEvent::Cancel { id, reconnect });
            self.update.retry(now, None, &mut self.rng);
        }
    }

    fn take_id(&mut self) -> RequestId {
        let id = RequestId(self.next_id);
        self.next_id += 1;
        id
    }

    fn hostinfo(&self) -> Hostinfo {
        Hostinfo {
            hostname: self.config.hostname.clone(),
            app: self.config.app.clone(),
            ipn_version: self.config.version_text.clone(),
            os: go_os().to_owned(),
            go_arch: go_arch().to_owned(),
            userspace: Some(true),
            net_info: self.net_info.clone(),
            ..Hostinfo::default()
        }
    }

    /// What both kinds of map request have in common; some servers apply it from either.
    fn map_request(&self) -> MapRequest {
        MapRequest {
            version: self.config.capability_version,
            node_key: self
                .node_key
                .as_ref()
                .map(NodePrivate::public)
                .unwrap_or_default(),
            disco_key: self.disco,
            hostinfo: Some(self.hostinfo()),
            endpoints: self.endpoints.iter().map(|(at, _)| *at).collect(),
            endpoint_types: self.endpoints.iter().map(|(_, kind)| *kind).collect(),
            ..MapRequest::default()
        }
    }
}

/// An HTTP answer as the state machines see it.
struct Answer<'a> {
    status: u16,
    retry_after: Option<Duration>,
    body: &'a [u8],
}

impl Answer<'_> {
    /// Status and text for people, cut.
    fn reason(&self) -> String {
        let text = String::from_utf8_lossy(self.body);
        format!("HTTP {}: {}", self.status, cut(text.trim()))
    }

    /// 429 asks for a pause; `Some(None)` when it does not say how long.
    fn pause(&self) -> Option<Option<Duration>> {
        (self.status == 429).then_some(self.retry_after)
    }

    /// The server will never accept what we speak.
    fn is_version_refusal(&self) -> bool {
        let text = String::from_utf8_lossy(self.body).to_lowercase();
        self.status == 400 && text.contains("unsupported") && text.contains("version")
    }
}

fn cut(text: &str) -> String {
    text.chars().take(REASON_CHARS_MAX).collect()
}

/// Plain data with string keys, which serde_json always writes.
fn to_json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain data with string keys always has a JSON form")
}

/// GOOS spelling of the system that we were built for.
fn go_os() -> &'static str {
    match std::env::consts::OS {
        "macos" => "darwin",
        other => other,
    }
}

/// GOARCH spelling of the processor that we were built for.
fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

#[cfg(test)]
mod tests;
