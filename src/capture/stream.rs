//! Streams one terminal session to one recorder: read, encode, send, in that order and one at a time.
//!
//! The invariant: what is counted and hashed here is exactly what was handed to the upload, and the upload is finished only after
//! the command's end. A character that two reads split stays whole. `dev` calls it.

use std::process::ExitStatus;
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::time::{MissedTickBehavior, interval};

use super::pty::{PtyError, PtySession};
use super::upload::{Progress, Upload, UploadError, Uploaded};

/// How often an observer hears of a session that is silent; a screen draws no faster.
const OBSERVE_INTERVAL: Duration = Duration::from_millis(100);

/// Why a session was not recorded whole. The command, if it still ran, was ended.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The recorder.
    #[error("the session is not recorded to its end")]
    Upload(#[from] UploadError),
    /// The command.
    #[error("the session has no known end")]
    Command(#[from] PtyError),
}

/// A session that the recorder has whole.
#[derive(Debug)]
pub struct Streamed {
    /// How the command ended.
    pub exit: ExitStatus,
    /// Event lines sent; the header is none.
    pub events: u64,
    /// SHA-256 of the bytes sent, header and all.
    pub sha256_sent: [u8; 32],
    /// What the recorder said.
    pub uploaded: Uploaded,
}

/// Sends `header` (the asciicast header line) and then each chunk of the terminal as `encode(seconds, bytes)` writes it, until
/// the command and the recorder are done. `observe` hears of bytes and events as they go, and ten times a second of a silent session.
///
/// # Errors
/// The upload ended before the session, or the command's end cannot be learnt. Dropping the future ends the command, and the
/// recorder keeps the recording as incomplete.
pub async fn stream(
    mut session: PtySession,
    mut upload: Upload,
    header: Bytes,
    mut encode: impl FnMut(f64, &[u8]) -> Vec<u8>,
    mut observe: impl FnMut(Progress, u64),
) -> Result<Streamed, StreamError> {
    let mut sha256 = Sha256::new();
    let mut events = 0;
    let mut runes = Runes::default();
    let mut ticks = interval(OBSERVE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);

    sha256.update(&header);
    upload.write(header).await?;
    let mut last_at = Duration::ZERO;
    loop {
        let chunk = tokio::select! {
            chunk = session.next_chunk() => chunk,
            error = upload.ended() => return Err(error.into()),
            _ = ticks.tick() => {
                observe(upload.progress(), events);
                continue;
            }
        };
        let text = match &chunk {
            Some(chunk) => {
                last_at = chunk.at;
                runes.handle_bytes(&chunk.bytes)
            }
            None => runes.take_rest(),
        };
        if !text.is_empty() {
            let line = Bytes::from(encode(last_at.as_secs_f64(), &text));
            sha256.update(&line);
            upload.write(line).await?;
            events += 1;
            observe(upload.progress(), events);
        }
        if chunk.is_none() {
            break;
        }
    }
    let exit = session.wait().await?;
    let uploaded = upload.finish().await?;
    Ok(Streamed {
        exit,
        events,
        sha256_sent: sha256.finalize().into(),
        uploaded,
    })
}

/// Holds the first bytes of a character back until the rest has come. Events are JSON strings of their own, so a character cut
/// between two would be lost from both.
#[derive(Debug, Default)]
struct Runes {
    /// At most 3 bytes.
    held: Vec<u8>,
}

impl Runes {
    fn handle_bytes(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut text = std::mem::take(&mut self.held);
        text.extend_from_slice(bytes);
        self.held = text.split_off(whole_characters_bytes(&text));
        text
    }

    fn take_rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }
}

/// Length of `bytes` without a character that it begins and does not end. Bytes that no character begins with count as whole.
fn whole_characters_bytes(bytes: &[u8]) -> usize {
    match bytes.utf8_chunks().last().map(|chunk| chunk.invalid()) {
        // The standard library gives a cut character at the end as one invalid part, and any other invalid part too: only a
        // lead byte with fewer followers than it announces can still become a character.
        Some(cut @ [lead, ..]) if cut.len() < announced_bytes(*lead) => bytes.len() - cut.len(),
        Some(_) | None => bytes.len(),
    }
}

fn announced_bytes(lead: u8) -> usize {
    match lead {
        0xC2..=0xDF => 2,
        0xE0..=0xEF => 3,
        0xF0..=0xF4 => 4,
        _ => 1,
    }
}

#[cfg(test)]
mod tests;
