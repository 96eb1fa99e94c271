//! The endpoints beside `/v2/record`, as a stock client speaks them: recordings over HTTP/1.1, and events. What our recorder
//! serves is listed here; what it does not serve, it must refuse so that the client notices at once. Called by the tests in
//! `main.rs`.

use anyhow::{Context, ensure};

use crate::bench::Bench;
use crate::recclient::{Cast, Endpoint, Job, Report, Running};
use crate::scenarios;
use crate::tailnet::Tailnet;

/// What our recorder serves beside `/v2/record`.
pub(crate) const SERVED: &[Endpoint] = &[Endpoint::RecordV1, Endpoint::EventV2];

/// All that there are.
pub(crate) const ALL: [Endpoint; 2] = [Endpoint::RecordV1, Endpoint::EventV2];

/// An event as the API server proxy sends it.
const EVENT: &str = concat!(
    r#"{"type":"kubernetes-api-request","id":"","timestamp":1767225600,"userAgent":"kubectl/v1.34.0","#,
    r#""request":{"method":"GET","path":"/api/v1/namespaces/default/pods?limit=500","body":"","queryParameters":{"limit":["500"]}},"#,
    r#""kubernetes":{"IsResourceRequest":true,"Path":"/api/v1/namespaces/default/pods","Verb":"list","APIPrefix":"api","#,
    r#""APIGroup":"","APIVersion":"v1","Namespace":"default","Resource":"pods","Subresource":"","Name":"","Parts":["pods"],"#,
    r#""FieldSelector":"","LabelSelector":""},"source":{"node":"laptop.tail.test","nodeID":"nLaptopCNTRL","nodeUserID":1,"#,
    r#""nodeUser":"alice@example.com"},"destination":{"node":"","nodeID":""}}"#,
    "\n"
);

/// A client that sends `cast`, or an event, to `endpoint`.
pub(crate) fn job(bench: &Bench, endpoint: Endpoint, cast: Cast) -> anyhow::Result<Job<'static>> {
    let (hostname, cast) = match endpoint {
        Endpoint::RecordV2 => ("v2-record", cast),
        Endpoint::RecordV1 => ("v1-record", cast),
        Endpoint::EventV2 => ("v2-event", Cast::File(bench.file("event.json", EVENT)?)),
    };
    Ok(Job {
        endpoint,
        ..Job::new(hostname, cast)
    })
}

/// The client is refused at once, and says so: a recording would go to the next recorder, an event as the policy says.
#[expect(clippy::print_stderr, reason = "the run shows what is not there")]
pub(crate) fn a_stock_client_is_refused(
    bench: &Bench,
    tailnet: &Tailnet,
    job: &Job<'_>,
) -> anyhow::Result<()> {
    let report: Report = Running::start(bench, tailnet, job)?.report()?;
    let (attempts, in_order) = match job.endpoint {
        Endpoint::RecordV2 | Endpoint::RecordV1 => {
            let upload = report.uploads.first().context("no upload was tried")?;
            (&upload.attempts, upload.statuses == [404])
        }
        Endpoint::EventV2 => {
            let event = report.event.as_ref().context("no event was sent")?;
            let not_found = event.not_supported && event.statuses == [404];
            (&event.attempts, not_found)
        }
    };
    let [attempt] = attempts.as_slice() else {
        anyhow::bail!("{} attempts: {report:?}", attempts.len());
    };
    ensure!(
        in_order && attempt.recorder == tailnet.recorder.to_string() && !attempt.error.is_empty(),
        "not refused as what is not there: {report:?}"
    );
    eprintln!(
        "interop: {}: {} is refused: {}",
        job.hostname,
        job.endpoint.path(),
        attempt.error
    );
    Ok(())
}

/// As [`scenarios::a_stock_client_uploads`] or [`a_stock_client_is_refused`], whichever our recorder should do.
pub(crate) fn a_stock_client_tries(
    bench: &Bench,
    tailnet: &Tailnet,
    job: &Job<'_>,
) -> anyhow::Result<Option<Report>> {
    if SERVED.contains(&job.endpoint) {
        scenarios::a_stock_client_uploads(bench, tailnet, job).map(Some)
    } else {
        a_stock_client_is_refused(bench, tailnet, job).map(|()| None)
    }
}
