//! The event loop: one task, one clock. Feeds [`Node`] with datagrams, control answers and time, and
//! carries out what it asks for.
//!
//! Invariant: the node's lock is never held across an await or a send; reads per turn are bounded, so
//! timers and writes are never starved; a full kernel buffer holds the batch back, and neither reads nor
//! timers. However the loop ends, streams learn of it. Called by `io.rs`.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::control_task::ControlTask;
use super::outgoing::Outgoing;
use super::probes::{Answer, Probes};
use super::relays::{RelayNews, Relays};
use super::told::Told;
use super::udp::{ReadBuffers, Udp};
use super::wakers::Wakers;
use crate::control::RequestId;
use crate::node::{Node, NodeEvent};

/// Batches read from one socket before the node is flushed: bounds the delay of the first answer.
const READS_PER_TURN: usize = 4;

/// Packets taken from relays before the node is flushed, for the same reason.
const RELAY_NEWS_PER_TURN: usize = 64;

/// Longest sleep before the wall clock is looked at again while some peer's key has an expiry: the clock
/// may be set meanwhile.
const WALL_TIME_SLEEP_MAX: Duration = Duration::from_secs(60);

/// How long a node that closes waits for its peers to acknowledge what they were sent, and to finish.
const CLOSE_DURATION_MAX: Duration = Duration::from_secs(5);

/// What the loop, the streams and the handles share.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    work: Notify,
}

/// Behind the lock.
#[derive(Debug)]
pub(super) struct State {
    pub(super) node: Node,
    pub(super) wakers: Wakers,
    pub(super) closed: bool,
}

impl Shared {
    pub(super) fn new(node: Node) -> Arc<Self> {
        let state = Mutex::new(State {
            node,
            wakers: Wakers::default(),
            closed: false,
        });
        Arc::new(Self {
            state,
            work: Notify::new(),
        })
    }

    /// The lock. A panic elsewhere cannot leave the node half changed for long: it is a plain state
    /// machine, and the loop's end closes it; so poison is passed over.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the loop that there is something to flush.
    pub(super) fn kick(&self) {
        self.work.notify_one();
    }
}

/// What the node's owner wants to see of its progress.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// A netmap has arrived; the node has addresses.
    pub up: bool,
    /// Counts netmap changes.
    pub netmap_generation: u64,
    /// Why control cannot be used at the moment; `None` when all is well.
    pub trouble: Option<Trouble>,
}

/// Why a node is not (or no longer) in touch with control.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// A person must visit this address.
    NeedsLogin(String),
    /// Control refused the registration.
    Refused(String),
    /// Control cannot be reached, or broke off.
    Unreachable(String),
}

/// The loop's own belongings.
#[derive(Debug)]
pub(super) struct Driver {
    pub(super) shared: Arc<Shared>,
    pub(super) sockets: Vec<Udp>,
    pub(super) control: ControlTask,
    pub(super) relays: Relays,
    pub(super) probes: Probes,
    pub(super) progress: watch::Sender<Progress>,
    pub(super) told: Told,
    /// End in good order.
    pub(super) closing: CancellationToken,
    /// End now.
    pub(super) shutdown: CancellationToken,
}

/// Control requests under way.
#[derive(Debug, Default)]
struct Tasks {
    running: JoinSet<Option<RequestId>>,
    by_id: HashMap<RequestId, AbortHandle>,
}

