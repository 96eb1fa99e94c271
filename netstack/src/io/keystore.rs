//! A node's small secrets: keys and pins, in a directory or in memory.
//!
//! Invariant: when [`KeyStore::put`] returns, the value survives a power cut; a reader sees the old
//! value or the new one, never a part; no second process shares the directory. Directory 0700,
//! files 0600. Called by the driver, before it lets a new key be used.
//!
//! The bag is small (≤ 900 KiB in all) so that it fits into one Kubernetes Secret.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rand_core::OsRng;
use zeroize::Zeroizing;

use crate::key::{KeyError, MachinePrivate, MachinePublic, NodePrivate};

/// All values together; a Kubernetes Secret holds 1 MiB with its base64 and names.
pub const STORE_BYTES_MAX: usize = 900 * 1024;
/// Longest name of a value.
const NAME_BYTES_MAX: usize = 64;
/// Held while a process uses the directory.
const LOCK_FILE: &str = ".lock";
/// What a value is written to before it takes its name. No value can have this name.
const TEMPORARY_FILE: &str = ".new";

const MACHINE_KEY: &str = "machine-key";
const NODE_KEY: &str = "node-key";
const CONTROL: &str = "control";

/// What went wrong with the stored keys.
#[derive(Debug, thiserror::Error)]
pub enum KeyStoreError {
    /// The file system refused.
    #[error("{action} {}", path.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Another process uses the directory; two with one node key would fight over its address.
    #[error("{} is in use by another process", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// A name is not of `[a-z0-9-]`, 1 to 64 bytes.
    #[error("{name:?} is not a name for a stored value")]
    Name {
        /// The name.
        name: String,
    },
    /// The values would become too many bytes.
    #[error("storing {name} would make {bytes} bytes in all, more than {STORE_BYTES_MAX}")]
    Full {
        /// The value that was to be stored.
        name: String,
        /// Bytes in all with it.
        bytes: usize,
    },
    /// A stored key is damaged.
    #[error("stored {name} is damaged")]
    Damaged {
        /// Its name.
        name: &'static str,
        /// What is wrong with it.
        #[source]
        source: KeyError,
    },
    /// The directory belongs to a node of another control server.
    #[error("this state belongs to control server {stored:?}, not {given:?}")]
    OtherControl {
        /// The server that it was made for.
        stored: String,
        /// The server that was asked for.
        given: String,
    },
}

/// See the module. Not shared between tasks: its one owner is the driver.
pub struct KeyStore {
    values: BTreeMap<String, Zeroizing<Vec<u8>>>,
    dir: Option<Dir>,
}

struct Dir {
    path: PathBuf,
    /// Open for its fsync.
    handle: File,
    /// The lock lasts as long as this is open.
    _lock: File,
}

impl std::fmt::Debug for KeyStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyStore")
            .field("dir", &self.dir.as_ref().map(|dir| &dir.path))
            .field("names", &self.values.keys())
            .finish()
    }
}

impl KeyStore {
    /// Opens `path`, which is made if it is missing, and locks it until the store is dropped.
    ///
    /// # Errors
    /// [`KeyStoreError::InUse`], [`KeyStoreError::File`], [`KeyStoreError::Full`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, KeyStoreError> {
        let path = path.as_ref();
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(path).map_err(failed("creating", path))?;
        let closed = fs::Permissions::from_mode(0o700);
        fs::set_permissions(path, closed).map_err(failed("closing to others", path))?;

