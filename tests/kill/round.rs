//! A round: a recorder starts, 50 sessions stream to it, and at a moment that the seed chose it is killed.
//!
//! ```text
//! start ─► killed in its start or recovery, none to two times ─► start ─► sessions ─► killed ─► what it left is noted
//! ```
//!
//! Invariant: until it is killed a recorder fails no session. The runs play one round after the other on one store.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand_chacha::ChaCha20Rng;
use rand_core::RngCore;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::content::Key;
use crate::judge::Record;
use crate::recorder::{Home, Recorder};
use crate::reporter::{Reported, Reporter};
use crate::session::{Endpoint, Script, Session, Tally};
use crate::tailnet::World;
use crate::{raw, soon};

/// Sessions of a round, all at the same time.
pub(crate) const SESSIONS: u32 = 50;
/// Senders of events beside them.
const REPORTERS: u32 = 4;
/// One in so many sessions comes over HTTP/1.1.
const V1_EVERY: u32 = 10;
/// So many acked sessions make a round one that streams.
const STREAMING_MIN: usize = 35;
/// So many ended sessions make it one that seals.
const SEALING_MIN: usize = 10;
/// Acks that were on their way when the recorder died are still promises: time for them to arrive.
const LAST_ACKS: Duration = Duration::from_millis(30);

/// What goes on when the recorder is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Sessions connect.
    Opening,
    /// Sessions stream; now and then one ends.
    Streaming,
    /// Sessions end, and are sealed.
    Sealing,
}

#[derive(Debug)]
struct Plan {
    /// Kills between start and the first session: when, and whether the state is lost after it.
    in_start: Vec<(Duration, bool)>,
    phase: Phase,
    /// From the begin of the phase.
    moment: Duration,
    loses_state: bool,
}

/// What a run has come to.
pub(crate) struct Run {
    pub(crate) seed: u64,
    pub(crate) round: u32,
    pub(crate) kills: u32,
    /// Segments of attempts to seal that were killed, before they were swept.
    pub(crate) orphans: usize,
    pub(crate) records: Vec<Record>,
    pub(crate) reported: Vec<Reported>,
    /// Names of manifests, and the round at whose end each was first seen.
    pub(crate) sealed_in: BTreeMap<String, u32>,
}

impl Plan {
    fn draw(rng: &mut ChaCha20Rng, seed: u64, round: u32) -> Self {
        let mut below = |most_ms: u32| Duration::from_millis(u64::from(rng.next_u32() % most_ms));
        let moments = [below(600), below(600)];
        let (in_opening, in_streaming, in_sealing) = (below(400), below(900), below(1000));
        let (phase, moment) = match rng.next_u32() % 8 {
            0 => (Phase::Opening, in_opening),
            1..5 => (Phase::Streaming, in_streaming),
            _ => (Phase::Sealing, in_sealing),
        };
        let kills_in_start = match rng.next_u32() % 6 {
            0 => 2,
            1 | 2 => 1,
            _ => 0,
        };
        let mut lost = || rng.next_u32().is_multiple_of(2);
        let in_start = moments.into_iter().take(kills_in_start);
        Self {
            in_start: in_start.map(|moment| (moment, lost())).collect(),
            phase,
            moment,
            // Of two rounds one loses its state.
            loses_state: seed.wrapping_add(u64::from(round)).is_multiple_of(2),
        }
    }

    fn script(&self, rng: &mut ChaCha20Rng, key: Key) -> Script {
        let endpoint = match (key.session + 1).is_multiple_of(V1_EVERY) {
            true => Endpoint::V1,
            false => Endpoint::V2,
        };
        let ends = match self.phase {
            Phase::Sealing => true,
            // What nobody acks on the way has to end, or nothing of it was ever promised.
            Phase::Opening | Phase::Streaming => {
                endpoint == Endpoint::V1 || rng.next_u32().is_multiple_of(5)
            }
        };
        Script {
            key,
            endpoint,
            writes: ends.then(|| 2 + rng.next_u32() % 20),
            pause: Duration::from_millis(u64::from(5 + rng.next_u32() % 30)),
        }
    }
}

