//! A store opened to be read, or to be proven: by a command beside the recorder that writes it.
//!
//! Invariant: nothing here claims an epoch, and a reader writes nothing at all, so that it may be used while a recorder runs. Called by the wiring:
//! `ls`, `cat`, and `serve --check`.

use std::path::Path as FsPath;
use std::sync::Arc;

use object_store::local::LocalFileSystem;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

use super::create::Objects;
use super::error::StoreError;
use super::local_disk::{self, LocalDisk};
use super::{Store, StoreUrl, layout, probe, recovery, store_id};
use crate::ids::{LogKey, RecorderId};

/// A store that is read only. Clones share it.
#[derive(Debug, Clone)]
pub struct StoreReader {
    pub(super) objects: Objects,
}

impl StoreReader {
    /// Opens what a recorder has made; makes nothing.
    ///
    /// # Errors
    /// [`StoreError::NoStore`] when no recorder ever opened a store there, or it is `memory://`; [`StoreError::Object`]; [`StoreError::StoreIdLost`];
    /// [`StoreError::ForeignObject`] when its id is none.
    pub async fn open(url: &StoreUrl) -> Result<Self, StoreError> {
        let no_store = || StoreError::NoStore {
            url: url.to_string(),
        };
        let StoreUrl::Local(root) = url else {
            return Err(no_store());
        };
        if !root.is_dir() {
            return Err(no_store());
        }
        let files = files_below(root)?;
        let reader = Self {
            objects: Objects::read_below(Arc::new(files), root.clone()),
        };
        let id = store_id::read_or_miss(&reader.objects).await?;
        id.map(|_| reader).ok_or_else(no_store)
    }
}

impl Store {
    /// The same store, to be read.
    #[must_use]
    pub fn reader(&self) -> StoreReader {
        StoreReader {
            objects: self.shared.objects.clone(),
        }
    }

    /// Proves that a store can be kept at `url`, as [`Store::open`] does, but claims no epoch: a recorder may be at work there. A directory
    /// that is absent is made, for that is part of the proof.
    ///
    /// # Errors
    /// [`StoreError`] when the backend cannot keep the promises, or is out of reach.
    pub async fn prove(url: &StoreUrl) -> Result<(), StoreError> {
        let StoreUrl::Local(root) = url else {
            return Ok(());
        };
        let mut rng =
            ChaCha20Rng::from_rng(rand_core::OsRng).map_err(StoreError::DrawRandomness)?;
        // Nobody's journal has this name, so creates of a recorder that runs are left alone.
        let nobody = RecorderId::from_log_key(b"nobody");
        let disk = LocalDisk::prepare(root.clone(), nobody).await?;
        disk.prove_directories(layout::written_to()).await?;
        let objects = Objects::new(disk.objects(), Some(Arc::new(disk)));
        probe::prove_create_is_exclusive(&objects, &mut rng).await?;
        // An id that is lost, changed or none of ours would end a start too.
        store_id::read_proven(&objects).await.map(drop)
    }

    /// What the disk below the store at `url` has free, in bytes; none for a store that is on no disk.
    ///
    /// # Errors
    /// [`StoreError::DiskNearlyFull`] when that is fewer than `free_bytes_min`: no recording would begin; [`StoreError::DiskFree`].
    pub async fn room(url: &StoreUrl, free_bytes_min: u64) -> Result<Option<u64>, StoreError> {
        let StoreUrl::Local(root) = url else {
            return Ok(None);
        };
        let free_bytes = local_disk::free_bytes_below(root.clone()).await?;
        match free_bytes < free_bytes_min {
            true => Err(StoreError::DiskNearlyFull {
                free_bytes,
                free_bytes_min,
            }),
            false => Ok(Some(free_bytes)),
        }
    }

    /// Whether a process is at work on the store at `url` under this identity: [`Store::open`] with the same would fence it. False where nothing can
    /// tell, as on a file system without locks.
    pub async fn is_at_work(url: &StoreUrl, log_key: LogKey) -> bool {
        match url {
            StoreUrl::Memory => false,
            StoreUrl::Local(root) => {
                let recorder = RecorderId::from_log_key(log_key.as_bytes());
                recovery::is_held(root.clone(), &recorder).await
            }
        }
    }
}

fn files_below(root: &FsPath) -> Result<LocalFileSystem, StoreError> {
    LocalFileSystem::new_with_prefix(root).map_err(|source| StoreError::Object {
        step: "open",
        name: root.display().to_string(),
        source,
    })
}

