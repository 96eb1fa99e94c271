//! The store's id is evidence: a start without it, or against it, is none; and only the first start makes one.

use futures_util::TryStreamExt;
use jiff::Timestamp;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::time::Duration;

use super::super::{Store, StoreError, StoreReader};
use super::process::{Mishap, Process};
use super::recovery::{CAST, recording, recovered};
use super::world::{BACKENDS, Backend, World, at, clean_end};
use crate::ids::StoreId;

const ID: &str = "store/id";

impl World {
    async fn remove(&self, name: &str) {
        self.objects
            .inner()
            .delete(&Path::from(name))
            .await
            .unwrap();
    }

    async fn put(&self, name: &str, bytes: bytes::Bytes) {
        let name = Path::from(name);
        let put = self.objects.inner().put(&name, bytes.into());
        put.await.unwrap();
    }
}

/// One recording sealed and one open, and the recorder dead.
async fn used(backend: Backend) -> (World, StoreId) {
    let world = World::new(backend).await;
    let first = Process::start(&world, 1, None).await.unwrap();
    let sealed = recording(&first.store, &[CAST]).await;
    sealed.finish(clean_end()).await.unwrap();
    drop(recording(&first.store, &[CAST]).await);
    first.die();
    (world, first.store.id())
}

#[tokio::test(start_paused = true)]
async fn a_store_whose_id_is_gone_is_not_opened_and_gets_no_second_one() {
    for backend in BACKENDS {
        let (world, id) = used(backend).await;
        world.remove(ID).await;
        let before = world.names().await;
        let error = world.open().await.unwrap_err();
        let StoreError::StoreIdLost { name, named } = &error else {
            panic!("{error:?}");
        };
        assert!(name.starts_with("journal/") && name.ends_with("/0000000000"));
        assert_eq!(*named, Some(id));
        assert!(error.to_string().contains(&format!("write to it {id}")));
        assert_eq!(world.names().await, before, "nothing was written");

        // What the error says to do is enough.
        world.put(ID, format!("{id}\n").into()).await;
        let again = Process::start(&world, 3, None).await.unwrap();
        assert_eq!(recovered(&again.store).await.recordings_sealed, 1);
        assert_eq!(again.store.id(), id);
    }
}

#[tokio::test(start_paused = true)]
async fn where_the_journal_is_gone_too_a_manifest_names_the_id() {
    for backend in BACKENDS {
        let (world, id) = used(backend).await;
        world.remove(ID).await;
        for name in world.names_with("journal/").await {
            world.remove(&name).await;
        }
        for name in world.names_with(".cast").await {
            world.remove(&name).await;
        }
        let error = world.open().await.unwrap_err();
        assert!(
            matches!(&error, StoreError::StoreIdLost { name, named: Some(named) } if name.ends_with(".json") && *named == id),
            "{error:?}"
        );
        // Without the manifest nothing is left that an id could be missing to.
        for name in world.names_with(".json").await {
            world.remove(&name).await;
        }
        assert_ne!(world.open().await.unwrap().id(), id);
    }
}

