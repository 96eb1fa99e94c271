//! An object store that fails as told: the fault wrapper of the suite.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use futures_util::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use tokio::sync::Semaphore;

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

#[derive(Debug)]
pub(super) struct FaultyStore {
    inner: Arc<dyn ObjectStore>,
    /// Each fault strikes the next put whose name holds its text, once.
    faults: Mutex<VecDeque<(&'static str, Fault)>>,
    puts: Mutex<Vec<String>>,
    /// Puts to the journal wait for a permit while this is closed to them.
    gate: Mutex<Option<Arc<Semaphore>>>,
    overwrites: bool,
}

impl FaultyStore {
    pub(super) fn new(inner: Arc<dyn ObjectStore>) -> Arc<Self> {
        let (faults, puts, gate) = Default::default();
        Arc::new(Self {
            inner,
            faults,
            puts,
            gate,
            overwrites: false,
        })
    }

    /// A backend that ignores create-if-absent.
    pub(super) fn overwriting(inner: Arc<dyn ObjectStore>) -> Arc<Self> {
        let (faults, puts, gate) = Default::default();
        Arc::new(Self {
            inner,
            faults,
            puts,
            gate,
            overwrites: true,
        })
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
        self.inner.get_opts(name, options)
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
