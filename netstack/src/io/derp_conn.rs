//! One connection to the relay of a region: TCP, TLS, and the task that drives `derp::client` over it.
//!
//! Invariant: reading never waits for anything downstream. What the holder does not take in time is dropped
//! and counted, because a relay closes whoever does not read for 2 s; and sending never waits either. Called
//! by the driver.
//!
//! ```text
//! DerpDialer ─ TCP ─ TLS ─ reader ─ DerpClient ─ bounded queue ─ DerpConn::next
//!                       └─ writer ─ DerpClient ─ DerpSender::send_packet
//! ```

mod dial;
mod error;
mod latency;
mod tls;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand_core::{OsRng, RngCore as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{sleep, sleep_until, timeout_at};
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::pki_types::CertificateDer;

pub use self::dial::NODE_DURATION_MAX;
use self::dial::dial;
pub use self::error::DerpConnError;
pub(super) use self::latency::time_https;
pub use self::tls::PinError;
use crate::derp::ServerInfo;
use crate::derp::client::{DerpClient, DerpClientConfig, DerpClientStats, DerpEvent};
use crate::key::{NodePrivate, NodePublic};
use crate::tailcfg::DerpRegion;

/// From the first attempt at TCP until the relay serves us; upstream's budget.
pub const CONNECT_DURATION_MAX: Duration = Duration::from_secs(10);
/// A write that takes longer raises the question whether the relay is still there.
pub const WRITE_STALL_DURATION: Duration = Duration::from_secs(3);
/// How long the reader has, after a failed write, to find what the relay said before it closed.
const WRITE_FAILED_DURATION: Duration = Duration::from_millis(500);
/// Events that wait to be taken; at full packets about 350 KB, and never more than 64 KiB for each.
const EVENTS_MAX: usize = 256;
/// What one read takes at most, and one write but for its last frame.
const READ_BYTES: usize = 32 * 1024;
const WRITE_BYTES: usize = 16 * 1024;

/// What all connections to relays share: the roots by which certificates are judged.
#[derive(Debug, Clone)]
pub struct DerpDialer {
    roots: Arc<RootCertStore>,
}

impl DerpDialer {
    /// With the system's roots, or Mozilla's where it has none. Reads files.
    pub async fn with_system_roots() -> Self {
        let roots = tokio::task::spawn_blocking(tls::system_roots).await;
        // It fails only if it panics or the runtime ends; pins still work without roots.
        let roots = roots.unwrap_or_else(|_| RootCertStore::empty());
        Self {
            roots: Arc::new(roots),
        }
    }

    /// With these roots alone, each a certificate in DER.
    ///
    /// # Errors
    /// [`DerpConnError::Setup`] when one of them cannot be read.
    pub fn with_roots(
        certificates: impl IntoIterator<Item = Vec<u8>>,
    ) -> Result<Self, DerpConnError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates {
            let certificate = CertificateDer::from(certificate);
            roots.add(certificate).map_err(DerpConnError::Setup)?;
        }
        Ok(Self {
            roots: Arc::new(roots),
        })
    }
}

/// Whom a connection is for.
#[derive(Debug, Clone)]
pub struct DerpConnConfig {
    /// Who we are.
    pub node: NodePrivate,
    /// Whether the region is our home.
    pub home: bool,
    /// Whether IPv6 is known to work, so that it gets a head start.
    pub ipv6_works: bool,
}

/// A connection that is up. Dropping it closes it.
pub struct DerpConn {
    shared: Arc<Shared>,
    events: mpsc::Receiver<DerpEvent>,
    /// `None` once it said why it ended.
    task: Option<JoinHandle<DerpConnError>>,
    relay: NodePublic,
    info: ServerInfo,
    address: Option<SocketAddr>,
}

impl fmt::Debug for DerpConn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DerpConn")
            .field("relay", &self.relay)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// Sends over a connection; clones share it. Once the connection is over, what is sent is dropped.
