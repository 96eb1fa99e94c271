//! The devnet's relay: a DERP server on loopback, over TLS, for demonstrations and tests.
//!
//! It is never a production relay: it admits every key, and its certificate signs itself and dies with it.
//!
//! Invariant: it listens on loopback and nowhere else; connections, queues, rates and every wait have limits,
//! and a client that does not read costs the others nothing. Stock clients use it as they use any relay, by
//! the region that [`DerpServer::region`] describes.

mod client;
mod registry;
mod session;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rand_core::OsRng;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use self::registry::Registry;
use crate::derp::{Frame, ServerInfo};
use crate::key::{NodePrivate, NodePublic};
use crate::tailcfg::{DerpMap, DerpNode, DerpRegion};

/// What a relay of the devnet cannot do.
#[derive(Debug, thiserror::Error)]
pub enum DerpServerError {
    /// It was asked to listen where others could reach it.
    #[error("a devnet's relay listens on loopback only, not on {bind}")]
    NotLoopback {
        /// The refused address.
        bind: SocketAddr,
    },
    /// The address could not be listened on.
    #[error("listening on {bind} as a relay")]
    Listen {
        /// The address.
        bind: SocketAddr,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// Its certificate could not be made.
    #[error("making the relay's certificate")]
    Certificate(#[from] rcgen::Error),
    /// TLS does not take the certificate.
    #[error("setting up the relay's TLS")]
    Tls(#[from] tokio_rustls::rustls::Error),
}

/// How a relay is set up.
#[derive(Debug, Clone)]
pub struct DerpServerConfig {
    /// Where to listen; a loopback address, port 0 for any.
    pub bind: SocketAddr,
    /// Its region; 900..=999 are for users' own.
    pub region_id: u32,
    /// What it says of itself: the version, and a rate for each client, which the client is to keep.
    pub info: ServerInfo,
}

impl Default for DerpServerConfig {
    fn default() -> Self {
        Self {
            bind: SocketAddr::from(([127, 0, 0, 1], 0)),
            region_id: 900,
            info: ServerInfo {
                version: crate::derp::PROTOCOL_VERSION,
                ..ServerInfo::default()
            },
        }
    }
}

/// What a relay counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DerpServerStats {
    /// Clients that proved their key.
    pub clients_admitted: u64,
    /// Packets handed to a client's queue.
    pub packets_relayed: u64,
    /// Packets for keys that are not connected.
    pub packets_for_nobody: u64,
    /// Packets that newer ones pushed out of a client's queue.
    pub dropped_queue_full: u64,
}

/// A running relay; dropping it ends it.
pub struct DerpServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    region_id: u32,
    cert_name: String,
    task: JoinHandle<()>,
}

impl fmt::Debug for DerpServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DerpServer")
            .field("address", &self.address)
            .field("key", &self.shared.key.public())
            .finish_non_exhaustive()
    }
}

/// Trouble that tests ask for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Faults {
    /// Upgrades are answered with 503.
    refusing: bool,
    /// Nothing is written any more.
    silent: bool,
    /// Connections of an earlier life are closed.
    life: u64,
}

/// What the handle and the connections share.
struct Shared {
    key: NodePrivate,
    info: ServerInfo,
    acceptor: TlsAcceptor,
    registry: Mutex<Registry>,
    faults: watch::Sender<Faults>,
}

impl Shared {
    /// Never held over an await.
    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DerpServer {
    /// Starts listening.
    ///
    /// # Errors
    /// Any [`DerpServerError`].
    pub async fn start(config: DerpServerConfig) -> Result<Self, DerpServerError> {
        let bind = config.bind;
        if !bind.ip().is_loopback() {
            return Err(DerpServerError::NotLoopback { bind });
        }
        let failed = |source| DerpServerError::Listen { bind, source };
        let listener = TcpListener::bind(bind).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;

        let signing_key = rcgen::KeyPair::generate()?;
        let names = vec![address.ip().to_string()];
        let certificate = rcgen::CertificateParams::new(names)?.self_signed(&signing_key)?;
        let certificate = certificate.der().clone();
        let cert_name = format!("sha256-raw:{:x}", Sha256::digest(&certificate));
        let private = PrivatePkcs8KeyDer::from(signing_key.serialize_der());
        let tls = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], PrivateKeyDer::Pkcs8(private))?;

