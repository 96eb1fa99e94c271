//! A file system in memory that can lose its power: what a program sees, and what the disk really holds.
//!
//! Every file has the bytes that a read gives and those that would be left after a cut; every directory has names
//! likewise. Only an fsync of that very file or directory carries the one over to the other. A failed fsync marks what it
//! should have written as clean although it is lost, as a page cache does: a later fsync that succeeds does not bring it
//! back. A directory is one block: its next change makes all of it dirty again. Invariant: nothing is on the disk that no successful fsync put there, but for what [`Kept`] lets through at the
//! cut. Each method is one system call. Called by `model_store.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};

use super::signal::Signal;

/// What a page cache writes at once: of a file that was not fsynced, any subset of pages may be on the disk.
const PAGE_BYTES: usize = 4096;
/// EIO and EROFS of Linux.
const EIO: i32 = 5;
const EROFS: i32 = 30;

/// Which of the names and bytes that were not fsynced are on the disk after the cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Kept {
    Nothing,
    Everything,
    /// Any subset is legal: this one.
    Seeded(u64),
}

/// What an fsync that fails does with the names of a directory; the bytes of a file are lost always.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Names {
    /// The next fsync writes them: they are in a journal.
    Stay,
    /// They are not written before the directory changes again.
    Lost,
    /// The file system gives up: nothing is written from now on.
    ShutDown,
}

/// What happens at one fsync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Strike {
    /// It fails.
    Fails(Names),
    /// The power goes before it took effect.
    CutBefore(Kept),
    /// The power goes right after it took effect.
    CutAfter(Kept),
}

/// A system call that changed something; paths are relative to the root, which is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) enum Call {
    Mkdir(String),
    Create(String),
    Write(String, usize),
    Fsync(String),
    Link(String, String),
    Rename(String, String),
    Unlink(String),
}

pub(in super::super) type Inode = usize;

#[derive(Debug)]
pub(in super::super) struct ModelDisk {
    disk: Mutex<Disk>,
    /// How often the power was cut.
    boot: Signal<u64>,
}

#[derive(Debug)]
struct Disk {
    nodes: Vec<Node>,
    calls: Vec<Call>,
    fsyncs: u64,
    strike: Option<(u64, Strike)>,
    struck: bool,
    shut_down: bool,
    /// Bytes written to files by the first part of their path.
    written: BTreeMap<String, u64>,
}

#[derive(Debug)]
enum Node {
    File(File),
    Directory(Directory),
}

#[derive(Debug, Default)]
struct File {
    bytes: Vec<u8>,
    on_disk: Vec<u8>,
    dirty: Vec<Range<usize>>,
}

#[derive(Debug, Default)]
struct Directory {
    names: BTreeMap<String, Inode>,
    on_disk: BTreeMap<String, Inode>,
    dirty: BTreeSet<String>,
    /// Were to be written by an fsync that failed.
    lost: BTreeSet<String>,
}

const ROOT: Inode = 0;

impl ModelDisk {
    pub(in super::super) fn new() -> Self {
        Self {
            disk: Mutex::new(Disk {
                nodes: vec![Node::Directory(Directory::default())],
                calls: Vec::new(),
                fsyncs: 0,
                strike: None,
                struck: false,
                shut_down: false,
                written: BTreeMap::new(),
            }),
            boot: Signal::new(0),
        }
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap()
    }

    /// Counts the cuts: a process of an older boot is gone.
    pub(in super::super) fn boot(&self) -> &Signal<u64> {
        &self.boot
    }

    /// Lets the `at`-th fsync from now on end in `strike`.
    pub(in super::super) fn strike(&self, at: u64, strike: Strike) {
        let mut disk = self.disk();
        let at = disk.fsyncs + at;
        disk.strike = Some((at, strike));
        disk.struck = false;
    }

    /// Whether the strike has happened; forgets it.
    pub(in super::super) fn take_struck(&self) -> bool {
        let mut disk = self.disk();
        disk.strike = None;
        std::mem::take(&mut disk.struck)
    }

    /// Whether it takes nothing until the power was off.
    pub(in super::super) fn is_shut_down(&self) -> bool {
        self.disk().shut_down
    }

    pub(in super::super) fn fsyncs(&self) -> u64 {
        self.disk().fsyncs
    }

