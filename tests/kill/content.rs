//! What a session sends: a header with its own mark, then events, all of it grown from a seed.
//!
//! Invariant: the same key gives the same bytes whoever asks, so the judge needs to keep none of them. Read by the sessions and by the judge.

use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};
use tailtape::asciicast::{CODE_OUTPUT, Header, encode_event, encode_header};

/// Writes of [`Style::Bulk`] before it becomes a person who types.
const BULK_WRITES_MAX: u32 = 12;
/// The stream of the generator that sessions do not use.
const PLANS: u64 = u64::MAX;

/// Which session of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) seed: u64,
    pub(crate) round: u32,
    pub(crate) session: u32,
}

/// How much goes into one write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Typing,
    Output,
    Bulk,
}

/// The bytes of a session, write by write; the first write is the header.
pub(crate) struct Content {
    key: Key,
    rng: ChaCha20Rng,
    style: Style,
    writes: u32,
}

/// The generator of plans; those of the sessions are independent of it.
pub(crate) fn plan_rng(seed: u64) -> ChaCha20Rng {
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    rng.set_stream(PLANS);
    rng
}

impl Key {
    /// What the header of this session says and no other.
    pub(crate) fn mark(self) -> String {
        format!("kill-{}-{}-{}", self.seed, self.round, self.session)
    }

    /// The first `bytes` bytes that this session sends.
    pub(crate) fn prefix(self, bytes: usize) -> Vec<u8> {
        let mut content = Content::new(self);
        let mut prefix = Vec::with_capacity(bytes);
        while prefix.len() < bytes {
            prefix.extend_from_slice(&content.next_write());
        }
        prefix.truncate(bytes);
        prefix
    }
}

impl Content {
    pub(crate) fn new(key: Key) -> Self {
        let mut rng = ChaCha20Rng::seed_from_u64(key.seed);
        rng.set_stream(u64::from(key.round) << 32 | u64::from(key.session));
        let style = match rng.next_u32() % 50 {
            0 | 1 => Style::Bulk,
            2..15 => Style::Output,
            _ => Style::Typing,
        };
        Self {
            key,
            rng,
            style,
            writes: 0,
        }
    }

    pub(crate) fn next_write(&mut self) -> Vec<u8> {
        let write = match self.writes {
            0 => self.header(),
            _ => self.event(),
        };
        self.writes += 1;
        write
    }

    fn header(&self) -> Vec<u8> {
        let header = Header {
            version: 2,
            width: 80,
            height: 24,
            timestamp: 1_760_000_000
                + i64::from(self.key.round) * 1000
                + i64::from(self.key.session),
            src_node: "laptop.tail.test".to_owned(),
            src_node_id: "nKillTestCNTRL".to_owned(),
            connection_id: self.key.mark(),
            ..Header::default()
        };
        encode_header(&header).unwrap()
    }

    fn event(&mut self) -> Vec<u8> {
        let bulk = self.style == Style::Bulk && self.writes <= BULK_WRITES_MAX;
        let bytes = match self.style {
            Style::Bulk if bulk => 16_384 + self.rng.next_u32() % 16_384,
            Style::Output => 100 + self.rng.next_u32() % 1400,
            Style::Bulk | Style::Typing => 1 + self.rng.next_u32() % 60,
        };
        let mut text = vec![0; usize::try_from(bytes).unwrap()];
        self.rng.fill_bytes(&mut text);
        // Letters, digits, signs, and now and then what has to be escaped.
        text.iter_mut().for_each(|byte| *byte = 10 + *byte % 117);
        encode_event(f64::from(self.writes) / 64.0, CODE_OUTPUT, &text)
    }
}

#[test]
fn a_session_has_the_same_bytes_whoever_asks_and_no_other_has_them() {
    let key = Key {
        seed: 1,
        round: 2,
        session: 3,
    };
    let mut content = Content::new(key);
    let sent: Vec<u8> = (0..20).flat_map(|_| content.next_write()).collect();
    assert_eq!(key.prefix(sent.len()), sent);
    assert_eq!(key.prefix(100), sent[..100]);
    let other = Key { session: 4, ..key };
    assert_ne!(other.prefix(sent.len()), sent);
    assert!(String::from_utf8_lossy(&sent).contains("\"connectionID\":\"kill-1-2-3\""));
}
