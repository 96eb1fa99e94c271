//! An object store that fails as told: the fault wrapper of the suite.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use tokio::sync::{Notify, Semaphore, watch};

/// What happens to one put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// It fails and wrote nothing.
    Fails,
    /// It fails, although it wrote.
    FailsYetPersists,
    /// It is never answered and wrote nothing.
    Hangs,
    /// It is never answered, although it wrote.
    HangsYetPersists,
}

impl Fault {
    pub(super) const ALL: [Self; 4] = [
        Self::Fails,
        Self::FailsYetPersists,
        Self::Hangs,
        Self::HangsYetPersists,
    ];
}

/// How a backend is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outage {
    /// Puts fail with what the operating system says.
    Says(std::io::ErrorKind),
    /// Puts are not answered before it is over; then they are carried out, if somebody still waits.
    Hangs,
}

#[derive(Debug)]
pub(super) struct FaultyStore {
    inner: Arc<dyn ObjectStore>,
    /// Each fault strikes the next put whose name holds its text, once.
    faults: Mutex<VecDeque<(&'static str, Fault)>>,
    puts: Mutex<Vec<String>>,
    /// Puts to the journal wait for a permit while this is closed to them.
    gate: Mutex<Option<Arc<Semaphore>>>,
    /// Every put fails so until it is over.
    outage: watch::Sender<Option<Outage>>,
    /// From this put on nothing is answered; whether that one is carried out.
    dies_at: Mutex<Option<(usize, bool)>>,
    died: Notify,
    /// How long the backend takes for a put of the journal, also when nobody waits for its answer.
    latency: Mutex<Duration>,
    /// How long it takes for a read of the journal.
    read_latency: Mutex<Duration>,
    overwrites: bool,
}

impl FaultyStore {
    pub(super) fn new(inner: Arc<dyn ObjectStore>) -> Arc<Self> {
        Arc::new(Self::healthy(inner))
    }

    /// A backend that ignores create-if-absent.
    pub(super) fn overwriting(inner: Arc<dyn ObjectStore>) -> Arc<Self> {
        Arc::new(Self {
            overwrites: true,
            ..Self::healthy(inner)
        })
    }

    fn healthy(inner: Arc<dyn ObjectStore>) -> Self {
        Self {
            inner,
            faults: Mutex::default(),
            puts: Mutex::default(),
            gate: Mutex::default(),
            outage: watch::Sender::default(),
            dies_at: Mutex::default(),
            died: Notify::new(),
            latency: Mutex::default(),
            read_latency: Mutex::default(),
            overwrites: false,
        }
    }

    /// Begins an outage, or ends it.
    pub(super) fn set_outage(&self, outage: Option<Outage>) {
        self.outage.send_replace(outage);
    }

    /// After `puts` more puts the process is to die; the last of them is carried out or not. [`Self::died`] says when.
    pub(super) fn die_after(&self, puts: usize, persists: bool) {
        let at = self.puts_of("") + puts;
        *self.dies_at.lock().unwrap() = Some((at, persists));
    }

    pub(super) async fn died(&self) {
        self.died.notified().await;
    }

    /// Another process takes over.
    pub(super) fn revive(&self) {
        *self.dies_at.lock().unwrap() = None;
    }

    pub(super) fn set_latency(&self, latency: Duration) {
        *self.latency.lock().unwrap() = latency;
    }

    pub(super) fn set_read_latency(&self, latency: Duration) {
        *self.read_latency.lock().unwrap() = latency;
    }

    /// The backend without faults, gate and counts.
    pub(super) fn inner(&self) -> &dyn ObjectStore {
        &*self.inner
    }

    pub(super) fn strike(&self, name: &'static str, fault: Fault) {
        self.faults.lock().unwrap().push_back((name, fault));
    }

    pub(super) fn faults_left(&self) -> usize {
        self.faults.lock().unwrap().len()
    }

    /// Closes the journal's gate; each permit of the result lets one put pass.
    pub(super) fn gate_journal(&self) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        *self.gate.lock().unwrap() = Some(Arc::clone(&gate));
        gate
    }