        let lock_path = path.join(LOCK_FILE);
        let lock = private_file(&lock_path)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                let dir = path.to_owned();
                return Err(KeyStoreError::InUse { dir });
            }
            Err(fs::TryLockError::Error(source)) => {
                return Err(failed("locking", &lock_path)(source));
            }
        }
        let handle = File::open(path).map_err(failed("opening", path))?;
        let dir = Dir {
            path: path.to_owned(),
            handle,
            _lock: lock,
        };
        Ok(Self {
            values: read_all(path)?,
            dir: Some(dir),
        })
    }

    /// What [`KeyStore::open`] would find at `path`, `None` where it would make the directory. Nothing is made, changed or kept locked: the values are
    /// a copy in memory, and whether another process uses the directory is told beside them.
    ///
    /// # Errors
    /// [`KeyStoreError::File`], [`KeyStoreError::Full`].
    pub fn look(path: impl AsRef<Path>) -> Result<Option<(Self, bool)>, KeyStoreError> {
        let path = path.as_ref();
        match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("looking at", path)(error)),
            Ok(_) => {}
        }
        let values = read_all(path)?;
        let lock_path = path.join(LOCK_FILE);
        let in_use = match OpenOptions::new().write(true).open(&lock_path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(failed("opening", &lock_path)(error)),
            // Let go of at once; a process that starts in this very moment would find it held.
            Ok(lock) => match lock.try_lock() {
                Ok(()) => false,
                Err(fs::TryLockError::WouldBlock) => true,
                Err(fs::TryLockError::Error(source)) => {
                    return Err(failed("locking", &lock_path)(source));
                }
            },
        };
        Ok(Some((Self { values, dir: None }, in_use)))
    }

    /// A store that forgets: for ephemeral nodes and tests.
    pub fn ephemeral() -> Self {
        Self {
            values: BTreeMap::new(),
            dir: None,
        }
    }

    /// The value stored under `name`.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.values.get(name).map(|value| value.as_slice())
    }

    /// Stores `value` under `name`, durably before it returns. Blocks on the disk.
    ///
    /// # Errors
    /// [`KeyStoreError::Name`], [`KeyStoreError::Full`], [`KeyStoreError::File`]; after an error the
    /// old value stands.
    pub fn put(&mut self, name: &str, value: &[u8]) -> Result<(), KeyStoreError> {
        if !is_name(name) {
            let name = name.to_owned();
            return Err(KeyStoreError::Name { name });
        }
        let others = self.values.iter().filter(|(other, _)| *other != name);
        let bytes = others.map(|(_, value)| value.len()).sum::<usize>() + value.len();
        if bytes > STORE_BYTES_MAX {
            let name = name.to_owned();
            return Err(KeyStoreError::Full { name, bytes });
        }
        if let Some(dir) = &self.dir {
            dir.write(name, value)?;
        }
        let value = Zeroizing::new(value.to_vec());
        self.values.insert(name.to_owned(), value);
        Ok(())
    }

    /// This device's key, made on first use and then kept for ever.
    ///
    /// # Errors
    /// [`KeyStoreError::Damaged`], or as [`KeyStore::put`].
    pub fn machine_key(&mut self) -> Result<MachinePrivate, KeyStoreError> {
        if let Some(text) = self.text(MACHINE_KEY) {
            return MachinePrivate::from_text(text).map_err(damaged(MACHINE_KEY));
        }
        let key = MachinePrivate::generate(&mut OsRng);
        self.put(MACHINE_KEY, key.to_text().as_bytes())?;
        Ok(key)
    }

    /// The node key, if control ever accepted one.
    ///
    /// # Errors
    /// [`KeyStoreError::Damaged`].
    pub fn node_key(&self) -> Result<Option<NodePrivate>, KeyStoreError> {
        self.text(NODE_KEY)
            .map(|text| NodePrivate::from_text(text).map_err(damaged(NODE_KEY)))
            .transpose()
    }

    /// Replaces the node key.
    ///
    /// # Errors
    /// As [`KeyStore::put`].
    pub fn put_node_key(&mut self, key: &NodePrivate) -> Result<(), KeyStoreError> {
        self.put(NODE_KEY, key.to_text().as_bytes())
    }

    /// The pinned key of the control server at `url`; `None` before the first connection.
    ///
    /// # Errors
    /// [`KeyStoreError::OtherControl`] when the state was made for another server,
    /// [`KeyStoreError::Damaged`].
    pub fn control_key(&self, url: &str) -> Result<Option<MachinePublic>, KeyStoreError> {
        let Some(text) = self.text(CONTROL) else {
            return Ok(None);
        };
        let (stored, key) = text.trim_end().split_once('\n').unwrap_or((text, ""));
        if stored != url.trim_end_matches('/') {
            let stored = stored.to_owned();
            let given = url.to_owned();
            return Err(KeyStoreError::OtherControl { stored, given });
        }
        key.parse().map(Some).map_err(damaged(CONTROL))
    }

    /// Pins the key of the control server at `url`, to which this state then belongs.
    ///
    /// # Errors
    /// As [`KeyStore::put`].
    pub fn put_control_key(&mut self, url: &str, key: MachinePublic) -> Result<(), KeyStoreError> {
        let text = format!("{}\n{key}\n", url.trim_end_matches('/'));
        self.put(CONTROL, text.as_bytes())
    }

    fn text(&self, name: &str) -> Option<&str> {
        // Bytes that are no text read as a damaged key, not as a missing one.
        self.get(name)
            .map(|bytes| std::str::from_utf8(bytes).unwrap_or_default())
    }
}

