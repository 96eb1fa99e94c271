//! Which DERP regions to be connected to, and through which one a peer is reached.
//!
//! Invariants: at most one connection to a region; the home region's is always wanted, any other for as long as it is written to; a
//! learned route holds only while the connection that taught it stands. It opens nothing itself. Called by `node`; the shell carries out what
//! [`Relays::poll_command`] asks for, and tells of what became of it.
//!
//! Order of calls: `set_map` and `set_home` as they become known; `route` for each datagram that is to go over a relay; `handle_*` as the
//! shell tells; `handle_timeout` at `poll_timeout`; after each of them `poll_command` until `None`.
//!
//! Source: tailscale.com `wgengine/magicsock/derp.go`.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};

use crate::key::NodePublic;
use crate::tailcfg::DerpRegion;

#[cfg(test)]
mod tests;

/// A connection to a region that is not our home is closed when nothing was sent over it for this long.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// How often idle connections are looked for.
const IDLE_LOOK_INTERVAL: Duration = Duration::from_secs(15);
/// The longest pause before a region is dialled again.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// The pause after the first failure; it doubles with each.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// A connection that was up for this long is sound, whatever it brought.
const LASTED_MIN: Duration = Duration::from_secs(60);
/// The longest pause that a relay which restarts may ask for.
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(30);
/// Connections at once. A tailnet's peers live in a handful of regions; one more closes the one that was not written to for longest.
const OPEN_MAX: usize = 32;

/// One attempt to be connected to a region, numbered from 1; what an older one still says is passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelayConn {
    /// The region's id.
    pub region: u32,
    /// Which attempt.
    pub attempt: u64,
}

/// What the shell is to do.
#[derive(Debug, Clone)]
pub enum RelayCommand {
    /// Dial the region, and go on until it fails or `Close` comes. Packets may be given to it from now on.
    Open {
        /// How it is called from now on.
        conn: RelayConn,
        /// Where it is.
        region: Arc<DerpRegion>,
        /// Whether it is our home: the relay is to be told.
        home: bool,
    },
    /// Tell the relay that it is now, or is no longer, our home.
    Prefer {
        /// Which.
        conn: RelayConn,
        /// Whether it is.
        home: bool,
    },
    /// Find out, soon, whether the connection still lives.
    Probe {
        /// Which.
        conn: RelayConn,
    },
    /// End it; nothing more is to be told of it.
    Close {
        /// Which.
        conn: RelayConn,
    },
}

/// What is known of one region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayStatus {
    /// The region's id.
    pub region: u32,
    /// Whether peers are told to find us there.
    pub home: bool,
    /// Whether the relay has accepted us.
    pub up: bool,
    /// Failures since it last delivered something.
    pub failures: u32,
}

/// Counters since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RelayStats {
    /// Datagrams that found a relay to go through.
    pub routed: u64,
    /// Datagrams for a peer that no relay is known to reach, or whose relay cannot be reached now.
    pub no_relay: u64,
    /// Datagrams that came from peers.
    pub received: u64,
    /// Datagrams from keys that are no peer's, or over a connection that is given up.
    pub strangers: u64,
    /// Connections that were lost, or never came up.
    pub failures: u64,
    /// Relays that said a peer is not, or no longer, connected to them.
    pub peers_gone: u64,
}

/// The relays. See the file's head for the order of calls.
#[derive(Debug)]
pub struct Relays {
    rng: ChaCha20Rng,
    regions: BTreeMap<u32, Region>,
    home: Option<u32>,
    /// Through which connection a peer last spoke to us.
    learned: HashMap<NodePublic, RelayConn>,
    commands: VecDeque<RelayCommand>,
    attempts: u64,
    idle_look_at: Option<Instant>,
    stats: RelayStats,
}

#[derive(Debug)]
struct Region {
    spec: Arc<DerpRegion>,
    link: Link,
    written_at: Option<Instant>,
    up_at: Option<Instant>,
    failures: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Closed,
    Dialling(u64),
    Up(u64),
    /// It failed; not before this moment again.
    Pausing(Instant),
}

impl Link {
    const fn attempt(self) -> Option<u64> {
        match self {
            Self::Dialling(attempt) | Self::Up(attempt) => Some(attempt),
            Self::Closed | Self::Pausing(_) => None,
        }
    }
}

impl Relays {
    /// No regions yet. `seed` feeds the jitter of pauses.
    pub fn new(seed: [u8; 32]) -> Self {
        Self {
            rng: ChaCha20Rng::from_seed(seed),
            regions: BTreeMap::new(),
            home: None,
            learned: HashMap::new(),
            commands: VecDeque::new(),
            attempts: 0,
            idle_look_at: None,
            stats: RelayStats::default(),
        }
    }