/// Tells every stream and listener when the loop is gone, for whatever reason.
struct Ending(Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        let wakers = {
            let mut state = self.0.lock();
            state.closed = true;
            state.wakers.all()
        };
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Driver {
    /// Runs until told to end; then peers get a reset for what is open, and every stream and listener
    /// of ours sees `NotConnected`.
    pub(super) async fn run(mut self) {
        let ending = Ending(Arc::clone(&self.shared));
        let mut buffers = ReadBuffers::default();
        let mut out = Outgoing::default();
        let mut tasks = Tasks::default();
        let mut due = Vec::new();
        let mut close_at = None;
        loop {
            let deadline = self.turn(&mut out, &mut tasks, &mut due);
            due.drain(..).for_each(Waker::wake);
            let blocked = send(&self.sockets, &mut out);
            if close_at.is_some_and(|at| now() >= at || self.is_drained(&out)) {
                break;
            }
            let wake_at = deadline.into_iter().chain(close_at).min();
            tokio::select! {
                () = self.shutdown.cancelled() => break,
                () = self.closing.cancelled(), if close_at.is_none() => {
                    close_at = Some(now() + CLOSE_DURATION_MAX);
                    self.shared.lock().node.tcp().unlisten_all();
                }
                () = self.shared.work.notified() => {}
                index = any_readable(&self.sockets) => self.read(index, &mut buffers),
                news = self.relays.next() => self.hear(news),
                answer = self.probes.next() => self.answered(answer),
                () = room(blocked) => {}
                () = sleep_until(wake_at) => {}
                Some(ended) = tasks.running.join_next() => tasks.ended(ended),
            }
        }
        // Streams first: from here on none waits, and none sees the resets that are for the peers.
        drop(ending);
        self.shared.lock().node.tcp().abort_all();
        self.turn(&mut out, &mut tasks, &mut due);
        // Once: what does not fit now is lost, and the peer's own time-outs end it.
        send(&self.sockets, &mut out);
        // Requests hold the key store, which is free again when `Tailnet::close` returns.
        tasks.running.shutdown().await;
    }

    fn is_drained(&self, out: &Outgoing) -> bool {
        out.is_done() && self.shared.lock().node.tcp().is_drained()
    }

    /// One turn of the crank: time, flush, and everything that the node wants done.
    fn turn(
        &mut self,
        out: &mut Outgoing,
        tasks: &mut Tasks,
        due: &mut Vec<Waker>,
    ) -> Option<Instant> {
        let now = now();
        let mut guard = self.shared.lock();
        let state = &mut *guard;
        if state
            .node
            .poll_timeout()
            .is_some_and(|deadline| deadline <= now)
        {
            state.node.handle_timeout(now);
        }
        let expiry = expire_peers(&mut state.node, now);
        state.node.flush(now);
        if out.is_done() {
            state.node.take_transmits(&mut out.batch);
        }
        for relayed in out.batch.drain_relayed() {
            self.relays.send(relayed);
        }
        while let Some(command) = state.node.poll_relay() {
            let key = state.node.relay_key();
            self.relays.carry_out(command, key.as_ref());
        }
        let mut told = Vec::new();
        while let Some(event) = state.node.poll_event() {
            if let NodeEvent::Tcp(event) = &event {
                state.wakers.due(event, due);
            } else {
                told.push(event);
            }
        }
        let mut requests = Vec::new();
        while let Some(request) = state.node.poll_control(now) {
            requests.push(request);
        }
        let deadline = state.node.poll_timeout().into_iter().chain(expiry).min();
        drop(guard);
        // A new key is on disk before the requests that use it go out.
        for event in told {
            self.tell(event, tasks);
        }
        for request in requests {
            let id = request.id();
            let task = self.control.clone();
            let handle = tasks.running.spawn(async move {
                task.carry_out(request).await;
                Some(id)
            });
            tasks.by_id.insert(id, handle);
        }
        deadline
    }

    fn tell(&mut self, event: NodeEvent, tasks: &mut Tasks) {
        match event {
            NodeEvent::NodeKey(key) => {
                let mut keys = self
                    .control
                    .keys
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                if let Err(error) = keys.put_node_key(&key) {
                    tracing::error!(%error, "cannot write the node key; the next start registers anew");
                }
            }
            NodeEvent::Up => {
                self.progress.send_modify(|progress| {
                    progress.up = true;
                    progress.trouble = None;
                });
            }
            NodeEvent::NetmapChanged => {
                self.progress.send_modify(|progress| {
                    progress.netmap_generation += 1;
                    progress.trouble = None;
                });
            }
            NodeEvent::Path(event) => tracing::debug!(?event, "path"),
            NodeEvent::Resolve { host } => self.probes.resolve(host),
            NodeEvent::TimeRelay { id, node } => self.probes.time(id, *node),
            NodeEvent::NeedsLogin { url } => self.trouble(Trouble::NeedsLogin(url)),
            NodeEvent::Refused { reason } => self.trouble(Trouble::Refused(reason)),
            NodeEvent::ControlDown { reason } => self.trouble(Trouble::Unreachable(reason)),
            NodeEvent::CancelControl { id, reconnect } => {
                if let Some(handle) = tasks.by_id.remove(&id) {
                    handle.abort();
                }
                if reconnect {
                    // Not here: the client's lock may be held by an attempt to connect.
                    let client = self.control.client.clone();
                    tasks.running.spawn(async move {
                        client.reset().await;
                        None
                    });
                }
            }
            NodeEvent::Tcp(_) => {}
        }
    }

    /// Who watches sees each trouble; the log has it once, however often the attempt behind it is repeated.
    fn trouble(&mut self, trouble: Trouble) {
        self.progress.send_if_modified(|progress| {
            let news = progress.trouble.as_ref() != Some(&trouble);
            if news {
                progress.trouble = Some(trouble.clone());
            }
            news
        });
        if self.told.is_due(now(), &trouble) {
            tracing::warn!("{trouble}");
        } else {
            tracing::debug!("still: {trouble}");
        }
    }

    fn answered(&self, answer: Answer) {
        let now = now();
        let mut state = self.shared.lock();
        match answer {
            Answer::Resolved(host, addresses) => {
                state.node.handle_resolved(now, &host, &addresses);
            }
            Answer::Timed(id, latency) => state.node.handle_relay_timed(now, id, latency),
        }
    }

    /// Takes what relays brought, and what became of them.
    fn hear(&mut self, first: RelayNews) {
        let now = now();
        let mut state = self.shared.lock();
        let mut news = Some(first);
        for _ in 0..RELAY_NEWS_PER_TURN {
            match news.take() {
                Some(RelayNews::Packet(conn, from, packet)) => {
                    state.node.handle_relayed(now, conn, &from, &packet);
                }
                Some(RelayNews::PeerGone(conn, peer)) => {
                    state.node.handle_relay_peer_gone(conn, &peer);
                }
                Some(RelayNews::Up(conn)) => {
                    tracing::info!(region = conn.region, "connected to a relay");
                    state.node.handle_relay_up(now, conn);
                }
                Some(RelayNews::Down(conn, error, pause)) => {
                    if state.node.handle_relay_down(now, conn, pause) == 1 {
                        tracing::warn!(
                            region = conn.region,
                            error = told(&error),
                            "no connection to a relay; it is dialled again"
                        );
                    } else {
                        tracing::debug!(region = conn.region, error = told(&error), "still none");
                    }
                }
                None => return,
            }
            news = self.relays.try_next();
        }
    }

    fn read(&self, index: usize, buffers: &mut ReadBuffers) {
        let Some(socket) = self.sockets.get(index) else {
            return;
        };
        let now = now();
        let mut state = self.shared.lock();
        for _ in 0..READS_PER_TURN {
            let read = socket.try_read(buffers, &mut |from, datagram| {
                state.node.handle_datagram(now, from, datagram);
            });
            match read {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    tracing::debug!(%error, local = %socket.local(), "reading from the UDP socket");
                    break;
                }
            }
        }
    }
}

