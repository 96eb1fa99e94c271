//! The disk under a `file://` store: what object_store leaves to its caller.
//!
//! Invariant: after [`DiskSync::sync`] an object and every directory on the way to it are on the disk. At start the
//! leftovers of creates that were cut off are removed (hidden second hard links), and a file system that takes no
//! hard link or fsync is refused by name. Called by [`super::Store::open`] and `create.rs`.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::path::Path;

use super::error::StoreError;
use super::layout;
use crate::ids::RecorderId;

/// A leftover of another recorder is removed only at this age: a younger one may be a create under way.
const FOREIGN_LEFTOVER_AGE_MIN: Duration = Duration::from_secs(24 * 3600);

/// The deepest directory that is searched for leftovers: names have five parts.
const DEPTH_MAX: usize = 8;

/// What lies under an object store on a disk, and has to be asked for what the disk alone can answer.
///
/// A trait, so that a test can put a disk there that loses its power.
pub(crate) trait DiskSync: std::fmt::Debug + Send + Sync {
    /// Fsyncs an object and every directory from its own to the store's.
    ///
    /// Fails with what the disk said: the object may then be lost, and a second sync that succeeds proves nothing.
    fn sync<'a>(&'a self, name: &'a Path) -> BoxFuture<'a, io::Result<()>>;

    /// The same when an fsync may have failed before: each directory is changed first, so that it is written whole.
    ///
    /// A directory whose fsync failed can pass for clean, and its names for durable, until its next change.
    fn sync_anew<'a>(&'a self, name: &'a Path) -> BoxFuture<'a, io::Result<()>>;

    /// Where the store is, if the operating system knows of it and can lock it.
    fn root(&self) -> Option<&FsPath>;

    /// Whether its directory is still the one that was opened. A disk that cannot be asked counts as there: the next write tells.
    ///
    /// Fails with [`StoreError::Replaced`].
    fn still_there(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// How many bytes an unprivileged process may still write to it.
    ///
    /// Fails with [`StoreError::DiskFree`].
    fn free_bytes(&self) -> BoxFuture<'_, Result<u64, StoreError>>;
}

/// A directory that holds a store.
#[derive(Debug, Clone)]
pub(crate) struct LocalDisk {
    root: PathBuf,
    /// The directory itself, by device and number: its name may come to mean another one.
    identity: (u64, u64),
    files: Arc<LocalFileSystem>,
    /// A mount that does not answer holds the thread that asks for its room: one at most.
    room_asked: Arc<tokio::sync::Semaphore>,
}

impl LocalDisk {
    /// Makes the directory if absent, proves it, cleans it.
    ///
    /// # Errors
    /// [`StoreError::UnfitFileSystem`].
    pub(crate) async fn prepare(root: PathBuf, recorder: RecorderId) -> Result<Self, StoreError> {
        let prepared = tokio::task::spawn_blocking(move || {
            let at = |step| {
                let path = root.clone();
                move |source| StoreError::UnfitFileSystem {
                    step,
                    file_system: file_system_of(&path),
                    path,
                    source,
                }
            };
            make_directories(&root).map_err(at("make the directory"))?;
            prove(&root)?;
            remove_leftovers(&root, &root.join(layout::journal_of(&recorder).as_ref()));
            let files = LocalFileSystem::new_with_prefix(&root)
                .map_err(|source| at("open the directory")(io::Error::other(source)))?;
            let root = root.canonicalize().map_err(at("open the directory"))?;
            let identity = identity_of(&root).map_err(at("open the directory"))?;
            Ok(Self {
                root,
                identity,
                files: Arc::new(files.with_fsync(true)),
                room_asked: Arc::new(tokio::sync::Semaphore::new(1)),
            })
        });
        prepared.await.map_err(|_| StoreError::TaskLost)?
    }

    /// Makes a file in each of the store's directories `names` that is there, and removes it: their owner and mode are not the root's.
    ///
    /// # Errors
    /// [`StoreError::UnfitFileSystem`].
    pub(crate) async fn prove_directories(&self, names: Vec<Path>) -> Result<(), StoreError> {
        let root = self.root.clone();
        let proven = tokio::task::spawn_blocking(move || {
            names
                .iter()
                .map(|name| root.join(name.as_ref()))
                // What is absent is made in the root, which is proven. A link to nothing is there.
                .filter(|directory| fs::symlink_metadata(directory).is_ok())
                .try_for_each(|path| {
                    change(&path).map_err(|source| StoreError::UnfitFileSystem {
                        step: "write a file",
                        file_system: file_system_of(&path),
                        path,
                        source,
                    })
                })
        });
        proven.await.map_err(|_| StoreError::TaskLost)?
    }