        let shared = Arc::new(Shared {
            key: NodePrivate::generate(&mut OsRng),
            info: config.info,
            acceptor: TlsAcceptor::from(Arc::new(tls)),
            registry: Mutex::new(Registry::default()),
            faults: watch::Sender::new(Faults::default()),
        });
        tracing::info!(%address, "devnet's relay listens; it is never a production relay");
        let task = tokio::spawn(session::serve(listener, Arc::clone(&shared)));
        Ok(Self {
            shared,
            address,
            region_id: config.region_id,
            cert_name,
            task,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its key.
    pub fn key(&self) -> NodePublic {
        self.shared.key.public()
    }

    /// The region for a DERP map, with the pin of its certificate. It has no STUN.
    pub fn region(&self) -> DerpRegion {
        let ip = self.address.ip();
        let (ipv4, ipv6) = if ip.is_ipv4() {
            (ip.to_string(), "none".to_owned())
        } else {
            ("none".to_owned(), ip.to_string())
        };
        let node = DerpNode {
            name: format!("{}a", self.region_id),
            region_id: self.region_id,
            host_name: ip.to_string(),
            cert_name: self.cert_name.clone(),
            ipv4,
            ipv6,
            stun_port: -1,
            derp_port: self.address.port(),
            ..DerpNode::default()
        };
        DerpRegion {
            region_id: self.region_id,
            region_code: format!("dev{}", self.region_id),
            region_name: "devnet".to_owned(),
            nodes: vec![node],
            ..DerpRegion::default()
        }
    }

    /// A DERP map of this region alone.
    pub fn map(&self) -> DerpMap {
        DerpMap {
            regions: Some([(self.region_id, Some(self.region()))].into()),
            ..DerpMap::default()
        }
    }

    /// The keys that are connected, and whether they said that this is their home.
    pub fn clients(&self) -> Vec<(NodePublic, bool)> {
        self.shared.lock().clients()
    }

    /// What it counted.
    pub fn stats(&self) -> DerpServerStats {
        self.shared.lock().stats
    }

    /// Closes all connections, as a restart does; new ones are served, under the same key.
    pub fn restart(&self) {
        self.fault(|faults| faults.life = faults.life.wrapping_add(1));
    }

    /// Tells all clients that it is about to go; follow it with [`Self::restart`].
    pub fn announce_restart(&self, reconnect_in: Duration, try_for: Duration) {
        self.broadcast(&Frame::Restarting {
            reconnect_in,
            try_for,
        });
    }

    /// Tells all clients what is wrong; empty: nothing any more.
    pub fn announce_health(&self, problem: &str) {
        let text = Bytes::copy_from_slice(problem.as_bytes());
        self.broadcast(&Frame::Health { text });
    }

    /// Whether upgrades are refused with status 503; connections that exist stay.
    pub fn set_refusing(&self, refusing: bool) {
        self.fault(|faults| faults.refusing = refusing);
    }

    /// Whether nothing is written, as if the network swallowed it; what arrives is still read.
    pub fn set_silent(&self, silent: bool) {
        self.fault(|faults| faults.silent = silent);
    }

    /// Ends it: all connections close before this returns.
    pub async fn shutdown(mut self) {
        self.task.abort();
        // The only outcome besides a panic of the server is that the abort took effect.
        if let Err(error) = (&mut self.task).await
            && error.is_panic()
        {
            tracing::error!("devnet's relay panicked");
        }
    }

    fn fault(&self, change: impl FnOnce(&mut Faults)) {
        self.shared.faults.send_modify(change);
    }

    fn broadcast(&self, frame: &Frame) {
        match frame.encode() {
            Ok(frame) => self.shared.lock().broadcast(&frame),
            Err(error) => tracing::warn!(%error, "devnet's relay cannot announce this"),
        }
    }
}

impl Drop for DerpServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}
