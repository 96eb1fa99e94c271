//! The client side of a recording: a command under a real terminal, streamed to a recorder as a stock node does.
//!
//! The invariant: what the terminal put out goes up in order, each read as one event; the recorder sees a clean end only if the
//! command ended and all of it went up. This room is given a way to dial and a way to write asciicast, and sees neither
//! tailnet nor store. `dev` calls it, and the agent for OpenSSH hosts will.

mod ack_frames;
mod ack_latency;
mod pty;
mod recorder_client;
mod stream;
mod upload;
mod upload_body;

pub use ack_frames::{AckDecoder, AckFrame, AckFrameError, FRAME_BYTES_MAX};
pub use ack_latency::AckLatency;
pub use pty::{Chunk, PtyError, PtySession, TerminalSize};
pub use recorder_client::{AttemptError, ConnectError, Dial, connect};
pub use stream::{StreamError, Streamed, stream};
pub use upload::{Progress, SILENCE_MAX, Upload, UploadError, Uploaded};
