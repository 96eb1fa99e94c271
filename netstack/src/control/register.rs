//! Getting in: which key is offered with which proof, and what each answer leads to.
//!
//! Invariant: an auth key is sent only when the stored node key does not suffice (a valid node that
//! shows an expired auth key is rejected by some servers, and one-shot keys work once). The order in
//! which an answer's fields count is that of control.md §3.2. Called by `control`.

use std::time::{Duration, Instant};

use super::backoff::{Backoff, after_429};
use super::{
    Answer, Control, ControlEvent, ControlRequest, REQUEST_DURATION_MAX, RequestId, cut, to_json,
};
use crate::key::{NodePrivate, NodePublic};
use crate::tailcfg::{RegisterAuth, RegisterRequest, RegisterResponse};

/// Largest answer that is read.
const REGISTER_RESPONSE_BYTES_MAX: usize = 1024 * 1024;

/// What we offer.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Offer {
    /// The node key that we have, and nothing else.
    Stored,
    /// A new node key, with the auth key if there is one.
    Fresh,
    /// Wait until a person has finished at this address.
    Followup(String),
}

/// The registration loop's state.
#[derive(Debug)]
pub(super) struct Registration {
    offer: Offer,
    done: bool,
    /// Made for [`Offer::Fresh`], kept over retries until control accepts it.
    candidate: Option<NodePrivate>,
    /// Control answered 404 to a map request: it has forgotten us.
    forgotten: bool,
    removal_told: bool,
    in_flight: Option<RequestId>,
    /// When the next request may go out, or the one in flight has taken too long.
    deadline: Instant,
    backoff: Backoff,
}

impl Registration {
    pub(super) fn new(has_node_key: bool, now: Instant) -> Self {
        Self {
            offer: if has_node_key {
                Offer::Stored
            } else {
                Offer::Fresh
            },
            done: false,
            candidate: None,
            forgotten: false,
            removal_told: false,
            in_flight: None,
            deadline: now,
            backoff: Backoff::default(),
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.done
    }

    pub(super) fn takes(&self, id: RequestId) -> bool {
        self.in_flight == Some(id)
    }

    /// `None` while a person is waited for, who may take as long as it takes.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let patient = self.in_flight.is_some() && matches!(self.offer, Offer::Followup(_));
        (!patient).then_some(self.deadline)
    }

    pub(super) fn overdue(&self, now: Instant) -> Option<RequestId> {
        let due = self.deadline().is_some_and(|deadline| now >= deadline);
        self.in_flight.filter(|_| due)
    }

    /// Begins anew with the stored key at `at`.
    pub(super) fn restart(&mut self, forgotten: bool, at: Instant) {
        self.offer = Offer::Stored;
        self.done = false;
        self.forgotten = forgotten;
        self.removal_told = false;
        self.in_flight = None;
        self.deadline = at;
    }

    /// Begins anew with a fresh key in place of an expired one.
    pub(super) fn rotate(&mut self, at: Instant) {
        self.restart(false, at);
        self.offer = Offer::Fresh;
    }
}

impl Control {
    pub(super) fn poll_register(&mut self, now: Instant) -> Option<ControlRequest> {
        if self.registration.in_flight.is_some() || now < self.registration.deadline {
            return None;
        }
        let old = self.node_key.as_ref().map(NodePrivate::public);
        let fresh = self.registration.offer == Offer::Fresh;
        if (fresh || old.is_none()) && self.registration.candidate.is_none() {
            self.registration.candidate = Some(NodePrivate::generate(&mut self.rng));
        }
        let offered = self.registration.candidate.as_ref();
        let offered = offered.map(NodePrivate::public).or(old)?;
        let followup = match &self.registration.offer {
            Offer::Followup(url) => url.clone(),
            Offer::Stored | Offer::Fresh => String::new(),
        };
        let auth_key = self.config.auth_key.as_ref().filter(|_| fresh);
        let mut request = RegisterRequest {
            version: self.config.capability_version,
            node_key: offered,
            old_node_key: old.filter(|key| *key != offered).unwrap_or_default(),
            auth: auth_key.map(|key| RegisterAuth {
                auth_key: key.0.as_str().to_owned(),
            }),
            followup,
            hostinfo: Some(self.hostinfo()),
            ephemeral: self.config.ephemeral,
            ..RegisterRequest::default()
        };
        if self.registration.forgotten {
            // Control no longer knows the old key, so there is nothing to rotate from.
            request.old_node_key = NodePublic::default();
        }
        let id = self.take_id();
        self.registration.in_flight = Some(id);
        self.registration.deadline = now + REQUEST_DURATION_MAX;
        let body = to_json(&request);
        if let Some(auth) = &mut request.auth {
            zeroize::Zeroize::zeroize(&mut auth.auth_key);
        }
        Some(ControlRequest::Register { id, body })
    }

