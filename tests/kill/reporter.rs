//! One sender of events, as a Kubernetes proxy sends them, and which of them it was told are stored.
//!
//! Invariants: an event counts as sent before it is, and as acked when its answer was 200, so one whose answer nobody read promises nothing; no event
//! is sent twice, so none may be stored twice. Started by the rounds, one task each; the judge asks what an event was.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use netstack::io::Tailnet;
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};
use tokio_util::task::AbortOnDropHandle;

use crate::content::Key;
use crate::session::accepted;

/// The stream of the generators of reporters: beyond those of sessions, below that of the plans.
const STREAM: u64 = 1 << 63;
/// One event in so many is too long for a frame of the journal.
const LONG_EVERY: u32 = 16;
/// Which of them: early enough that a short round has one.
const LONG_AT: u32 = 2;
const LONG_BYTES: u32 = 300 * 1024;

/// What a reporter sent and heard, by the number of the event.
#[derive(Debug, Clone)]
pub(crate) struct Reported {
    pub(crate) key: Key,
    pub(crate) sent: u32,
    pub(crate) acked: Vec<u32>,
}

/// A reporter under way.
#[derive(Clone)]
pub(crate) struct Reporter(Arc<Mutex<Reported>>);

impl Reporter {
    pub(crate) fn new(key: Key) -> Self {
        Self(Arc::new(Mutex::new(Reported {
            key,
            sent: 0,
            acked: Vec::new(),
        })))
    }

    pub(crate) fn told(&self) -> Reported {
        self.0.lock().unwrap().clone()
    }

    /// Sends one event after the other. Dropping the future cuts it off.
    ///
    /// # Errors
    /// What went wrong, in words.
    pub(crate) async fn run(self, sender: Tailnet, recorder: SocketAddr) -> Result<(), String> {
        let dialled = sender.dial(recorder).await;
        let io = TokioIo::new(dialled.map_err(|error| format!("dial: {error}"))?);
        let (mut requests, connection) = http2::handshake(TokioExecutor::new(), io)
            .await
            .map_err(|error| format!("handshake: {error}"))?;
        // How it ends is seen in the answers.
        let _driver = AbortOnDropHandle::new(tokio::spawn(async move { drop(connection.await) }));
        let key = self.told().key;
        let mut pauses = ChaCha20Rng::seed_from_u64(key.seed);
        pauses.set_stream(STREAM | stream_of(key));
        loop {
            let number = self.note_sent();
            let request = Request::builder()
                .method(Method::POST)
                .uri(format!("http://{recorder}/v2/event"))
                .body(Full::new(Bytes::from(body(key, number))))
                .unwrap();
            let answered = requests.send_request(request).await;
            accepted(answered.map_err(|error| format!("POST: {error}"))?.status())?;
            self.0.lock().unwrap().acked.push(number);
            let pause = 20 + pauses.next_u32() % 60;
            tokio::time::sleep(Duration::from_millis(pause.into())).await;
        }
    }

    fn note_sent(&self) -> u32 {
        let mut told = self.0.lock().unwrap();
        told.sent += 1;
        told.sent - 1
    }
}

/// What event `number` of a reporter begins with and no other does.
pub(crate) fn mark(key: Key, number: u32) -> String {
    format!("{}-{number}", key.mark())
}

/// The event itself: one line of JSON.
pub(crate) fn body(key: Key, number: u32) -> String {
    let mut rng = ChaCha20Rng::seed_from_u64(key.seed);
    rng.set_stream(STREAM | stream_of(key));
    rng.set_word_pos(u128::from(number) << 32);
    let bytes = match number % LONG_EVERY {
        LONG_AT => LONG_BYTES,
        _ => rng.next_u32() % 2000,
    };
    let letters = (0..bytes).map(|_| char::from(b'a' + u8::try_from(rng.next_u32() % 26).unwrap()));
    let mark = mark(key, number);
    format!(
        "{{\"type\":\"kubernetes-api-request\",\"mark\":\"{mark}\",\"body\":\"{}\"}}",
        String::from_iter(letters)
    )
}

fn stream_of(key: Key) -> u64 {
    u64::from(key.round) << 32 | u64::from(key.session)
}
