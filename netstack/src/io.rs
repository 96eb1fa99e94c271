//! The tokio shell: [`Tailnet`], the handle that callers hold. Join, listen, dial, whois.
//!
//! Invariant: it opens outbound connections to control and UDP sockets for the tunnel, nothing else;
//! streams live on the tunnel only. Called by the wiring of an application.

pub mod control_conn;
mod control_task;
pub mod derp_conn;
mod driver;
pub mod keystore;
mod outgoing;
mod probes;
mod relays;
mod stream;
mod told;
mod udp;
mod wakers;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand_core::{OsRng, RngCore};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::control::{AuthKey, ControlConfig};
use crate::netcheck::Report;
use crate::netmap::Identity;
use crate::node::{Node, NodeConfig, NodeStats, NodeStatus};
use crate::tailcfg::{CAPABILITY_VERSION, SshPolicy};
use crate::tcpip::{ConnectError, ListenError, TcpConfig};
use control_conn::ControlClient;
use control_task::ControlTask;
use driver::{Driver, Shared};
pub use driver::{Progress, Trouble};
use keystore::{KeyStore, KeyStoreError};
pub use stream::{TcpListener, TcpStream};
use told::Told;
use udp::Udp;

/// Longest wait for a connection to be established: as long as the recorder clients' own (5 s) and
/// one WireGuard handshake retry more.
const DIAL_TIMEOUT: Duration = Duration::from_secs(15);

/// Everything that joining needs. Plain data, but for the key store.
#[derive(Debug)]
pub struct TailnetConfig {
    /// Base URL of the control server.
    pub control_url: String,
    /// The wanted name; control may add a number.
    pub hostname: String,
    /// Used only when control does not know us yet.
    pub auth_key: Option<AuthKey>,
    /// Ask control to forget us soon after we go.
    pub ephemeral: bool,
    /// Short product id and version, shown in control's list of machines.
    pub app: String,
    /// See `app`.
    pub version_text: String,
    /// Where keys are kept.
    pub keys: KeyStore,
    /// UDP addresses for the tunnel, at most one per family; port 0 takes a free one. They are what
    /// peers are told, so the unspecified address is refused.
    pub bind: Vec<SocketAddr>,
    /// Whether the kernel may split and merge datagrams (GSO, GRO); off for kernels that get it wrong.
    pub udp_offload: bool,
    /// Limits and buffer sizes of TCP.
    pub tcp: TcpConfig,
}

/// Joining, listening or dialling failed.
#[derive(Debug, thiserror::Error)]
pub enum TailnetError {
    /// A bind address cannot be used.
    #[error("cannot use {addr} as the tunnel's UDP address")]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The address is not one that peers could be told.
    #[error(
        "bind = {addr}: name an address of this host; peers are told of it, so 0.0.0.0 and [::] do not serve"
    )]
    BindUnspecified {
        /// The address.
        addr: SocketAddr,
    },
    /// Two sockets of one family: which of them a peer should be answered from is not defined.
    #[error("bind = {addr}: one address per family; there is another of its family")]
    BindTwice {
        /// The second address.
        addr: SocketAddr,
    },
    /// Keys cannot be read or written.
    #[error("cannot use the state store for keys")]
    Keys(#[source] KeyStoreError),
    /// The node did not come up in time.
    #[error("not joined after {waited:.1?}: {}", trouble.as_ref().map_or_else(|| "control has not answered yet".to_owned(), Trouble::to_string))]
    NotJoined {
        /// How long we waited.
        waited: Duration,
        /// What stood in the way, as far as known.
        trouble: Option<Trouble>,
    },
    /// A port cannot be opened.
    #[error("cannot listen on tailnet port {port}")]
    Listen {
        /// The port.
        port: u16,
        /// Why.
        #[source]
        source: ListenError,
    },
}

/// A node that is part of a tailnet. Dropping the last clone ends it at once, [`Tailnet::close`] in good
/// order.
#[derive(Debug, Clone)]
pub struct Tailnet {
    shared: Arc<Shared>,
    progress: watch::Receiver<Progress>,
    endpoints: Arc<[SocketAddr]>,
    stop: Arc<StopOnDrop>,
}