impl Dir {
    fn write(&self, name: &str, value: &[u8]) -> Result<(), KeyStoreError> {
        let temporary = self.path.join(TEMPORARY_FILE);
        let target = self.path.join(name);
        let mut file = private_file(&temporary)?;
        file.set_len(0).map_err(failed("emptying", &temporary))?;
        file.write_all(value)
            .map_err(failed("writing", &temporary))?;
        file.sync_all().map_err(failed("syncing", &temporary))?;
        // Stopping before this line leaves the old value; after it, either may come back.
        fs::rename(&temporary, &target).map_err(failed("naming", &target))?;
        // After this line, only the new value can.
        self.handle
            .sync_all()
            .map_err(failed("syncing", &self.path))
    }
}

fn read_all(path: &Path) -> Result<BTreeMap<String, Zeroizing<Vec<u8>>>, KeyStoreError> {
    let mut values = BTreeMap::new();
    let mut bytes = 0;
    for entry in fs::read_dir(path).map_err(failed("listing", path))? {
        let entry = entry.map_err(failed("listing", path))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_file = entry
            .file_type()
            .map_err(failed("listing", path))?
            .is_file();
        // Other things may live beside the keys: sockets, the lock, what a crash left.
        if !is_file || !is_name(&name) {
            continue;
        }
        let path = entry.path();
        let limit = u64::try_from(STORE_BYTES_MAX + 1).unwrap_or(u64::MAX);
        let mut value = Zeroizing::new(Vec::new());
        File::open(&path)
            .and_then(|file| file.take(limit).read_to_end(&mut value))
            .map_err(failed("reading", &path))?;
        bytes += value.len();
        if bytes > STORE_BYTES_MAX {
            return Err(KeyStoreError::Full { name, bytes });
        }
        values.insert(name, value);
    }
    Ok(values)
}

fn private_file(path: &Path) -> Result<File, KeyStoreError> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(failed("opening", path))
}

fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(allowed)
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KeyStoreError {
    let path = path.to_owned();
    move |source| KeyStoreError::File {
        action,
        path,
        source,
    }
}

