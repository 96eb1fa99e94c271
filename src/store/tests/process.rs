//! One process at the backend: it fails, dies or freezes at the operation that it is told to, and others go on.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use tokio::sync::watch;

use super::super::{Store, StoreConfig, StoreError};
use super::faulty_store::FaultyStore;
use super::world::{World, at};

/// What happens at one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mishap {
    /// It fails and did nothing.
    Fails,
    /// It fails, although it did what it was to do.
    FailsYetPersists,
    /// The process is gone before it; nothing is answered from then on.
    Dies,
    /// The process is gone behind it.
    DiesYetPersists,
    /// The process stops before it and goes on when thawed.
    Freezes,
}

/// When a mishap strikes.
#[derive(Debug, Clone, Copy)]
enum At {
    Number(usize),
    Step(&'static str),
}

/// A backend as one process sees it.
#[derive(Debug)]
pub(super) struct ProcessStore {
    inner: Arc<dyn ObjectStore>,
    /// Operations so far, each with its kind and name.
    log: Mutex<Vec<String>>,
    next: AtomicUsize,
    mishap: Mutex<Option<(At, Mishap)>>,
    running: watch::Sender<bool>,
}

impl ProcessStore {
    pub(super) fn new(inner: Arc<dyn ObjectStore>, mishap: Option<(usize, Mishap)>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            log: Mutex::default(),
            next: AtomicUsize::new(0),
            mishap: Mutex::new(mishap.map(|(number, mishap)| (At::Number(number), mishap))),
            running: watch::Sender::new(true),
        })
    }

    pub(super) fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// The mishap strikes at the `after`-th operation from now on.
    pub(super) fn strike(&self, after: usize, mishap: Mishap) {
        let at = self.next.load(Ordering::SeqCst) + after;
        *self.mishap.lock().unwrap() = Some((At::Number(at), mishap));
    }

    /// The mishap strikes at the next operation whose kind and name begin like this.
    pub(super) fn strike_at(&self, step: &'static str, mishap: Mishap) {
        *self.mishap.lock().unwrap() = Some((At::Step(step), mishap));
    }

    pub(super) fn stop(&self) {
        self.running.send_replace(false);
    }

    pub(super) fn thaw(&self) {
        self.running.send_replace(true);
    }

    pub(super) fn is_running(&self) -> bool {
        *self.running.borrow()
    }

    async fn while_running(&self) {
        let mut running = self.running.subscribe();
        running.wait_for(|running| *running).await.unwrap();
    }

    /// Waits while the process is stopped; says what happens to this operation.
    async fn enter(&self, kind: &str, name: &str) -> Option<Mishap> {
        self.while_running().await;
        let number = self.next.fetch_add(1, Ordering::SeqCst);
        self.log.lock().unwrap().push(format!("{kind} {name}"));
        let mishap = {
            let mut mishap = self.mishap.lock().unwrap();
            let strikes = |at: &At| match at {
                At::Number(at) => *at == number,
                At::Step(step) => format!("{kind} {name}").starts_with(step),
            };
            mishap
                .take_if(|(at, _)| strikes(at))
                .map(|(_, mishap)| mishap)
        };
        match mishap {
            Some(Mishap::Dies | Mishap::Freezes) => {
                self.stop();
                self.while_running().await;
                None
            }
            other => other,
        }
    }

    async fn leave<T>(&self, mishap: Option<Mishap>, result: Result<T>) -> Result<T> {
        match mishap {
            Some(Mishap::FailsYetPersists) => return Err(failure()),
            Some(Mishap::DiesYetPersists) => self.stop(),
            _ => {}
        }
        self.while_running().await;
        result
    }
}

fn failure() -> Error {
    Error::Generic {
        store: "process",
        source: "told to fail".into(),
    }
}

impl std::fmt::Display for ProcessStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "one process at {}", self.inner)
    }
}

type Answer<'a, T> = std::pin::Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// One operation with its mishap.
macro_rules! operation {
    ($self:ident, $kind:literal, $name:expr, $run:expr) => {{
        let mishap = $self.enter($kind, $name).await;
        if mishap == Some(Mishap::Fails) {
            return Err(failure());
        }
        let result = $run.await;
        $self.leave(mishap, result).await
    }};
}

