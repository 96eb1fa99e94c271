//! Reads what compaction copies: frames of open recordings that stand in old objects.
//!
//! Invariant: frames are copied verbatim, and only when each is whole and of its recording; what cannot be read stays
//! where it is. Called by the journal between two commits.

use std::time::Duration;

use super::create::Objects;
use super::error::StoreError;
use super::state::Move;
use crate::ids::RecordingId;
use crate::recording::frame::{Frame, FrameError};

/// All reads of one compaction: a slow store is not to be kept busy by them.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// Reads the frames of `planned`; none when any of them could not be read, so that a later plan meets the same objects.
pub(super) async fn read_moves(objects: &Objects, planned: Vec<Move>) -> Vec<Move> {
    let reading = async {
        let mut moves = planned;
        for one in &mut moves {
            for span in &one.spans {
                let frames = objects.read_span(span).await?;
                let found =
                    count_frames(&frames, one.id).map_err(|source| StoreError::ReadBack {
                        recording: one.id,
                        name: span.object.name.to_string(),
                        source,
                    })?;
                one.frame_count = one.frame_count.saturating_add(found);
                one.frames.extend_from_slice(&frames);
            }
        }
        Ok::<_, StoreError>(moves)
    };
    match tokio::time::timeout(READ_TIMEOUT, reading).await {
        Ok(Ok(moves)) => moves,
        Ok(Err(error)) => {
            tracing::warn!(
                error = error.with_causes(),
                "compaction is put off: the journal could not be read"
            );
            Vec::new()
        }
        Err(_) => {
            tracing::warn!("compaction is put off: the journal was not read in time");
            Vec::new()
        }
    }
}

/// How many frames there are, all of them whole and of the recording.
fn count_frames(bytes: &[u8], recording: RecordingId) -> Result<u32, FrameError> {
    let mut rest = bytes;
    let mut count = 0_u32;
    while !rest.is_empty() {
        let (frame, behind) = Frame::decode(rest)?;
        if frame.recording != recording {
            return Err(FrameError::Malformed("recording"));
        }
        rest = behind;
        count = count.saturating_add(1);
    }
    Ok(count)
}
