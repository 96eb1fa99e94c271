//! Many sessions to one far end, and what they heard all together.
//!
//! Invariant: a crowd has grown when every session in it has sent all of its upload and was told that all of it is durable.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use netstack::io::Tailnet;
use tokio::task::JoinHandle;

use crate::session::{self, Ears, UPLOAD_BYTES};
use crate::soon;

/// Sessions that begin at the same time.
const AT_ONCE: usize = 200;
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

pub(crate) struct Crowd {
    sender: Tailnet,
    far_end: SocketAddr,
    sessions: Vec<(Arc<Ears>, JoinHandle<()>)>,
}

/// Frames that a crowd heard.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heard {
    pub(crate) acks: u64,
    pub(crate) ack_bytes: u64,
    pub(crate) pings: u64,
}

impl Crowd {
    pub(crate) fn new(sender: &Tailnet, far_end: SocketAddr) -> Self {
        Self {
            sender: sender.clone(),
            far_end,
            sessions: Vec::new(),
        }
    }

    /// Opens sessions until there are so many, and waits for all their acks.
    pub(crate) async fn grow_to(&mut self, count: usize) {
        while self.sessions.len() < count {
            let until = count.min(self.sessions.len() + AT_ONCE);
            while self.sessions.len() < until {
                let dial = self.sender.dial(self.far_end);
                let stream = soon("a dial", dial).await.unwrap();
                let ears = Arc::<Ears>::default();
                let own = Arc::clone(&ears);
                let task = tokio::spawn(async move {
                    let ended = session::run(stream, own).await;
                    println!("a session ended: {ended:?}");
                });
                self.sessions.push((ears, task));
            }
            soon("every ack", async {
                while !self.all_acked() {
                    assert_eq!(self.ended(), 0, "sessions ended");
                    tokio::time::sleep(LOOK_INTERVAL).await;
                }
            })
            .await;
        }
    }

    fn all_acked(&self) -> bool {
        let whole = u64::try_from(UPLOAD_BYTES).unwrap();
        let mut acked = self.sessions.iter().map(|(ears, _)| &ears.acked);
        acked.all(|acked| acked.load(Ordering::Relaxed) == whole)
    }

    /// Sessions that are over.
    pub(crate) fn ended(&self) -> usize {
        let tasks = self.sessions.iter().map(|(_, task)| task);
        tasks.filter(|task| task.is_finished()).count()
    }

    /// Ack frames of each session so far.
    pub(crate) fn frames(&self) -> Vec<u64> {
        let ears = self.sessions.iter().map(|(ears, _)| ears);
        ears.map(|ears| ears.acks.load(Ordering::Relaxed)).collect()
    }

    /// What all of them heard so far.
    pub(crate) fn heard(&self) -> Heard {
        let total = |of: fn(&Ears) -> u64| self.sessions.iter().map(|(ears, _)| of(ears)).sum();
        Heard {
            acks: total(|ears| ears.acks.load(Ordering::Relaxed)),
            ack_bytes: total(|ears| ears.ack_bytes.load(Ordering::Relaxed)),
            pings: total(|ears| ears.pings.load(Ordering::Relaxed)),
        }
    }
}

impl Drop for Crowd {
    /// Before the far ends go, so that sessions do not tell of their ends.
    fn drop(&mut self) {
        self.sessions.iter().for_each(|(_, task)| task.abort());
    }
}

impl Heard {
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            acks: self.acks - before.acks,
            ack_bytes: self.ack_bytes - before.ack_bytes,
            pings: self.pings - before.pings,
        }
    }
}

impl fmt::Display for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            acks,
            ack_bytes,
            pings,
        } = self;
        write!(f, "{acks} ack frames ({ack_bytes} bytes), {pings} PINGs")
    }
}
