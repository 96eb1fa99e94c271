//! object_store's local file system with fsync on, call by call, on a [`ModelDisk`]; and the fsyncs of `local_disk.rs`.
//!
//! Invariant: the calls and their order are those of the real one; `same_calls.rs` compares them with a trace. A process
//! that lost its power or was killed never sees an answer again. Called by `power.rs` and the simulation.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    Attributes, CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload, ListResult,
    MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result, UploadPart,
};

use super::super::super::StoreError;
use super::super::super::local_disk::DiskSync;
use super::model_disk::{Inode, ModelDisk};
use super::process::Process;

/// One process's view of a disk.
#[derive(Debug, Clone)]
pub(in super::super) struct ModelStore {
    disk: Arc<ModelDisk>,
    process: Arc<Process>,
    boot: u64,
    fsync_takes: Duration,
}

impl ModelStore {
    /// A process that starts now.
    pub(in super::super) fn new(
        disk: Arc<ModelDisk>,
        process: Arc<Process>,
        fsync_takes: Duration,
    ) -> Self {
        let boot = disk.boot().get();
        Self {
            disk,
            process,
            boot,
            fsync_takes,
        }
    }

    /// One system call; others may run before it.
    async fn call<T>(&self, call: impl FnOnce(&ModelDisk) -> T) -> T {
        tokio::task::yield_now().await;
        self.process.step().await;
        self.powered().await;
        let answer = call(&self.disk);
        self.powered().await;
        self.process.alive().await;
        answer
    }

    async fn powered(&self) {
        if self.disk.boot().get() != self.boot {
            std::future::pending().await
        }
    }

    async fn fsync(&self, inode: Inode, path: &str) -> io::Result<()> {
        tokio::time::sleep(self.fsync_takes).await;
        self.call(|disk| disk.fsync(inode, path)).await
    }

    async fn fsync_directory(&self, path: &str) -> io::Result<()> {
        let inode = self.call(|disk| disk.open(path)).await?;
        self.fsync(inode, path).await
    }

