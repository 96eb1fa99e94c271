//! Everything at once that a peer of the tailnet may do to `tailtape serve`, while an honest session goes on beside it.
//!
//! Each case ends as it must: refused, cut off by a named limit, or stored whole and flagged. The honest session is acked during each of them, and the most
//! memory that the recorder ever had is printed and bounded.

mod syn_flood;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use netstack::io::TcpStream;
use rustix::process::Signal;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::service::{Service, Site};
use crate::soon;
use crate::uploader::Uploader;

/// A debug build moves a few megabytes a second through the tunnel.
const LINE_BYTES: u64 = if cfg!(debug_assertions) {
    128 << 20
} else {
    1 << 30
};
const PIECE_BYTES: usize = 64 << 10;
/// For a line without end in a debug build on a busy machine.
const BULK_PATIENCE: Duration = Duration::from_secs(300);
/// What the peak may rise by during all of it: receive windows, one upload's buffer, a commit and a segment under way, tens of each at most.
const GROWTH_BYTES_MAX: u64 = 64 << 20;
/// Between two bytes of a peer that trickles; far below the head's time.
const TRICKLE_PAUSE: Duration = Duration::from_millis(100);

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const UNKNOWN: u8 = 200;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// HPACK: POST, http, `/v2/record` and the authority, none of them indexed.
const REQUEST: &[u8] = b"\x83\x86\x04\x0a/v2/record\x01\x08recorder";
/// More than any recorder should take.
const FLOOD_FRAMES: usize = 20_000;

/// A recorder under attack and the session beside it.
struct Storm {
    site: Site,
    service: Service,
    honest: Honest,
    /// What the honest session had been acked when the case began.
    acked: u64,
}

/// A session that types all the time.
struct Honest {
    acked: Arc<AtomicU64>,
    stop: oneshot::Sender<()>,
    /// Gives how many bytes it sent, all of them acked, and their hash.
    task: JoinHandle<(u64, Vec<u8>)>,
}

impl Honest {
    async fn begin(site: &Site, service: &Service) -> Self {
        let mut uploader = Uploader::connect(&site.uploader, service.address().await).await;
        let mut upload = uploader.record().await;
        let (stop, mut stopped) = oneshot::channel();
        let acked = Arc::<AtomicU64>::default();
        let shown = Arc::clone(&acked);
        let task = tokio::spawn(async move {
            let mut sent = 0;
            let mut hash = Sha256::new();
            while stopped.try_recv().is_err() {
                let line = format!("[{sent},\"o\",\"words\"]\n");
                sent += u64::try_from(line.len()).unwrap();
                hash.update(&line);
                upload.send(line).await;
                upload.until_acked(sent).await;
                shown.store(sent, Ordering::Relaxed);
            }
            upload.end();
            while soon("the end of the answer", upload.ack()).await.is_some() {}
            drop(uploader);
            (sent, hash.finalize().to_vec())
        });
        Self { acked, stop, task }
    }
}

impl Storm {
    async fn begin() -> Self {
        let site = Site::new(
            "log = \"warn,tailtape::ingest=debug\"\nrequest_head_timeout = \"1s\"\ndisk_free_min = \"1MiB\"",
        )
        .await;
        let service = site.serve("log").await;
        let honest = Honest::begin(&site, &service).await;
        let mut storm = Self {
            site,
            service,
            honest,
            acked: 0,
        };
        storm.unharmed("the first ack").await;
        storm
    }