    /// The calls since they were last taken.
    pub(in super::super) fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.disk().calls)
    }

    /// Bytes written so far to files below `top`.
    pub(in super::super) fn written_bytes(&self, top: &str) -> u64 {
        self.disk().written.get(top).copied().unwrap_or_default()
    }

    /// The power goes, and comes back.
    pub(in super::super) fn cut(&self, kept: Kept) {
        self.disk().cut(kept);
        self.boot.change(|boot| *boot += 1);
    }

    pub(in super::super) fn exists(&self, path: &str) -> bool {
        self.disk().find(path).is_ok()
    }

    pub(in super::super) fn mkdir(&self, path: &str) -> io::Result<()> {
        let mut disk = self.disk();
        disk.enter(path, Node::Directory(Directory::default()))?;
        disk.calls.push(Call::Mkdir(path.into()));
        Ok(())
    }

    /// `O_CREAT | O_EXCL`.
    pub(in super::super) fn create_new(&self, path: &str) -> io::Result<Inode> {
        let mut disk = self.disk();
        let inode = disk.enter(path, Node::File(File::default()))?;
        disk.calls.push(Call::Create(path.into()));
        Ok(inode)
    }

    pub(in super::super) fn open(&self, path: &str) -> io::Result<Inode> {
        self.disk().find(path)
    }

    /// Writes at the end of a file that was opened as `path`.
    pub(in super::super) fn write(&self, inode: Inode, path: &str, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.disk();
        disk.takes_writes()?;
        let top = path.split('/').next().unwrap_or_default().to_owned();
        *disk.written.entry(top).or_default() += bytes.len() as u64;
        disk.calls.push(Call::Write(path.into(), bytes.len()));
        let Node::File(file) = &mut disk.nodes[inode] else {
            panic!("{path} is a directory")
        };
        let start = file.bytes.len();
        file.bytes.extend_from_slice(bytes);
        file.dirty.push(start..file.bytes.len());
        Ok(())
    }

    /// Of a file or a directory that was opened as `path`.
    pub(in super::super) fn fsync(&self, inode: Inode, path: &str) -> io::Result<()> {
        let mut disk = self.disk();
        disk.fsyncs += 1;
        disk.takes_writes()?;
        let strike = disk.strike.filter(|(at, _)| *at == disk.fsyncs);
        disk.struck |= strike.is_some();
        match strike.map(|(_, strike)| strike) {
            None => {
                disk.calls.push(Call::Fsync(path.into()));
                disk.nodes[inode].write_back();
                Ok(())
            }
            Some(Strike::Fails(names)) => {
                disk.shut_down = names == Names::ShutDown;
                disk.nodes[inode].lose(names);
                Err(io::Error::from_raw_os_error(EIO))
            }
            Some(Strike::CutBefore(kept)) => {
                drop(disk);
                self.cut(kept);
                Err(io::Error::other("the power is gone"))
            }
            Some(Strike::CutAfter(kept)) => {
                disk.nodes[inode].write_back();
                drop(disk);
                self.cut(kept);
                Err(io::Error::other("the power is gone"))
            }
        }
    }

    /// A second name for a file; fails if it is taken.
    pub(in super::super) fn link(&self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.disk();
        let inode = disk.find(from)?;
        disk.name(to, inode)?;
        disk.calls.push(Call::Link(from.into(), to.into()));
        Ok(())
    }

    /// Moves a name over whatever has the new one.
    pub(in super::super) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.disk();
        let inode = disk.find(from)?;
        if let Err(error) = disk.forget(to)
            && error.kind() != ErrorKind::NotFound
        {
            return Err(error);
        }
        disk.name(to, inode)?;
        disk.forget(from)?;
        disk.calls.push(Call::Rename(from.into(), to.into()));
        Ok(())
    }

    pub(in super::super) fn unlink(&self, path: &str) -> io::Result<()> {
        let mut disk = self.disk();
        disk.forget(path)?;
        disk.calls.push(Call::Unlink(path.into()));
        Ok(())
    }

    pub(in super::super) fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        let disk = self.disk();
        match &disk.nodes[disk.find(path)?] {
            Node::File(file) => Ok(file.bytes.clone()),
            Node::Directory(_) => Err(ErrorKind::IsADirectory.into()),
        }
    }

    /// All files at or below a directory, with their sizes, in the order of their names.
    pub(in super::super) fn files_below(&self, path: &str) -> Vec<(String, u64)> {
        let disk = self.disk();
        let mut files = Vec::new();
        if let Ok(inode) = disk.find(path) {
            disk.walk(inode, path, &mut files);
        }
        files
    }

    /// What stands directly in a directory: name, and the size if it is a file.
    pub(in super::super) fn entries(&self, path: &str) -> Vec<(String, Option<u64>)> {
        let disk = self.disk();
        let Ok(inode) = disk.find(path) else {
            return Vec::new();
        };
        let Node::Directory(directory) = &disk.nodes[inode] else {
            return Vec::new();
        };
        let entries = directory.names.iter().map(|(name, inode)| {
            let size = match &disk.nodes[*inode] {
                Node::File(file) => Some(file.bytes.len() as u64),
                Node::Directory(_) => None,
            };
            (join(path, name), size)
        });
        entries.collect()
    }
}

