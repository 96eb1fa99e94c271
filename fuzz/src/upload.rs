//! Both ends of ack frames: the machine that owes them, and the decoder that reads them.
//!
//! Seeds: uploads with every kind of end, as scripts; answers of recorders.

use std::time::Duration;

use serde_json::value::RawValue;
use tailtape::capture::{AckDecoder, AckFrame as Heard, FRAME_BYTES_MAX};
use tailtape::ids::StreamOffset;
use tailtape::ingest::ack::AckFrame;
use tailtape::ingest::upload::{Upload, UploadConfig, UploadEnd};

use super::script::{Script, epoch, pieces};

/// A limit that scripts reach, but not with their first bytes.
const RECORDING_BYTES_MAX: u64 = 100_000;
/// The same for time.
const RECORDING_DURATION_MAX: Duration = Duration::from_secs(600);

/// The bytes are a script of an upload: what arrives, what becomes durable, how it ends, when.
pub fn upload(data: &[u8]) {
    let mut script = Script::new(data);
    let mut now = epoch();
    let config = UploadConfig {
        recording_bytes_max: Some(RECORDING_BYTES_MAX),
        recording_duration_max: Some(RECORDING_DURATION_MAX),
        ..UploadConfig::default()
    };
    let mut upload = Upload::new(now, config);
    let mut decoder = AckDecoder::new();
    let (mut received, mut durable, mut acked) = (0_u64, 0_u64, 0_u64);
    let (mut last_frame, mut first, mut last_word, mut sealed) = (now, true, false, false);
    while let Some(step) = script.step() {
        match step & 7 {
            0 | 1 => {
                let bytes = script.piece();
                let receiving = upload.is_receiving();
                let taken = upload.handle_bytes(now, bytes);
                received += u64::try_from(taken).unwrap_or(0);
                assert_eq!(upload.received_bytes(), received);
                assert!(received <= RECORDING_BYTES_MAX, "beyond the limit");
                assert!(taken == 0 || receiving, "taken behind the end");
                if taken < bytes.len() && receiving {
                    assert_eq!(received, RECORDING_BYTES_MAX, "cut before the limit");
                    upload.handle_end(now, UploadEnd::TooLong);
                }
            }
            2 => {
                let offset = match step >> 6 {
                    0 => u64::from(script.u16()),
                    1 => received,
                    _ => u64::from_le_bytes(script.array()),
                };
                durable = durable.max(offset);
                upload.handle_durable(now, StreamOffset(offset));
            }
            3 => {
                let reason = String::from_utf8_lossy(script.piece()).into_owned();
                upload.handle_end(
                    now,
                    match step >> 6 {
                        0 | 1 => UploadEnd::Clean,
                        2 => UploadEnd::Reset(reason),
                        _ if step & 0x20 != 0 => UploadEnd::Terminated(reason),
                        _ => UploadEnd::Shutdown(reason),
                    },
                );
                assert!(!upload.is_receiving());
            }
            4 if step & 0xc0 == 0xc0 => upload.handle_stalled(now, "no commit".to_owned()),
            4 if step & 0x40 != 0 => upload.handle_failed(now, "disk full".to_owned()),
            4 | 5 => {
                let stored = received.saturating_sub(u64::from(step >> 7));
                sealed |= !upload.is_receiving() && stored == received;
                upload.handle_sealed(now, stored);
            }
            _ => {
                let end = now + Duration::from_millis(u64::from(script.u16()));
                now = upload.poll_timeout().map_or(end, |at| at.clamp(now, end));
                upload.handle_timeout(now);
            }
        }
        let due = upload.is_frame_due(now);
        let frame = upload.poll_frame(now);
        assert_eq!(frame.is_some(), due);
        if let Some(frame) = frame {
            assert!(!last_word, "after the last word: {frame:?}");
            let heard = hear(&mut decoder, &frame);
            match frame {
                AckFrame::Ack(StreamOffset(offset)) => {
                    assert_eq!(
                        heard,
                        Heard::Durable {
                            acked_bytes: offset
                        }
                    );
                    assert!(offset >= acked, "an ack went back");
                    assert!(offset <= received, "more than came");
                    assert!(offset <= durable || sealed, "more than is durable");
                    acked = offset;
                    let distance = now - last_frame;
                    assert!(first || sealed || distance >= config.ack_interval_min);
                    assert!(
                        distance <= config.ack_interval_max,
                        "silence of {distance:?}"
                    );
                }
                AckFrame::Error(_) => {
                    assert!(matches!(heard, Heard::Failed { .. }));
                    last_word = true;
                }
            }
            (last_frame, first) = (now, false);
        }
        assert_eq!(upload.poll_frame(now), None, "two frames at once");
        assert_eq!(upload.is_receiving(), upload.outcome().is_none());
        if upload.is_closed() {
            assert_eq!(upload.poll_timeout(), None);
        }
        assert!(upload.poll_timeout().is_none_or(|at| at > now), "stays due");
    }
}

