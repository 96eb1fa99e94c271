//! A directory in the place of a journal object is told, and neither taken for the object nor passed over.

use std::fs;
use std::path::{Path as FsPath, PathBuf};
use std::time::Duration;

use bytes::Bytes;

use super::super::{RecoveryState, StoreError, StoreHealth};
use super::process::Process;
use super::recovery::{CAST, recording, recovered};
use super::world::{Backend, World, durable_at};

/// Puts a directory, or a link to nothing, where the journal's object with that number is to stand.
fn obstruct(world: &World, names: &[String], number: &str, with_link: bool) -> PathBuf {
    let opener = names.iter().find(|name| name.ends_with("/0000000000"));
    let directory = FsPath::new(opener.unwrap()).parent().unwrap();
    let path = world.root().join(directory).join(number);
    if with_link {
        std::os::unix::fs::symlink("nothing", &path).unwrap();
    } else {
        fs::create_dir(&path).unwrap();
    }
    path
}

fn clear(path: &FsPath) {
    if path.is_symlink() {
        fs::remove_file(path).unwrap();
    } else {
        fs::remove_dir(path).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn recovery_tells_of_a_directory_in_the_place_of_its_fence_and_skips_nothing() {
    for with_link in [false, true] {
        let world = World::new(Backend::File).await;
        let first = Process::start(&world, 1, None).await.unwrap();
        let open = recording(&first.store, &[CAST]).await;
        first.die();
        let names = world.names_with("journal/").await;
        let path = obstruct(&world, &names, "0000000002", with_link);

        let second = Process::start(&world, 2, None).await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(second.store.stats().recovery.state, RecoveryState::Failed);
        let failure = second.store.recovery_failure().unwrap();
        assert!(
            matches!(&*failure, StoreError::Obstructed { name } if name.ends_with("/0000000002")),
            "{failure:?}"
        );
        assert_eq!(world.names_with(".json").await, Vec::<String>::new());
        assert_eq!(world.names_with("/0000000003").await, Vec::<String>::new());

        clear(&path);
        let stats = recovered(&second.store).await;
        assert_eq!((stats.recordings_sealed, stats.objects_damaged), (1, 0));
        assert_eq!(world.sealed_of(open.id()).await.1, CAST);
    }
}

#[tokio::test(start_paused = true)]
async fn a_commit_whose_name_is_taken_by_a_directory_says_so_and_goes_on_when_it_is_gone() {
    let world = World::new(Backend::File).await;
    let store = world.open().await.unwrap();
    let mut open = recording(&store, &[CAST]).await;
    let names = world.names_with("journal/").await;
    let path = obstruct(&world, &names, "0000000002", false);
    let puts = store.stats().journal_puts;
    open.append(Bytes::from_static(b"waits")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(20)).await;
    let sent = store.stats().journal_puts - puts;
    assert!((10..=30).contains(&sent), "tried each second: {sent}");
    assert_eq!(open.durable().borrow().offset.0, CAST.len() as u64);

    tokio::time::sleep(Duration::from_secs(10)).await;
    let health = store.health().borrow().clone();
    let StoreHealth::Stalled(why) = &health else {
        panic!("{health:?}");
    };
    let why = why.to_string();
    assert!(why.contains("/0000000002 cannot be made or read"), "{why}");
    clear(&path);
    durable_at(&open, CAST.len() as u64 + 5).await.unwrap();
    assert!(matches!(*store.health().borrow(), StoreHealth::Ready));
    let stored = &world.audit_journal().await[&open.id()];
    assert_eq!(*stored, [CAST, b"waits"].concat());
}
