//! The directory of a store is moved or removed under it, as by `umount -l`: nothing that goes elsewhere is acked, and the store ends.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;

use super::super::StoreError;
use super::recovery::{CAST, recording, recovered};
use super::world::{Backend, World, durable_at};

const SOON: Duration = Duration::from_secs(1);

fn move_away(world: &World) -> PathBuf {
    let elsewhere = world.root().with_extension("moved");
    fs::rename(world.root(), &elsewhere).unwrap();
    elsewhere
}

fn bring_back(world: &World, elsewhere: PathBuf) {
    // What was written to the old name meanwhile.
    fs::remove_dir_all(world.root()).ok();
    fs::rename(elsewhere, world.root()).unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_written_elsewhere_is_not_acked_and_what_was_acked_is_found_again() {
    let world = World::new(Backend::File).await;
    let store = world.open().await.unwrap();
    let mut open = recording(&store, &[CAST]).await;
    let elsewhere = move_away(&world);
    open.append(Bytes::from_static(b"not acked")).await.unwrap();
    let failed = durable_at(&open, CAST.len() as u64 + 9).await;
    assert!(
        matches!(failed.as_ref().map_err(|error| &**error), Err(StoreError::Replaced { path }) if path == world.root()),
        "{failed:?}"
    );
    assert_eq!(open.durable().borrow().offset.0, CAST.len() as u64);
    assert!(
        matches!(store.halted().as_deref(), Some(StoreError::Replaced { .. })),
        "{:?}",
        store.halted()
    );
    assert!(
        world.root().exists(),
        "the number was written, to another place"
    );

    bring_back(&world, elsewhere);
    let next = world.open().await.unwrap();
    recovered(&next).await;
    assert_eq!(world.sealed_of(open.id()).await.1, CAST);
}

#[tokio::test(start_paused = true)]
async fn an_idle_store_notices_within_a_second() {
    let mut world = World::new(Backend::File).await;
    world.config.fence_look_interval = Duration::from_millis(500);
    for remove in [false, true] {
        let store = world.open().await.unwrap();
        let elsewhere = move_away(&world);
        if remove {
            fs::remove_dir_all(&elsewhere).unwrap();
        }
        let start = tokio::time::Instant::now();
        while store.halted().is_none() {
            assert!(start.elapsed() <= SOON, "removed: {remove}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let halted = store.halted();
        assert!(
            matches!(halted.as_deref(), Some(StoreError::Replaced { .. })),
            "{halted:?}"
        );
        if !remove {
            bring_back(&world, elsewhere);
        }
    }
}