impl Run {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            seed,
            round: 0,
            kills: 0,
            orphans: 0,
            records: Vec::new(),
            reported: Vec::new(),
            sealed_in: BTreeMap::new(),
        }
    }

    pub(crate) async fn play_round(&mut self, rng: &mut ChaCha20Rng, world: &World, home: &Home) {
        let plan = Plan::draw(rng, self.seed, self.round);
        for (moment, loses_state) in &plan.in_start {
            let recorder = Recorder::start(home, &world.control_url());
            tokio::time::sleep(*moment).await;
            self.kill(recorder).await;
            if *loses_state {
                lose_state(world, home);
            }
        }
        let mut recorder = Recorder::start(home, &world.control_url());
        let address = recorder.joined().await;
        world.remove_recorders_but(Some(address));
        let target = world.recorder(address).await;

        let (tally, mut progress) = watch::channel(Tally::default());
        let killed = Arc::new(AtomicBool::new(false));
        let mut running = JoinSet::new();
        let mut sessions = Vec::new();
        for session in 0..SESSIONS {
            let key = Key {
                seed: self.seed,
                round: self.round,
                session,
            };
            let session = Session::new(plan.script(rng, key), tally.clone());
            sessions.push(session.clone());
            let (sender, killed) = (world.sender().clone(), Arc::clone(&killed));
            running.spawn(async move {
                let script = session.script;
                let ended = session.run(sender, target).await;
                if let Err(trouble) = ended
                    && !killed.load(Ordering::SeqCst)
                {
                    panic!("a recorder that lives failed {script:?}: {trouble}");
                }
            });
        }
        let mut reporters = Vec::new();
        for session in SESSIONS..SESSIONS + REPORTERS {
            let reporter = Reporter::new(Key {
                seed: self.seed,
                round: self.round,
                session,
            });
            reporters.push(reporter.clone());
            let (sender, killed) = (world.sender().clone(), Arc::clone(&killed));
            running.spawn(async move {
                if let Err(trouble) = reporter.run(sender, target).await
                    && !killed.load(Ordering::SeqCst)
                {
                    panic!("a recorder that lives failed an event: {trouble}");
                }
            });
        }
        let begun = progress.wait_for(|tally| match plan.phase {
            Phase::Opening => true,
            Phase::Streaming => tally.acked >= STREAMING_MIN,
            Phase::Sealing => tally.ended >= SEALING_MIN,
        });
        let moment = async {
            soon("the phase in which to kill", async {
                drop(begun.await.unwrap())
            })
            .await;
            tokio::time::sleep(plan.moment).await;
        };
        tokio::select! {
            () = moment => {}
            () = failed(&mut running) => {}
        }
        killed.store(true, Ordering::SeqCst);
        self.kill(recorder).await;
        tokio::time::sleep(LAST_ACKS).await;
        running.abort_all();
        while let Some(ended) = running.join_next().await {
            assert!(ended.is_ok() || ended.is_err_and(|error| error.is_cancelled()));
        }

        if plan.loses_state {
            lose_state(world, home);
        }
        for name in raw::manifests_below(&home.store()) {
            self.sealed_in.entry(name).or_insert(self.round);
        }
        let records = sessions.into_iter().map(|session| Record {
            script: session.script,
            told: session.told(),
        });
        self.records.extend(records);
        self.reported.extend(reporters.iter().map(Reporter::told));
        self.round += 1;
    }

    async fn kill(&mut self, recorder: Recorder) {
        recorder.kill().await;
        self.kills += 1;
    }
}

fn lose_state(world: &World, home: &Home) {
    home.lose_state();
    world.remove_recorders_but(None);
}

/// Panics as soon as a session has; the end of a session that did well is no news.
async fn failed(running: &mut JoinSet<()>) {
    while let Some(ended) = running.join_next().await {
        if let Err(error) = ended {
            std::panic::resume_unwind(error.into_panic());
        }
    }
    std::future::pending().await
}
