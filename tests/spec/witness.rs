//! Watches an uploader's HTTP/2 connection and accuses the recorder of what hurts stock clients: the cases that the table calls "never".
//!
//! Every [`Uploader`](crate::uploader::Uploader) has one, so every test that uploads is a test of these sentences too.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const PREFACE_BYTES: usize = 24;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
/// HPACK's static entry `:status 200`, and the instructions that may stand before it.
const STATUS_200: u8 = 0x88;
const TABLE_SIZE_UPDATE: std::ops::Range<u8> = 0x20..0x40;

/// What went over the wire, and what was wrong with it.
#[derive(Default)]
pub(crate) struct Testimony {
    up: Frames,
    down: Frames,
    streams: BTreeMap<u32, Stream>,
    accusations: Vec<String>,
}

/// Frames of one direction, as their bytes come.
#[derive(Default)]
struct Frames {
    begun: bool,
    bytes: Vec<u8>,
}

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

#[derive(Default)]
struct Stream {
    /// The request has a body.
    upload: bool,
    sent_bytes: u64,
    client_ended: bool,
    client_reset: bool,
    answered: bool,
    refused: bool,
    /// Of the answer, what is not yet a whole JSON value.
    text: Vec<u8>,
    acked_bytes: u64,
    told_error: bool,
    server_ended: bool,
}

impl Frames {
    fn take(&mut self, bytes: &[u8], preface_bytes: usize) -> Vec<Frame> {
        self.bytes.extend_from_slice(bytes);
        if !self.begun {
            if self.bytes.len() < preface_bytes {
                return Vec::new();
            }
            self.bytes.drain(..preface_bytes);
            self.begun = true;
        }
        let mut frames = Vec::new();
        while self.bytes.len() >= 9 {
            let head: Vec<u8> = self.bytes[..9].to_vec();
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            if self.bytes.len() < 9 + length {
                break;
            }
            frames.push(Frame {
                kind: head[3],
                flags: head[4],
                stream: u32::from_be_bytes([head[5], head[6], head[7], head[8]]),
                payload: self.bytes[9..9 + length].to_vec(),
            });
            self.bytes.drain(..9 + length);
        }
        frames
    }
}

impl Testimony {
    /// Why the recorder is to be blamed, in words; none if it is not.
    pub(crate) fn accusations(&self) -> Vec<String> {
        let mut accusations = self.accusations.clone();
        for (id, stream) in &self.streams {
            if !stream.answered && !stream.client_reset {
                accusations.push(format!("X13: request {id} was never answered"));
            }
        }
        accusations
    }

    fn accuse(&mut self, stream: u32, accusation: &str) {
        self.accusations
            .push(format!("{accusation} (stream {stream})"));
    }

    fn sent(&mut self, bytes: &[u8]) {
        for frame in self.up.take(bytes, PREFACE_BYTES) {
            let stream = frame.stream;
            let ends = frame.flags & END_STREAM != 0;
            match frame.kind {
                HEADERS => {
                    let seen = Stream {
                        upload: !ends,
                        client_ended: ends,
                        ..Stream::default()
                    };
                    self.streams.entry(stream).or_insert(seen);
                }
                DATA => {
                    let seen = self.streams.entry(stream).or_default();
                    seen.sent_bytes += frame.payload.len() as u64;
                    seen.client_ended |= ends;
                    if !seen.answered && !frame.payload.is_empty() {
                        self.accuse(stream, "X09: the response head waited for the body");
                    }
                }
                RST_STREAM => self.streams.entry(stream).or_default().client_reset = true,
                _ => {}
            }
        }
    }

    fn heard(&mut self, bytes: &[u8]) {
        for frame in self.down.take(bytes, 0) {
            let (id, ends) = (frame.stream, frame.flags & END_STREAM != 0);
            match frame.kind {
                HEADERS => self.heard_head(id, &frame.payload, ends),
                DATA => self.heard_data(id, &frame.payload, ends),
                RST_STREAM => {
                    let stream = self.streams.entry(id).or_default();
                    if !stream.server_ended && !stream.client_reset {
                        self.accuse(id, "X04: the recorder reset the stream");
                    }
                }
                GOAWAY if frame.payload[4..8] != [0; 4] => {
                    self.accuse(id, "X04: the recorder ended the connection in anger");
                }
                _ => {}
            }
        }
    }

    fn heard_head(&mut self, id: u32, block: &[u8], ends: bool) {
        let stream = self.streams.entry(id).or_default();
        let status = block.iter().find(|byte| !TABLE_SIZE_UPDATE.contains(byte));
        stream.answered = true;
        stream.refused = status != Some(&STATUS_200);
        stream.server_ended = ends;
        let (refused, upload) = (stream.refused, stream.upload);
        if refused && !ends {
            self.accuse(id, "X08: a refusal left the stream open");
        }
        if !refused && upload && ends {
            self.accuse(id, "X03: the response ended with its head");
        }
    }

