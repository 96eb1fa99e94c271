//! Carries out what the node wants of its relays: one task for each connection, and the way for packets to and from it.
//!
//! Invariant: giving a packet to a relay never waits; until the relay serves us the newest few are kept. What a task tells waits in one bounded
//! queue, behind which the connection's own queue drops. A closed connection says nothing more. Called by `driver.rs`.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OnceCell, mpsc};
use tokio::task::AbortHandle;

use super::derp_conn::{DerpConn, DerpConnConfig, DerpConnError, DerpDialer, DerpSender};
use crate::derp::client::DerpEvent;
use crate::key::{NodePrivate, NodePublic};
use crate::node::Relayed;
use crate::relay::{RelayCommand, RelayConn};
use crate::tailcfg::DerpRegion;

/// Packets that wait for a connection that is still being dialled; the oldest go first. As many as the connection itself would keep.
const WAITING_MAX: usize = 32;
/// News of all connections that wait for the driver.
const NEWS_MAX: usize = 256;

/// What a connection has to tell.
#[derive(Debug)]
pub(super) enum RelayNews {
    /// The relay serves us.
    Up(RelayConn),
    /// It failed, or never came up; `pause` is what the relay asked for.
    Down(RelayConn, DerpConnError, Option<Duration>),
    /// A peer's packet.
    Packet(RelayConn, NodePublic, Bytes),
    /// The peer is not connected to this relay.
    PeerGone(RelayConn, NodePublic),
}

/// All connections. Dropping it closes them.
#[derive(Debug)]
pub(super) struct Relays {
    dialer: Arc<OnceCell<DerpDialer>>,
    links: HashMap<RelayConn, Link>,
    news: mpsc::Sender<RelayNews>,
    heard: mpsc::Receiver<RelayNews>,
}

#[derive(Debug)]
struct Link {
    outbox: Arc<Outbox>,
    task: AbortHandle,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What goes to a relay, before and after it serves us.
#[derive(Debug)]
struct Outbox(Mutex<Stage>);

#[derive(Debug)]
enum Stage {
    Dialling {
        waiting: VecDeque<(NodePublic, Bytes)>,
        home: bool,
    },
    Up(DerpSender),
}

impl Relays {
    /// None yet. `dialer` is made at the first use: without a relay nobody reads the system's certificates.
    pub(super) fn new(dialer: Arc<OnceCell<DerpDialer>>) -> Self {
        let (news, heard) = mpsc::channel(NEWS_MAX);
        Self {
            dialer,
            links: HashMap::new(),
            news,
            heard,
        }
    }

    /// Does what the node wants; `key` is the one by which relays know us now.
    pub(super) fn carry_out(&mut self, command: RelayCommand, key: Option<&NodePrivate>) {
        match command {
            RelayCommand::Open { conn, region, home } => {
                if let Some(key) = key {
                    self.open(conn, region, home, key.clone());
                }
            }
            RelayCommand::Prefer { conn, home } => {
                if let Some(link) = self.links.get(&conn) {
                    link.outbox.prefer(home);
                }
            }
            RelayCommand::Probe { conn } => {
                if let Some(link) = self.links.get(&conn) {
                    link.outbox.probe();
                }
            }
            RelayCommand::Close { conn } => {
                self.links.remove(&conn);
            }
        }
    }

    /// Sends a packet; it may be lost, as on any network.
    pub(super) fn send(&self, relayed: Relayed) {
        if let Some(link) = self.links.get(&relayed.conn) {
            link.outbox.send(relayed.peer, relayed.packet);
        }
    }

    /// What happens next. Cancel-safe; never ends.
    pub(super) async fn next(&mut self) -> RelayNews {
        loop {
            // We hold a sender, so there is always something to wait for.
            if let Some(news) = self.heard.recv().await
                && let Some(news) = self.current(news)
            {
                return news;
            }
        }
    }

    /// What has happened already.
    pub(super) fn try_next(&mut self) -> Option<RelayNews> {
        while let Ok(news) = self.heard.try_recv() {
            if let Some(news) = self.current(news) {
                return Some(news);
            }
        }
        None
    }