    /// The object store on this disk: every create of it is fsynced before it is answered.
    pub(crate) fn objects(&self) -> Arc<dyn ObjectStore> {
        let files: Arc<LocalFileSystem> = Arc::clone(&self.files);
        files
    }
}

impl LocalDisk {
    async fn sync_with(
        &self,
        name: &Path,
        prepare: fn(&FsPath) -> io::Result<()>,
    ) -> io::Result<()> {
        let path = self
            .files
            .path_to_filesystem(name)
            .map_err(io::Error::other)?;
        let root = self.root.clone();
        let synced = tokio::task::spawn_blocking(move || {
            File::open(&path)?.sync_all()?;
            for directory in path
                .ancestors()
                .skip(1)
                .take_while(|directory| directory.starts_with(&root))
            {
                prepare(directory)?;
                File::open(directory)?.sync_all()?;
            }
            Ok(())
        });
        synced.await.map_err(io::Error::other)?
    }
}

impl DiskSync for LocalDisk {
    fn sync<'a>(&'a self, name: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(self.sync_with(name, |_| Ok(())))
    }

    fn sync_anew<'a>(&'a self, name: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(self.sync_with(name, change))
    }

    fn root(&self) -> Option<&FsPath> {
        Some(&self.root)
    }

    fn still_there(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        let (root, identity) = (self.root.clone(), self.identity);
        let looked = tokio::task::spawn_blocking(move || {
            let gone = match identity_of(&root) {
                Ok(now) => now != identity,
                Err(error) => error.kind() == io::ErrorKind::NotFound,
            };
            if gone {
                return Err(StoreError::Replaced { path: root });
            }
            Ok(())
        });
        Box::pin(async { looked.await.map_err(|_| StoreError::TaskLost)? })
    }

    fn free_bytes(&self) -> BoxFuture<'_, Result<u64, StoreError>> {
        let (root, room_asked) = (self.root.clone(), Arc::clone(&self.room_asked));
        Box::pin(async {
            let asking = room_asked.acquire_owned().await;
            let asking = asking.map_err(|_| StoreError::TaskLost)?;
            let asked = tokio::task::spawn_blocking(move || {
                // Given back when the disk has answered, however late.
                let _asking = asking;
                free_bytes_at(root)
            });
            asked.await.map_err(|_| StoreError::TaskLost)?
        })
    }
}

/// How many bytes an unprivileged process may still write to the disk below `path`.
///
/// # Errors
/// [`StoreError::DiskFree`].
pub(crate) async fn free_bytes_below(path: PathBuf) -> Result<u64, StoreError> {
    let asked = tokio::task::spawn_blocking(move || free_bytes_at(path));
    asked.await.map_err(|_| StoreError::TaskLost)?
}

fn free_bytes_at(path: PathBuf) -> Result<u64, StoreError> {
    let status = rustix::fs::statvfs(&path).map_err(|errno| StoreError::DiskFree {
        path,
        source: errno.into(),
    })?;
    Ok(status.f_bavail.saturating_mul(status.f_frsize))
}

fn identity_of(directory: &FsPath) -> io::Result<(u64, u64)> {
    let found = fs::metadata(directory)?;
    Ok((found.dev(), found.ino()))
}

/// Makes a file and removes it. Its name is one that is hidden from listings and swept as a leftover.
fn change(directory: &FsPath) -> io::Result<()> {
    let path = directory.join(format!(".changed-{}#1", std::process::id()));
    File::create(&path)?;
    remove_if_present(&path)
}

/// Makes `root` and fsyncs every directory that got a new entry.
fn make_directories(root: &FsPath) -> io::Result<()> {
    let missing = root
        .ancestors()
        .take_while(|directory| !directory.exists())
        .count();
    // Recordings hold what people saw: nobody but the recorder's user may read a root that it made.
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(root)?;
    root.ancestors()
        .take(missing.saturating_add(1))
        .try_for_each(|directory| File::open(directory)?.sync_all())
}

/// Does with a file of its own what a create does: write, fsync, link, fsync the directory.
fn prove(root: &FsPath) -> Result<(), StoreError> {
    // The process id keeps two recorders on one directory apart; `#1` makes a leftover of it one that is swept.
    let staged = root.join(format!(".tailtape-probe-{}#1", std::process::id()));
    let linked = root.join(format!(".tailtape-probe-{}#2", std::process::id()));
    let unfit = |step| {
        let path = root.to_path_buf();
        move |source| StoreError::UnfitFileSystem {
            step,
            file_system: file_system_of(&path),
            path,
            source,
        }
    };
    let proof = (|| {
        remove_if_present(&staged)
            .and_then(|()| remove_if_present(&linked))
            .map_err(unfit("remove a file"))?;
        fs::write(&staged, b"probe").map_err(unfit("write a file"))?;
        File::open(&staged)
            .and_then(|file| file.sync_all())
            .map_err(unfit("fsync a file"))?;
        fs::hard_link(&staged, &linked).map_err(unfit("hard-link a file"))?;
        match fs::hard_link(&staged, &linked) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(unfit("hard-link over a file")(source)),
            Ok(()) => {
                return Err(unfit("refuse a second hard link")(io::Error::other(
                    "it was made",
                )));
            }
        }
        File::open(root)
            .and_then(|directory| directory.sync_all())
            .map_err(unfit("fsync a directory"))
    })();
    let removed = remove_if_present(&staged).and_then(|()| remove_if_present(&linked));
    proof.and(removed.map_err(unfit("remove a file")))
}

