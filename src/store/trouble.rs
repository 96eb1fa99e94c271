//! What the backend said last to what is tried again: kept, so that whoever gives up can say why.
//!
//! Invariant: the cause is fit for peers; what names the host stands in `said` alone. Called by the journal, the events and the close,
//! which note it, and by the errors that quote it.

use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};

use super::error::StoreError;

/// Why something did not get through at once.
#[derive(Debug, Clone)]
pub(super) struct Trouble {
    /// For everybody.
    pub(super) cause: String,
    /// What the backend said beyond that, if anything: for the log and the operator.
    pub(super) said: String,
}

impl Trouble {
    pub(super) fn of(error: &StoreError) -> Self {
        Self {
            cause: error.remedy(),
            said: error.beyond_remedy(),
        }
    }

    /// The backend was only slow to answer, as far as is known.
    pub(super) fn unanswered() -> Self {
        Self {
            cause: "the backend did not answer in time".into(),
            said: String::new(),
        }
    }

    /// What was said, as the source of an error that tells the cause itself; what is told twice is shown once.
    fn source(&self) -> Arc<dyn Error + Send + Sync> {
        let words = match self.said.as_str() {
            "" => &self.cause,
            said => said,
        };
        let words: Box<dyn Error + Send + Sync> = words.into();
        words.into()
    }

    /// The error of a close that waited in vain.
    pub(super) fn closing(self) -> StoreError {
        let said = self.source();
        StoreError::CloseTimedOut {
            cause: self.cause,
            said,
        }
    }

    /// The error of a long event whose object could not be made.
    pub(super) fn storing_event(self) -> StoreError {
        let said = self.source();
        StoreError::EventObject {
            cause: self.cause,
            said,
        }
    }
}

/// The last trouble of one kind of work.
#[derive(Debug, Default)]
pub(super) struct LastTrouble(Mutex<Option<Trouble>>);

impl LastTrouble {
    pub(super) fn note(&self, error: &StoreError) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Trouble::of(error));
    }

    /// It got through.
    pub(super) fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(super) fn get(&self) -> Option<Trouble> {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.clone()
    }
}