#[derive(Clone)]
pub struct DerpSender {
    shared: Arc<Shared>,
}

impl fmt::Debug for DerpSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DerpSender").finish_non_exhaustive()
    }
}

/// What the connection's task and its holders share.
struct Shared {
    client: Mutex<DerpClient>,
    /// There may be something to write.
    written: Notify,
    /// There may be an earlier deadline.
    deadline: Notify,
    dropped_events: AtomicU64,
}

impl Shared {
    /// Never held over an await.
    fn lock(&self) -> MutexGuard<'_, DerpClient> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_alive(&self) {
        self.lock().check_alive(now());
        self.written.notify_one();
        self.deadline.notify_one();
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl DerpConn {
    /// Dials the region and returns once its relay serves us.
    ///
    /// Cancel-safe: dropping the future closes what it opened.
    ///
    /// # Errors
    /// Any [`DerpConnError`].
    pub async fn connect(
        dialer: &DerpDialer,
        region: &DerpRegion,
        config: DerpConnConfig,
    ) -> Result<Self, DerpConnError> {
        let began_at = tokio::time::Instant::now();
        let dialed = dial(region, &dialer.roots, config.ipv6_works);
        let dialed = timeout_at(began_at + CONNECT_DURATION_MAX, dialed).await;
        let dialed = dialed.map_err(|_| DerpConnError::Slow {
            region: region.region_id,
        })??;
        let mut seed = [0; 32];
        OsRng.fill_bytes(&mut seed);
        let client = DerpClientConfig {
            node: config.node,
            host: dialed.host,
            ideal_node: dialed.ideal_node,
            home: config.home,
            seed,
        };
        let mut conn = Self::over(dialed.stream, began_at.into_std(), client).await?;
        conn.address = Some(dialed.address);
        Ok(conn)
    }

    /// The same over a stream that the caller opened, which needs no TLS: for a relay that was started for
    /// development, and for tests. `began_at` is when the attempt began.
    ///
    /// # Errors
    /// [`DerpConnError::Io`], [`DerpConnError::Client`].
    pub async fn over<S>(
        stream: S,
        began_at: Instant,
        config: DerpClientConfig,
    ) -> Result<Self, DerpConnError>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let shared = Arc::new(Shared {
            client: Mutex::new(DerpClient::new(began_at, config)?),
            written: Notify::new(),
            deadline: Notify::new(),
            dropped_events: AtomicU64::new(0),
        });
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let task = tokio::spawn(drive(stream, Arc::clone(&shared), sender));
        let mut conn = Self {
            shared,
            events,
            task: Some(task),
            relay: NodePublic::default(),
            info: ServerInfo::default(),
            address: None,
        };
        // Up is the first event, so this loop runs once.
        loop {
            if let DerpEvent::Up { relay, info } = conn.next().await? {
                conn.relay = relay;
                conn.info = info;
                return Ok(conn);
            }
        }
    }

    /// What happens next. Cancel-safe.
    ///
    /// # Errors
    /// Why the connection is over; after that, [`DerpConnError::GivenUp`].
    pub async fn next(&mut self) -> Result<DerpEvent, DerpConnError> {
        if let Some(event) = self.events.recv().await {
            return Ok(event);
        }
        // The queue ends with the task, so this does not wait.
        let Some(task) = &mut self.task else {
            return Err(DerpConnError::GivenUp);
        };
        let error = task.await.unwrap_or(DerpConnError::GivenUp);
        self.task = None;
        Err(error)
    }

    /// For sending, from anywhere.
    pub fn sender(&self) -> DerpSender {
        DerpSender {
            shared: Arc::clone(&self.shared),
        }
    }

    /// The relay's key.
    pub fn relay(&self) -> NodePublic {
        self.relay
    }

    /// What the relay said of itself.
    pub fn info(&self) -> &ServerInfo {
        &self.info
    }

    /// Where the relay is; `None` over a stream that was given.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }
}