fn damaged(name: &'static str) -> impl FnOnce(KeyError) -> KeyStoreError {
    move |source| KeyStoreError::Damaged { name, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn keys_are_made_once_and_come_back() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/state");
        let node = NodePrivate::from_bytes([7; 32]);
        let server = MachinePublic::from_bytes([8; 32]);
        let machine = {
            let mut store = KeyStore::open(&path).unwrap();
            assert!(store.node_key().unwrap().is_none());
            assert_eq!(store.control_key("http://c").unwrap(), None);
            store.put_node_key(&node).unwrap();
            store.put_control_key("http://c/", server).unwrap();
            store.machine_key().unwrap().public()
        };
        let mut store = KeyStore::open(&path).unwrap();
        assert_eq!(store.machine_key().unwrap().public(), machine);
        assert_eq!(store.node_key().unwrap().unwrap().public(), node.public());
        assert_eq!(store.control_key("http://c").unwrap(), Some(server));
        assert!(matches!(
            store.control_key("http://other"),
            Err(KeyStoreError::OtherControl { .. })
        ));
    }

    #[test]
    fn nobody_else_can_read_the_keys_or_share_the_directory() {
        let root = tempfile::tempdir().unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mut store = KeyStore::open(root.path()).unwrap();
        store.machine_key().unwrap();
        assert_eq!(mode(root.path()), 0o700);
        assert_eq!(mode(&root.path().join("machine-key")), 0o600);
        assert!(!root.path().join(".new").exists());
        assert!(matches!(
            KeyStore::open(root.path()),
            Err(KeyStoreError::InUse { .. })
        ));
        drop(store);
        assert!(KeyStore::open(root.path()).is_ok());
    }

    #[test]
    fn a_look_tells_what_is_there_and_leaves_it_as_it_is() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("state");
        assert!(KeyStore::look(&path).unwrap().is_none());
        assert!(!path.exists());
        fs::create_dir(&path).unwrap();
        let (mut seen, in_use) = KeyStore::look(&path).unwrap().unwrap();
        assert!(!in_use && seen.machine_key().is_ok());
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);

        let mut store = KeyStore::open(&path).unwrap();
        store.put("x", b"1").unwrap();
        let (seen, in_use) = KeyStore::look(&path).unwrap().unwrap();
        assert!(in_use);
        assert_eq!(seen.get("x"), Some(b"1".as_slice()));
        drop(store);
        let (_, in_use) = KeyStore::look(&path).unwrap().unwrap();
        assert!(!in_use);
        assert!(KeyStore::open(&path).is_ok(), "the look holds no lock");
    }

    #[test]
    fn a_name_that_leaves_the_directory_is_refused() {
        let mut store = KeyStore::ephemeral();
        for name in [
            "", "..", "a/b", ".new", ".lock", "A", "a_b", "ä", "a.b", "a\0",
        ] {
            assert!(
                matches!(store.put(name, b"x"), Err(KeyStoreError::Name { .. })),
                "{name:?}"
            );
        }
        assert!(store.put(&"a".repeat(65), b"x").is_err());
        store.put("a-9", b"x").unwrap();
        assert_eq!(store.get("a-9"), Some(b"x".as_slice()));
    }

    #[test]
    fn the_store_refuses_to_outgrow_its_limit_and_keeps_the_old_value() {
        let mut store = KeyStore::ephemeral();
        store.put("big", &vec![0; STORE_BYTES_MAX - 4]).unwrap();
        store.put("small", b"1234").unwrap();
        assert!(matches!(
            store.put("small", b"12345"),
            Err(KeyStoreError::Full { bytes: 921_601, .. })
        ));
        assert_eq!(store.get("small"), Some(b"1234".as_slice()));
        store.put("big", b"").unwrap();
        store.put("small", b"12345").unwrap();
    }

    #[test]
    fn what_a_crash_left_is_ignored_and_a_shorter_value_replaces_a_longer_one() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join(".new"), b"half of a much longer value").unwrap();
        let mut store = KeyStore::open(root.path()).unwrap();
        store.put("x", b"short").unwrap();
        drop(store);
        let store = KeyStore::open(root.path()).unwrap();
        assert_eq!(store.get("x"), Some(b"short".as_slice()));
        assert_eq!(store.values.len(), 1);
    }

    #[test]
    fn a_damaged_key_is_an_error_and_not_a_new_key() {
        let mut store = KeyStore::ephemeral();
        store.put("machine-key", b"privkey:\xff").unwrap();
        store.put("node-key", b"").unwrap();
        assert!(matches!(
            store.machine_key(),
            Err(KeyStoreError::Damaged { .. })
        ));
        assert!(store.node_key().is_err());
    }

    #[test]
    fn values_are_not_printed() {
        let mut store = KeyStore::ephemeral();
        let key = store.machine_key().unwrap();
        let text = key.to_text();
        let shown = format!("{store:?}");
        assert!(
            shown.contains("machine-key") && !shown.contains(text.trim_start_matches("privkey:"))
        );
    }
}