    pub(super) fn puts_of(&self, name: &str) -> usize {
        self.puts
            .lock()
            .unwrap()
            .iter()
            .filter(|put| put.contains(name))
            .count()
    }

    fn fault_for(&self, name: &Path) -> Option<Fault> {
        let mut faults = self.faults.lock().unwrap();
        let place = faults
            .iter()
            .position(|(text, _)| name.as_ref().contains(text))?;
        faults.remove(place).map(|(_, fault)| fault)
    }
}

fn failure() -> Error {
    Error::Generic {
        store: "faulty",
        source: "told to fail".into(),
    }
}

impl std::fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "faulty {}", self.inner)
    }
}

type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

impl ObjectStore for FaultyStore {
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
            self.puts.lock().unwrap().push(name.to_string());
            let gate = self
                .gate
                .lock()
                .unwrap()
                .clone()
                .filter(|_| name.as_ref().starts_with("journal/"));
            if let Some(gate) = gate {
                gate.acquire().await.unwrap().forget();
            }
            let dies_at = *self.dies_at.lock().unwrap();
            if let Some((at, persists)) = dies_at
                && self.puts_of("") >= at
            {
                if persists && self.puts_of("") == at {
                    self.inner.put_opts(name, payload, options).await?;
                }
                self.died.notify_one();
                return std::future::pending().await;
            }
            let outage = *self.outage.borrow();
            match outage {
                Some(Outage::Hangs) => {
                    let mut outage = self.outage.subscribe();
                    outage.wait_for(Option::is_none).await.unwrap();
                }
                Some(Outage::Says(kind)) => {
                    let source = Box::new(std::io::Error::from(kind));
                    return Err(Error::Generic {
                        store: "faulty",
                        source,
                    });
                }
                None => {}
            }
            let latency = *self.latency.lock().unwrap();
            if latency > Duration::ZERO && name.as_ref().starts_with("journal/") {
                // The backend goes on when its client has hung up.
                let (inner, name) = (Arc::clone(&self.inner), name.clone());
                let put = tokio::spawn(async move {
                    tokio::time::sleep(latency).await;
                    inner.put_opts(&name, payload, options).await
                });
                return put.await.unwrap();
            }
            let mut options = options;
            if self.overwrites {
                options.mode = PutMode::Overwrite;
            }
            let fault = self.fault_for(name);
            if matches!(
                fault,
                None | Some(Fault::FailsYetPersists | Fault::HangsYetPersists)
            ) {
                let result = self.inner.put_opts(name, payload, options).await;
                if fault.is_none() {
                    return result;
                }
                result?;
            }
            match fault {
                Some(Fault::Hangs | Fault::HangsYetPersists) => std::future::pending().await,
                _ => Err(failure()),
            }
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
        match self.fault_for(name) {
            None => self.inner.put_multipart_opts(name, options),
            Some(Fault::Fails | Fault::FailsYetPersists) => Box::pin(async { Err(failure()) }),
            Some(Fault::Hangs | Fault::HangsYetPersists) => Box::pin(std::future::pending()),
        }
    }

    fn get_opts<'s, 'p, 'a>(&'s self, name: &'p Path, options: GetOptions) -> Answer<'a, GetResult>
    where
        's: 'a,
        'p: 'a,
        Self: 'a,
    {
        Box::pin(async move {
            let latency = *self.read_latency.lock().unwrap();
            if latency > Duration::ZERO && name.as_ref().starts_with("journal/") {
                tokio::time::sleep(latency).await;
            }
            self.inner.get_opts(name, options).await
        })
    }

    fn delete_stream(
        &self,
        names: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(names)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_delimiter<'s, 'p, 'a>(&'s self, prefix: Option<&'p Path>) -> Answer<'a, ListResult>
    where
        's: 'a,
        'p: 'a,
        Self: 'a,
    {
        self.inner.list_with_delimiter(prefix)
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
