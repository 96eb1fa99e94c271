//! An ack says that the bytes survive: none leaves before the disk has them, over the real tunnel and on a real disk.

use std::fs;
use std::time::Duration;

use tailtape::ingest::IngestConfig;
use tailtape::ingest::upload::UploadConfig;

use crate::soon;
use crate::tailnet::LoopbackTailnet;
use crate::uploader::Uploader;

/// Often enough that a false ack would be seen soon.
const ACK_INTERVAL: Duration = Duration::from_millis(100);

/// Frames that are seen while the disk takes nothing; the store tries again once a second meanwhile.
const FRAMES_WHILE_STALLED: usize = 15;

fn talkative() -> IngestConfig {
    IngestConfig {
        upload: UploadConfig {
            ack_interval_min: ACK_INTERVAL,
            ack_interval_max: ACK_INTERVAL,
            ..UploadConfig::default()
        },
        ..IngestConfig::default()
    }
}

#[tokio::test]
async fn no_byte_is_acked_while_the_disk_takes_no_commit_and_all_are_once_it_does() {
    let mut tailnet = LoopbackTailnet::start(talkative()).await;
    let mut uploader = Uploader::connect(tailnet.uploader(), tailnet.address).await;
    let mut upload = uploader.record().await;
    upload.send("before the disk stalls\n").await;
    upload.until_acked(23).await;

    // A file where the directory of commits should be: no create there succeeds, whoever tries.
    let epoch = tailnet.epoch_directory();
    let aside = tailnet.root().join("aside");
    fs::rename(&epoch, &aside).unwrap();
    fs::write(&epoch, b"no directory").unwrap();
    upload.send("while the disk stalls\n").await;
    for _ in 0..FRAMES_WHILE_STALLED {
        assert_eq!(soon("a frame", upload.ack()).await, Some(23));
    }
    assert!(
        tailnet.store.stats().commit_running_for.is_some(),
        "a commit was tried and held back"
    );

    fs::remove_file(&epoch).unwrap();
    fs::rename(&aside, &epoch).unwrap();
    upload.until_acked(45).await;
    let sent = b"before the disk stalls\nwhile the disk stalls\n";
    assert_eq!(tailnet.journalled(), sent);

    upload.end();
    while soon("the end of the answer", upload.ack()).await.is_some() {}
    let manifest = tailnet.next_manifest().await;
    assert!(manifest.clean);
    assert_eq!(tailnet.stored(&manifest), sent);
}

#[tokio::test]
async fn every_acked_byte_is_on_the_disk_when_its_ack_arrives() {
    let mut tailnet = LoopbackTailnet::start(talkative()).await;
    let mut uploader = Uploader::connect(tailnet.uploader(), tailnet.address).await;
    let mut upload = uploader.record().await;
    let mut sent = Vec::new();
    let mut acks = 0;
    for round in 0_u8..12 {
        // From a keystroke to more than one frame and one window.
        let piece = vec![b'a' + round; 3_usize.pow(u32::from(round))];
        sent.extend_from_slice(&piece);
        upload.send(piece).await;
        loop {
            let acked = soon("an ack", upload.ack()).await.unwrap();
            let acked = usize::try_from(acked).unwrap();
            let journalled = tailnet.journalled();
            assert!(acked <= journalled.len() && journalled.len() <= sent.len());
            assert!(journalled == sent[..journalled.len()]);
            acks += 1;
            if acked == sent.len() {
                break;
            }
        }
    }
    assert!(acks >= 12);
    upload.end();
    let mut last = None;
    while let Some(acked) = soon("the end of the answer", upload.ack()).await {
        last = Some(acked);
    }
    assert_eq!(
        last,
        Some(sent.len() as u64),
        "the last ack is the whole body"
    );
    let manifest = tailnet.next_manifest().await;
    assert_eq!(manifest.bytes, sent.len() as u64);
    assert!(tailnet.stored(&manifest) == sent);
}
