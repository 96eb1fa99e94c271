//! `POST /v2/event`: one request of a Kubernetes user, stored before it is answered.
//!
//! Invariants: every event is answered, in bounded time, because its sender waits for ever; 200 says that it is durable; what is held in memory is counted
//! against all and against its node as it arrives, so that those that are slow, large or many cannot keep others out. Called by the [`routes`](super::routes).

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Response, StatusCode};
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::connection::BodyEnd;
use super::response::{Refusal, ResponseBody, accepted, refusal};
use super::shares::{Exceeded, Share};
use super::sink::RecordingSink;
use crate::access::Identity;
use crate::store::{Event, StoreHealth};
use crate::tell::with_causes;

/// Path of events.
pub(super) const PATH: &str = "/v2/event";

/// What an event takes at least, however small its body is: its task, who sent it, its place in the store's queue.
const EVENT_BYTES_MIN: u64 = 4 * 1024;

/// Reads an event, stores it and says how that went.
pub(super) async fn event<S: RecordingSink>(
    body: Incoming,
    body_end: &BodyEnd,
    uploader: Identity,
    ingest: &Shared<S>,
    shutdown: &CancellationToken,
) -> Response<ResponseBody> {
    match keep(body, body_end, uploader, ingest, shutdown).await {
        Ok(()) => accepted(),
        Err(refused) => refused.response(),
    }
}

async fn keep<S: RecordingSink>(
    body: Incoming,
    body_end: &BodyEnd,
    uploader: Identity,
    ingest: &Shared<S>,
    shutdown: &CancellationToken,
) -> Result<(), Refusal> {
    let limit = ingest.config.event_body_limit;
    let read = tokio::time::timeout(limit, read(body, body_end, &uploader, ingest));
    let read = tokio::select! {
        biased;
        read = read => read,
        // A body that takes its time is not to hold up a recorder that stops, no more than an upload is.
        () = drained(shutdown, ingest.config.drain_limit) => {
            ingest.counters.refused_draining.increase();
            return Err(refusal(StatusCode::SERVICE_UNAVAILABLE, "draining"));
        }
    };
    // The share is held until the event is stored: its bytes are in memory until then.
    let (body, _share) = read.map_err(|_| {
        ingest.counters.refused_event_body.increase();
        let reason = "event_body_limit: the body was not there in time";
        refusal(StatusCode::REQUEST_TIMEOUT, reason)
    })??;
    let bytes = u64::try_from(body.len()).unwrap_or(u64::MAX);
    let event = Event {
        received_at: jiff::Timestamp::now(),
        uploader,
        body,
    };
    let unavailable = |reason: String| {
        ingest.counters.refused_store.increase();
        tracing::warn!(reason, "event refused");
        refusal(StatusCode::SERVICE_UNAVAILABLE, &reason)
    };
    tokio::select! {
        stored = ingest.sink.record_event(event) => match stored {
            Ok(id) => {
                tracing::debug!(%id, bytes, "event stored");
                ingest.counters.events.increase();
                ingest.counters.event_bytes.add(bytes);
                Ok(())
            }
            Err(error) => {
                tracing::warn!(error = error.with_causes(), "event not stored");
                Err(unavailable(error.to_string()))
            }
        },
        reason = stalled(ingest) => Err(unavailable(reason)),
        () = tokio::time::sleep(ingest.config.event_store_limit) => {
            let reason = "event_store_limit: the store did not answer in time";
            Err(unavailable(reason.to_owned()))
        }
    }
}

async fn drained(shutdown: &CancellationToken, limit: Duration) {
    shutdown.cancelled().await;
    tokio::time::sleep(limit).await;
}

/// The whole body, and the share of memory that it holds.
async fn read<S: RecordingSink>(
    mut body: Incoming,
    body_end: &BodyEnd,
    uploader: &Identity,
    ingest: &Shared<S>,
) -> Result<(Bytes, Share), Refusal> {
    let size_max = ingest.config.event_body_bytes_max;
    let too_large = || {
        ingest.counters.refused_event_size.increase();
        let reason = "event_body_bytes_max: the event is too large";
        refusal(StatusCode::PAYLOAD_TOO_LARGE, reason)
    };
    let no_memory = |exceeded| {
        ingest.counters.refused_event_memory.increase();
        let reason = match exceeded {
            Exceeded::All => "events_in_flight_bytes_max: too many events wait for the store",
            Exceeded::Each => {
                "events_in_flight_bytes_per_node_max: too many events of this node wait"
            }
        };
        refusal(StatusCode::SERVICE_UNAVAILABLE, reason)
    };
    // Before the first byte is asked for: the sender of a declared length need not send it.
    if body.size_hint().lower() > size_max {
        return Err(too_large());
    }
    let mut counted_bytes = EVENT_BYTES_MIN;
    let mut share = ingest
        .events
        .take(&uploader.stable_id, counted_bytes)
        .map_err(no_memory)?;
    let mut held = BytesMut::new();
    let mut held_bytes = 0_u64;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            ingest.counters.refused_event_body.increase();
            refusal(StatusCode::BAD_REQUEST, &with_causes(&error))
        })?;
        let Ok(bytes) = frame.into_data() else {
            continue; // Trailers mean nothing here.
        };
        let more = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        held_bytes = held_bytes.saturating_add(more);
        if held_bytes > size_max {
            return Err(too_large());
        }
        let uncounted_bytes = held_bytes.saturating_sub(counted_bytes);
        share.grow(uncounted_bytes).map_err(no_memory)?;
        counted_bytes = counted_bytes.saturating_add(uncounted_bytes);
        held.extend_from_slice(&bytes);
    }
    if !body_end.is_whole(&body) {
        ingest.counters.refused_event_body.increase();
        return Err(refusal(StatusCode::BAD_REQUEST, "the body was cut off"));
    }
    Ok((held.freeze(), share))
}

/// Completes, with why, once the store says that running work is to end.
async fn stalled<S: RecordingSink>(ingest: &Shared<S>) -> String {
    let mut health = ingest.sink.health();
    let reason = health
        .wait_for(|health| health.ends_running().is_some())
        .await
        .ok()
        .and_then(|health| StoreHealth::ends_running(&health).map(ToString::to_string));
    match reason {
        Some(reason) => reason,
        // The store will never say: its answer, or the limit, decides.
        None => std::future::pending().await,
    }
}