#[tokio::test(start_paused = true)]
async fn a_journal_without_its_opener_keeps_a_second_id_from_being_made() {
    let (world, _) = used(Backend::Memory).await;
    world.remove(ID).await;
    for name in world.names().await {
        if name.ends_with("/0000000000") || name.starts_with("recordings/") {
            world.remove(&name).await;
        }
    }
    let error = world.open().await.unwrap_err();
    assert!(
        matches!(&error, StoreError::StoreIdLost { name, named: None } if name.starts_with("journal/")),
        "{error:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn events_alone_keep_a_second_id_from_being_made() {
    let (world, _) = used(Backend::Memory).await;
    for name in world.names().await {
        world.remove(&name).await;
    }
    let events = "events/nProxy/2026-11-20/1015-01JD3WXYZ00000000000000000.ndjson";
    world.put(events, "{}\n".into()).await;
    let error = world.open().await.unwrap_err();
    assert!(
        matches!(&error, StoreError::StoreIdLost { name, named: None } if name == events),
        "{error:?}"
    );
    assert_eq!(world.names().await, [events]);
}

#[tokio::test(start_paused = true)]
async fn an_id_that_an_opener_contradicts_ends_the_start() {
    for backend in BACKENDS {
        let (world, id) = used(backend).await;
        let other: StoreId = "caireeyuculbogazdinryhi6d4".parse().unwrap();
        world.put(ID, format!("{other}\n").into()).await;
        let before = world.names().await;
        let error = world.open().await.unwrap_err();
        assert!(
            matches!(error, StoreError::StoreIdDiffers { present, named, .. } if (present, named) == (other, id)),
            "{error:?}"
        );
        assert_eq!(world.names().await, before, "nothing was written");
    }
}

#[tokio::test(start_paused = true)]
async fn without_an_opener_the_id_is_held_against_a_manifest() {
    let other: StoreId = "caireeyuculbogazdinryhi6d4".parse().unwrap();
    for damaged in [false, true] {
        for backend in BACKENDS {
            let (world, id) = used(backend).await;
            let opener = world.names_with("/0000000000").await.remove(0);
            world.remove(&opener).await;
            if damaged {
                world.put(&opener, "bent".into()).await;
            }
            world.put(ID, format!("{other}\n").into()).await;
            let before = world.names().await;
            let error = world.open().await.unwrap_err();
            assert!(
                matches!(&error, StoreError::StoreIdDiffers { present, name, named }
                    if (*present, *named) == (other, id) && name.ends_with(".json")),
                "{error:?}"
            );
            assert_eq!(world.names().await, before, "nothing was written");
            // Under the right id recovery goes on without the opener.
            world.put(ID, format!("{id}\n").into()).await;
            let again = Process::start(&world, 3, None).await.unwrap();
            assert_eq!(recovered(&again.store).await.recordings_sealed, 1);
        }
    }
}

/// The start could not read the manifest; what it had to let pass, recovery does not.
#[tokio::test(start_paused = true)]
async fn an_epoch_without_its_opener_is_not_sealed_under_an_id_that_a_manifest_contradicts() {
    let (world, id) = used(Backend::Memory).await;
    let opener = world.names_with("/0000000000").await.remove(0);
    world.remove(&opener).await;
    let other: StoreId = "caireeyuculbogazdinryhi6d4".parse().unwrap();
    world.put(ID, format!("{other}\n").into()).await;
    let backend = Process::backend(&world, None);
    backend.strike_at("get recordings/", Mishap::Fails);
    let config = world.config.clone();
    let process = Process::start_on(&world, config, 2, backend).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let failure = process.store.recovery_failure().unwrap();
    assert!(
        matches!(&*failure, StoreError::StoreIdDiffers { present, named, .. } if (*present, *named) == (other, id)),
        "{failure:?}"
    );
    assert_eq!(world.names_with(".json").await.len(), 1, "none was sealed");
}

#[tokio::test(start_paused = true)]
async fn an_emptied_id_is_told_with_the_id_that_the_opener_names() {
    for backend in BACKENDS {
        let (world, id) = used(backend).await;
        world.put(ID, "".into()).await;
        let error = world.open().await.unwrap_err();
        assert!(
            matches!(&error, StoreError::StoreIdDamaged { named: Some(named), .. } if *named == id),
            "{error:?}"
        );
        assert!(error.to_string().contains(&format!("write to it {id}")));
    }
}

#[tokio::test]
async fn a_directory_or_a_dangling_link_under_the_ids_name_is_told_as_such() {
    for with_link in [false, true] {
        let (world, _) = used(Backend::File).await;
        let path = world.root().join(ID);
        std::fs::remove_file(&path).unwrap();
        if with_link {
            std::os::unix::fs::symlink("nothing", &path).unwrap();
        } else {
            std::fs::create_dir(&path).unwrap();
        }
        let url = &world.config.url;
        let started = world.open().await.map(drop);
        let read = StoreReader::open(url).await.map(drop);
        for told in [started, Store::prove(url).await, read] {
            assert!(
                matches!(&told, Err(StoreError::Obstructed { name }) if name == ID),
                "{told:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_check_and_a_reader_tell_that_the_id_is_gone() {
    let (world, id) = used(Backend::File).await;
    let url = &world.config.url;
    Store::prove(url).await.unwrap();
    StoreReader::open(url).await.map(drop).unwrap();
    world.remove(ID).await;
    let proof = Store::prove(url).await;
    let read = StoreReader::open(url).await.map(drop);
    for told in [proof, read] {
        assert!(
            matches!(told, Err(StoreError::StoreIdLost { named: Some(named), .. }) if named == id),
            "{told:?}"
        );
    }
    assert!(!world.root().join(ID).exists(), "neither makes one");
}

#[tokio::test(start_paused = true)]
async fn a_start_that_died_behind_its_id_leaves_a_store_that_opens() {
    for backend in BACKENDS {
        let world = World::new(backend).await;
        let dies = Process::backend(&world, None);
        dies.strike_at("put journal/", Mishap::Dies);
        let config = world.config.clone();
        let starting = Process::start_on(&world, config, 1, dies);
        let limit = Duration::from_secs(5);
        assert!(tokio::time::timeout(limit, starting).await.is_err());
        assert_eq!(world.names().await, [ID]);
        let id = world.get(ID).await;
        let store = world.open().await.unwrap();
        assert_eq!(id, format!("{}\n", store.id()));
    }
}

/// One start found no id; before it looked for what the store holds, the other made the id and its first opener.
#[tokio::test(start_paused = true)]
async fn two_first_starts_at_once_agree_on_one_id() {
    for step in ["list journal", "get store/id", "put store/id"] {
        let world = World::new(Backend::Memory).await;
        let late = Process::backend(&world, None);
        late.strike_at(step, Mishap::Freezes);
        let config = world.config.clone();
        let starting = Process::start_on(&world, config, 1, std::sync::Arc::clone(&late));
        let mut starting = std::pin::pin!(starting);
        let until_frozen = tokio::time::timeout(Duration::from_secs(2), &mut starting);
        assert!(until_frozen.await.is_err());
        assert!(!late.is_running());
        let second = Process::start(&world, 2, None).await.unwrap();
        late.thaw();
        let first = starting.await.unwrap();
        assert_eq!(first.store.id(), second.store.id(), "{step}");
    }
}

fn an_hour_before() -> Timestamp {
    at("2026-11-20T09:20:00Z")
}

/// A start reads the newest openers; an older one that names another store is met by recovery.
#[tokio::test(start_paused = true)]
async fn an_epoch_of_another_store_is_told_and_left_alone() {
    let elsewhere = World::new(Backend::Memory).await;
    let backend = Process::backend(&elsewhere, None);
    let config = elsewhere.config.clone();
    let alien = Process::start_at(&elsewhere, config, 99, backend, an_hour_before);
    let alien = alien.await.unwrap();
    drop(recording(&alien.store, &[CAST]).await);
    alien.die();

    let world = World::new(Backend::Memory).await;
    for seed in 1..=9 {
        let process = Process::start(&world, seed, None).await.unwrap();
        process.store.close().await.unwrap();
    }
    let alien_names = elsewhere.names_with("journal/").await;
    assert_eq!(alien_names.len(), 2);
    for name in &alien_names {
        world.put(name, elsewhere.get(name).await).await;
    }
    let process = Process::start(&world, 10, None).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let failure = process.store.recovery_failure().unwrap();
    assert!(
        matches!(&*failure, StoreError::StoreIdDiffers { present, name, named }
            if (*present, name, *named) == (process.store.id(), &alien_names[0], alien.store.id())),
        "{failure:?}"
    );
    let listed: Vec<_> = world.objects.list(None).try_collect().await.unwrap();
    let of_alien = |name: &str| alien_names[0].starts_with(name.rsplit_once('/').unwrap().0);
    let left: Vec<_> = listed
        .iter()
        .filter(|object| of_alien(object.location.as_ref()))
        .collect();
    assert_eq!(left.len(), 2, "neither fenced nor trimmed: {left:?}");
    assert_eq!(world.names_with(".json").await, Vec::<String>::new());
}