impl Disk {
    fn find(&self, path: &str) -> io::Result<Inode> {
        let parts = path.split('/').filter(|part| !part.is_empty());
        parts.into_iter().try_fold(ROOT, |inode, part| {
            let Node::Directory(directory) = &self.nodes[inode] else {
                return Err(ErrorKind::NotADirectory.into());
            };
            directory
                .names
                .get(part)
                .copied()
                .ok_or_else(|| ErrorKind::NotFound.into())
        })
    }

    fn parent(&mut self, path: &str) -> io::Result<(&mut Directory, String)> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let inode = self.find(parent)?;
        match &mut self.nodes[inode] {
            Node::Directory(directory) => Ok((directory, name.into())),
            Node::File(_) => Err(ErrorKind::NotADirectory.into()),
        }
    }

    fn takes_writes(&self) -> io::Result<()> {
        if self.shut_down {
            return Err(io::Error::from_raw_os_error(EROFS));
        }
        Ok(())
    }

    fn name(&mut self, path: &str, inode: Inode) -> io::Result<()> {
        self.takes_writes()?;
        let (directory, name) = self.parent(path)?;
        if directory.names.contains_key(&name) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        directory.names.insert(name.clone(), inode);
        directory.change(name);
        Ok(())
    }

    fn forget(&mut self, path: &str) -> io::Result<()> {
        self.takes_writes()?;
        let (directory, name) = self.parent(path)?;
        directory.names.remove(&name).ok_or(ErrorKind::NotFound)?;
        directory.change(name);
        Ok(())
    }

    fn enter(&mut self, path: &str, node: Node) -> io::Result<Inode> {
        let inode = self.nodes.len();
        self.name(path, inode)?;
        self.nodes.push(node);
        Ok(inode)
    }

    fn walk(&self, inode: Inode, path: &str, files: &mut Vec<(String, u64)>) {
        match &self.nodes[inode] {
            Node::File(file) => files.push((path.into(), file.bytes.len() as u64)),
            Node::Directory(directory) => {
                for (name, inode) in &directory.names {
                    self.walk(*inode, &join(path, name), files);
                }
            }
        }
    }

    fn cut(&mut self, kept: Kept) {
        let mut rng = match kept {
            Kept::Nothing | Kept::Everything => None,
            Kept::Seeded(seed) => Some(ChaCha20Rng::seed_from_u64(seed)),
        };
        let mut keeps = || match &mut rng {
            None => kept == Kept::Everything,
            Some(rng) => rng.next_u32().is_multiple_of(2),
        };
        for node in &mut self.nodes {
            node.cut(&mut keeps);
        }
        self.shut_down = false;
        self.calls.clear();
    }
}

impl Node {
    fn write_back(&mut self) {
        match self {
            Self::File(file) => {
                for pages in std::mem::take(&mut file.dirty) {
                    file.write(pages);
                }
            }
            Self::Directory(directory) => {
                for name in std::mem::take(&mut directory.dirty) {
                    directory.write(name);
                }
            }
        }
    }

    fn lose(&mut self, names: Names) {
        match self {
            Self::File(file) => file.dirty.clear(),
            Self::Directory(directory) if names == Names::Lost => {
                directory.lost.append(&mut directory.dirty);
            }
            Self::Directory(_) => {}
        }
    }

    fn cut(&mut self, keeps: &mut impl FnMut() -> bool) {
        match self {
            Self::File(file) => {
                for range in std::mem::take(&mut file.dirty) {
                    let mut start = range.start;
                    while start < range.end {
                        let next = (start / PAGE_BYTES + 1) * PAGE_BYTES;
                        if keeps() {
                            file.write(start..next.min(range.end));
                        }
                        start = next;
                    }
                }
                file.bytes.clone_from(&file.on_disk);
            }
            Self::Directory(directory) => {
                for name in std::mem::take(&mut directory.dirty) {
                    if keeps() {
                        directory.write(name);
                    }
                }
                directory.lost.clear();
                directory.names.clone_from(&directory.on_disk);
            }
        }
    }
}

