//! What hashing an upload costs, in bytes hashed for each byte uploaded: each pass is one that proves something no other does.

use std::fmt::Write;
use std::time::Duration;

use bytes::Bytes;
use rand_core::{RngCore, SeedableRng};

use super::world::{Backend, World, clean_end, opening};
use crate::recording::hash::hashed_bytes;

/// Below the size from which a commit is encoded in another thread, whose hashing would not be counted here.
const PIECE_BYTES: usize = 32 * 1024;
const UPLOAD_BYTES: usize = 4 * 1024 * 1024;

fn noise(bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    rand_chacha::ChaCha20Rng::seed_from_u64(7).fill_bytes(&mut noise);
    noise
}

/// Lines of a terminal, of which most is output.
fn cast(bytes: usize) -> Vec<u8> {
    let mut cast = String::from("{\"version\":2,\"width\":80,\"height\":24}\n");
    let mut number = 0_u32;
    while cast.len() < bytes {
        number += 1;
        let mode = number.wrapping_mul(2_654_435_761);
        writeln!(
            cast,
            "[{number}.25,\"o\",\"-rw-r--r-- 1 root root {mode} Nov 21 17:00 a-file-of-many-{number}\"]"
        )
        .unwrap();
    }
    cast.into_bytes()
}

/// Bytes hashed for each hundred of `sent`, from the first append to the manifest.
async fn hashed_per_hundred(sent: &[u8], segment_bytes: u64) -> u64 {
    let mut world = World::new(Backend::Memory).await;
    world.config.segment_bytes = segment_bytes;
    let store = world.open().await.unwrap();
    let mut handle = store.begin(opening()).unwrap();
    let before = hashed_bytes();
    for piece in sent.chunks(PIECE_BYTES) {
        handle.append(Bytes::copy_from_slice(piece)).await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    handle.finish(clean_end()).await.unwrap();
    (hashed_bytes() - before) * 100 / sent.len() as u64
}

#[tokio::test(start_paused = true)]
async fn no_byte_is_hashed_twice_for_the_same_proof() {
    const SEGMENT_BYTES: u64 = 16 * 1024 * 1024;
    // As received, as a stream, in blocks, read back; and three times as it stands in the journal: frame, object, frame again.
    let noisy = 4 * 100 + 3 * 100;
    // The text of its output too; in the journal it is a tenth.
    let readable = 4 * 100 + 80 + 3 * 10;
    // All but the last segment were written by cuts, which keep no block digests: they are read once more, in blocks and whole.
    let cut = noisy + 2 * 75 + 28;
    let table = [
        ("noise", noise(UPLOAD_BYTES), SEGMENT_BYTES, noisy),
        ("a cast", cast(UPLOAD_BYTES), SEGMENT_BYTES, readable),
        (
            "noise with cuts",
            noise(UPLOAD_BYTES),
            SEGMENT_BYTES / 16,
            cut,
        ),
    ];
    for (what, sent, segment_bytes, most) in table {
        let hashed = hashed_per_hundred(&sent, segment_bytes).await;
        println!("{what}: {hashed} bytes hashed of 100 uploaded");
        // The heads of objects and frames, and rounding.
        assert!(hashed <= most + 5, "{what}: {hashed} of {most}");
        assert!(
            hashed + 15 >= most,
            "{what}: {hashed} of {most}: not all of it was counted"
        );
    }
}
