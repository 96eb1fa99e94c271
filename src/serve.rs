//! Wiring of a recorder: a tailnet node, a store, and ingest between them.
//!
//! Invariant: a connection whose far end WhoIs does not know is closed unread; nothing is listened on but
//! the tailnet port. `dev` and the tests start recorders with it; `tailtape serve` is [`run()`], its rehearsal [`check()`].

mod check;
mod join;
mod live;
mod refused;
mod reload;
mod run;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ed25519_dalek::SigningKey;
use netstack::io::keystore::KeyStore;
use netstack::io::{Tailnet, TcpListener, TcpStream};
use netstack::tailcfg::UserProfile;
use rand_core::OsRng;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::{Identity, UserIdentity};
use crate::ids::LogKey;
use crate::ingest::{Directory, Ingest, IngestConfig, NodeFacts, RecordingSink};

pub use check::check;
pub use run::{Refused, Start, run};

/// The tailnet port to which stock nodes upload (recording.md §0).
pub const RECORDER_PORT: u16 = 80;

/// Connections that may wait to be accepted: a burst of sessions, not a flood.
const BACKLOG: usize = 512;

/// Name of the log's signing key in the state.
const LOG_KEY: &str = "log-key";

/// A recorder at work. Dropping it closes its port; open uploads are then sealed as incomplete.
#[derive(Debug)]
pub struct Recorder {
    /// New uploads are refused from then on.
    shutdown: CancellationToken,
    /// The port is closed from then on.
    closed: CancellationToken,
    /// Connections that came before the shutdown.
    tasks: TaskTracker,
    /// Completes when the store has sealed what was uploaded.
    finished: Finished,
}

/// Asks an ingest of whatever kind.
struct Finished(Box<dyn Fn() -> futures_util::future::BoxFuture<'static, ()> + Send + Sync>);

impl std::fmt::Debug for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Finished")
    }
}

impl Recorder {
    /// Opens port 80 of `tailnet` and gives what arrives there to `sink`.
    ///
    /// # Errors
    /// The port is taken.
    pub fn start<S: RecordingSink>(
        tailnet: &Tailnet,
        sink: S,
        config: IngestConfig,
    ) -> anyhow::Result<Self> {
        Self::serve(tailnet, &ingest(tailnet, sink, config))
    }

    /// The same with an ingest that the caller made, to look at it while it works.
    ///
    /// # Errors
    /// The port is taken.
    pub fn serve<S: RecordingSink>(tailnet: &Tailnet, ingest: &Ingest<S>) -> anyhow::Result<Self> {
        let listener = tailnet.listen(RECORDER_PORT, BACKLOG)?;
        let recorder = Self {
            shutdown: CancellationToken::new(),
            closed: CancellationToken::new(),
            tasks: TaskTracker::new(),
            finished: {
                let ingest = ingest.clone();
                Finished(Box::new(move || {
                    let ingest = ingest.clone();
                    Box::pin(async move { ingest.finished().await })
                }))
            },
        };
        let acceptor = Acceptor {
            tailnet: tailnet.clone(),
            listener,
            ingest: ingest.clone(),
            shutdown: recorder.shutdown.clone(),
        };
        let (tasks, closed) = (recorder.tasks.clone(), recorder.closed.clone());
        tokio::spawn(closed.run_until_cancelled_owned(acceptor.run(tasks)));
        Ok(recorder)
    }

    /// Refuses new uploads from now on; running ones have the drain limit.
    pub fn refuse_new(&self) {
        self.shutdown.cancel();
    }

    /// Refuses new uploads, lets running ones end or reach the drain limit, and waits for their seals for at most `wait_max`. True if all
    /// of them are done. The port stays open, also afterwards: whoever comes is refused in words, until the recorder is dropped.
    pub fn drain(&self, wait_max: Duration) -> impl Future<Output = bool> + Send + use<> {
        self.refuse_new();
        self.tasks.close();
        let (tasks, finished) = (self.tasks.clone(), (self.finished.0)());
        let ended = async move {
            tasks.wait().await;
            finished.await;
        };
        async move { tokio::time::timeout(wait_max, ended).await.is_ok() }
    }