    /// `create_parent_dirs`: makes what is missing, fsyncs up to the first directory that was there.
    async fn create_parents(&self, path: &str) -> io::Result<()> {
        let parent = parent(path);
        let mut missing = Vec::new();
        let mut directory = parent;
        while !self.call(|disk| disk.exists(directory)).await {
            missing.push(directory);
            directory = self::parent(directory);
        }
        let first_existing = directory;
        for directory in missing.iter().rev() {
            match self.call(|disk| disk.mkdir(directory)).await {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        let mut directory = parent;
        loop {
            self.fsync_directory(directory).await?;
            if directory == first_existing {
                return Ok(());
            }
            directory = self::parent(directory);
        }
    }

    /// `new_staged_upload`: an open file `<path>#<n>`.
    async fn stage(&self, path: &str) -> io::Result<(Inode, String)> {
        let mut suffix = 1;
        loop {
            let staged = format!("{path}#{suffix}");
            match self.call(|disk| disk.create_new(&staged)).await {
                Ok(inode) => return Ok((inode, staged)),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => suffix += 1,
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    self.create_parents(&staged).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn put(&self, path: &str, payload: PutPayload, mode: PutMode) -> io::Result<()> {
        let (inode, staged) = self.stage(path).await?;
        let published = async {
            for piece in &payload {
                self.call(|disk| disk.write(inode, &staged, piece)).await?;
            }
            self.fsync(inode, &staged).await?;
            match mode {
                PutMode::Create => self.call(|disk| disk.link(&staged, path)).await?,
                PutMode::Overwrite => self.call(|disk| disk.rename(&staged, path)).await?,
                PutMode::Update(_) => return Err(ErrorKind::Unsupported.into()),
            }
            self.fsync_directory(parent(path)).await
        };
        let published = published.await;
        // As the real one: after the link it cleans up too, and does not ask whether that went well.
        drop(self.call(|disk| disk.unlink(&staged)).await);
        published
    }

    /// As `local_disk.rs`: the object, then each directory up to the root, changed first if so wanted.
    async fn sync_with(&self, name: &Path, anew: bool) -> io::Result<()> {
        let path = name.as_ref();
        let inode = self.call(|disk| disk.open(path)).await?;
        self.fsync(inode, path).await?;
        let mut directory = path;
        while !directory.is_empty() {
            directory = parent(directory);
            if anew {
                let changed = format!("{directory}/.changed#1");
                let changed = changed.trim_start_matches('/');
                // Another thread may be at the same: its file changes the directory as well.
                match self.call(|disk| disk.create_new(changed)).await {
                    Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                    Ok(_) | Err(_) => {}
                }
                match self.call(|disk| disk.unlink(changed)).await {
                    Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                    Ok(()) | Err(_) => {}
                }
            }
            self.fsync_directory(directory).await?;
        }
        Ok(())
    }

    async fn get(&self, name: Path, options: GetOptions) -> Result<GetResult> {
        let read = self.call(|disk| disk.read(name.as_ref())).await;
        let bytes = Bytes::from(read.map_err(|error| error_at(&name, error))?);
        let size = bytes.len() as u64;
        let range = match options.range.as_ref().map(|range| in_range(range, size)) {
            None => 0..size,
            Some(Some(range)) => range,
            Some(None) => return Err(error_at(&name, ErrorKind::InvalidInput.into())),
        };
        let start = usize::try_from(range.start).unwrap();
        let end = usize::try_from(range.end).unwrap();
        let wanted = bytes.slice(start..end);
        Ok(GetResult {
            payload: GetResultPayload::Stream(stream::once(async { Ok(wanted) }).boxed()),
            meta: meta_of(name, size),
            range,
            attributes: Attributes::default(),
            extensions: Default::default(),
        })
    }

    async fn files_below(&self, prefix: Option<Path>) -> Vec<ObjectMeta> {
        let prefix = prefix.unwrap_or_default();
        let files = self.call(|disk| disk.files_below(prefix.as_ref())).await;
        let whole = files.into_iter().filter(|(path, _)| !is_staged(path));
        whole
            .map(|(path, size)| meta_of(Path::from(path), size))
            .collect()
    }
}

/// Like the real range: cut at the end, absent when it begins behind it.
fn in_range(range: &GetRange, size: u64) -> Option<std::ops::Range<u64>> {
    range.as_range(size).ok()
}

fn meta_of(location: Path, size: u64) -> ObjectMeta {
    ObjectMeta {
        location,
        last_modified: SystemTime::UNIX_EPOCH.checked_add(MODIFIED).unwrap().into(),
        size,
        e_tag: None,
        version: None,
    }
}

/// When every file was modified, since 1970: a minute before the clock of the suite, so that nothing is old.
const MODIFIED: Duration = Duration::from_secs(1_795_169_940);

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

fn is_staged(path: &str) -> bool {
    let suffix = path.rsplit_once('#').map(|(_, suffix)| suffix);
    suffix.is_some_and(|digits| {
        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
    })
}

fn error_at(name: &Path, error: io::Error) -> Error {
    let path = name.to_string();
    let (kind, source) = (error.kind(), error.into());
    if matches!(kind, ErrorKind::NotFound | ErrorKind::NotADirectory) {
        Error::NotFound { path, source }
    } else if kind == ErrorKind::AlreadyExists {
        Error::AlreadyExists { path, source }
    } else {
        Error::Generic {
            store: "model",
            source,
        }
    }
}

impl DiskSync for ModelStore {
    fn sync<'a>(&'a self, name: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(self.sync_with(name, false))
    }

    fn sync_anew<'a>(&'a self, name: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(self.sync_with(name, true))
    }

    /// No lock of an operating system: who lives is told by time alone, as on a network.
    fn root(&self) -> Option<&std::path::Path> {
        None
    }

    fn free_bytes(&self) -> BoxFuture<'_, std::result::Result<u64, StoreError>> {
        Box::pin(async { Ok(u64::MAX) })
    }
}

impl std::fmt::Display for ModelStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "model disk")
    }
}

type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

impl ObjectStore for ModelStore {
    fn put_opts<'s, 'p, 'a>(
        &'s self,
        name: &'p Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Answer<'a, PutResult>
    where
        's: 'a,
        'p: 'a,
        Self: 'a,
    {
        Box::pin(async move {
            let (store, path) = (self.clone(), name.to_string());
            // A thread of its own, as in the real one: who gives up waiting does not stop it.
            let put = async move { store.put(&path, payload, options.mode).await };
            let put = tokio::spawn(put)
                .await
                .map_err(|source| Error::JoinError { source })?;
            put.map_err(|error| error_at(name, error))?;
            Ok(done())
        })
    }

