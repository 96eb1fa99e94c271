//! One session by the byte: the frames of a stock client's upload, written a little at a time, and then only answers to PINGs.
//!
//! ```text
//! sender   preface SETTINGS HEADERS DATA DATA …           PING(ack) …
//! far end  SETTINGS HEADERS(200)        DATA {"ack":n}\n …  PING …
//! ```
//!
//! What it heard is counted where the [`crowd`](super::crowd) reads it. Frames: RFC 9113 §4.1.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use netstack::io::TcpStream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// All that a session writes: a few screens of a terminal.
pub(crate) const UPLOAD_BYTES: usize = 20 << 10;
const WRITE_BYTES: usize = 1 << 10;
/// People type; what comes at once would be bulk, and get buffers for it.
const WRITE_PAUSE: Duration = Duration::from_millis(100);
const HEADER: &[u8] = b"{\"version\":2,\"width\":80,\"height\":24,\"timestamp\":1700000000}\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
const FRAME_HEAD_BYTES: usize = 9;
/// HPACK: POST, http, `/v2/record` and the authority, none of them indexed.
const REQUEST: &[u8] = b"\x83\x86\x04\x0a/v2/record\x01\x08recorder";
/// HPACK's static entry `:status 200`.
const STATUS_200: u8 = 0x88;
/// Above any frame that either end sends.
const FRAME_BYTES_MAX: usize = 16 << 10;

/// What a session has heard.
#[derive(Debug, Default)]
pub(crate) struct Ears {
    pub(crate) acks: AtomicU64,
    pub(crate) ack_bytes: AtomicU64,
    pub(crate) pings: AtomicU64,
    /// The highest offset that was acked.
    pub(crate) acked: AtomicU64,
}

/// A frame, ready to be written.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// Uploads, then idles until the stream ends, which it should not.
///
/// # Errors
/// How it ended.
pub(crate) async fn run(stream: TcpStream, ears: Arc<Ears>) -> io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut opening = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    opening.extend(frame(SETTINGS, 0, 0, &[]));
    opening.extend(frame(HEADERS, END_HEADERS, 1, REQUEST));
    writer.write_all(&opening).await?;
    // Frames that either side of this session wants to send, whole.
    let (outgoing, mut queue) = tokio::sync::mpsc::channel::<Vec<u8>>(4);
    let answers = outgoing.clone();
    let writing = async {
        while let Some(frame) = queue.recv().await {
            writer.write_all(&frame).await?;
        }
        Ok(())
    };
    let uploading = async {
        let mut left = UPLOAD_BYTES;
        let mut write = HEADER.to_vec();
        while left > 0 {
            left -= write.len();
            outgoing.send(frame(DATA, 0, 1, &write)).await.unwrap();
            tokio::time::sleep(WRITE_PAUSE).await;
            let line = "[0.5,\"o\",\"some words of a shell, and then some more of them\"]\n";
            write = line.as_bytes().repeat(WRITE_BYTES / line.len());
            write.truncate(left);
        }
        std::future::pending::<io::Result<()>>().await
    };
    let listening = async {
        let mut head = [0; FRAME_HEAD_BYTES];
        loop {
            reader.read_exact(&mut head).await?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let length = usize::try_from(length).unwrap();
            assert!(length <= FRAME_BYTES_MAX, "a frame of {length} bytes");
            let mut payload = vec![0; length];
            reader.read_exact(&mut payload).await?;
            match (head[3], head[4] & ACK != 0) {
                (DATA, ended) => {
                    assert!(!ended, "the answer ended: {:?}", payload.escape_ascii());
                    hear(&ears, &payload);
                }
                (HEADERS, ended) => {
                    assert!(!ended && payload.contains(&STATUS_200), "{payload:x?}");
                }
                (SETTINGS, false) => answers.send(frame(SETTINGS, ACK, 0, &[])).await.unwrap(),
                (PING, false) => {
                    ears.pings.fetch_add(1, Ordering::Relaxed);
                    answers.send(frame(PING, ACK, 0, &payload)).await.unwrap();
                }
                // Window updates and acks of ours.
                (SETTINGS | PING | 8, _) => {}
                (kind, _) => panic!("frame of kind {kind}: {payload:x?}"),
            }
        }
    };
    tokio::select! {
        ended = writing => ended,
        ended = uploading => ended,
        ended = listening => ended,
    }
}

/// One DATA frame with one ack frame in it.
fn hear(ears: &Ears, payload: &[u8]) {
    let value: serde_json::Value = serde_json::from_slice(payload).unwrap();
    let acked = value["ack"].as_u64();
    let acked = acked.unwrap_or_else(|| panic!("no ack: {value}"));
    ears.acked.fetch_max(acked, Ordering::Relaxed);
    ears.acks.fetch_add(1, Ordering::Relaxed);
    let bytes = u64::try_from(payload.len()).unwrap();
    ears.ack_bytes.fetch_add(bytes, Ordering::Relaxed);
}
