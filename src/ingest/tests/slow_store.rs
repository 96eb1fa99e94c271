//! The real store behind a backend that is slow, or silent: what an uploader sees of it, frame by frame.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use tokio::io::DuplexStream;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::HEADER;
use super::client::{Client, TextClient, identity};
use crate::ids::LogKey;
use crate::ingest::{Ingest, IngestConfig};
use crate::store::{Store, StoreConfig, StoreUrl};

/// A recorder whose backend takes as long as the test says.
struct Slow {
    backend: Arc<ThrottledStore<InMemory>>,
    store: Store,
    ingest: Ingest<Store>,
}

impl Slow {
    async fn open() -> Self {
        Self::open_with(|_config| {}).await
    }

    async fn open_with(change: impl FnOnce(&mut StoreConfig)) -> Self {
        let backend = ThrottledStore::new(InMemory::new(), ThrottleConfig::default());
        let backend = Arc::new(backend);
        let objects = Arc::clone(&backend);
        let mut config = StoreConfig::new(StoreUrl::Memory, LogKey::from_bytes([7; LogKey::BYTES]));
        change(&mut config);
        let rng = ChaCha20Rng::seed_from_u64(7);
        let opened = Store::open_with(config, objects, None, rng, jiff::Timestamp::now);
        let store = opened.await.unwrap();
        Self {
            backend,
            ingest: Ingest::new(store.clone(), IngestConfig::default()),
            store,
        }
    }

    fn put_takes(&self, time: Duration) {
        self.backend
            .config_mut(|config| config.wait_put_per_call = time);
    }

    fn connect(&self) -> DuplexStream {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let ingest = self.ingest.clone();
        tokio::spawn(async move {
            let stop = CancellationToken::new();
            ingest.serve_connection(far, identity("n1"), stop).await;
        });
        near
    }
}