    fn heard_data(&mut self, id: u32, payload: &[u8], ends: bool) {
        let stream = self.streams.entry(id).or_default();
        let mut accusations = Vec::new();
        if stream.refused {
            accusations.push("X08: a refusal has a body");
        }
        stream.text.extend_from_slice(payload);
        let mut values = serde_json::Deserializer::from_slice(&stream.text).into_iter::<Value>();
        let mut frames = Vec::new();
        for value in values.by_ref() {
            match value {
                Ok(value) => frames.push(value),
                Err(error) if error.is_eof() => break,
                Err(_) => {
                    accusations.push("X04: the response is not JSON");
                    break;
                }
            }
        }
        let read = values.byte_offset();
        stream.text.drain(..read);
        for frame in frames {
            if stream.told_error {
                accusations.push("a frame follows the error frame");
            }
            match (frame.get("ack"), frame.get("error")) {
                (Some(ack), None) => match ack.as_u64() {
                    Some(ack) if ack > stream.sent_bytes => {
                        accusations.push("more is acked than was sent");
                    }
                    Some(ack) if ack < stream.acked_bytes => accusations.push("an ack went back"),
                    Some(ack) => stream.acked_bytes = ack,
                    None => accusations.push("X04: an ack is no number"),
                },
                (None, Some(error)) => {
                    stream.told_error = true;
                    if error.as_str().is_none_or(str::is_empty) {
                        accusations.push("X04: an error has no text");
                    }
                    if stream.client_ended {
                        accusations.push("X05: an error follows a complete body");
                    }
                }
                _ => accusations.push("X04: a frame says neither or both"),
            }
        }
        if ends {
            stream.server_ended = true;
            if !stream.text.trim_ascii().is_empty() {
                accusations.push("X04: the response ends inside a frame");
            }
            if !stream.client_ended && !stream.client_reset && !stream.told_error {
                accusations.push("X03: the response ended before the session");
            }
        }
        for accusation in accusations {
            self.accuse(id, accusation);
        }
    }

    fn heard_end(&mut self) {
        let cut = |stream: &&Stream| {
            stream.upload && !stream.server_ended && !stream.client_reset && !stream.refused
        };
        if self.streams.values().any(|stream| cut(&stream)) {
            self.accuse(0, "X04: the connection was closed under an upload");
        }
    }
}

/// A stream that is watched.
pub(crate) struct Witnessed<IO> {
    io: IO,
    testimony: Arc<Mutex<Testimony>>,
}

impl<IO> Witnessed<IO> {
    pub(crate) fn new(io: IO) -> (Self, Arc<Mutex<Testimony>>) {
        let testimony = Arc::default();
        let witnessed = Self {
            io,
            testimony: Arc::clone(&testimony),
        };
        (witnessed, testimony)
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Witnessed<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(context, buffer))?;
        let mut testimony = self.testimony.lock().unwrap();
        match &buffer.filled()[before..] {
            [] => testimony.heard_end(),
            heard => testimony.heard(heard),
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Witnessed<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(context, bytes))?;
        self.testimony.lock().unwrap().sent(&bytes[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

/// Each accusation, provoked by a scripted bad recorder: a witness that cannot accuse proves nothing.
#[test]
fn the_witness_accuses_a_recorder_of_each_thing_that_it_must_never_do() {
    let frame = |kind: u8, flags: u8, payload: &[u8]| {
        let mut frame = vec![0, 0, u8::try_from(payload.len()).unwrap(), kind, flags];
        frame.extend([0, 0, 0, 1]);
        frame.extend(payload);
        frame
    };
    let ok = frame(HEADERS, 4, &[STATUS_200]);
    let data = |text: &str| frame(DATA, 0, text.as_bytes());
    let end = |text: &str| frame(DATA, END_STREAM, text.as_bytes());
    let table: [(&str, bool, Vec<Vec<u8>>); 14] = [
        ("X03", false, vec![ok.clone(), end("{\"ack\":0}")]),
        ("X03", false, vec![frame(HEADERS, 5, &[STATUS_200])]),
        (
            "X04",
            false,
            vec![ok.clone(), frame(RST_STREAM, 0, &[0; 4])],
        ),
        ("X04", true, vec![ok.clone(), end("{\"ack\":")]),
        ("X04", false, vec![ok.clone(), data("hello")]),
        ("X04", false, vec![ok.clone(), data("{\"ack\":\"5\"}")]),
        ("X04", false, vec![ok.clone(), data("{\"ack\":5.5}")]),
        ("X05", true, vec![ok.clone(), end("{\"error\":\"late\"}")]),
        ("X08", false, vec![frame(HEADERS, 4, &[0x8d])]),
        ("X08", false, vec![frame(HEADERS, 4, &[0x8d]), end("text")]),
        ("X13", false, vec![]),
        (
            "more is acked",
            false,
            vec![ok.clone(), data("{\"ack\":1}")],
        ),
        (
            "follows the error",
            false,
            vec![ok.clone(), data("{\"error\":\"x\"}{\"ack\":0}")],
        ),
        (
            "an ack went back",
            true,
            vec![ok, data("{\"ack\":3}{\"ack\":2}")],
        ),
    ];
    let request = |ended: bool| {
        let mut testimony = Testimony::default();
        testimony.sent(&[b'p'; PREFACE_BYTES]);
        testimony.sent(&frame(HEADERS, 4, b"post"));
        (testimony, ended)
    };
    for (what, ended, answer) in table {
        let (mut testimony, ended) = request(ended);
        for (index, part) in answer.iter().enumerate() {
            testimony.heard(part);
            if index == 0 && ended {
                testimony.sent(&frame(DATA, END_STREAM, b"body"));
            }
        }
        let accusations = testimony.accusations().join("; ");
        assert!(accusations.contains(what), "{what}: {accusations:?}");
    }
    let (mut testimony, _) = request(false);
    testimony.sent(&frame(DATA, 0, b"early"));
    assert!(testimony.accusations().join("").contains("X09"));

    let (mut good, _) = request(false);
    good.heard(&frame(HEADERS, 4, &[STATUS_200]));
    good.sent(&frame(DATA, END_STREAM, b"body"));
    good.heard(&data("{\"ack\":0}{\"ack\":"));
    good.heard(&end("4}\n"));
    assert!(good.accusations().is_empty(), "{:?}", good.accusations());
}
