//! A whole tailnet's control plane in one process, on loopback: for `tailtape dev` and the tests.
//!
//! It is never a production control server: everybody on this machine can reach it, all state is
//! in memory, its keys die with it, and nothing limits what its one operator may do.
//!
//! Invariant: it listens on loopback and nowhere else; recorders named by a tag are resolved to
//! addresses in every policy that goes out, so a policy never names a recorder that does not exist.
//! Stock clients join it as they join any control server (control.md §9).

mod control_server;
mod derp_server;
mod stun_server;
mod tailnet;

pub use self::stun_server::{StunFaults, StunServer, StunServerStats};

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand_core::{OsRng, RngCore};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use self::derp_server::{DerpServer, DerpServerConfig, DerpServerError, DerpServerStats};
use self::tailnet::Tailnet;
use crate::key::{MachinePrivate, MachinePublic};
use crate::tailcfg::{CapGrant, CapValues, DerpMap, FilterRule, NodeId, UserId};

/// What a devnet cannot do.
#[derive(Debug, thiserror::Error)]
pub enum DevNetError {
    /// It was asked to listen where others could reach it.
    #[error("a devnet listens on loopback only, not on {bind}")]
    NotLoopback {
        /// The refused address.
        bind: SocketAddr,
    },
    /// The address could not be listened on.
    #[error("listening on {bind}")]
    Listen {
        /// The address.
        bind: SocketAddr,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// No user has this id.
    #[error("devnet has no user {user}")]
    UnknownUser {
        /// The id.
        user: UserId,
    },
    /// A tag does not have the form `tag:name`.
    #[error("{tag:?} is not a tag")]
    Tag {
        /// The text.
        tag: String,
    },
    /// No node has this id.
    #[error("devnet has no node {node}")]
    UnknownNode {
        /// The id.
        node: NodeId,
    },
    /// No login waits at this address.
    #[error("no login waits at this address")]
    UnknownLogin,
}

/// How a devnet is set up.
#[derive(Debug, Clone)]
pub struct DevNetConfig {
    /// Where to listen; a loopback address, port 0 for any.
    pub bind: SocketAddr,
    /// Handed to every node as it is.
    pub derp_map: DerpMap,
    /// The tailnet's domain, without dots at its ends; nodes are named `host.domain.`.
    pub domain: String,
}

impl Default for DevNetConfig {
    fn default() -> Self {
        Self {
            bind: SocketAddr::from(([127, 0, 0, 1], 0)),
            derp_map: DerpMap::default(),
            domain: "tail.test".to_owned(),
        }
    }
}

/// Whom an auth key admits, and as what.
#[derive(Debug, Clone)]
pub struct AuthKeySpec {
    /// The owner of the nodes, unless they are tagged.
    pub user: UserId,
    /// Tags of the nodes (`tag:name`); non-empty: the tags are their identity.
    pub tags: Vec<String>,
    /// May be used more than once.
    pub reusable: bool,
    /// Nodes are removed when they log out.
    pub ephemeral: bool,
}

/// One rule of the SSH policy; its principal is everybody.
#[derive(Debug, Clone, Default)]
pub struct DevSshRule {
    /// Sessions are recorded by the nodes with this tag, on their port 80.
    pub recorder_tag: Option<String>,
    /// Refuse and end sessions that cannot be recorded; also while no recorder has joined.
    pub enforce: bool,
}

/// A node as the devnet sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DevNodeStatus {
    /// Its id.
    pub id: NodeId,
    /// Its full name, with a trailing dot.
    pub name: String,
    /// IPv4, then IPv6.
    pub addresses: Vec<IpAddr>,
    /// Its tags.
    pub tags: Vec<String>,
    /// It follows the map stream.
    pub online: bool,
    /// Its UDP endpoints, as it last said.
    pub endpoints: Vec<SocketAddr>,
    /// Its home DERP region, as it last said; 0: none.
    pub home_derp: u32,
}

/// A running devnet; dropping it ends it.
#[derive(Debug)]
pub struct DevNet {
    shared: Arc<Shared>,
    address: SocketAddr,
    task: JoinHandle<()>,
}

/// What the handle and the connections share.
#[derive(Debug)]
struct Shared {
    key: MachinePrivate,
    url: String,
    tailnet: Mutex<Tailnet>,
    /// Bumped with every change; map streams wait for it.
    changed: watch::Sender<u64>,
}

impl Shared {
    /// Never held over an await.
    fn lock(&self) -> MutexGuard<'_, Tailnet> {
        self.tailnet.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bump(&self) {
        self.changed
            .send_modify(|version| *version = version.wrapping_add(1));
    }

    fn change<T>(&self, with: impl FnOnce(&mut Tailnet) -> T) -> T {
        let result = with(&mut self.lock());
        self.bump();
        result
    }
}