    /// The honest session has been acked again since this was last asked, and nothing panicked.
    async fn unharmed(&mut self, what: &str) {
        soon(what, async {
            while self.honest.acked.load(Ordering::Relaxed) <= self.acked {
                assert!(!self.honest.task.is_finished(), "{what}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        self.acked = self.honest.acked.load(Ordering::Relaxed);
        assert_eq!(self.counter("panics").await, 0, "{what}");
    }

    /// Until the log has `text` behind its first `from` bytes.
    async fn until_logged(&mut self, from: usize, text: &str) {
        self.service
            .until(text, |service| {
                let logged = service.log()[from..].contains(text);
                async move { logged }
            })
            .await;
    }

    async fn counter(&self, name: &str) -> u64 {
        self.service.status().await.ingest[name]
    }

    async fn dial(&self) -> TcpStream {
        let address = self.service.address().await;
        soon("a dial", self.site.uploader.dial(address))
            .await
            .unwrap()
    }

    /// Sends all of it, or as much as is taken, and gives what comes back until the connection is over.
    async fn answer_to(&self, request: &[u8]) -> Vec<u8> {
        let (mut reader, mut writer) = tokio::io::split(self.dial().await);
        let mut answer = Vec::new();
        let exchange = async {
            let read = async { drop(reader.read_to_end(&mut answer).await) };
            let write = async { drop(writer.write_all(request).await) };
            tokio::join!(read, write);
        };
        soon("the end of the connection", exchange).await;
        answer
    }

    /// Begins a recording, waits for its first ack, and sends `flood`, or as much of it as is taken; gives what comes back until the connection is over.
    async fn flood(&self, flood: &[u8]) -> Vec<u8> {
        let (mut reader, mut writer) = tokio::io::split(self.dial().await);
        let mut answer = Vec::new();
        let exchange = async {
            writer.write_all(&begun()).await.unwrap();
            while !answer
                .windows(FIRST_ACK.len())
                .any(|part| part == FIRST_ACK)
            {
                answer.push(reader.read_u8().await.unwrap());
            }
            let read = async { drop(reader.read_to_end(&mut answer).await) };
            let write = async { drop(writer.write_all(flood).await) };
            tokio::join!(read, write);
        };
        soon("the end of a flood", exchange).await;
        answer
    }

    /// Sends `start` at once and then a byte of `rest` now and then, again and again, until the connection is over.
    async fn trickle(&self, start: &[u8], rest: &[u8]) {
        let (mut reader, mut writer) = tokio::io::split(self.dial().await);
        let over = async {
            let mut answer = Vec::new();
            drop(reader.read_to_end(&mut answer).await);
        };
        let dripping = async {
            drop(writer.write_all(start).await);
            for byte in rest.iter().cycle() {
                if writer.write_all(&[*byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(TRICKLE_PAUSE).await;
            }
        };
        soon("the end of the trickle", async {
            tokio::select! {
                () = over => {}
                () = dripping => {}
            }
        })
        .await;
    }

    /// Everything that the store holds, by manifest.
    async fn listed(&self) -> Vec<Value> {
        let store = self.site.path("store");
        let output = self
            .site
            .output(&["ls", "--json", "--store", store.to_str().unwrap()])
            .await;
        assert!(output.status.success(), "{output:?}");
        let lines = String::from_utf8(output.stdout).unwrap();
        let lines = lines.lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// Ends the honest session and the recorder; gives all that was stored.
    async fn end(mut self) -> Vec<Value> {
        self.honest.stop.send(()).unwrap();
        let (sent, hash) = soon("the honest session", self.honest.task).await.unwrap();
        self.service.signal(Signal::TERM);
        assert_eq!(
            self.service.end().await.code(),
            Some(0),
            "{}",
            self.service.log()
        );
        let site = self.site;
        let store = site.path("store");
        let output = site
            .output(&["ls", "--json", "--store", store.to_str().unwrap()])
            .await;
        let listed: Vec<Value> = String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let honest: Vec<&Value> = listed
            .iter()
            .filter(|entry| entry["bytes"] == sent && !incomplete(entry))
            .collect();
        assert_eq!(honest.len(), 1, "{listed:?}");
        let id = honest[0]["id"].as_str().unwrap();
        let output = site
            .output(&["cat", id, "--store", store.to_str().unwrap()])
            .await;
        assert_eq!(Sha256::digest(&output.stdout).to_vec(), hash, "{id}");
        listed
    }
}

fn flags(entry: &Value) -> Vec<&str> {
    let flags = entry["flags"].as_array().unwrap().iter();
    flags.map(|flag| flag.as_str().unwrap()).collect()
}

fn incomplete(entry: &Value) -> bool {
    flags(entry).contains(&"incomplete")
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// What the recorder says of [`begun`].
const FIRST_ACK: &[u8] = b"{\"ack\":17}";

/// The preface, our settings, and a recording that has begun.
fn begun() -> Vec<u8> {
    let settings = frame(SETTINGS, 0, 0, &[]);
    let request = frame(HEADERS, END_HEADERS, 1, REQUEST);
    let line = frame(DATA, 0, 1, b"before the flood\n");
    [PREFACE, &settings, &request, &line].concat()
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let next = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[3]
    });
    next.take(bytes).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_two_meanings_and_noise_are_refused_or_flagged_and_hide_nothing() {
    let mut storm = Storm::begin().await;
    let calm = storm.service.memory_peak_bytes();
    let post =
        |fields: String| format!("POST /record HTTP/1.1\r\nHost: r\r\n{fields}").into_bytes();
    let hidden = "POST /record HTTP/1.1\r\nHost: r\r\nContent-Length: 6\r\n\r\nhidden";
    let chunked = "Transfer-Encoding: chunked\r\n";
    let extension = "y".repeat(1 << 20);
    let table = [
        (
            "both lengths",
            post(format!(
                "Content-Length: 4\r\n{chunked}\r\n0\r\n\r\n{hidden}"
            )),
            Ends::OneMeaning,
        ),
        (
            "both lengths, reversed",
            post(format!(
                "{chunked}Content-Length: 4\r\n\r\n0\r\n\r\n{hidden}"
            )),
            Ends::OneMeaning,
        ),
        (
            "two lengths",
            post(format!(
                "Content-Length: 0\r\nContent-Length: 6\r\n\r\n{hidden}"
            )),
            Ends::Refused("invalid content-length parsed"),
        ),
        (
            "a folded field",
            post(format!("X-A: b\r\n {chunked}\r\n0\r\n\r\n{hidden}")),
            Ends::Refused("invalid HTTP header parsed"),
        ),
        (
            "a bare CR",
            post(format!("X-A: b\r{chunked}\r\n{hidden}")),
            Ends::Refused("invalid HTTP header parsed"),
        ),
        (
            "chunked not last",
            post(format!(
                "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{hidden}"
            )),
            Ends::Refused("invalid transfer-encoding parsed"),
        ),
        (
            "bare LF behind a chunk size",
            post(format!("{chunked}\r\n1\na\n0\n\n{hidden}")),
            Ends::Flagged("Invalid chunk size line"),
        ),
        (
            "a chunk size that overflows",
            post(format!("{chunked}\r\nfffffffffffffffff\r\n{hidden}")),
            Ends::Flagged("invalid chunk size: overflow"),
        ),
        (
            "a chunk extension of 1 MiB",
            post(format!("{chunked}\r\n3;x={extension}\r\nabc\r\n0\r\n\r\n")),
            Ends::Flagged("chunk extensions over limit"),
        ),
        (
            "a chunk without its end",
            post(format!("{chunked}\r\n1\r\nab0\r\n\r\n{hidden}")),
            Ends::Flagged("Invalid chunk body"),
        ),
        (
            "a field of 1 MiB",
            post(format!("x: {extension}\r\n\r\n")),
            Ends::CutOff("message head is too large"),
        ),
        (
            "noise",
            noise(256 << 10),
            Ends::Refused("invalid HTTP method parsed"),
        ),
        (
            "the preface, then noise",
            [PREFACE, &noise(256 << 10)].concat(),
            Ends::CutOff("frame with invalid size"),
        ),
    ];
    let cases = table.len();
    // The honest session is one already.
    let mut recordings = 1;
    let (mut whole, mut flagged) = (1, 0);
    for (what, request, ends) in table {
        let logged = storm.service.log().len();
        let answer = storm.answer_to(&request).await;
        let answer = String::from_utf8_lossy(&answer);
        let answers = answer.matches("HTTP/1.1 ").count();
        let began = storm.counter("recordings").await - recordings;
        recordings += began;
        match ends {
            Ends::OneMeaning => {
                assert!(answer.starts_with("HTTP/1.1 200 "), "{what}: {answer}");
                assert_eq!((answers, began), (1, 1), "{what}: {answer}");
                whole += 1;
            }
            Ends::Refused(name) => {
                assert!(answer.starts_with("HTTP/1.1 400 "), "{what}: {answer}");
                assert_eq!((answers, began), (1, 0), "{what}: {answer}");
                storm.until_logged(logged, name).await;
            }
            Ends::Flagged(name) => {
                assert_eq!((answers, began), (0, 1), "{what}: {answer}");
                storm.until_logged(logged, name).await;
                flagged += 1;
            }
            Ends::CutOff(name) => {
                assert!(!answer.contains(" 200 "), "{what}: {answer}");
                assert_eq!(began, 0, "{what}: {answer}");
                storm.until_logged(logged, name).await;
            }
        }
        storm.unharmed(what).await;
    }
    let peak = storm.service.memory_peak_bytes();
    assert_eq!(storm.counter("ended_reset").await, flagged);
    let listed = storm.end().await;
    let count = |is: bool| {
        listed
            .iter()
            .filter(|entry| incomplete(entry) == is)
            .count()
    };
    assert_eq!(
        (count(false), count(true) as u64),
        (whole, flagged),
        "{listed:?}"
    );
    let empty = listed.iter().filter(|entry| entry["bytes"] == 0);
    assert!(
        empty.count() >= whole - 1,
        "nothing hidden is stored: {listed:?}"
    );
    say_memory(&format!("{cases} bent requests"), calm, peak);
}

/// How the connection of a bent request ends.
enum Ends {
    /// Its chunks count and nothing behind them does: an empty recording, whole.
    OneMeaning,
    /// 400, no recording, and this in the log.
    Refused(&'static str),
    /// A recording that is flagged, no status, and this in the log.
    Flagged(&'static str),
    /// This in the log; what is answered is HTTP's own: 431, or GOAWAY.
    CutOff(&'static str),
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_that_trickle_and_floods_are_ended_by_name() {
    let mut storm = Storm::begin().await;
    let calm = storm.service.memory_peak_bytes();
    let late = "read header from client timeout";
    let request_line = b"POST /record HTTP/1.1\r\n".as_slice();
    for (what, start, rest, name) in [
        (
            "a field of an HTTP/1.1 head",
            request_line,
            b"x".as_slice(),
            late,
        ),
        ("the first byte of a request line", b"", b"P", late),
        ("the preface", b"", PREFACE, "Cancelled"),
    ] {
        let logged = storm.service.log().len();
        storm.trickle(start, rest).await;
        storm.until_logged(logged, name).await;
        storm.unharmed(what).await;
    }
    assert_eq!(storm.counter("recordings").await, 1);
    assert_eq!(storm.counter("slow_heads").await, 3);
    let unended = frame(HEADERS, 0, 3, &[0x86]);
    let mut continued = frame(CONTINUATION, 0, 3, &[0; 200]);
    continued.truncate(9);
    let start = [begun(), unended, continued].concat();
    storm.trickle(&start, &[0]).await;
    assert_eq!(storm.counter("slow_heads").await, 4);
    storm.unharmed("CONTINUATION").await;

    let floods = [
        ("settings", frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0])),
        ("ping", frame(PING, 0, 0, b"12345678")),
        ("priority", frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 1])),
        ("unknown frames", frame(UNKNOWN, 0, 0, b"x")),
    ];
    for (count, (what, one)) in (1..).zip(floods) {
        storm.flood(&one.repeat(FLOOD_FRAMES)).await;
        assert_eq!(storm.counter("floods").await, count, "{what}");
        storm.unharmed(what).await;
    }
    let named = [
        ("too_many_data_frames", vec![], frame(DATA, 0, 1, &[])),
        (
            "too_many_continuations",
            frame(HEADERS, 0, 3, &[0x86]),
            frame(CONTINUATION, 0, 3, &[]),
        ),
    ];
    for (name, start, one) in named {
        let flood = [start, one.repeat(FLOOD_FRAMES)].concat();
        let logged = storm.service.log().len();
        storm.flood(&flood).await;
        storm.until_logged(logged, name).await;
        storm.unharmed(name).await;
    }
    let resets = (1..FLOOD_FRAMES).map(|count| {
        let stream = u32::try_from(2 * count + 1).unwrap();
        let head = frame(HEADERS, END_HEADERS | END_STREAM, stream, REQUEST);
        [head, frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
    });
    let resets: Vec<u8> = resets.flatten().collect();
    let logged = storm.service.log().len();
    storm.flood(&resets).await;
    let calm_down = "detected excessive load generating behavior";
    storm.until_logged(logged, calm_down).await;
    storm.unharmed("rapid reset").await;

    let peak = storm.service.memory_peak_bytes();
    let listed = storm.end().await;
    let cut = listed.iter().filter(|entry| incomplete(entry)).count();
    assert_eq!(
        cut + 1,
        listed.len(),
        "only the honest one is whole: {listed:?}"
    );
    say_memory("trickles and floods", calm, peak);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_without_end_is_stored_whole_and_flagged_in_little_memory() {
    let mut storm = Storm::begin().await;
    let calm = storm.service.memory_peak_bytes();
    let address = storm.service.address().await;
    let mut uploader = Uploader::connect(&storm.site.uploader, address).await;
    let mut upload = uploader.record().await;
    let piece = bytes::Bytes::from(vec![b'a'; PIECE_BYTES]);
    let sending = async {
        let mut sent = 0;
        while sent < LINE_BYTES {
            upload.send(piece.clone()).await;
            sent += u64::try_from(PIECE_BYTES).unwrap();
        }
        upload.end();
        let mut last = None;
        while let Some(acked) = upload.ack().await {
            last = Some(acked);
        }
        assert_eq!(last, Some(LINE_BYTES));
    };
    tokio::time::timeout(BULK_PATIENCE, sending).await.unwrap();
    storm.unharmed("a line without end").await;
    let listed = storm.listed().await;
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!(listed[0]["bytes"], LINE_BYTES);
    assert!(flags(&listed[0]).contains(&"line_too_long"), "{listed:?}");
    assert!(!incomplete(&listed[0]), "{listed:?}");
    let peak = storm.service.memory_peak_bytes();
    storm.end().await;
    say_memory(&format!("a line of {} MiB", LINE_BYTES >> 20), calm, peak);
}

#[allow(clippy::print_stdout, reason = "shown to people")]
fn say_memory(what: &str, calm: u64, peak: u64) {
    println!(
        "storm: {what}: peak memory {} KiB before, {} KiB after",
        calm >> 10,
        peak >> 10
    );
    assert!(peak - calm <= GROWTH_BYTES_MAX, "{what}: {calm} to {peak}");
}