    pub(super) fn handle_register_answer(&mut self, now: Instant, answer: &Answer<'_>) {
        self.registration.in_flight = None;
        if let Some(asked) = answer.pause() {
            let wait = after_429(asked, &mut self.rng);
            return self.retry_register(now, Some(wait));
        }
        if answer.is_version_refusal() {
            return self.refuse(now, answer.reason());
        }
        if answer.status != 200 || answer.body.len() > REGISTER_RESPONSE_BYTES_MAX {
            return self.register_failed(now, answer.reason());
        }
        match serde_json::from_slice::<RegisterResponse>(answer.body) {
            Ok(response) => self.handle_register_response(now, response),
            Err(error) => {
                self.register_failed(now, format!("registration answer is not readable: {error}"));
            }
        }
    }

    /// The order of the questions is the protocol's (control.md §3.2).
    fn handle_register_response(&mut self, now: Instant, response: RegisterResponse) {
        if !response.error.is_empty() {
            let stored = self.registration.offer == Offer::Stored;
            if stored && self.registration.forgotten && self.config.auth_key.is_some() {
                return self.offer_fresh(now);
            }
            return self.refuse(now, cut(&response.error));
        }
        if response.node_key_expired {
            return match self.registration.offer {
                Offer::Stored => self.offer_fresh(now),
                Offer::Fresh | Offer::Followup(_) => {
                    self.refuse(now, "a new node key counts as expired".to_owned());
                }
            };
        }
        if !response.auth_url.is_empty() {
            return self.handle_auth_url(now, response.auth_url);
        }
        if let Some(candidate) = self.registration.candidate.take() {
            self.node_key = Some(candidate.clone());
            self.events.push_back(ControlEvent::NodeKey(candidate));
        }
        self.registration.done = true;
        self.registration.forgotten = false;
        self.registration.backoff.reset();
        self.update.mark_unknown_to_control();
        self.events.push_back(ControlEvent::Registered);
    }

    fn handle_auth_url(&mut self, now: Instant, url: String) {
        match &self.registration.offer {
            Offer::Stored if self.config.auth_key.is_some() => return self.offer_fresh(now),
            Offer::Followup(followed) if *followed == url => return self.retry_register(now, None),
            Offer::Stored | Offer::Fresh | Offer::Followup(_) => {}
        }
        self.tell_removal();
        self.events
            .push_back(ControlEvent::NeedsLogin { url: url.clone() });
        self.registration.offer = Offer::Followup(url);
        self.registration.deadline = now;
    }

    fn offer_fresh(&mut self, now: Instant) {
        if self.config.auth_key.is_none() {
            self.tell_removal();
        }
        self.registration.offer = Offer::Fresh;
        self.registration.deadline = now;
    }

    fn tell_removal(&mut self) {
        if self.registration.forgotten && !self.registration.removal_told {
            self.registration.removal_told = true;
            self.events.push_back(ControlEvent::NodeRemoved);
        }
    }

    /// Only a person can change the answer: tell, and ask again ever more slowly.
    fn refuse(&mut self, now: Instant, reason: String) {
        self.events.push_back(ControlEvent::Refused { reason });
        let wait = self.registration.backoff.next_refused(&mut self.rng);
        self.registration.deadline = now + wait;
    }

    pub(super) fn register_failed(&mut self, now: Instant, reason: String) {
        self.events
            .push_back(ControlEvent::RegisterFailed { reason });
        self.retry_register(now, None);
    }

    fn retry_register(&mut self, now: Instant, wait: Option<Duration>) {
        let wait = wait.unwrap_or_else(|| self.registration.backoff.next(&mut self.rng));
        self.registration.in_flight = None;
        self.registration.deadline = now + wait;
    }
}