impl DevNet {
    /// Starts listening.
    ///
    /// # Errors
    /// [`DevNetError::NotLoopback`], [`DevNetError::Listen`].
    pub async fn start(config: DevNetConfig) -> Result<Self, DevNetError> {
        let bind = config.bind;
        if !bind.ip().is_loopback() {
            return Err(DevNetError::NotLoopback { bind });
        }
        let failed = |source| DevNetError::Listen { bind, source };
        let listener = TcpListener::bind(bind).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let url = format!("http://{address}");
        tracing::info!(%url, "devnet listens; it is never a production control server");
        let shared = Arc::new(Shared {
            key: MachinePrivate::generate(&mut OsRng),
            url,
            tailnet: Mutex::new(Tailnet::new(config.domain, config.derp_map)),
            changed: watch::Sender::new(0),
        });
        let task = tokio::spawn(control_server::serve(listener, Arc::clone(&shared)));
        Ok(Self {
            shared,
            address,
            task,
        })
    }

    /// The control URL for clients.
    pub fn url(&self) -> String {
        self.shared.url.clone()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its Noise key, as `/key` tells it.
    pub fn server_key(&self) -> MachinePublic {
        self.shared.key.public()
    }

    /// Adds a user, or finds the one with this login name.
    pub fn add_user(&self, login: &str) -> UserId {
        self.shared.change(|tailnet| tailnet.add_user(login))
    }

    /// A new auth key.
    ///
    /// # Errors
    /// [`DevNetError::UnknownUser`], [`DevNetError::Tag`].
    pub fn auth_key(&self, spec: AuthKeySpec) -> Result<String, DevNetError> {
        let key = format!("tskey-auth-dev-{}", random_hex());
        self.shared.lock().add_auth_key(key.clone(), spec)?;
        Ok(key)
    }

    /// Replaces the SSH policy; the first rule decides, as all of them match everybody.
    pub fn set_ssh_policy(&self, rules: Vec<DevSshRule>) {
        self.shared.change(|tailnet| tailnet.ssh_rules = rules);
    }

    /// Replaces the packet filter, which begins as allow-all.
    pub fn set_filter(&self, rules: Vec<FilterRule>) {
        self.shared.change(|tailnet| tailnet.filter = rules);
    }

    /// Grants everybody the application capability `name` on every node, with `values`.
    pub fn grant(&self, name: &str, values: CapValues) {
        let grant = CapGrant {
            dsts: vec!["0.0.0.0/0".to_owned(), "::/0".to_owned()],
            caps: Vec::new(),
            cap_map: [(name.to_owned(), values.into())].into(),
        };
        let rule = FilterRule {
            src_ips: vec!["*".to_owned()],
            cap_grant: vec![grant],
            ..FilterRule::default()
        };
        self.shared.change(|tailnet| tailnet.filter.push(rule));
    }

    /// Replaces the DERP map.
    pub fn set_derp_map(&self, derp_map: DerpMap) {
        self.shared.change(|tailnet| tailnet.derp_map = derp_map);
    }

    /// Starts a relay, and adds its region to the DERP map in place of any with its id. Ending the relay
    /// leaves the map as it is, so that an outage can be seen.
    ///
    /// # Errors
    /// Any [`DerpServerError`].
    pub async fn add_relay(&self, config: DerpServerConfig) -> Result<DerpServer, DerpServerError> {
        let relay = DerpServer::start(config).await?;
        let region = relay.region();
        self.shared.change(|tailnet| {
            let regions = tailnet.derp_map.regions.get_or_insert_default();
            regions.insert(region.region_id, Some(region));
        });
        Ok(relay)
    }

    /// All nodes, by id.
    pub fn nodes(&self) -> Vec<DevNodeStatus> {
        self.shared.lock().statuses()
    }

    /// Completes the interactive login whose address a client was given.
    ///
    /// # Errors
    /// [`DevNetError::UnknownLogin`], [`DevNetError::UnknownUser`].
    pub fn approve_login(&self, url: &str, user: UserId) -> Result<(), DevNetError> {
        let token = url.rsplit('/').next().unwrap_or_default();
        self.shared
            .change(|tailnet| tailnet.approve_login(token, user))
    }

    /// Removes a node, as an administrator would.
    ///
    /// # Errors
    /// [`DevNetError::UnknownNode`].
    pub fn remove_node(&self, node: NodeId) -> Result<(), DevNetError> {
        self.shared.change(|tailnet| tailnet.remove_node(node))
    }

    /// Expires a node's key.
    ///
    /// # Errors
    /// [`DevNetError::UnknownNode`].
    pub fn expire_node(&self, node: NodeId) -> Result<(), DevNetError> {
        self.shared.change(|tailnet| tailnet.expire_node(node))
    }

    /// Ends it: all connections close before this returns.
    pub async fn shutdown(mut self) {
        self.task.abort();
        // The only outcome besides a panic of the server is that the abort took effect.
        if let Err(error) = (&mut self.task).await
            && error.is_panic()
        {
            tracing::error!("devnet's server panicked");
        }
    }
}

impl Drop for DevNet {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// 128 bits that nobody can guess.
fn random_hex() -> String {
    let mut bytes = [0_u8; 16];
    OsRng.fill_bytes(&mut bytes);
    format!("{:032x}", u128::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests;
