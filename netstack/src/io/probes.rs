//! What the measurement of the network asks of the outside besides STUN: names, and how long a relay's HTTPS takes.
//!
//! Invariant: so many questions at once and no more, each with an end; what is not answered counts as failed. Called by `driver.rs`.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OnceCell, Semaphore, mpsc};
use tokio::task::JoinSet;

use super::derp_conn::{DerpDialer, time_https};
use crate::tailcfg::DerpNode;

/// Questions at once: a measurement has no more relays to ask by HTTPS.
const AT_ONCE_MAX: usize = 32;
/// A measurement does not wait longer for any of them.
const ANSWER_DURATION_MAX: Duration = Duration::from_secs(5);
/// Addresses of one name that are looked at.
const ADDRESSES_MAX: usize = 16;

/// An answer for the node.
#[derive(Debug)]
pub(super) enum Answer {
    /// The addresses of a name; none if it has none.
    Resolved(String, Vec<IpAddr>),
    /// How long a relay took; `None` if it did not answer.
    Timed(u64, Option<Duration>),
}

/// The questions under way. Dropping it gives them up.
#[derive(Debug)]
pub(super) struct Probes {
    dialer: Arc<OnceCell<DerpDialer>>,
    room: Arc<Semaphore>,
    running: JoinSet<()>,
    answers: mpsc::Sender<Answer>,
    answered: mpsc::Receiver<Answer>,
}

impl Probes {
    /// None yet; certificates are judged by what `dialer` comes to hold.
    pub(super) fn new(dialer: Arc<OnceCell<DerpDialer>>) -> Self {
        let (answers, answered) = mpsc::channel(AT_ONCE_MAX);
        Self {
            dialer,
            room: Arc::new(Semaphore::new(AT_ONCE_MAX)),
            running: JoinSet::new(),
            answers,
            answered,
        }
    }

    /// Looks a name up.
    pub(super) fn resolve(&mut self, host: String) {
        self.ask(async move {
            // The port says nothing; the resolver wants one.
            let found = tokio::net::lookup_host((host.as_str(), 443)).await;
            let addresses = found.into_iter().flatten().map(|found| found.ip());
            let addresses = addresses.take(ADDRESSES_MAX).collect();
            Answer::Resolved(host, addresses)
        });
    }

    /// Times a request to a relay.
    pub(super) fn time(&mut self, id: u64, node: DerpNode) {
        let dialer = Arc::clone(&self.dialer);
        self.ask(async move {
            let dialer = dialer.get_or_init(DerpDialer::with_system_roots).await;
            let timed = tokio::time::timeout(ANSWER_DURATION_MAX, time_https(dialer, node)).await;
            Answer::Timed(id, timed.ok().flatten())
        });
    }

    fn ask(&mut self, question: impl Future<Output = Answer> + Send + 'static) {
        while self.running.try_join_next().is_some() {}
        // The measurement ends by its own clock without an answer.
        let Ok(room) = Arc::clone(&self.room).try_acquire_owned() else {
            return;
        };
        let answers = self.answers.clone();
        self.running.spawn(async move {
            let answer = question.await;
            drop(room);
            // Nobody listens only when the driver has ended.
            drop(answers.send(answer).await);
        });
    }

    /// The next answer. Cancel-safe; never ends.
    pub(super) async fn next(&mut self) -> Answer {
        match self.answered.recv().await {
            Some(answer) => answer,
            // We hold a sender.
            None => std::future::pending().await,
        }
    }
}