    /// Drains, and closes the port.
    pub async fn stop(self, wait_max: Duration) -> bool {
        self.drain(wait_max).await
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.shutdown.cancel();
        self.closed.cancel();
    }
}

/// Takes connections of the port, and gives each to the ingest.
struct Acceptor<S> {
    tailnet: Tailnet,
    listener: TcpListener,
    ingest: Ingest<S>,
    shutdown: CancellationToken,
}

impl<S: RecordingSink> Acceptor<S> {
    /// Until the port is closed. A drain waits for what is in `tasks`, so what comes behind the shutdown is no part of it: clients that ask again
    /// and again would hold it up.
    async fn run(mut self, tasks: TaskTracker) {
        // Nothing that came before the shutdown may be missed, so it is seen here before the tasks can be at their end.
        let taking = tasks.token();
        let shutdown = self.shutdown.clone();
        loop {
            let accepted = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                accepted = self.accept() => accepted,
            };
            match accepted {
                Some(connection) => drop(tasks.spawn(connection)),
                None => return,
            }
        }
        drop(taking);
        while let Some(refused) = self.accept().await {
            tokio::spawn(refused);
        }
    }

    /// The next connection that is to be served; `None` when there will be no other.
    async fn accept(&mut self) -> Option<impl Future<Output = ()> + Send + use<S>> {
        loop {
            let stream = match self.listener.accept().await {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::info!(%error, "no more connections are accepted");
                    return None;
                }
            };
            let Some(identity) = identity(&self.tailnet, &stream) else {
                tracing::warn!(peer = %stream.peer_addr(), "a peer that the netmap does not know is turned away");
                continue;
            };
            let place = match self.ingest.connections().admit(&identity.stable_id) {
                Ok(place) => place,
                Err(refused) => {
                    tracing::warn!(peer = %stream.peer_addr(), %refused, "a connection is closed unread");
                    continue;
                }
            };
            let (ingest, shutdown) = (self.ingest.clone(), self.shutdown.clone());
            return Some(async move {
                ingest.serve_connection(stream, identity, shutdown).await;
                drop(place);
            });
        }
    }
}

/// An ingest into `sink` that compares what headers claim of the person's node with the netmap of `tailnet`.
pub fn ingest<S: RecordingSink>(tailnet: &Tailnet, sink: S, config: IngestConfig) -> Ingest<S> {
    let tailnet = tailnet.clone();
    let directory: Directory = Arc::new(move |stable_id| {
        let known = tailnet.find(stable_id)?;
        Some(NodeFacts {
            node_name: known.name,
            user: known.user.map(user_identity),
            tags: known.tags,
            addresses: known.addresses,
        })
    });
    Ingest::with_directory(sink, config, directory)
}

/// Who is at the far end, by WhoIs of its address; the tunnel has proven the address.
fn identity(tailnet: &Tailnet, stream: &TcpStream) -> Option<Identity> {
    let address: IpAddr = stream.peer_addr().ip();
    let known = tailnet.whois(address, stream.local_addr().ip())?;
    Some(Identity {
        stable_id: known.stable_id,
        node_name: known.name,
        user: known.user.map(user_identity),
        tags: known.tags,
        address,
        capabilities: known.capabilities,
    })
}

fn user_identity(user: UserProfile) -> UserIdentity {
    UserIdentity {
        id: user.id,
        login: user.login_name,
        display_name: user.display_name,
    }
}

/// The public half of the recorder's log key; the key is made at the first start.
///
/// # Errors
/// The key cannot be read or written.
pub fn log_key(keys: &mut KeyStore) -> anyhow::Result<LogKey> {
    let key = match keys.get(LOG_KEY) {
        Some(stored) => {
            let bytes: &[u8; 32] = stored
                .try_into()
                .context("the stored log key is not 32 bytes: restore it")?;
            SigningKey::from_bytes(bytes)
        }
        None => {
            let key = SigningKey::generate(&mut OsRng);
            keys.put(LOG_KEY, key.as_bytes())
                .context("cannot write the new log key")?;
            key
        }
    };
    Ok(LogKey::from_bytes(key.verifying_key().to_bytes()))
}
