//! What stands between one process and its backend: it fails, is slow, hangs, answers late, lets a request arrive late.
//!
//! Invariant: a request of a dead process has no effect, but for one that was under way on a network already. A read or a removal
//! that is not answered fails after a while, as with every real client; a create may be silent for ever. Called by `recorder.rs`.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};

use super::super::power::Process;
use super::World;
use super::dice::Dice;

/// When a client of a backend gives up on a read or a removal.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// What happens to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    None,
    /// It takes that long, there or back.
    Slow(Duration),
    Fails,
    FailsYetPersists,
    Hangs,
    HangsYetPersists,
    /// It has its effect after that long, whatever became of its sender.
    ArrivesLate(Duration),
}

#[derive(Debug, Clone)]
pub(super) struct Wire {
    inner: Arc<dyn ObjectStore>,
    world: Arc<World>,
    process: Arc<Process>,
    name: Arc<str>,
    dice: Arc<Mutex<Dice>>,
    /// A request travels on its own: only where a network is between.
    remote: bool,
}

impl Wire {
    pub(super) fn new(
        inner: Arc<dyn ObjectStore>,
        world: Arc<World>,
        process: Arc<Process>,
        name: &str,
        dice: Dice,
        remote: bool,
    ) -> Self {
        let dice = Arc::new(Mutex::new(dice));
        let name = name.into();
        Self {
            inner,
            world,
            process,
            name,
            dice,
            remote,
        }
    }

    fn trouble(&self) -> Trouble {
        let mut dice = self.dice.lock().unwrap();
        if dice.below(1000) >= self.world.trouble_per_mille() {
            return Trouble::None;
        }
        match dice.below(if self.remote { 12 } else { 9 }) {
            0 | 1 => Trouble::Fails,
            2 => Trouble::FailsYetPersists,
            3 | 4 => Trouble::Slow(dice.millis(100, 9_000)),
            5 => Trouble::Slow(dice.millis(9_000, 40_000)),
            6 => Trouble::Slow(dice.millis(1, 100)),
            7 => Trouble::HangsYetPersists,
            8 | 9 => Trouble::Hangs,
            _ => Trouble::ArrivesLate(dice.millis(100, 60_000)),
        }
    }

    /// One request that changes something.
    async fn change<T: Send + 'static>(
        &self,
        what: &str,
        request: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.pause().await;
        let trouble = self.trouble();
        self.step().await;
        let answer = match trouble {
            Trouble::None => self.done(request.await).await,
            Trouble::Slow(takes) => {
                let there = takes / 3;
                tokio::time::sleep(there).await;
                self.step().await;
                let answer = request.await;
                tokio::time::sleep(takes.saturating_sub(there)).await;
                self.done(answer).await
            }
            Trouble::Fails => Err(failure()),
            Trouble::FailsYetPersists => request.await.and_then(|_| Err(failure())),
            Trouble::Hangs => {
                self.note(what, "is never answered");
                std::future::pending().await
            }
            Trouble::HangsYetPersists => {
                drop(request.await);
                self.note(what, "is done and never answered");
                std::future::pending().await
            }
            Trouble::ArrivesLate(after) => {
                self.note(what, "arrives late");
                let late = tokio::spawn(async move {
                    tokio::time::sleep(after).await;
                    request.await
                });
                let answer = late.await.map_err(|source| Error::JoinError { source })?;
                self.done(answer).await
            }
        };
        let told = match (&answer, trouble) {
            (Ok(_), Trouble::None) => "done".into(),
            (Ok(_), _) => format!("done, {trouble:?}"),
            (Err(Error::AlreadyExists { .. }), _) => "exists".into(),
            (Err(_), _) => format!("failed, {trouble:?}"),
        };
        self.note(what, &told);
        answer
    }

    /// One request that only asks: silence ends in an error.
    async fn ask<T>(&self, request: impl Future<Output = Result<T>> + Send) -> Result<T> {
        self.pause().await;
        let trouble = self.trouble();
        self.step().await;
        match trouble {
            Trouble::None => {}
            Trouble::Slow(takes) | Trouble::ArrivesLate(takes) => tokio::time::sleep(takes).await,
            Trouble::Fails | Trouble::FailsYetPersists => return Err(failure()),
            Trouble::Hangs | Trouble::HangsYetPersists => {
                tokio::time::sleep(SILENCE_MAX).await;
                return Err(failure());
            }
        }
        let answer = request.await;
        self.done(answer).await
    }

    /// A network is never instantaneous; a disk's own time is in its model.
    async fn pause(&self) {
        let takes = self.dice.lock().unwrap().millis(1, 20);
        if self.remote {
            tokio::time::sleep(takes).await;
        }
    }

    /// On a disk the system calls are the steps.
    async fn step(&self) {
        if self.remote {
            self.process.step().await;
        } else {
            self.process.alive().await;
        }
    }

    async fn done<T>(&self, answer: T) -> T {
        self.step().await;
        answer
    }

    fn note(&self, what: &str, told: &str) {
        self.world.note(&self.name, &format!("{what}: {told}"));
    }
}

