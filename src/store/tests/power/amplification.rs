//! What the journal costs: bytes that the disk was given, beside the bytes that were recorded.

use std::sync::Arc;
use std::time::Duration;

use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};

use super::audit::Objects;
use super::ledger::{Ledger, Sender};
use super::model_disk::ModelDisk;
use super::{COMPACTION, FIRST_KEY, SEGMENT_BYTES, life, processes, start};

/// What frames, openings, ends and the copies of compaction add is less than what is recorded.
const WRITE_AMPLIFICATION_MAX: u64 = 2;
/// What the opener and the fence of an epoch have.
const OPENERS_BYTES: u64 = 2_000;

#[test]
fn the_disk_is_given_at_most_twice_what_is_recorded_over_a_long_time() {
    let (disk, ledger) = (Arc::new(ModelDisk::new()), Arc::new(Ledger::default()));
    let mut rng = ChaCha20Rng::seed_from_u64(5);
    let mut draw = move |below: u32| rng.next_u32() % below;
    let mut on_disk_most = 0;
    let (stats, recorded) = life(async {
        let store = start(&disk, SEGMENT_BYTES, FIRST_KEY, 0).await.unwrap();
        // One that says a word at the start and idles to the end: nothing behind it may be kept for its sake alone.
        let mut idle = Sender::begin(&store, &ledger).unwrap();
        idle.send("a word\n".into()).await;
        let mut open: Vec<Sender> = Vec::new();
        for _ in 0..600 {
            if open.len() < 8 && draw(4) == 0 {
                open.push(Sender::begin(&store, &ledger).unwrap());
            }
            for sender in &mut open {
                let mut bytes = vec![0; 1 + draw(2_000) as usize];
                ChaCha20Rng::seed_from_u64(u64::from(draw(u32::MAX))).fill_bytes(&mut bytes);
                sender.send(bytes.into()).await;
            }
            if !open.is_empty() && draw(30) == 0 {
                let ended = open.swap_remove(draw(open.len().try_into().unwrap()) as usize);
                ended.finish().await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(1_000)).await;
            let stats = store.stats();
            let bound = 2 * stats.journal_bytes_open + COMPACTION.slack_bytes;
            assert!(stats.journal_bytes_kept <= bound, "{stats:?}");
            let on_disk: u64 = disk
                .files_below("journal")
                .iter()
                .map(|(_, bytes)| bytes)
                .sum();
            on_disk_most = on_disk_most.max(on_disk);
            assert!(on_disk <= bound + OPENERS_BYTES, "{on_disk}: {stats:?}");
        }
        for sender in open {
            sender.finish().await.unwrap();
        }
        idle.finish().await.unwrap();
        tokio::time::sleep(Duration::from_secs(10)).await;
        let stats = store.stats();
        assert!(stats.compactions > 5, "{stats:?}");
        store.close().await.unwrap();
        let objects = Objects::read(&processes(&disk)).await;
        objects.seal_what_was_acked(&ledger).unwrap();
        objects.have_a_trimmed_journal().unwrap();
        (stats, ledger.acked_bytes())
    });
    let written = disk.written_bytes("journal");
    println!(
        "journal: {recorded} bytes recorded, {written} written, {on_disk_most} at most at once, {} commits, {} compactions",
        stats.commits, stats.compactions
    );
    assert_eq!(stats.plain_bytes, recorded);
    // What the store counts is what the disk saw, but for the opener and the fence of the epoch.
    assert!(
        stats.journal_bytes <= written && written < stats.journal_bytes + OPENERS_BYTES,
        "{stats:?}"
    );
    assert!(
        written <= WRITE_AMPLIFICATION_MAX * recorded,
        "{written} of {recorded}"
    );
}