fn remove_if_present(path: &FsPath) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes the files `<name>#<digits>` that object_store staged and did not come to remove.
///
/// What cannot be removed is left: a leftover costs room, not truth.
fn remove_leftovers(root: &FsPath, own_journal: &FsPath) {
    let mut directories = vec![(root.to_path_buf(), 0_usize)];
    while let Some((directory, depth)) = directories.pop() {
        let Ok(entries) = fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries.flatten() {
            let (path, Ok(kind)) = (entry.path(), entry.file_type()) else {
                continue;
            };
            if kind.is_dir() && depth < DEPTH_MAX {
                directories.push((path, depth.saturating_add(1)));
                continue;
            }
            let is_leftover = kind.is_file() && is_staged(&path);
            let may_go =
                path.starts_with(own_journal) || is_older(&entry, FOREIGN_LEFTOVER_AGE_MIN);
            if is_leftover
                && may_go
                && let Err(error) = fs::remove_file(&path)
            {
                tracing::warn!(path = %path.display(), error = crate::tell::with_causes(&error), "a leftover of an unfinished create stays");
            }
        }
    }
}

fn is_staged(path: &FsPath) -> bool {
    let name = path
        .file_name()
        .and_then(std::ffi::OsStr::to_str)
        .unwrap_or_default();
    let suffix = name.rsplit_once('#').map(|(_, suffix)| suffix);
    suffix.is_some_and(|digits| {
        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
    })
}

fn is_older(entry: &fs::DirEntry, age: Duration) -> bool {
    let modified = entry.metadata().and_then(|metadata| metadata.modified());
    modified.is_ok_and(|modified| modified.elapsed().is_ok_and(|elapsed| elapsed >= age))
}

/// The name of the file system that `path` is on, for the operator to read.
fn file_system_of(path: &FsPath) -> String {
    let existing = path
        .ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or(path);
    let Ok(status) = rustix::fs::statfs(existing) else {
        return "unknown".into();
    };
    // linux/magic.h
    let name = match u64::try_from(status.f_type).unwrap_or_default() {
        0xef53 => "ext2/3/4",
        0x5846_5342 => "xfs",
        0x9123_683e => "btrfs",
        0x2fc1_2fc1 => "zfs",
        0x0102_1994 => "tmpfs",
        0x794c_7630 => "overlay",
        0x6969 => "nfs",
        0xff53_4d42 | 0xfe53_4d42 => "smb",
        0x6573_5546 => "fuse",
        0x0102_1997 => "9p",
        0x4d44 => "fat",
        0x2011_bab0 => "exfat",
        other => return format!("{other:#x}"),
    };
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorder() -> RecorderId {
        RecorderId::from_log_key(b"key")
    }

    #[tokio::test]
    async fn leftovers_of_our_own_creates_are_removed_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let own = root
            .path()
            .join("journal")
            .join(recorder().as_str())
            .join("epoch");
        let foreign = root.path().join("journal/another/epoch");
        fs::create_dir_all(&own).unwrap();
        fs::create_dir_all(&foreign).unwrap();
        for path in [
            own.join("0000000001#1"),
            own.join("0000000001"),
            own.join("a#b"),
            foreign.join("0000000001#1"),
        ] {
            fs::write(path, b"x").unwrap();
        }
        LocalDisk::prepare(root.path().into(), recorder())
            .await
            .unwrap();
        assert!(!own.join("0000000001#1").exists());
        assert!(own.join("0000000001").exists());
        assert!(own.join("a#b").exists());
        assert!(foreign.join("0000000001#1").exists());
        assert_eq!(
            fs::read_dir(root.path()).unwrap().count(),
            1,
            "the probe's files are gone"
        );
    }

    #[tokio::test]
    async fn a_file_system_without_hard_links_is_refused_by_name() {
        // /proc takes neither directories nor links, for anybody.
        let refused = LocalDisk::prepare("/proc/tailtape".into(), recorder()).await;
        let Err(StoreError::UnfitFileSystem {
            path, file_system, ..
        }) = refused
        else {
            panic!("{refused:?}")
        };
        assert_eq!(path, PathBuf::from("/proc/tailtape"));
        assert!(!file_system.is_empty());
    }
}