fn failure() -> Error {
    Error::Generic {
        store: "wire",
        source: "told to fail".into(),
    }
}

/// When every object was stored, whatever the machine's clock says: a minute before the simulation began.
fn dated(mut meta: ObjectMeta) -> ObjectMeta {
    let stored = SystemTime::UNIX_EPOCH.checked_add(super::STORED_AT);
    meta.last_modified = stored.unwrap().into();
    meta
}

impl std::fmt::Display for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "wire to {}", self.inner)
    }
}

type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

impl ObjectStore for Wire {
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
            let (inner, to) = (Arc::clone(&self.inner), name.clone());
            let put = async move { inner.put_opts(&to, payload, options).await };
            self.change(&format!("put {name}"), put).await
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
            let upload = self
                .ask(self.inner.put_multipart_opts(name, options))
                .await?;
            let upload = WireUpload {
                wire: self.clone(),
                name: name.clone(),
                upload: Arc::new(tokio::sync::Mutex::new(upload)),
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
        Box::pin(async move {
            let mut found = self.ask(self.inner.get_opts(name, options)).await?;
            found.meta = dated(found.meta);
            Ok(found)
        })
    }

    fn delete_stream(
        &self,
        names: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let wire = self.clone();
        let removed = names.then(move |name| {
            let wire = wire.clone();
            async move {
                let name = name?;
                let (inner, gone) = (Arc::clone(&wire.inner), name.clone());
                let delete = async move {
                    let names = stream::once(async { Ok(gone) }).boxed();
                    inner.delete_stream(names).next().await.unwrap()
                };
                let what = format!("delete {name}");
                let deleted = wire.change(&what, delete);
                let deleted = tokio::time::timeout(SILENCE_MAX, deleted).await;
                deleted.unwrap_or_else(|_| Err(failure()))
            }
        });
        removed.boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (wire, prefix) = (self.clone(), prefix.cloned());
        let listed = async move {
            let inner = Arc::clone(&wire.inner);
            let all = async move { Ok(inner.list(prefix.as_ref()).collect::<Vec<_>>().await) };
            match wire.ask(all).await {
                Ok(all) => all,
                Err(error) => vec![Err(error)],
            }
        };
        stream::once(listed)
            .flat_map(stream::iter)
            .map(|object| object.map(dated))
            .boxed()
    }

    fn list_with_delimiter<'s, 'p, 'a>(&'s self, prefix: Option<&'p Path>) -> Answer<'a, ListResult>
    where
        's: 'a,
        'p: 'a,
        Self: 'a,
    {
        Box::pin(async move {
            let mut listed = self.ask(self.inner.list_with_delimiter(prefix)).await?;
            listed.objects = listed.objects.into_iter().map(dated).collect();
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
        panic!("a copy is not simulated")
    }
}

#[derive(Debug)]
struct WireUpload {
    wire: Wire,
    name: Path,
    upload: Arc<tokio::sync::Mutex<Box<dyn MultipartUpload>>>,
}

impl MultipartUpload for WireUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (wire, upload, name) = (
            self.wire.clone(),
            Arc::clone(&self.upload),
            self.name.clone(),
        );
        Box::pin(async move {
            let put = async move { upload.lock().await.put_part(data).await };
            wire.change(&format!("put a part of {name}"), put).await
        })
    }

    fn complete<'s, 'a>(&'s mut self) -> Answer<'a, PutResult>
    where
        's: 'a,
        Self: 'a,
    {
        Box::pin(async move {
            let upload = Arc::clone(&self.upload);
            let complete = async move { upload.lock().await.complete().await };
            self.wire
                .change(&format!("complete {}", self.name), complete)
                .await
        })
    }

    fn abort<'s, 'a>(&'s mut self) -> Answer<'a, ()>
    where
        's: 'a,
        Self: 'a,
    {
        Box::pin(async move {
            let upload = Arc::clone(&self.upload);
            let abort = async move { upload.lock().await.abort().await };
            self.wire
                .change(&format!("abort {}", self.name), abort)
                .await
        })
    }
}