    fn put_multipart_opts<'s, 'p, 'a>(
        &'s self,
        name: &'p Path,
        _options: PutMultipartOptions,
    ) -> Answer<'a, Box<dyn MultipartUpload>>
    where
        's: 'a,
        'p: 'a,
        Self: 'a,
    {
        Box::pin(async move {
            let staged = self.stage(name.as_ref()).await;
            let (inode, staged) = staged.map_err(|error| error_at(name, error))?;
            let upload = ModelUpload {
                store: self.clone(),
                name: name.clone(),
                inode,
                staged: Some(staged),
            };
            Ok(Box::new(upload) as Box<dyn MultipartUpload>)
        })
    }

    fn get_opts<'s, 'p, 'a>(&'s self, name: &'p Path, options: GetOptions) -> Answer<'a, GetResult>
    where
        's: 'a,
        'p: 'a,
        Self: 'a,
    {
        Box::pin(self.get(name.clone(), options))
    }

    fn delete_stream(
        &self,
        names: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        let removed = names.and_then(move |name| {
            let store = store.clone();
            async move {
                // The real one does not fsync after it.
                let removed = store.call(|disk| disk.unlink(name.as_ref())).await;
                removed.map_err(|error| error_at(&name, error))?;
                Ok(name)
            }
        });
        removed.boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (store, prefix) = (self.clone(), prefix.cloned());
        let files =
            async move { stream::iter(store.files_below(prefix).await.into_iter().map(Ok)) };
        stream::once(files).flatten().boxed()
    }

    fn list_with_delimiter<'s, 'p, 'a>(&'s self, prefix: Option<&'p Path>) -> Answer<'a, ListResult>
    where
        's: 'a,
        'p: 'a,
        Self: 'a,
    {
        Box::pin(async move {
            let directory = prefix.map_or("", |prefix| prefix.as_ref());
            let mut listed = ListResult {
                common_prefixes: Vec::new(),
                objects: Vec::new(),
                extensions: Default::default(),
            };
            for (path, size) in self.call(|disk| disk.entries(directory)).await {
                match size {
                    None => listed.common_prefixes.push(Path::from(path)),
                    Some(_) if is_staged(&path) => {}
                    Some(size) => listed.objects.push(meta_of(Path::from(path), size)),
                }
            }
            Ok(listed)
        })
    }

    fn copy_opts<'s, 'f, 't, 'a>(
        &'s self,
        _from: &'f Path,
        _to: &'t Path,
        _options: CopyOptions,
    ) -> Answer<'a, ()>
    where
        's: 'a,
        'f: 'a,
        't: 'a,
        Self: 'a,
    {
        // The store never copies: who begins to must model it first.
        panic!("a copy is not modelled")
    }
}

#[derive(Debug)]
struct ModelUpload {
    store: ModelStore,
    name: Path,
    inode: Inode,
    staged: Option<String>,
}

impl MultipartUpload for ModelUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (store, inode, name) = (self.store.clone(), self.inode, self.name.clone());
        let staged = self.staged.clone().unwrap();
        Box::pin(async move {
            for piece in &data {
                let written = store.call(|disk| disk.write(inode, &staged, piece)).await;
                written.map_err(|error| error_at(&name, error))?;
            }
            Ok(())
        })
    }

    fn complete<'s, 'a>(&'s mut self) -> Answer<'a, PutResult>
    where
        's: 'a,
        Self: 'a,
    {
        let staged = self.staged.take().unwrap();
        let (store, inode, name) = (self.store.clone(), self.inode, self.name.clone());
        let publish = async move {
            store.fsync(inode, &staged).await?;
            store
                .call(|disk| disk.rename(&staged, name.as_ref()))
                .await?;
            store.fsync_directory(parent(name.as_ref())).await
        };
        Box::pin(async move {
            let published = tokio::spawn(publish).await;
            let published = published.map_err(|source| Error::JoinError { source })?;
            published.map_err(|error| error_at(&self.name, error))?;
            Ok(done())
        })
    }

    fn abort<'s, 'a>(&'s mut self) -> Answer<'a, ()>
    where
        's: 'a,
        Self: 'a,
    {
        Box::pin(async move {
            let staged = self.staged.take().unwrap();
            let removed = self.store.call(|disk| disk.unlink(&staged)).await;
            removed.map_err(|error| error_at(&self.name, error))
        })
    }
}

impl Drop for ModelUpload {
    fn drop(&mut self) {
        let Some(staged) = self.staged.take() else {
            return;
        };
        let store = self.store.clone();
        let clean_up = async move { drop(store.call(|disk| disk.unlink(&staged)).await) };
        // Nobody cleans up behind a runtime that is going away: then the file stays, as after a kill.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            drop(runtime.spawn(clean_up));
        }
    }
}

fn done() -> PutResult {
    PutResult {
        e_tag: None,
        version: None,
        extensions: Default::default(),
    }
}
