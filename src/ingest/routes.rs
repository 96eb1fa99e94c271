//! Which request is answered how, and by whom.
//!
//! ```text
//! HEAD /v2/record   HTTP/2        200: "record here"; over HTTP/1.1 it is 404, and the client falls back to
//! POST /v2/record   HTTP/2        200 at once, then ack frames (record_v2)
//! POST /record      HTTP/1.1      100 Continue, and 200 when all is sealed (record_v1)
//! HEAD /v2/event    either        200, or 404 when events are off
//! POST /v2/event    either        200 when durable (event_v2)
//! anything else                   404, no body
//! ```
//!
//! Invariants: a refusal has no body and takes nothing; over HTTP/1.1 every answer but that to a HEAD ends the connection, so no second request can hide
//! behind a body; a panic on the way is a refusal too. Called by the [`connection`](super::connection).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;

use http::header::{CONNECTION, ORIGIN};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;

use super::begin::begin;
use super::connection::Connection;
use super::record_v1::NotStored;
use super::response::{Refusal, ResponseBody, accepted, refusal};
use super::sink::RecordingSink;
use super::stats::Counter;
use super::{event_v2, record_v1, record_v2};

/// What hyper is told: a response, or that the connection is to be closed without one.
type Answer = Result<Response<ResponseBody>, NotStored>;

/// A response that is there, or will be.
enum Answering {
    Now(Response<ResponseBody>),
    Later(Pin<Box<dyn Future<Output = Answer> + Send>>),
}

#[derive(Clone, Copy)]
enum Endpoint {
    RecordV1,
    RecordV2,
    Event,
}

/// The response to any request.
pub(super) async fn answer<S: RecordingSink>(
    request: Request<Incoming>,
    shared: Arc<Connection<S>>,
) -> Answer {
    shared.heard_a_request();
    let ends = request.version() < Version::HTTP_2 && request.method() != Method::HEAD;
    let routed = catch_unwind(AssertUnwindSafe(|| route(request, &shared)));
    let mut response = match routed {
        Ok(Answering::Now(response)) => response,
        Ok(Answering::Later(response)) => response.await?,
        Err(_) => panicked(&shared),
    };
    if ends {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
    }
    shared.gave_an_answer();
    Ok(response)
}

fn route<S: RecordingSink>(request: Request<Incoming>, shared: &Arc<Connection<S>>) -> Answering {
    let (endpoint, probe) = match admit(&request, shared) {
        Ok(admitted) => admitted,
        Err(refused) => return Answering::Now(refused.response()),
    };
    let version = request.version();
    let body = request.into_body();
    match endpoint {
        _ if probe => Answering::Now(accepted()),
        Endpoint::RecordV2 => match begin(shared, record_v2::PATH, version) {
            Ok(begun) => Answering::Now(record_v2::record(body, begun)),
            Err(refused) => Answering::Now(refused.response()),
        },
        Endpoint::RecordV1 => match begin(shared, record_v1::PATH, version) {
            Ok(begun) => Answering::Later(Box::pin(record_v1::record(body, begun))),
            Err(refused) => Answering::Now(refused.response()),
        },
        Endpoint::Event => {
            let shared = Arc::clone(shared);
            let (running, body_end) = (shared.running(), shared.body_end(version));
            let connection = Arc::clone(&shared);
            // In a task of its own a panic is an answer too, and an event that was read is stored although its sender hung up.
            let work = tokio::spawn(async move {
                let uploader = connection.identity.clone();
                let (ingest, shutdown) = (&connection.ingest, &connection.shutdown);
                let response = event_v2::event(body, &body_end, uploader, ingest, shutdown).await;
                drop(running);
                response
            });
            Answering::Later(Box::pin(async move {
                Ok(work.await.unwrap_or_else(|_| panicked(&shared)))
            }))
        }
    }
}

fn panicked<S>(shared: &Connection<S>) -> Response<ResponseBody> {
    tracing::error!("a request handler panicked");
    shared.ingest.counters.panics.increase();
    refusal(StatusCode::SERVICE_UNAVAILABLE, "internal error").response()
}

/// Whether a request is taken: by which endpoint, and whether it only asks.
fn admit<S: RecordingSink>(
    request: &Request<Incoming>,
    shared: &Connection<S>,
) -> Result<(Endpoint, bool), Refusal> {
    let (ingest, counters) = (&shared.ingest, &shared.ingest.counters);
    let refused = |counter: &Counter, status, reason: &str| {
        counter.increase();
        tracing::info!(%status, reason, "request refused");
        Err(refusal(status, reason))
    };
    if is_browser(request.headers()) {
        let reason = "this is no website: requests of browsers are refused";
        return refused(&counters.refused_browser, StatusCode::FORBIDDEN, reason);
    }
    let head_bytes_max = usize::try_from(ingest.config.request_head_bytes_max);
    if head_bytes(request) > head_bytes_max.unwrap_or(usize::MAX) {
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        let reason = "request_head_bytes_max: the request head is too large";
        return refused(&counters.refused_head, status, reason);
    }
    let Some((endpoint, probe)) = endpoint(request) else {
        let reason = "no such endpoint";
        return refused(&counters.refused_unknown, StatusCode::NOT_FOUND, reason);
    };
    if matches!(endpoint, Endpoint::Event) && !ingest.config.events {
        let reason = "events = off: events are not taken here";
        return refused(&counters.refused_events_off, StatusCode::NOT_FOUND, reason);
    }
    if shared.shutdown.is_cancelled() {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        return refused(&counters.refused_draining, status, "draining");
    }
    let health = ingest.sink.health();
    let unwell = health.borrow().refusal().cloned();
    if let Some(error) = unwell {
        // Causes name what is on the recorder's host: they are for its log.
        tracing::debug!(error = error.with_causes(), "the store takes nothing");
        let status = StatusCode::SERVICE_UNAVAILABLE;
        return refused(&counters.refused_store, status, &error.to_string());
    }
    if let Some(reason) = ingest.config.policy.refusal(&shared.identity) {
        return refused(&counters.refused_policy, StatusCode::FORBIDDEN, reason);
    }
    Ok((endpoint, probe))
}

fn endpoint(request: &Request<Incoming>) -> Option<(Endpoint, bool)> {
    let probe = request.method() == Method::HEAD;
    if !probe && request.method() != Method::POST {
        return None;
    }
    let (http_1, http_2) = (
        request.version() == Version::HTTP_11,
        request.version() == Version::HTTP_2,
    );
    match request.uri().path() {
        record_v2::PATH if http_2 => Some((Endpoint::RecordV2, probe)),
        record_v1::PATH if http_1 && !probe => Some((Endpoint::RecordV1, probe)),
        event_v2::PATH if http_1 || http_2 => Some((Endpoint::Event, probe)),
        _ => None,
    }
}

/// A page that a person on the tailnet looks at could make their browser upload in their name.
fn is_browser(headers: &HeaderMap) -> bool {
    let fetch = |name: &http::HeaderName| name.as_str().starts_with("sec-fetch-");
    headers.contains_key(ORIGIN) || headers.keys().any(fetch)
}

fn head_bytes(request: &Request<Incoming>) -> usize {
    let fields = request.headers().iter();
    let fields = fields.map(|(name, value)| name.as_str().len().saturating_add(value.len()));
    let target = request.uri().path_and_query();
    let target = target.map_or(0, |target| target.as_str().len());
    fields.fold(target, usize::saturating_add)
}