    /// Passes over what a closed connection said before it was closed.
    fn current(&mut self, news: RelayNews) -> Option<RelayNews> {
        let (RelayNews::Up(conn)
        | RelayNews::Down(conn, ..)
        | RelayNews::Packet(conn, ..)
        | RelayNews::PeerGone(conn, _)) = &news;
        let conn = *conn;
        let is_open = self.links.contains_key(&conn);
        if matches!(news, RelayNews::Down(..)) {
            self.links.remove(&conn);
        }
        is_open.then_some(news)
    }

    fn open(&mut self, conn: RelayConn, region: Arc<DerpRegion>, home: bool, node: NodePrivate) {
        let outbox = Arc::new(Outbox(Mutex::new(Stage::Dialling {
            waiting: VecDeque::new(),
            home,
        })));
        let (dialer, news, inner) = (
            Arc::clone(&self.dialer),
            self.news.clone(),
            Arc::clone(&outbox),
        );
        let task = tokio::spawn(async move {
            let config = DerpConnConfig {
                node,
                home,
                ipv6_works: false,
            };
            let mut pause = None;
            let error = run(&dialer, &region, config, conn, &inner, &news, &mut pause).await;
            // Nobody listens only when the driver has ended.
            drop(news.send(RelayNews::Down(conn, error, pause)).await);
        });
        let task = task.abort_handle();
        self.links.insert(conn, Link { outbox, task });
    }
}

/// Holds one connection for as long as it lasts, and says why it ended.
async fn run(
    dialer: &OnceCell<DerpDialer>,
    region: &DerpRegion,
    config: DerpConnConfig,
    conn: RelayConn,
    outbox: &Outbox,
    news: &mpsc::Sender<RelayNews>,
    pause: &mut Option<Duration>,
) -> DerpConnError {
    let dialer = dialer.get_or_init(DerpDialer::with_system_roots).await;
    let mut derp = match DerpConn::connect(dialer, region, config).await {
        Ok(derp) => derp,
        Err(error) => return error,
    };
    outbox.open(derp.sender());
    let mut told = RelayNews::Up(conn);
    loop {
        // Waiting here is no harm: the connection reads on, and drops what does not fit.
        if news.send(told).await.is_err() {
            return DerpConnError::GivenUp;
        }
        told = loop {
            match derp.next().await {
                Ok(DerpEvent::Packet { from, packet }) => {
                    break RelayNews::Packet(conn, from, packet);
                }
                Ok(DerpEvent::PeerGone { peer, .. }) => break RelayNews::PeerGone(conn, peer),
                Ok(DerpEvent::Restarting { reconnect_in, .. }) => *pause = Some(reconnect_in),
                Ok(DerpEvent::Health {
                    problem: Some(problem),
                }) => {
                    tracing::warn!(
                        region = conn.region,
                        problem,
                        "a relay finds fault with our connection"
                    );
                }
                Ok(
                    DerpEvent::Up { .. }
                    | DerpEvent::Alive { .. }
                    | DerpEvent::Health { problem: None },
                ) => {}
                Err(error) => return error,
            }
        };
    }
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, Stage> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, to: NodePublic, packet: Bytes) {
        match &mut *self.lock() {
            Stage::Dialling { waiting, .. } => {
                if waiting.len() >= WAITING_MAX {
                    waiting.pop_front();
                }
                waiting.push_back((to, packet));
            }
            Stage::Up(sender) => sender.send_packet(to, packet),
        }
    }

    fn prefer(&self, now_home: bool) {
        match &mut *self.lock() {
            Stage::Dialling { home, .. } => *home = now_home,
            Stage::Up(sender) => sender.set_home(now_home),
        }
    }

    fn probe(&self) {
        if let Stage::Up(sender) = &*self.lock() {
            sender.check_alive();
        }
    }

    /// The relay serves us: it gets what has waited, and hears whether it is home if that changed meanwhile.
    fn open(&self, sender: DerpSender) {
        let mut stage = self.lock();
        if let Stage::Dialling { waiting, home } = &mut *stage {
            sender.set_home(*home);
            for (to, packet) in waiting.drain(..) {
                sender.send_packet(to, packet);
            }
        }
        *stage = Stage::Up(sender);
    }
}