#[derive(Debug)]
struct StopOnDrop {
    closing: CancellationToken,
    shutdown: CancellationToken,
}

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Tailnet {
    /// Starts the node on the current tokio runtime; it joins in the background. See
    /// [`Tailnet::joined`].
    ///
    /// # Errors
    /// [`TailnetError`] when keys, the URL or a UDP address cannot be used.
    pub fn start(mut config: TailnetConfig) -> Result<Self, TailnetError> {
        let mut sockets = Vec::new();
        for addr in &config.bind {
            if addr.ip().is_unspecified() {
                return Err(TailnetError::BindUnspecified { addr: *addr });
            }
            let same_family = |socket: &Udp| socket.local().is_ipv4() == addr.is_ipv4();
            if sockets.iter().any(same_family) {
                return Err(TailnetError::BindTwice { addr: *addr });
            }
            let socket =
                Udp::bind(*addr, config.udp_offload).map_err(|source| TailnetError::Bind {
                    addr: *addr,
                    source,
                })?;
            sockets.push(socket);
        }
        let endpoints: Arc<[SocketAddr]> = sockets.iter().map(Udp::local).collect();
        let machine = config.keys.machine_key().map_err(TailnetError::Keys)?;
        let node_key = config.keys.node_key().map_err(TailnetError::Keys)?;
        let pinned = config
            .keys
            .control_key(&config.control_url)
            .map_err(TailnetError::Keys)?;
        let client = ControlClient::new(&config.control_url, machine, pinned, CAPABILITY_VERSION);
        let mut seed = [0_u8; 32];
        OsRng.fill_bytes(&mut seed);
        let now = driver::now();
        let node_config = NodeConfig {
            control: ControlConfig {
                hostname: config.hostname,
                auth_key: config.auth_key,
                ephemeral: config.ephemeral,
                app: config.app,
                version_text: config.version_text,
                capability_version: CAPABILITY_VERSION,
            },
            node_key,
            tcp: config.tcp,
        };
        let mut node = Node::new(node_config, seed, now);
        let fixed_port = config
            .bind
            .iter()
            .map(SocketAddr::port)
            .find(|port| *port != 0);
        node.set_endpoints(now, endpoints.to_vec(), fixed_port);
        let shared = Shared::new(node);
        let (closing, shutdown) = (CancellationToken::new(), CancellationToken::new());
        let (sender, progress) = watch::channel(Progress::default());
        let dialer = Arc::default();
        let driver = Driver {
            shared: Arc::clone(&shared),
            sockets,
            control: ControlTask {
                shared: Arc::clone(&shared),
                client,
                keys: Arc::new(Mutex::new(config.keys)),
                url: config.control_url.into(),
            },
            probes: probes::Probes::new(Arc::clone(&dialer)),
            relays: relays::Relays::new(dialer),
            progress: sender,
            told: Told::default(),
            closing: closing.clone(),
            shutdown: shutdown.clone(),
        };
        tokio::spawn(driver.run());
        Ok(Self {
            shared,
            progress,
            endpoints,
            stop: Arc::new(StopOnDrop { closing, shutdown }),
        })
    }

    /// Starts the node and waits until it is part of the tailnet.
    ///
    /// # Errors
    /// [`TailnetError`]; `NotJoined` when `wait_max` passes first.
    pub async fn join(config: TailnetConfig, wait_max: Duration) -> Result<Self, TailnetError> {
        let tailnet = Self::start(config)?;
        tailnet.joined(wait_max).await?;
        Ok(tailnet)
    }

    /// Waits until the first netmap has arrived.
    ///
    /// # Errors
    /// `NotJoined` when `wait_max` passes first, or at once when control refused us.
    pub async fn joined(&self, wait_max: Duration) -> Result<(), TailnetError> {
        let begin = driver::now();
        let mut progress = self.progress.clone();
        let refused = |trouble: &Option<Trouble>| matches!(trouble, Some(Trouble::Refused(_)));
        let wait = progress.wait_for(|progress| progress.up || refused(&progress.trouble));
        let seen = tokio::time::timeout(wait_max, wait).await;
        match seen {
            Ok(Ok(progress)) if progress.up => Ok(()),
            Ok(_) | Err(_) => {
                let trouble = self.progress.borrow().trouble.clone();
                Err(TailnetError::NotJoined {
                    waited: driver::now().saturating_duration_since(begin),
                    trouble,
                })
            }
        }
    }

    /// Ends the node, for all its clones: ports close, what was written goes on until peers have it or
    /// five seconds are over, then whatever is still open is reset. Drop streams that are done before.
    pub async fn close(self) {
        self.stop.closing.cancel();
        let mut progress = self.progress.clone();
        // The loop owns the sender: its end is the loop's.
        while progress.changed().await.is_ok() {}
    }

    /// Accepts connections to `port` on all our tailnet addresses, at most `backlog` of them waiting.
    ///
    /// # Errors
    /// `Listen` when the port is taken already.
    pub fn listen(&self, port: u16, backlog: usize) -> Result<TcpListener, TailnetError> {
        self.shared
            .lock()
            .node
            .tcp()
            .listen(port, backlog)
            .map_err(|source| TailnetError::Listen { port, source })?;
        Ok(TcpListener::new(Arc::clone(&self.shared), port))
    }

    /// Connects to a peer's tailnet address. Dropping the future gives the attempt up.
    ///
    /// # Errors
    /// As of a TCP connect: refused, reset, timed out, unreachable when no peer has the address.
    pub async fn dial(&self, remote: SocketAddr) -> io::Result<TcpStream> {
        let (conn, local) = self
            .shared
            .lock()
            .node
            .connect(driver::now(), remote)
            .map_err(|error| io::Error::new(connect_kind(&error), error))?;
        let stream = TcpStream::new(Arc::clone(&self.shared), conn, local, remote);
        self.shared.kick();
        match tokio::time::timeout(DIAL_TIMEOUT, stream.connected()).await {
            Ok(Ok(())) => Ok(stream),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no answer from {remote} on the tunnel within {DIAL_TIMEOUT:?}"),
            )),
        }
    }

    /// Who is at `remote`, as seen by our address `local`. `None`: unknown, and so without any right.
    pub fn whois(&self, remote: IpAddr, local: IpAddr) -> Option<Identity> {
        self.shared.lock().node.netmap().whois(remote, local)
    }

    /// Who the node with this StableID is, if it is a peer that we see, or ourselves.
    pub fn find(&self, stable_id: &str) -> Option<Identity> {
        self.shared.lock().node.netmap().find(stable_id)
    }

    /// The node's name, addresses and peers.
    pub fn status(&self) -> NodeStatus {
        self.shared.lock().node.status()
    }

    /// The node's counters.
    pub fn stats(&self) -> NodeStats {
        self.shared.lock().node.stats()
    }

    /// What the last measurement of the network found; `None` before the first.
    pub fn network_report(&self) -> Option<Report> {
        self.shared.lock().node.network_report().cloned()
    }

    /// The SSH policy as last told by control.
    pub fn ssh_policy(&self) -> Option<SshPolicy> {
        self.shared.lock().node.netmap().ssh_policy().cloned()
    }

    /// Changes whenever the netmap or the relation to control does.
    pub fn watch(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// The UDP addresses that the tunnel is bound to.
    pub fn endpoints(&self) -> &[SocketAddr] {
        &self.endpoints
    }
}

fn connect_kind(error: &ConnectError) -> io::ErrorKind {
    match error {
        ConnectError::Unaddressable(..) => io::ErrorKind::HostUnreachable,
        ConnectError::Exhausted(_) | ConnectError::NoPort(_) => io::ErrorKind::QuotaExceeded,
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NeedsLogin(url) => write!(f, "a person must log in at {url}"),
            Self::Refused(reason) => write!(f, "control refused: {reason}"),
            Self::Unreachable(reason) => write!(f, "control cannot be used: {reason}"),
        }
    }
}