    /// The regions that there are now. One that changed is dialled anew, one that is gone is closed.
    pub fn set_map<'a>(
        &mut self,
        now: Instant,
        regions: impl IntoIterator<Item = (u32, &'a Arc<DerpRegion>)>,
    ) {
        let told: BTreeMap<u32, &Arc<DerpRegion>> = regions.into_iter().collect();
        let gone: Vec<u32> = self
            .regions
            .iter()
            .filter(|(id, region)| {
                told.get(id)
                    .is_none_or(|spec| spec.nodes != region.spec.nodes)
            })
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            self.close(id);
            self.regions.remove(&id);
        }
        for (id, spec) in told {
            self.regions
                .entry(id)
                .and_modify(|region| region.spec = Arc::clone(spec))
                .or_insert_with(|| Region {
                    spec: Arc::clone(spec),
                    link: Link::Closed,
                    written_at: None,
                    up_at: None,
                    failures: 0,
                });
        }
        if let Some(home) = self.home {
            self.open(now, home);
        }
    }

    /// Where peers are told to find us; `None` for nowhere. The old home's connection stays until it idles: late packets come through it.
    pub fn set_home(&mut self, now: Instant, home: Option<u32>) {
        let old = std::mem::replace(&mut self.home, home);
        if old == home {
            return;
        }
        if let Some(conn) = old.and_then(|old| self.conn(old)) {
            self.commands
                .push_back(RelayCommand::Prefer { conn, home: false });
            self.touch(now, conn.region);
            self.idle_look_at.get_or_insert(now + IDLE_LOOK_INTERVAL);
        }
        let Some(home) = home else { return };
        match self.conn(home) {
            Some(conn) => self
                .commands
                .push_back(RelayCommand::Prefer { conn, home: true }),
            None => self.open(now, home),
        }
    }

    /// Our home.
    pub fn home(&self) -> Option<u32> {
        self.home
    }

    /// Whether a relay may carry something at all.
    pub fn is_usable(&self) -> bool {
        self.home.is_some()
    }

    /// Through which connection a datagram for `peer`, which lives in `its_home` (0: nobody knows), is to go; it is opened if need be.
    pub fn route(&mut self, now: Instant, peer: &NodePublic, its_home: u32) -> Option<RelayConn> {
        let learned = self
            .learned
            .get(peer)
            .copied()
            .filter(|conn| self.conn(conn.region) == Some(*conn));
        let conn = self.conn(its_home).or(learned).or_else(|| {
            self.open(now, its_home);
            self.conn(its_home)
        });
        match conn {
            Some(conn) => {
                self.touch(now, conn.region);
                self.stats.routed += 1;
            }
            None => self.stats.no_relay += 1,
        }
        conn
    }

    /// The connection to `region` that answers there go through; `None` if it is gone.
    pub fn answer_by(&mut self, now: Instant, region: u32) -> Option<RelayConn> {
        let conn = self.conn(region)?;
        self.touch(now, region);
        self.stats.routed += 1;
        Some(conn)
    }

    /// The relay has accepted us.
    pub fn handle_up(&mut self, now: Instant, conn: RelayConn) {
        if self.conn(conn.region) == Some(conn)
            && let Some(region) = self.regions.get_mut(&conn.region)
        {
            region.link = Link::Up(conn.attempt);
            region.up_at = Some(now);
        }
    }

    /// The connection failed, or never came up. `pause`: what the relay asked for, if it did. How often the region has failed since it last
    /// brought something.
    pub fn handle_down(&mut self, now: Instant, conn: RelayConn, pause: Option<Duration>) -> u32 {
        if self.conn(conn.region) != Some(conn) {
            return 0;
        }
        self.stats.failures += 1;
        self.learned.retain(|_, by| *by != conn);
        let jitter = f64::from(self.rng.next_u32()) / f64::from(u32::MAX);
        if let Some(region) = self.regions.get_mut(&conn.region) {
            let lasted = region
                .up_at
                .take()
                .map(|at| now.saturating_duration_since(at));
            if lasted.is_some_and(|lasted| lasted >= LASTED_MIN) {
                region.failures = 0;
            }
            let doubled = BACKOFF_FIRST
                .saturating_mul(1 << region.failures.min(16))
                .min(BACKOFF_MAX);
            region.failures = region.failures.saturating_add(1);
            let asked = pause.unwrap_or_default().min(RESTART_PAUSE_MAX);
            region.link = Link::Pausing(now + asked + doubled.mul_f64(0.5 + jitter / 2.0));
            return region.failures;
        }
        0
    }

    /// A packet came over `conn` from `peer`, which is in the netmap if `is_peer`. Whether it is to be looked at.
    pub fn handle_received(&mut self, conn: RelayConn, peer: &NodePublic, is_peer: bool) -> bool {
        if !is_peer || self.conn(conn.region) != Some(conn) {
            self.stats.strangers += 1;
            return false;
        }
        self.stats.received += 1;
        if let Some(region) = self.regions.get_mut(&conn.region) {
            region.failures = 0;
        }
        self.learned.insert(*peer, conn);
        true
    }

    /// The relay says that `peer` is not connected to it: it is not dead, but this is no way to it.
    pub fn handle_peer_gone(&mut self, conn: RelayConn, peer: &NodePublic) {
        self.stats.peers_gone += 1;
        if self.learned.get(peer) == Some(&conn) {
            self.learned.remove(peer);
        }
    }

    /// The network has changed under us: connections may be dead without knowing it.
    pub fn handle_network_change(&mut self, now: Instant) {
        for (id, region) in &mut self.regions {
            match region.link {
                Link::Up(attempt) => self.commands.push_back(RelayCommand::Probe {
                    conn: RelayConn {
                        region: *id,
                        attempt,
                    },
                }),
                Link::Pausing(_) => region.link = Link::Pausing(now),
                Link::Closed | Link::Dialling(_) => {}
            }
        }
    }

    /// Our node key, by which relays know us, is another one: every connection is made anew, the home's at once.
    pub fn handle_new_key(&mut self, now: Instant) {
        let regions: Vec<u32> = self.open_regions().collect();
        for region in regions {
            self.close(region);
        }
        self.learned.clear();
        if let Some(home) = self.home {
            self.open(now, home);
        }
    }

    /// Forgets peers that are no longer in the netmap.
    pub fn retain_peers(&mut self, keep: impl Fn(&NodePublic) -> bool) {
        self.learned.retain(|peer, _| keep(peer));
    }

    /// What the shell is to do next.
    pub fn poll_command(&mut self) -> Option<RelayCommand> {
        self.commands.pop_front()
    }

    /// When [`Relays::handle_timeout`] is next due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let home = self.home.and_then(|home| self.regions.get(&home));
        let redial = home.and_then(|region| match region.link {
            Link::Pausing(until) => Some(until),
            Link::Closed | Link::Dialling(_) | Link::Up(_) => None,
        });
        redial.into_iter().chain(self.idle_look_at).min()
    }

    /// Dials the home again, closes what idles.
    pub fn handle_timeout(&mut self, now: Instant) {
        if let Some(home) = self.home {
            self.open(now, home);
        }
        if self.idle_look_at.is_some_and(|at| now >= at) {
            let idle: Vec<u32> = self
                .regions
                .iter()
                .filter(|(id, region)| {
                    let written = region.written_at.is_some_and(|at| now < at + IDLE_MAX);
                    Some(**id) != self.home && region.link.attempt().is_some() && !written
                })
                .map(|(id, _)| *id)
                .collect();
            for id in idle {
                self.close(id);
            }
            let others = self.open_regions().any(|id| Some(id) != self.home);
            self.idle_look_at = others.then(|| now + IDLE_LOOK_INTERVAL);
        }
    }

    /// What is known of each region that was ever used, or is our home.
    pub fn status(&self) -> Vec<RelayStatus> {
        let used =
            |(id, region): &(&u32, &Region)| Some(**id) == self.home || region.link != Link::Closed;
        self.regions
            .iter()
            .filter(used)
            .map(|(id, region)| RelayStatus {
                region: *id,
                home: Some(*id) == self.home,
                up: matches!(region.link, Link::Up(_)),
                failures: region.failures,
            })
            .collect()
    }

    /// Counters since the start.
    pub fn stats(&self) -> RelayStats {
        self.stats
    }

    /// The connection to a region, also one that is still being dialled: it queues.
    fn conn(&self, region: u32) -> Option<RelayConn> {
        let attempt = self.regions.get(&region)?.link.attempt()?;
        Some(RelayConn { region, attempt })
    }

    fn touch(&mut self, now: Instant, region: u32) {
        if let Some(region) = self.regions.get_mut(&region) {
            region.written_at = Some(now);
        }
    }

    fn open_regions(&self) -> impl Iterator<Item = u32> + '_ {
        let open = |(_, region): &(&u32, &Region)| region.link.attempt().is_some();
        self.regions.iter().filter(open).map(|(id, _)| *id)
    }

    /// Dials `region`, unless there is a connection, none such region, or its pause is not over.
    fn open(&mut self, now: Instant, region: u32) {
        let may = self
            .regions
            .get(&region)
            .is_some_and(|region| match region.link {
                Link::Closed => true,
                Link::Pausing(until) => now >= until,
                Link::Dialling(_) | Link::Up(_) => false,
            });
        if !may {
            return;
        }
        if self.open_regions().count() >= OPEN_MAX {
            let spared = self.home;
            let oldest = self
                .open_regions()
                .filter(|id| Some(*id) != spared)
                .min_by_key(|id| self.regions.get(id).and_then(|region| region.written_at));
            if let Some(oldest) = oldest {
                self.close(oldest);
            }
        }
        self.attempts += 1;
        let attempt = self.attempts;
        let home = self.home == Some(region);
        if let Some(told) = self.regions.get_mut(&region) {
            told.link = Link::Dialling(attempt);
            told.written_at = Some(now);
            self.commands.push_back(RelayCommand::Open {
                conn: RelayConn { region, attempt },
                region: Arc::clone(&told.spec),
                home,
            });
        }
        if !home {
            self.idle_look_at.get_or_insert(now + IDLE_LOOK_INTERVAL);
        }
    }

    fn close(&mut self, region: u32) {
        if let Some(conn) = self.conn(region) {
            self.learned.retain(|_, by| *by != conn);
            self.commands.push_back(RelayCommand::Close { conn });
        }
        if let Some(region) = self.regions.get_mut(&region) {
            region.link = Link::Closed;
        }
    }
}
