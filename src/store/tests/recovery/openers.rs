//! An opener that is gone, bent or another is said to be, and costs no recording.

use std::io::Write;
use std::sync::{Arc, Mutex};

use object_store::ObjectStoreExt;
use object_store::path::Path;

use super::super::super::RecoveryStats;
use super::super::process::Process;
use super::super::world::{BACKENDS, Backend, World};
use super::{CAST, recording, recovered};

/// What was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// The lines about lost openers.
    fn lines(&self) -> Vec<String> {
        self.lines_with("the opener of an epoch is lost")
    }

    fn lines_with(&self, said: &str) -> Vec<String> {
        let bytes = self.0.lock().unwrap().clone();
        let text = String::from_utf8(bytes).unwrap();
        let lines = text.lines();
        let lines = lines.filter(|line| line.contains(said));
        lines.map(str::to_owned).collect()
    }
}

async fn start(world: &World, seed: u64) -> (Process, RecoveryStats, Vec<String>) {
    let (process, stats, log) = start_logged(world, seed).await;
    (process, stats, log.lines())
}

async fn start_logged(world: &World, seed: u64) -> (Process, RecoveryStats, Log) {
    let log = Log::default();
    let to = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || to.clone())
        .finish();
    // Were ours the only dispatcher, an event that another test meets first would be judged by that test's thread, which has none, and be silent for ever.
    let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::default());
    let _scope = tracing::subscriber::set_default(subscriber);
    let process = Process::start(world, seed, None).await.unwrap();
    let stats = recovered(&process.store).await;
    (process, stats, log)
}

#[tokio::test(start_paused = true)]
async fn the_newest_object_that_is_damaged_is_told_once_with_what_is_wrong() {
    for backend in BACKENDS {
        let world = World::new(backend).await;
        let first = Process::start(&world, 1, None).await.unwrap();
        drop(recording(&first.store, &[CAST, b"[3,\"o\",\"!\"]\n"]).await);
        first.die();
        let name = world.names_with("journal/").await.pop().unwrap();
        let mut bytes = world.get(&name).await.to_vec();
        bytes[150] ^= 1;
        let path = Path::from(name.as_str());
        let put = world.objects.inner().put(&path, bytes.into());
        put.await.unwrap();
        let (_second, stats, log) = start_logged(&world, 2).await;
        assert_eq!(stats.objects_damaged, 1);
        let errors = log.lines_with("ERROR");
        let told: Vec<_> = errors.iter().filter(|line| line.contains(&name)).collect();
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains("damaged: "), "{told:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_opener_of_a_dead_epoch_is_named_and_counted_and_its_recordings_are_sealed() {
    for (damage, what) in [
        ("lost", "absent"),
        ("bent", "damaged"),
        ("replaced", "not the one that its successor names"),
    ] {
        for backend in BACKENDS {
            let world = World::new(backend).await;
            let first = Process::start(&world, 1, None).await.unwrap();
            let open = recording(&first.store, &[CAST, b"[3,\"o\",\"!\"]\n"]).await;
            first.die();
            let name = world.names_with("/0000000000").await.remove(0);
            let (path, inner) = (Path::from(name.as_str()), world.objects.inner());
            match damage {
                "lost" => inner.delete(&path).await.unwrap(),
                "bent" => {
                    let mut bytes = world.get(&name).await.to_vec();
                    bytes[150] ^= 1;
                    inner.put(&path, bytes.into()).await.unwrap();
                }
                _ => replace(&world, &path, &first).await,
            }
            let (second, stats, told) = start(&world, 2).await;
            assert_eq!(told.len(), 1, "{told:?}");
            assert!(
                told[0].contains(&name) && told[0].contains(what),
                "{told:?}"
            );
            assert_eq!(
                (
                    stats.objects_damaged,
                    stats.recordings_sealed,
                    stats.epochs_closed
                ),
                (1, 1, 1),
                "{damage} {backend:?}"
            );
            let (manifest, stream) = world.sealed_of(open.id()).await;
            assert_eq!(stream, [CAST, b"[3,\"o\",\"!\"]\n"].concat());
            assert_eq!(manifest.gaps, []);
            second.store.close().await.unwrap();
        }
    }
}

/// A whole opener of the same place, that says another epoch went before.
async fn replace(world: &World, path: &Path, of: &Process) {
    let opener = super::super::super::opener::Opener {
        log_key: world.config.log_key,
        epoch: of.store.shared.newest_own_epoch().unwrap(),
        store_id: of.store.id(),
        previous_epoch: of.store.shared.newest_own_epoch(),
    };
    let (bytes, _) = opener.encode().unwrap();
    let put = world.objects.inner().put(path, bytes.into());
    put.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_directory_in_the_place_of_an_opener_is_told_as_one() {
    for closed in [false, true] {
        let world = World::new(Backend::File).await;
        let first = Process::start(&world, 1, None).await.unwrap();
        if closed {
            first.store.close().await.unwrap();
        } else {
            drop(recording(&first.store, &[CAST]).await);
        }
        first.die();
        let name = world.names_with("/0000000000").await.remove(0);
        let path = world.root().join(&name);
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        let (_second, stats, told) = start(&world, 2).await;
        assert_eq!((told.len(), stats.objects_damaged), (1, 1), "{told:?}");
        assert!(
            told[0].contains(&name) && told[0].contains("a directory or a link to nothing"),
            "{told:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_opener_that_is_gone_from_a_closed_epoch_is_told_by_each_start() {
    let world = World::new(Backend::Memory).await;
    let first = Process::start(&world, 1, None).await.unwrap();
    first.store.close().await.unwrap();
    let name = world.names_with("/0000000000").await.remove(0);
    let path = Path::from(name.as_str());
    world.objects.inner().delete(&path).await.unwrap();
    for seed in [2, 3] {
        let (process, stats, told) = start(&world, seed).await;
        assert_eq!((told.len(), stats.objects_damaged), (1, 1), "{told:?}");
        assert!(told[0].contains(&name), "{told:?}");
        assert_eq!(stats.epochs_found, 0);
        process.store.close().await.unwrap();
    }
}
