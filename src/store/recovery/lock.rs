//! On a local disk, who lives is known: a recorder holds an OS lock on its directory below `journal/`.
//!
//! Invariant: the lock decides only when to take over; safety is fencing alone. A lock that cannot be had or asked for
//! (some network file systems) leaves the decision to time. No file is made for it. Called by [`super::super::Store::open`] and
//! by recovery.

use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use super::super::{Shared, layout};
use crate::ids::RecorderId;

/// How often our own lock is tried for while a predecessor with the same key still has it.
const OWN_LOCK_PAUSE: Duration = Duration::from_secs(1);

/// Held until dropped, or until the process ends in whatever way.
#[derive(Debug)]
pub(in crate::store) struct RecorderLock {
    _directory: File,
}

/// What trying for a recorder's lock told.
pub(super) enum Tried {
    Free(RecorderLock),
    Held,
    CannotTell,
}

/// Tries for the lock of `recorder`.
pub(super) async fn try_lock(shared: &Shared, recorder: &RecorderId) -> Tried {
    let Some(root) = shared.objects.disk_root() else {
        return Tried::CannotTell;
    };
    let directory = root.join(layout::journal_of(recorder).as_ref());
    let tried = tokio::task::spawn_blocking(move || try_directory(directory, false));
    tried.await.unwrap_or(Tried::CannotTell)
}

/// Whether another process holds the lock of `recorder` in the store below `root`. Makes nothing, and lets go of the lock at once.
pub(in crate::store) async fn is_held(root: PathBuf, recorder: &RecorderId) -> bool {
    let directory = root.join(layout::journal_of(recorder).as_ref());
    let tried = tokio::task::spawn_blocking(move || try_directory(directory, false));
    matches!(tried.await, Ok(Tried::Held))
}

/// Takes our own lock, and holds it for the life of the store. While a predecessor with our key still has it, it is tried for in
/// the background: that one ends as soon as it finds its fence. Others decide by time until then.
pub(in crate::store) async fn hold_lock(shared: &Arc<Shared>) {
    if try_own(shared).await {
        return;
    }
    let later = Arc::clone(shared);
    let trying = async move {
        loop {
            tokio::time::sleep(OWN_LOCK_PAUSE).await;
            if try_own(&later).await {
                return;
            }
        }
    };
    let stop = shared.stop.clone();
    shared.runtime.spawn(stop.run_until_cancelled_owned(trying));
}

/// False when it is worth trying again.
async fn try_own(shared: &Arc<Shared>) -> bool {
    let Some(root) = shared.objects.disk_root() else {
        return true;
    };
    let directory = root.join(layout::journal_of(&shared.config.recorder()).as_ref());
    match tokio::task::spawn_blocking(move || try_directory(directory, true)).await {
        Ok(Tried::Free(lock)) => {
            shared.keep_lock(lock);
            true
        }
        Ok(Tried::Held) => false,
        Ok(Tried::CannotTell) | Err(_) => true,
    }
}

fn try_directory(directory: PathBuf, make: bool) -> Tried {
    if make {
        // As private as the root; it is there already but for the first start. A failure shows at the opening below.
        let mut maker = fs::DirBuilder::new();
        drop(maker.recursive(true).mode(0o700).create(&directory));
    }
    let Ok(opened) = File::open(&directory) else {
        return Tried::CannotTell;
    };
    match flock(&opened, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Tried::Free(RecorderLock { _directory: opened }),
        Err(rustix::io::Errno::WOULDBLOCK) => Tried::Held,
        Err(_) => Tried::CannotTell,
    }
}