fn acked(frame: &str) -> u64 {
    let frame: serde_json::Value = serde_json::from_str(frame).unwrap();
    frame["ack"].as_u64().unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_ack_frame_comes_within_two_puts_and_a_tenth_of_a_second() {
    for (sessions, put_ms) in [
        (1, 0),
        (5, 0),
        (5, 300),
        (1, 1_000),
        (5, 3_000),
        (1, 10_000),
        (5, 10_000),
    ] {
        let slow = Slow::open().await;
        let put = Duration::from_millis(put_ms);
        slow.put_takes(put);
        let interval = Duration::from_secs(1);
        let bound = interval.max(put) + put + Duration::from_millis(100);
        let uploads = (0..sessions).map(|session| tokio::spawn(upload(slow.connect(), session)));
        for upload in uploads.collect::<Vec<_>>() {
            let (worst, acked) = upload.await.unwrap();
            assert!(
                worst <= bound,
                "{sessions} sessions, {put:?}: {worst:?} of {bound:?}"
            );
            assert!(acked > 100, "{acked} of 300 were acked");
        }
        assert_eq!(slow.store.stats().stalls, 0);
    }
}

/// Sends a byte at uneven moments; how long the slowest frame that acks one took, and how many were acked.
async fn upload(io: DuplexStream, session: u64) -> (Duration, u64) {
    let mut client = Client::connect(io).await;
    let mut recording = client.record().await;
    let mut owed = VecDeque::new();
    let mut worst = Duration::ZERO;
    for step in 0..300_u64 {
        recording.send("x").await;
        owed.push_back((step + 1, Instant::now()));
        let pause = Duration::from_millis(17 + ((step + session) * 41) % 223);
        let until = Instant::now() + pause;
        while let Ok(frame) = timeout_at(until, recording.text()).await {
            let acked = acked(&frame);
            while let Some((offset, since)) = owed.front().copied()
                && offset <= acked
            {
                worst = worst.max(since.elapsed());
                owed.pop_front();
            }
        }
    }
    let waits = owed.front().map(|(_, since)| since.elapsed());
    (
        worst.max(waits.unwrap_or_default()),
        300 - owed.len() as u64,
    )
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_never_answers_ends_uploads_at_the_stall_limit_and_all_is_kept_when_it_does()
{
    let slow = Slow::open().await;
    let mut client = Client::connect(slow.connect()).await;
    let mut recording = client.record().await;
    recording.send(HEADER).await;
    let before = HEADER.len() as u64;
    assert_eq!(acked(&recording.text().await), before);
    let mut old = TextClient::begin(slow.connect()).await;
    old.chunk(HEADER).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let ids: Vec<_> = slow
        .ingest
        .uploads()
        .iter()
        .map(|upload| upload.id)
        .collect();

    slow.put_takes(Duration::from_secs(24 * 60 * 60));
    let start = Instant::now();
    recording.send("pending").await;
    old.chunk(b"pending").await;
    let mut frames = recording.rest().await;
    let told = start.elapsed();
    let error = frames.pop().unwrap();
    assert!(
        error.starts_with("{\"error\":\"the recorder's store is stalled: "),
        "{error}"
    );
    assert!(frames.len() >= 4, "frames go on: {frames:?}");
    assert!(
        frames.iter().all(|frame| acked(frame) == before),
        "{frames:?}"
    );
    // After 25 s without a commit; the commit itself was begun within its interval.
    assert!((25..=26).contains(&told.as_secs()), "{told:?}");
    assert_eq!(
        old.rest().await,
        "",
        "the connection is closed without a status"
    );

    for (method, path) in [
        (Method::HEAD, "/v2/record"),
        (Method::POST, "/v2/record"),
        (Method::HEAD, "/v2/event"),
        (Method::POST, "/v2/event"),
    ] {
        let mut next = Client::connect(slow.connect()).await;
        let (_body, response) = next.request(method.clone(), path).await;
        assert_eq!(response.status(), 503, "{method} {path}");
    }
    let mut next = TextClient::record(slow.connect()).await;
    assert!(next.rest().await.starts_with("HTTP/1.1 503 "));
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(slow.ingest.sealing(), 2, "what was taken waits");

    slow.put_takes(Duration::ZERO);
    // Its last create is given up within 10 s, and the next is answered.
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert_eq!(slow.ingest.sealing(), 0);
    for id in ids {
        let manifest = slow.store.find(id).await.unwrap();
        assert!(!manifest.clean && manifest.flags.contains(&"incomplete".to_owned()));
        assert_eq!(manifest.bytes, before + 7, "as far as it came");
    }
    let mut client = Client::connect(slow.connect()).await;
    let mut recording = client.record().await;
    recording.send(HEADER).await;
    recording.end();
    assert_eq!(acked(recording.rest().await.last().unwrap()), before);
    assert_eq!(slow.ingest.stats().ended_stalled, 2);
}

#[tokio::test(start_paused = true)]
async fn all_that_came_before_a_stall_is_sealed_when_the_store_is_back_whatever_room_its_buffer_had()
 {
    const SESSIONS: u64 = 3;
    const PIECES: u64 = 5;
    const PIECE_BYTES: u64 = 50_000;
    // Less than one session sends, and less in all than all of them do.
    let slow = Slow::open_with(|config| {
        config.upload_buffer_bytes_max = 100_000;
        config.buffer_bytes_max = 200_000;
    })
    .await;
    let mut ids = Vec::new();
    let mut sessions = Vec::new();
    slow.put_takes(Duration::from_secs(24 * 60 * 60));
    for _ in 0..SESSIONS {
        let mut client = Client::connect(slow.connect()).await;
        let mut recording = client.record().await;
        for piece in 0..PIECES {
            let byte = b'a' + u8::try_from(piece).unwrap();
            recording.send(vec![byte; 50_000]).await;
        }
        sessions.push((client, recording));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    ids.extend(slow.ingest.uploads().iter().map(|upload| upload.id));
    for (_client, recording) in &mut sessions {
        let frames = recording.rest().await;
        assert!(frames.last().unwrap().starts_with("{\"error\":"));
    }
    slow.put_takes(Duration::ZERO);
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert_eq!(slow.ingest.sealing(), 0);
    for id in ids {
        let manifest = slow.store.find(id).await.unwrap();
        assert!(manifest.flags.contains(&"incomplete".to_owned()));
        assert_eq!(manifest.bytes, PIECES * PIECE_BYTES);
    }
}
