//! What one session of `tailtape dev` came to: the numbers, as JSON for programs and as a summary for people.
//!
//! The invariant: `ok` is true exactly if the recorder stored the bytes that were sent. `dev` makes one per session.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

/// What is known when a session is sealed.
#[derive(Clone, Debug)]
pub struct SessionFacts {
    /// The recorder's name for it.
    pub recording_id: String,
    /// Where the stored asciicast is.
    pub path: String,
    /// Bytes sent: the asciicast, header and events.
    pub bytes: u64,
    /// Event lines among them.
    pub events: u64,
    /// SHA-256 of the bytes sent.
    pub sha256_sent: [u8; 32],
    /// SHA-256 of the stored bytes, read back from the store.
    pub sha256_stored: [u8; 32],
    /// From each write to the ack that covered it, in any order.
    pub ack_latencies: Vec<Duration>,
    /// From the start of joining to being in the tailnet.
    pub join: Duration,
    /// How the bytes travelled, in one word and an address: `direct 127.0.0.1:41641`.
    pub transport: String,
}

/// The report of one session. Its JSON keys are an interface: they are only ever added to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DevReport {
    ok: bool,
    recording_id: String,
    path: String,
    bytes: u64,
    events: u64,
    sha256_sent: String,
    sha256_stored: String,
    /// Milliseconds; null if no write was acked before the end.
    ack_p50_ms: Option<f64>,
    ack_p99_ms: Option<f64>,
    join_ms: f64,
    transport: String,
}

impl DevReport {
    /// Judges the facts.
    #[must_use]
    pub fn new(facts: SessionFacts) -> Self {
        let mut latencies = facts.ack_latencies;
        latencies.sort_unstable();
        Self {
            ok: facts.sha256_sent == facts.sha256_stored,
            recording_id: facts.recording_id,
            path: facts.path,
            bytes: facts.bytes,
            events: facts.events,
            sha256_sent: hex(&facts.sha256_sent),
            sha256_stored: hex(&facts.sha256_stored),
            ack_p50_ms: nearest_rank(&latencies, 50).map(milliseconds),
            ack_p99_ms: nearest_rank(&latencies, 99).map(milliseconds),
            join_ms: milliseconds(facts.join),
            transport: facts.transport,
        }
    }

    /// Whether what is stored is what was sent.
    #[must_use]
    pub fn ok(&self) -> bool {
        self.ok
    }

    /// One JSON object, without a newline.
    ///
    /// # Errors
    /// None is known: every field is a string, a bool or a finite number.
    pub fn to_json(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }
}

/// The summary for people: one fact per line.
impl fmt::Display for DevReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.ok {
            true => "stored bytes are the bytes sent",
            false => "STORED BYTES DIFFER FROM THE BYTES SENT",
        };
        writeln!(f, "recording  {}", self.recording_id)?;
        writeln!(f, "file       {}", self.path)?;
        writeln!(f, "size       {} bytes, {} events", self.bytes, self.events)?;
        match (self.ack_p50_ms, self.ack_p99_ms) {
            (Some(p50), Some(p99)) => {
                writeln!(
                    f,
                    "durable    p50 {p50:.1} ms, p99 {p99:.1} ms after each write"
                )?;
            }
            _ => writeln!(f, "durable    no write was acked before the end")?,
        }
        writeln!(
            f,
            "path       {}, joined in {:.0} ms",
            self.transport, self.join_ms
        )?;
        writeln!(f, "sent       sha256 {}", self.sha256_sent)?;
        writeln!(f, "stored     sha256 {}", self.sha256_stored)?;
        writeln!(f, "           {verdict}")
    }
}

/// The smallest sample that `percent` (1 to 100) of all samples do not exceed; none of no samples. `sorted` ascends.
fn nearest_rank(sorted: &[Duration], percent: usize) -> Option<Duration> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.checked_sub(1)?).copied()
}

/// With three decimals, which is a microsecond.
fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> SessionFacts {
        SessionFacts {
            recording_id: "r1".to_owned(),
            path: "tailtape-data/r1.cast".to_owned(),
            bytes: 1234,
            events: 5,
            sha256_sent: [0xAB; 32],
            sha256_stored: [0xAB; 32],
            ack_latencies: [3, 1, 2].map(Duration::from_millis).to_vec(),
            join: Duration::from_micros(212_400),
            transport: "direct 127.0.0.1:41641".to_owned(),
        }
    }

    #[test]
    fn the_json_has_the_keys_that_are_promised() {
        let json = DevReport::new(facts()).to_json().unwrap();
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&json).unwrap(),
            serde_json::json!({
                "ok": true, "recording_id": "r1", "path": "tailtape-data/r1.cast", "bytes": 1234, "events": 5,
                "sha256_sent": "ab".repeat(32), "sha256_stored": "ab".repeat(32),
                "ack_p50_ms": 2.0, "ack_p99_ms": 3.0, "join_ms": 212.4, "transport": "direct 127.0.0.1:41641",
            })
        );
        assert!(!json.contains('\n'));
    }

    #[test]
    fn a_stored_hash_that_differs_is_not_ok_and_the_summary_shouts() {
        let mut facts = facts();
        facts.sha256_stored[31] ^= 1;
        let report = DevReport::new(facts);
        assert!(!report.ok());
        assert!(report.to_string().contains("DIFFER"));
    }

    #[test]
    fn without_acks_the_latencies_are_null() {
        let mut facts = facts();
        facts.ack_latencies.clear();
        let report = DevReport::new(facts);
        assert_eq!((report.ack_p50_ms, report.ack_p99_ms), (None, None));
        assert!(report.to_string().contains("no write was acked"));
    }

    #[test]
    fn a_percentile_is_a_sample_by_nearest_rank() {
        let of = |count: u64| (1..=count).map(Duration::from_millis).collect::<Vec<_>>();
        for (count, percent, expected_ms) in [
            (1, 50, 1),
            (1, 99, 1),
            (2, 50, 1),
            (3, 50, 2),
            (4, 50, 2),
            (100, 50, 50),
            (100, 99, 99),
            (101, 99, 100),
            (200, 99, 198),
            (5, 100, 5),
        ] {
            let sample = nearest_rank(&of(count), percent);
            assert_eq!(
                sample,
                Some(Duration::from_millis(expected_ms)),
                "p{percent} of {count}"
            );
        }
        assert_eq!(nearest_rank(&[], 50), None);
    }
}
