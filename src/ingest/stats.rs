//! What ingest has done, by reason: for status and metrics.
//!
//! Invariant: each refusal and each end of an upload is counted once, under the name that docs/ingest.md lists. Counted by every file of the room,
//! read through [`Ingest::stats`](super::Ingest::stats).

use std::sync::atomic::{AtomicU64, Ordering};

/// One counter.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn increase(&self) {
        self.add(1);
    }

    pub(super) fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What was counted since the recorder started.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct IngestStats {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl IngestStats {
            /// Each counter's name and value, in a fixed order.
            #[must_use]
            pub fn counters(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }

        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: Counter,)*
        }

        impl Counters {
            pub(super) fn snapshot(&self) -> IngestStats {
                IngestStats { $($name: self.$name.get(),)* }
            }
        }
    };
}

counters! {
    /// Connections served.
    connections,
    /// Connections turned away: as many are open as one recorder takes.
    refused_connections,
    /// Connections turned away: as many are open as one peer may have.
    refused_connections_per_peer,
    /// Recordings begun.
    recordings,
    /// Bytes of recordings that arrived.
    recording_bytes,
    /// Recordings whose body ended as the protocol says.
    ended_complete,
    /// Recordings whose uploader reset the stream, closed the connection or no longer answers.
    ended_reset,
    /// Recordings that the end of this recorder ended.
    ended_shutdown,
    /// Recordings that an operator ended.
    ended_terminated,
    /// Recordings that reached `recording_bytes_max`.
    ended_limit_bytes,
    /// Recordings that reached `recording_duration_max`.
    ended_limit_duration,
    /// Recordings that ended because the store was stalled.
    ended_stalled,
    /// Recordings that the store gave up.
    ended_failed,
    /// Events stored.
    events,
    /// Bytes of stored events.
    event_bytes,
    /// Requests for an endpoint that does not exist here.
    refused_unknown,
    /// Requests of a browser.
    refused_browser,
    /// Requests whose head is too large.
    refused_head,
    /// Requests while this recorder drains.
    refused_draining,
    /// Requests while the store takes nothing, and recordings and events that it refused.
    refused_store,
    /// Requests of a peer that may not upload.
    refused_policy,
    /// Recordings beyond `recordings_max`.
    refused_recordings,
    /// Recordings beyond `recordings_per_node_max`.
    refused_recordings_per_node,
    /// Requests for events while events are off.
    refused_events_off,
    /// Events beyond `event_body_bytes_max`.
    refused_event_size,
    /// Events beyond `events_in_flight_bytes_max` or a node's share of it.
    refused_event_memory,
    /// Events whose body was not there within `event_body_limit`, or was cut off.
    refused_event_body,
    /// Requests whose handler panicked.
    panics,
    /// Connections ended because of too many frames that carry nothing.
    floods,
    /// Connections ended because a request head took too long.
    slow_heads,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_lists_every_counter() {
        let document = include_str!("../../docs/ingest.md");
        for (name, value) in Counters::default().snapshot().counters() {
            assert_eq!(value, 0);
            assert!(document.contains(&format!("`{name}`")), "{name}");
        }
    }

    #[test]
    fn a_snapshot_holds_what_was_counted_under_its_name() {
        let counters = Counters::default();
        counters.recordings.increase();
        counters.recording_bytes.add(7);
        let stats = counters.snapshot();
        assert_eq!((stats.recordings, stats.recording_bytes), (1, 7));
        assert!(stats.counters().contains(&("recording_bytes", 7)));
    }
}