impl std::fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Memory => f.write_str("memory://"),
            Self::Local(root) => match url::Url::from_directory_path(root) {
                Ok(url) => f.write_str(url.as_str().trim_end_matches('/')),
                // Only a relative path has no URL, and none is taken.
                Err(()) => root.display().fmt(f),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::store::StoreConfig;

    fn names_below(root: &FsPath) -> Vec<String> {
        let entries = fs::read_dir(root).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn a_reader_opens_what_a_recorder_made_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let url = StoreUrl::Local(root.path().join("store"));
        for absent in [
            &url,
            &StoreUrl::Local(root.path().into()),
            &StoreUrl::Memory,
        ] {
            let error = StoreReader::open(absent).await.unwrap_err();
            assert!(matches!(error, StoreError::NoStore { .. }), "{error:?}");
        }
        assert!(
            names_below(root.path()).is_empty(),
            "a reader makes nothing"
        );

        let key = LogKey::from_bytes([7; LogKey::BYTES]);
        let store = Store::open(StoreConfig::new(url.clone(), key))
            .await
            .unwrap();
        let before = names_below(&root.path().join("store"));
        StoreReader::open(&url).await.unwrap();
        assert_eq!(names_below(&root.path().join("store")), before);
        store.close().await.unwrap();
    }

    #[tokio::test]
    async fn a_proof_leaves_the_store_of_a_running_recorder_as_it_was() {
        let root = tempfile::tempdir().unwrap();
        let url = StoreUrl::Local(root.path().into());
        let config = StoreConfig::new(url.clone(), LogKey::from_bytes([7; LogKey::BYTES]));
        let journal = root
            .path()
            .join(layout::journal_of(&config.recorder()).as_ref());
        let store = Store::open(config).await.unwrap();
        let staged = journal.join("0000000009#1");
        fs::write(&staged, b"a create under way").unwrap();
        let before = (names_below(root.path()), names_below(&journal));
        Store::prove(&url).await.unwrap();
        assert_eq!((names_below(root.path()), names_below(&journal)), before);
        assert!(staged.exists());
        store.close().await.unwrap();
    }

    #[tokio::test]
    async fn a_proof_fails_where_no_store_can_be_kept() {
        let error = Store::prove(&StoreUrl::Local("/proc/tailtape".into())).await;
        assert!(matches!(error, Err(StoreError::UnfitFileSystem { .. })));
    }

    #[tokio::test]
    async fn a_proof_tries_each_directory_that_a_recorder_writes_to_and_leaves_nothing() {
        for name in ["journal", "recordings", "events"] {
            let root = tempfile::tempdir().unwrap();
            let url = StoreUrl::Local(root.path().into());
            let directory = root.path().join(name);
            fs::create_dir(&directory).unwrap();
            Store::prove(&url).await.unwrap();
            assert!(names_below(&directory).is_empty());
            fs::remove_dir(&directory).unwrap();

            // What nobody may write to, root not excepted: a file, a link to nothing, and /proc.
            let fail = async || {
                let error = Store::prove(&url).await.unwrap_err();
                let StoreError::UnfitFileSystem { path, .. } = error else {
                    panic!("{error:?}")
                };
                assert!(path.ends_with(name), "{path:?}");
            };
            fs::write(&directory, b"").unwrap();
            fail().await;
            for target in ["/proc", "/nowhere/at/all"] {
                fs::remove_file(&directory).unwrap();
                std::os::unix::fs::symlink(target, &directory).unwrap();
                fail().await;
            }
        }
    }

    #[tokio::test]
    async fn a_disk_with_less_room_than_is_kept_free_is_told() {
        let root = tempfile::tempdir().unwrap();
        let url = StoreUrl::Local(root.path().into());
        assert!(Store::room(&url, 0).await.unwrap().is_some());
        let error = Store::room(&url, u64::MAX).await.unwrap_err();
        assert!(
            matches!(error, StoreError::DiskNearlyFull { .. }),
            "{error:?}"
        );
        assert_eq!(
            Store::room(&StoreUrl::Memory, u64::MAX).await.unwrap(),
            None
        );
    }

    #[test]
    fn a_url_is_shown_as_it_is_read() {
        for text in ["memory://", "file:///var/lib/tail%20tape"] {
            let url: StoreUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), text);
        }
    }
}
