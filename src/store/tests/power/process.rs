//! A process that can die, or stop and go on, between any two of its system calls or requests.
//!
//! Invariant: once dead, nothing of it has an effect any more; what it waits for never comes. Called by every backend
//! of the suite that stands between a store and what outlives it.

use std::sync::Mutex;

use super::signal::Signal;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Life {
    Running,
    /// It looks dead to everybody else, but will go on.
    Frozen,
    Dead,
}

#[derive(Debug)]
pub(in super::super) struct Process {
    life: Signal<Life>,
    steps: Mutex<Steps>,
}

#[derive(Debug, Default)]
struct Steps {
    taken: u64,
    turn: Option<(u64, Life)>,
}

impl Process {
    pub(in super::super) fn new() -> Self {
        Self {
            life: Signal::new(Life::Running),
            steps: Mutex::default(),
        }
    }

    pub(in super::super) fn life(&self) -> &Signal<Life> {
        &self.life
    }

    /// Dead stays dead.
    pub(in super::super) fn turn(&self, to: Life) {
        self.life.change(|life| {
            if *life != Life::Dead {
                *life = to;
            }
        });
    }

    /// Turns `to` before the `at`-th step from now on.
    pub(in super::super) fn turn_at(&self, at: u64, to: Life) {
        let mut steps = self.steps.lock().unwrap();
        steps.turn = Some((steps.taken + at, to));
    }

    /// One step may be taken when this returns.
    pub(in super::super) async fn step(&self) {
        let turn = {
            let mut steps = self.steps.lock().unwrap();
            steps.taken += 1;
            let taken = steps.taken;
            steps.turn.take_if(|(at, _)| *at <= taken)
        };
        if let Some((_, to)) = turn {
            self.turn(to);
        }
        self.alive().await;
    }

    /// Waits until it runs; for ever once it is dead.
    pub(in super::super) async fn alive(&self) {
        let now = self.life.wait_for(|life| life != Life::Frozen).await;
        if now == Life::Dead {
            std::future::pending().await
        }
    }
}
