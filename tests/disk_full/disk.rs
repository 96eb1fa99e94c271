//! A small disk of the test's own under a store, and what is on it, read without the store.
//!
//! Invariant: what is counted as on the disk is whole journal objects under their final names. Called by the tests.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tailtape::ids::RecordingId;
use tailtape::recording::frame::FrameKind;
use tailtape::recording::journal_object::JournalObject;

/// A tmpfs; it goes with the mount namespace.
pub(crate) struct Disk {
    path: PathBuf,
}

/// A file that takes room until it is dropped.
pub(crate) struct Ballast(PathBuf);

impl Disk {
    pub(crate) fn mount(path: &Path, bytes: u64) -> Self {
        fs::create_dir_all(path).unwrap();
        let size = format!("size={bytes},mode=0700");
        system(&["mount", "-t", "tmpfs", "-o", &size, "tmpfs"], path);
        Self { path: path.into() }
    }

    pub(crate) fn ballast(&self, bytes: u64) -> Ballast {
        let path = self.path.join("ballast");
        let mut file = fs::File::create(&path).unwrap();
        file.write_all(&vec![0; usize::try_from(bytes).unwrap()])
            .unwrap();
        Ballast(path)
    }

    pub(crate) fn free_bytes(&self) -> u64 {
        let status = rustix::fs::statvfs(&self.path).unwrap();
        status.f_bavail * status.f_frsize
    }

    /// The mount alone, since who may not name the disk's owner may not change the disk's options. A mount on which a file is open for
    /// writing stays writable, so it is asked again.
    pub(crate) fn remount(&self, read_only: bool) {
        let option = if read_only {
            "remount,bind,ro"
        } else {
            "remount,bind,rw"
        };
        let remount = || {
            let mut command = Command::new("mount");
            command.args(["-o", option]).arg(&self.path);
            command.output().unwrap()
        };
        let done = (0..100).any(|_| remount().status.success());
        assert!(done, "{:?}", remount());
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        fs::remove_file(&self.0).unwrap();
    }
}

fn system(command: &[&str], path: &Path) {
    let output = Command::new(command[0])
        .args(&command[1..])
        .arg(path)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// Whether nothing may be made or removed in any directory from `path` down.
pub(crate) fn forbid(path: &Path, forbidden: bool) {
    let mode = if forbidden { 0o500 } else { 0o700 };
    for entry in fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            forbid(&entry.path(), forbidden);
        }
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// The bytes of all recordings that the journal below a store holds.
pub(crate) struct Journalled(BTreeMap<RecordingId, BTreeMap<u64, Vec<u8>>>);

pub(crate) fn journalled(store: &Path) -> Journalled {
    let mut found = Journalled(BTreeMap::new());
    let mut directories = vec![store.join("journal")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() {
                directories.push(path);
            } else if name.bytes().all(|byte| byte.is_ascii_digit()) {
                found.read(&fs::read(&path).unwrap());
            }
        }
    }
    found
}

impl Journalled {
    fn read(&mut self, object: &[u8]) {
        for frame in JournalObject::decode(object).unwrap().frames() {
            let frame = frame.unwrap();
            if frame.kind == FrameKind::Data {
                let parts = self.0.entry(frame.recording).or_default();
                parts.insert(frame.offset.0, frame.plain().unwrap().into_owned());
            }
        }
    }

    /// How many bytes from the first one on there are of the recording that begins with `marker`.
    pub(crate) fn contiguous_of(&self, marker: &[u8]) -> u64 {
        let of_it = self
            .0
            .values()
            .find(|parts| parts.get(&0).is_some_and(|first| first.starts_with(marker)));
        let mut end = 0;
        for (offset, bytes) in of_it.expect("it is in the journal") {
            if *offset > end {
                break;
            }
            end = end.max(offset + bytes.len() as u64);
        }
        end
    }
}