/// Sends what goes; the socket that has no room for more, if there is one.
fn send<'a>(sockets: &'a [Udp], out: &mut Outgoing) -> Option<&'a Udp> {
    let blocked = out.advance(|run| match socket_for(sockets, run.destination) {
        Some(socket) => socket.try_send(run),
        // We never told anyone of an address of this family.
        None => (0, Err(io::ErrorKind::NetworkUnreachable.into())),
    });
    blocked.and_then(|to| socket_for(sockets, to))
}

fn socket_for(sockets: &[Udp], destination: SocketAddr) -> Option<&Udp> {
    sockets
        .iter()
        .find(|socket| socket.local().is_ipv4() == destination.is_ipv4())
}

/// The index of a socket that can be read.
async fn any_readable(sockets: &[Udp]) -> usize {
    match sockets {
        [only] => {
            wait_readable(only).await;
            0
        }
        [first, second, ..] => tokio::select! {
            () = wait_readable(first) => 0,
            () = wait_readable(second) => 1,
        },
        [] => std::future::pending().await,
    }
}

async fn wait_readable(socket: &Udp) {
    if let Err(error) = socket.readable().await {
        tracing::error!(%error, local = %socket.local(), "the UDP socket is unusable");
        std::future::pending::<()>().await;
    }
}

/// Completes when `blocked` has room again; never if nothing is blocked.
async fn room(blocked: Option<&Udp>) {
    match blocked {
        Some(socket) => {
            if let Err(error) = socket.writable().await {
                tracing::error!(%error, local = %socket.local(), "the UDP socket is unusable");
                std::future::pending::<()>().await;
            }
        }
        None => std::future::pending().await,
    }
}

/// An error and what it came from.
fn told(error: &dyn std::error::Error) -> String {
    let mut told = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        told.push_str(": ");
        told.push_str(&error.to_string());
        cause = error.source();
    }
    told
}

/// Lets peers go whose key has expired; when to look again.
fn expire_peers(node: &mut Node, now: Instant) -> Option<Instant> {
    let today = unix_seconds();
    if node.next_expiry()? <= today {
        node.handle_wall_time(now, today);
    }
    let left = u64::try_from(node.next_expiry()?.saturating_sub(today)).unwrap_or(1);
    Some(now + Duration::from_secs(left).min(WALL_TIME_SLEEP_MAX))
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

impl Tasks {
    fn ended(&mut self, ended: Result<Option<RequestId>, tokio::task::JoinError>) {
        match ended {
            Ok(Some(id)) => {
                self.by_id.remove(&id);
            }
            Err(error) if error.is_panic() => {
                tracing::error!(%error, "a control request panicked");
            }
            Ok(None) | Err(_) => {}
        }
    }
}

/// The shell's clock; the core takes what it is given.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place where the shell reads the clock"
)]
pub(super) fn now() -> Instant {
    Instant::now()
}

/// The wall clock, in seconds since 1970; 0 when it stands before that.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place where the shell reads the wall clock"
)]
pub(super) fn unix_seconds() -> i64 {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
