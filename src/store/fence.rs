//! Who may write the next number, and who may not any more: the table of what a create may come to.
//!
//! ```text
//! create answered        then
//! created                durable (a disk that failed a try before: fsync first)
//! exists                 read back
//! failed, unanswered     read back: it may have been written all the same
//!
//! read back              then
//! the same bytes         ours. Remote: durable. Local: fsync, then durable; but if a try of ours *failed*, only
//!                        the fsync after its link can have: poisoned
//! other bytes            fenced
//! absent                 send again, the same bytes (also when S3 said 409 "exists")
//! unreadable             read back again
//! ```
//!
//! Invariant: "durable" is never said of bytes that were not proven to be there. Pure. Called by `create.rs`.

/// What the backend said to a create.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    Created,
    Exists,
    Failed,
    Unanswered,
}

/// What stood there when it was read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Same,
    Different,
    Absent,
    Unreadable,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// The bytes are durable.
    Durable,
    /// They are there: fsync the file and its directories, then they are durable.
    SyncThenDurable,
    /// Read the object.
    ReadBack,
    /// Send the same bytes again.
    SendAgain,
    /// Somebody else's bytes stand there.
    Fenced,
    /// An fsync failed: what the disk holds cannot be known.
    Poisoned,
}

/// The life of one create, until it is resolved.
#[derive(Debug, Clone, Copy)]
pub(super) struct Resolution {
    local_disk: bool,
    /// A try since the object was last seen absent came back as failed.
    failed: bool,
    /// Any try did not come back as created.
    troubled: bool,
}

impl Resolution {
    pub(super) const fn new(local_disk: bool) -> Self {
        Self {
            local_disk,
            failed: false,
            troubled: false,
        }
    }

    pub(super) const fn handle_sent(&mut self, sent: Sent) -> Next {
        match sent {
            // A failed try may have made directories whose fsync is still owed.
            Sent::Created if self.local_disk && self.troubled => Next::SyncThenDurable,
            Sent::Created => Next::Durable,
            Sent::Exists => Next::ReadBack,
            Sent::Failed => {
                self.failed = true;
                self.troubled = true;
                Next::ReadBack
            }
            Sent::Unanswered => {
                self.troubled = true;
                Next::ReadBack
            }
        }
    }

    pub(super) const fn handle_found(&mut self, found: Found) -> Next {
        match found {
            Found::Same if self.local_disk && self.failed => Next::Poisoned,
            Found::Same if self.local_disk => Next::SyncThenDurable,
            Found::Same => Next::Durable,
            Found::Different => Next::Fenced,
            Found::Absent => {
                self.failed = false;
                Next::SendAgain
            }
            Found::Unreadable => Next::ReadBack,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_holds_for_a_remote_store() {
        let rows = [
            (Sent::Exists, Found::Same, Next::Durable),
            (Sent::Failed, Found::Same, Next::Durable),
            (Sent::Unanswered, Found::Same, Next::Durable),
            (Sent::Exists, Found::Different, Next::Fenced),
            (Sent::Unanswered, Found::Different, Next::Fenced),
            (Sent::Exists, Found::Absent, Next::SendAgain),
            (Sent::Failed, Found::Absent, Next::SendAgain),
            (Sent::Failed, Found::Unreadable, Next::ReadBack),
        ];
        assert_eq!(
            Resolution::new(false).handle_sent(Sent::Created),
            Next::Durable
        );
        for (sent, found, next) in rows {
            let mut resolution = Resolution::new(false);
            assert_eq!(resolution.handle_sent(sent), Next::ReadBack);
            assert_eq!(resolution.handle_found(found), next, "{sent:?} {found:?}");
        }
    }

    #[test]
    fn exists_and_equal_is_not_yet_durable_on_a_local_disk() {
        for sent in [Sent::Exists, Sent::Unanswered] {
            let mut resolution = Resolution::new(true);
            resolution.handle_sent(sent);
            assert_eq!(resolution.handle_found(Found::Same), Next::SyncThenDurable);
        }
    }

    #[test]
    fn a_local_create_that_failed_and_yet_stands_poisons() {
        let mut resolution = Resolution::new(true);
        resolution.handle_sent(Sent::Failed);
        assert_eq!(resolution.handle_found(Found::Unreadable), Next::ReadBack);
        assert_eq!(resolution.handle_found(Found::Same), Next::Poisoned);
    }

    #[test]
    fn a_full_disk_that_got_room_again_is_fsynced_before_it_counts() {
        let mut resolution = Resolution::new(true);
        resolution.handle_sent(Sent::Failed);
        assert_eq!(resolution.handle_found(Found::Absent), Next::SendAgain);
        assert_eq!(resolution.handle_sent(Sent::Created), Next::SyncThenDurable);
    }
}