impl Drop for DerpConn {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
        self.shared.lock().handle_end();
    }
}

impl DerpSender {
    /// Queues a packet for `to`; it may be lost, as on any network.
    pub fn send_packet(&self, to: NodePublic, packet: Bytes) {
        self.shared.lock().send_packet(now(), to, packet);
        self.shared.written.notify_one();
    }

    /// Tells the relay whether its region is our home.
    pub fn set_home(&self, home: bool) {
        self.shared.lock().set_home(home);
        self.shared.written.notify_one();
    }

    /// Asks whether the relay is still there; without an answer within 3 s the connection ends.
    pub fn check_alive(&self) {
        self.shared.check_alive();
    }

    /// What was counted so far; events include those that were dropped because nobody took them.
    pub fn stats(&self) -> DerpClientStats {
        let mut stats = self.shared.lock().stats();
        stats.dropped_events += self.shared.dropped_events.load(Ordering::Relaxed);
        stats
    }
}

/// Runs until the connection is over, and says why.
async fn drive<S>(stream: S, shared: Arc<Shared>, events: mpsc::Sender<DerpEvent>) -> DerpConnError
where
    S: AsyncRead + AsyncWrite,
{
    let (mut reader, mut writer) = tokio::io::split(stream);
    let error = tokio::select! {
        error = read(&mut reader, &shared, &events) => error,
        error = write(&mut writer, &shared) => error,
        error = watch(&shared) => error,
    };
    shared.lock().handle_end();
    error
}

async fn read(
    reader: &mut (impl AsyncRead + Unpin),
    shared: &Shared,
    events: &mpsc::Sender<DerpEvent>,
) -> DerpConnError {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let read = match reader.read(&mut buffer).await {
            Ok(read) => read,
            // Relays end without TLS' farewell.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
            Err(source) => {
                let what = "reading from";
                return DerpConnError::Io { what, source };
            }
        };
        let mut client = shared.lock();
        if read == 0 {
            return client.handle_end().into();
        }
        let outcome = client.handle_bytes(now(), buffer.get(..read).unwrap_or_default());
        while let Some(event) = client.poll_event() {
            if events.try_send(event).is_err() {
                shared.dropped_events.fetch_add(1, Ordering::Relaxed);
            }
        }
        drop(client);
        if let Err(error) = outcome {
            return error.into();
        }
        shared.written.notify_one();
    }
}

async fn write(writer: &mut (impl AsyncWrite + Unpin), shared: &Shared) -> DerpConnError {
    let mut batch = Vec::new();
    loop {
        batch.clear();
        fill(&mut batch, shared);
        if batch.is_empty() {
            shared.written.notified().await;
            continue;
        }
        let written = async {
            writer.write_all(&batch).await?;
            writer.flush().await
        };
        tokio::pin!(written);
        let outcome = tokio::select! {
            outcome = &mut written => outcome,
            () = sleep(WRITE_STALL_DURATION) => {
                shared.check_alive();
                written.await
            }
        };
        if let Err(source) = outcome {
            // The reader may know better why.
            sleep(WRITE_FAILED_DURATION).await;
            let what = "writing to";
            return DerpConnError::Io { what, source };
        }
    }
}

fn fill(batch: &mut Vec<u8>, shared: &Shared) {
    let mut client = shared.lock();
    while batch.len() < WRITE_BYTES
        && let Some(frame) = client.poll_transmit()
    {
        batch.extend_from_slice(&frame);
    }
}

/// Minds the deadlines.
async fn watch(shared: &Shared) -> DerpConnError {
    loop {
        let due = shared.lock().poll_timeout();
        match due {
            Some(due) => tokio::select! {
                () = sleep_until(due.into()) => {}
                () = shared.deadline.notified() => {}
            },
            None => shared.deadline.notified().await,
        }
        if let Err(error) = shared.lock().handle_timeout(now()) {
            return error.into();
        }
    }
}

#[cfg(test)]
mod tests;
