//! A value that many wait for, and that wakes them in the order in which they came.
//!
//! Invariant: the order of waking follows from the order of waiting; tokio's `watch` draws it at random, so a seed would not
//! repeat. Called by every part of the models and the simulation that waits for another.

use std::sync::Mutex;

use tokio::sync::Notify;

#[derive(Debug)]
pub(in super::super) struct Signal<T> {
    value: Mutex<T>,
    changed: Notify,
}

impl<T: Copy> Signal<T> {
    pub(in super::super) fn new(value: T) -> Self {
        Self {
            value: Mutex::new(value),
            changed: Notify::new(),
        }
    }

    pub(in super::super) fn get(&self) -> T {
        *self.value.lock().unwrap()
    }

    pub(in super::super) fn change(&self, change: impl FnOnce(&mut T)) {
        change(&mut self.value.lock().unwrap());
        self.changed.notify_waiters();
    }

    pub(in super::super) async fn wait_for(&self, wanted: impl Fn(T) -> bool) -> T {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            let value = self.get();
            if wanted(value) {
                return value;
            }
            changed.await;
        }
    }
}
