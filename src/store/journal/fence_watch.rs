//! A recorder with nothing to commit looks whether it was fenced: without a commit, nothing else would tell it.
//!
//! Invariant: one look is under way at most; what it finds counts only while the number that was asked for is still the next, and a number
//! that was not sent yet is nobody's but a stranger's. No look is made while commits tell the same. Called by the journal.

use std::sync::Arc;
use std::time::{Duration, Instant};

use object_store::ObjectStoreExt;
use tokio_util::task::AbortOnDropHandle;

use super::super::create::ANSWER_TIMEOUT;
use super::super::error::StoreError;
use super::super::{Shared, layout};
use crate::ids::{EpochId, JournalNumber};

/// The next number of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Next {
    pub(super) epoch: EpochId,
    pub(super) number: JournalNumber,
}

/// When was asked last, and what is being asked.
#[derive(Debug)]
pub(super) struct FenceWatch {
    interval: Duration,
    /// When a commit or a look last came to its end.
    rests_since: Instant,
    look: Option<Look>,
    /// The last look failed, and that was said.
    fails: bool,
}

#[derive(Debug)]
struct Look {
    at: Next,
    /// Whether something stands there.
    answer: AbortOnDropHandle<Result<bool, StoreError>>,
}

impl FenceWatch {
    pub(super) const fn new(interval: Duration, now: Instant) -> Self {
        Self {
            interval,
            rests_since: now,
            look: None,
            fails: false,
        }
    }

    /// A commit got through: the epoch is ours.
    pub(super) const fn handle_commit(&mut self, now: Instant) {
        self.rests_since = now;
    }

    /// When to look; `None` when the commit that is due at `commit_due` tells soon enough.
    fn due(&self, commit_due: Option<Instant>) -> Option<Instant> {
        let due = self.rests_since.checked_add(self.interval)?;
        let tells = commit_due.is_some_and(|commit| {
            let soon_enough = due.checked_add(self.interval);
            soon_enough.is_some_and(|limit| commit <= limit)
        });
        (!tells).then_some(due)
    }

    /// Looks each time that it is due, and returns when something stands at `next`: we are fenced. May be dropped at any time.
    pub(super) async fn fenced(
        &mut self,
        shared: &Arc<Shared>,
        next: Next,
        commit_due: Option<Instant>,
    ) {
        loop {
            if let Some(look) = &mut self.look {
                let answer = (&mut look.answer).await;
                let asked = look.at;
                self.look = None;
                self.rests_since = tokio::time::Instant::now().into_std();
                if self.handle_answer(answer.unwrap_or(Err(StoreError::TaskLost))) && asked == next
                {
                    return;
                }
            }
            let Some(due) = self.due(commit_due) else {
                return std::future::pending().await;
            };
            tokio::time::sleep_until(due.into()).await;
            self.look = Some(Look {
                at: next,
                answer: AbortOnDropHandle::new(
                    shared.runtime.spawn(look(Arc::clone(shared), next)),
                ),
            });
        }
    }

    /// Whether something was found, or the store is gone from its place. A look that fails otherwise says nothing of the store: the next commit will.
    fn handle_answer(&mut self, answer: Result<bool, StoreError>) -> bool {
        if matches!(answer, Err(StoreError::Replaced { .. })) {
            return true;
        }
        let failed_before = std::mem::replace(&mut self.fails, answer.is_err());
        answer
            .inspect_err(|error| {
                if !failed_before {
                    let error = error.with_causes();
                    tracing::warn!(error, "an idle recorder cannot see whether it is fenced");
                }
            })
            .unwrap_or_default()
    }
}

/// Asks whether an object stands at `next`.
async fn look(shared: Arc<Shared>, next: Next) -> Result<bool, StoreError> {
    shared.objects.still_there().await?;
    let name = layout::journal_object(&shared.config.recorder(), &next.epoch, next.number);
    let asking = shared.objects.store().head(&name);
    // A disk cannot be told to stop: its one look is waited for, rather than joined by others.
    let answer = match shared.objects.disk() {
        Some(_) => Ok(asking.await),
        None => tokio::time::timeout(ANSWER_TIMEOUT, asking).await,
    };
    match answer {
        Ok(Ok(_)) => Ok(true),
        Ok(Err(object_store::Error::NotFound { .. })) => Ok(false),
        Ok(Err(source)) => Err(StoreError::Object {
            step: "look for",
            name: name.to_string(),
            source,
        }),
        Err(_) => Err(StoreError::Unanswered {
            step: "look for",
            name: name.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_is_due_when_no_commit_has_told_or_will_tell_in_time() {
        let start = tokio::time::Instant::now().into_std();
        let half = Duration::from_millis(500);
        let mut watch = FenceWatch::new(half, start);
        assert_eq!(watch.due(None), Some(start + half));
        assert_eq!(watch.due(Some(start + half * 2)), None);
        assert_eq!(watch.due(Some(start + half * 3)), Some(start + half));
        watch.handle_commit(start + half);
        assert_eq!(watch.due(None), Some(start + half * 2));
        let never = FenceWatch::new(Duration::MAX, start);
        assert_eq!(never.due(None), None);
    }
}