impl ObjectStore for ProcessStoreHandle {
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
            operation!(
                self,
                "put",
                name.as_ref(),
                self.inner.put_opts(name, payload, options)
            )
        })
    }

    fn put_multipart_opts<'s, 'p, 'a>(
        &'s self,
        name: &'p Path,
        options: PutMultipartOptions,
    ) -> Answer<'a, Box<dyn MultipartUpload>>
    where
        's: 'a,
        'p: 'a,
        Self: 'a,
    {
        Box::pin(async move {
            operation!(
                self,
                "begin",
                name.as_ref(),
                self.inner.put_multipart_opts(name, options)
            )
        })
    }

    fn get_opts<'s, 'p, 'a>(&'s self, name: &'p Path, options: GetOptions) -> Answer<'a, GetResult>
    where
        's: 'a,
        'p: 'a,
        Self: 'a,
    {
        Box::pin(async move {
            operation!(
                self,
                "get",
                name.as_ref(),
                self.inner.get_opts(name, options)
            )
        })
    }

    fn delete_stream(
        &self,
        names: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let handle = self.clone();
        names
            .and_then(move |name| {
                let handle = handle.clone();
                async move {
                    operation!(
                        handle,
                        "delete",
                        name.as_ref(),
                        object_store::ObjectStoreExt::delete(&*handle.inner, &name)
                    )?;
                    Ok(name)
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let handle = self.clone();
        let prefix = prefix.cloned();
        let listing = async move {
            let name = prefix.as_ref().map_or("", Path::as_ref);
            let listed: Vec<ObjectMeta> = operation!(
                handle,
                "list",
                name,
                handle.inner.list(prefix.as_ref()).try_collect()
            )?;
            Ok::<_, Error>(futures_util::stream::iter(listed.into_iter().map(Ok)))
        };
        futures_util::stream::once(listing).try_flatten().boxed()
    }

    fn list_with_delimiter<'s, 'p, 'a>(&'s self, prefix: Option<&'p Path>) -> Answer<'a, ListResult>
    where
        's: 'a,
        'p: 'a,
        Self: 'a,
    {
        Box::pin(async move {
            let name = prefix.map_or("", Path::as_ref);
            operation!(self, "list", name, self.inner.list_with_delimiter(prefix))
        })
    }

    fn copy_opts<'s, 'f, 't, 'a>(
        &'s self,
        from: &'f Path,
        to: &'t Path,
        options: CopyOptions,
    ) -> Answer<'a, ()>
    where
        's: 'a,
        'f: 'a,
        't: 'a,
        Self: 'a,
    {
        self.inner.copy_opts(from, to, options)
    }
}

/// Shares a [`ProcessStore`] with streams that outlive the call.
#[derive(Debug, Clone)]
pub(super) struct ProcessStoreHandle(pub(super) Arc<ProcessStore>);

impl std::ops::Deref for ProcessStoreHandle {
    type Target = ProcessStore;

    fn deref(&self) -> &ProcessStore {
        &self.0
    }
}

impl std::fmt::Display for ProcessStoreHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A recorder process on a world's backend.
pub(super) struct Process {
    pub(super) store: Store,
    pub(super) backend: Arc<ProcessStore>,
}

impl Process {
    /// Starts with the world's own key.
    pub(super) async fn start(
        world: &World,
        seed: u64,
        mishap: Option<(usize, Mishap)>,
    ) -> Result<Self, StoreError> {
        Self::start_as(world, world.config.clone(), seed, mishap).await
    }

    pub(super) async fn start_as(
        world: &World,
        config: StoreConfig,
        seed: u64,
        mishap: Option<(usize, Mishap)>,
    ) -> Result<Self, StoreError> {
        let backend = Self::backend(world, mishap);
        Self::start_on(world, config, seed, backend).await
    }

    /// The backend of a process that is to be started.
    pub(super) fn backend(world: &World, mishap: Option<(usize, Mishap)>) -> Arc<ProcessStore> {
        let inner: Arc<FaultyStore> = Arc::clone(&world.objects);
        ProcessStore::new(inner, mishap)
    }

    pub(super) async fn start_on(
        world: &World,
        config: StoreConfig,
        seed: u64,
        backend: Arc<ProcessStore>,
    ) -> Result<Self, StoreError> {
        Self::start_at(world, config, seed, backend, || at("2026-11-20T10:20:00Z")).await
    }

    pub(super) async fn start_at(
        world: &World,
        config: StoreConfig,
        seed: u64,
        backend: Arc<ProcessStore>,
        wall_clock: fn() -> jiff::Timestamp,
    ) -> Result<Self, StoreError> {
        let handle = Arc::new(ProcessStoreHandle(Arc::clone(&backend)));
        let rng = ChaCha20Rng::seed_from_u64(seed);
        let disk = world.disk.clone();
        let store = Store::open_with(config, handle, disk, rng, wall_clock).await?;
        Ok(Self { store, backend })
    }

    /// It is gone: nothing of it reaches the backend any more, and the system has freed its lock.
    pub(super) fn die(&self) {
        self.backend.stop();
        self.store.shared.release_lock();
    }
}