/// What an uploader of ours makes of a frame of ours.
fn hear(decoder: &mut AckDecoder, frame: &AckFrame) -> Heard {
    let mut heard = None;
    let result = decoder.handle_bytes(&frame.encode(), |frame| heard = Some(frame));
    result.expect("we read what we write");
    decoder.handle_end().expect("a frame is whole");
    heard.expect("a frame is one frame")
}

/// The bytes are a recorder's answer.
pub fn ack_frames(data: &[u8]) {
    let seed = data.len().to_le_bytes()[0];
    let (frames, error) = decode([data]);
    assert_eq!(decode(pieces(data, seed)), (frames.clone(), error.clone()));
    assert_eq!(decode(pieces(data, 0)), (frames.clone(), error.clone()));

    // The reader of another's make cuts at the same places. It is stricter about text that nobody reads.
    if std::str::from_utf8(data).is_err() {
        return;
    }
    let values = serde_json::Deserializer::from_slice(data).into_iter::<Box<RawValue>>();
    let values: Vec<_> = values.map_while(Result::ok).collect();
    assert!(values.len() >= frames.len());
    for (frame, text) in frames.iter().zip(&values) {
        // Not so if it holds a number that no float can.
        let Ok(value) = serde_json::from_str::<serde_json::Value>(text.get()) else {
            continue;
        };
        let field = |name: &str| value.get(name).filter(|field| !field.is_null());
        match frame {
            Heard::Durable { acked_bytes } => {
                let ack = field("ack").map_or(Some(0), serde_json::Value::as_u64);
                assert_eq!(ack, Some(*acked_bytes));
            }
            Heard::Failed { message } => {
                assert!(message.len() <= FRAME_BYTES_MAX);
                let error = field("error").and_then(serde_json::Value::as_str);
                assert_eq!(error, Some(message.as_str()));
            }
        }
    }
    match values.get(frames.len()).map(|next| next.get()) {
        None => {}
        Some(next) => {
            assert!(error.is_some(), "{next} was passed over");
            assert!(!is_plainly_a_frame(next), "{next} was refused: {error:?}");
        }
    }
}

/// An object, its fields of the right types, in so few words that nothing can be said against it.
fn is_plainly_a_frame(text: &str) -> bool {
    let once = |name| text.matches(name).count() <= 1;
    let plain = text.len() < 100 && !text.contains("\\u") && once("\"ack\"") && once("\"error\"");
    let value = serde_json::from_str::<serde_json::Value>(text).unwrap_or_default();
    let ack = value
        .get("ack")
        .is_none_or(|ack| ack.is_null() || ack.is_u64());
    let error = value
        .get("error")
        .is_none_or(|error| error.is_null() || error.is_string());
    plain && value.is_object() && ack && error
}

fn decode<'a>(answer: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Heard>, Option<String>) {
    let (mut decoder, mut frames) = (AckDecoder::new(), Vec::new());
    for piece in answer {
        if let Err(error) = decoder.handle_bytes(piece, |frame| frames.push(frame)) {
            return (frames, Some(error.to_string()));
        }
    }
    let end = decoder.handle_end();
    (frames, end.err().map(|error| error.to_string()))
}