impl File {
    fn write(&mut self, bytes: Range<usize>) {
        if self.on_disk.len() < bytes.end {
            // What was never written back reads as zeros.
            self.on_disk.resize(bytes.end, 0);
        }
        self.on_disk[bytes.clone()].copy_from_slice(&self.bytes[bytes]);
    }
}

impl Directory {
    fn change(&mut self, name: String) {
        self.dirty.append(&mut self.lost);
        self.dirty.insert(name);
    }

    fn write(&mut self, name: String) {
        match self.names.get(&name) {
            Some(inode) => self.on_disk.insert(name, *inode),
            None => self.on_disk.remove(&name),
        };
    }
}

fn join(directory: &str, name: &str) -> String {
    if directory.is_empty() {
        name.into()
    } else {
        format!("{directory}/{name}")
    }
}

#[test]
fn what_was_not_fsynced_is_gone_after_the_cut() {
    let disk = ModelDisk::new();
    disk.mkdir("kept").unwrap();
    disk.fsync(ROOT, "").unwrap();
    let file = disk.create_new("kept/a").unwrap();
    disk.write(file, "kept/a", b"synced").unwrap();
    disk.fsync(file, "kept/a").unwrap();
    let directory = disk.open("kept").unwrap();
    disk.fsync(directory, "kept").unwrap();
    disk.write(file, "kept/a", b" not synced").unwrap();
    disk.link("kept/a", "kept/b").unwrap();
    disk.mkdir("lost").unwrap();
    assert_eq!(disk.read("kept/b").unwrap(), b"synced not synced");
    disk.cut(Kept::Nothing);
    assert_eq!(disk.files_below(""), [("kept/a".to_owned(), 6)]);
    assert_eq!(disk.read("kept/a").unwrap(), b"synced");
    assert!(!disk.exists("lost"));
}

#[test]
fn an_fsync_after_a_failed_one_brings_nothing_back() {
    for names in [Names::Stay, Names::Lost] {
        let disk = ModelDisk::new();
        let file = disk.create_new("a").unwrap();
        disk.write(file, "a", b"lost").unwrap();
        disk.strike(1, Strike::Fails(names));
        let failed = disk.fsync(file, "a").unwrap_err();
        assert_eq!(failed.raw_os_error(), Some(EIO));
        assert!(disk.take_struck());
        disk.fsync(file, "a").unwrap();
        disk.strike(1, Strike::Fails(names));
        disk.fsync(ROOT, "").unwrap_err();
        disk.fsync(ROOT, "").unwrap();
        assert_eq!(disk.read("a").unwrap(), b"lost");
        disk.cut(Kept::Everything);
        assert_eq!(disk.exists("a"), names == Names::Stay);
        assert_eq!(disk.read("a").unwrap_or_default(), b"");
    }
}

#[test]
fn a_directory_that_changes_again_is_written_whole() {
    let disk = ModelDisk::new();
    disk.mkdir("a").unwrap();
    disk.strike(1, Strike::Fails(Names::Lost));
    disk.fsync(ROOT, "").unwrap_err();
    disk.mkdir("b").unwrap();
    disk.fsync(ROOT, "").unwrap();
    disk.cut(Kept::Nothing);
    assert!(disk.exists("a") && disk.exists("b"));
}

#[test]
fn a_disk_that_shut_down_is_read_and_takes_nothing_until_it_is_started_again() {
    let disk = ModelDisk::new();
    disk.mkdir("a").unwrap();
    disk.strike(1, Strike::Fails(Names::ShutDown));
    disk.fsync(ROOT, "").unwrap_err();
    assert!(disk.exists("a") && disk.mkdir("b").is_err() && disk.fsync(ROOT, "").is_err());
    disk.cut(Kept::Nothing);
    assert!(!disk.exists("a") && disk.mkdir("b").is_ok());
}

#[test]
fn a_seeded_cut_keeps_some_pages_and_names_and_the_same_ones_again() {
    let left = |seed| {
        let disk = ModelDisk::new();
        for n in 0..32 {
            let path = format!("{n:02}");
            let file = disk.create_new(&path).unwrap();
            disk.write(file, &path, &[1; 4 * PAGE_BYTES]).unwrap();
        }
        disk.cut(Kept::Seeded(seed));
        let files = disk.files_below("");
        let bytes: Vec<_> = files
            .iter()
            .map(|(path, _)| disk.read(path).unwrap())
            .collect();
        (files, bytes)
    };
    let (files, bytes) = left(1);
    assert!((4..28).contains(&files.len()), "{files:?}");
    assert!(bytes.iter().any(|bytes| bytes.contains(&0)));
    assert_eq!((files, bytes), left(1));
    assert_ne!(left(1), left(2));
}
