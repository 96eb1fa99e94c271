//! What stock clients do that the recorder has no part in, or must never cause: one table, one sentence for each case.
//!
//! The cases of `peers/tailscale/cmd/conformance` play a recorder that misbehaves to the Go library; those of the Kubernetes
//! operator are its own tests and one of ours, run from the module `peers/k8s`. A case that is listed but does not run fails, and so does one that runs but
//! is not listed. Called by the test in `main.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::Deserialize;

use crate::bench::Bench;
use crate::process::output_of;
use crate::toolchain::operator_tests;

/// One case and how often it runs, each time with another way to misbehave.
struct Case {
    id: &'static str,
    runs: usize,
    /// What the recorder may rely on.
    sentence: &'static str,
}

/// A test of the Kubernetes operator.
struct OperatorTest {
    case: Case,
    package: &'static str,
    test: &'static str,
}

/// Cases in which a scripted recorder misbehaves.
const SCRIPTED: [Case; 13] = [
    case(
        "C03",
        1,
        "without acks the client gives up after 30 s, although all bytes arrived",
    ),
    case(
        "C09",
        2,
        "after a refused port and a 500 the third recorder is used",
    ),
    case(
        "X03",
        1,
        "a response that ends early is no error, but further writes fail",
    ),
    case(
        "X04",
        7,
        "a reset, a lost connection or a bent frame is an error",
    ),
    case("X05", 1, "an error frame after the whole body is an error"),
    case(
        "X08",
        3,
        "a refusal of POST with a body, or without an end, hangs the client",
    ),
    case(
        "X09",
        1,
        "late response headers delay the login by as much, and no more",
    ),
    case(
        "X10",
        1,
        "compressed ack frames are understood, and keep a session alive",
    ),
    case(
        "X11",
        1,
        "v1: 200 before 100 sends the client to the next recorder",
    ),
    case(
        "X12",
        1,
        "v1: an early 200 ends the upload without an error, and further writes fail",
    ),
    case(
        "X13",
        1,
        "a silent peer costs 10 s, and then the client waits for ever",
    ),
    case(
        "X14",
        2,
        "a peer that answers or closes on HTTP/2's preface is spoken to in v1 at once",
    ),
    case(
        "X15",
        1,
        "of four dead addresses three are tried, twice for 5 s each; the fourth fails at once",
    ),
];

/// Cases that the operator's own tests judge, and one of ours that gives it a recorder: each subtest is a run.
const OPERATOR: [OperatorTest; 6] = [
    OperatorTest {
        case: case(
            "C11",
            6,
            "exec and attach: fail open and fail closed, at the connection and later",
        ),
        package: "tailscale.com/k8s-operator/sessionrecording",
        test: "Test_Hijacker",
    },
    OperatorTest {
        case: case(
            "C11",
            6,
            "exec and attach: an error frame ends the session, soon also one that may fail open",
        ),
        package: "tailtape.dev/interop/k8s",
        test: "TestHijackerAgainstARecorder",
    },
    OperatorTest {
        case: case(
            "C13",
            5,
            "recorders keep their order over grants; one that enforces is enough",
        ),
        package: "tailscale.com/k8s-operator/api-proxy",
        test: "Test_determineRecorderConfig",
    },
    OperatorTest {
        case: case(
            "C14",
            15,
            "an event holds what was asked; the first recorder that takes it is the only one",
        ),
        package: "tailscale.com/k8s-operator/api-proxy",
        test: "TestRecordRequestAsEvent",
    },
    OperatorTest {
        case: case(
            "C15",
            6,
            "a Recorder resource: validation, its StatefulSet, and status from the state Secret",
        ),
        package: "tailscale.com/cmd/k8s-operator",
        test: "TestRecorder",
    },
    OperatorTest {
        case: case(
            "C15",
            1,
            "a Recorder resource: every field of the specification reaches the StatefulSet",
        ),
        package: "tailscale.com/cmd/k8s-operator",
        test: "TestRecorderSpecs",
    },
];

const fn case(id: &'static str, runs: usize, sentence: &'static str) -> Case {
    Case { id, runs, sentence }
}

/// What became of one run.
#[derive(Debug, Deserialize)]
struct Outcome {
    id: String,
    variant: String,
    ok: bool,
    detail: String,
    ms: u64,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, variant, .. } = self;
        let end = if self.ok { "ok" } else { "FAILED" };
        write!(f, "{id} {end:<6} {:>5} ms", self.ms)?;
        if !variant.is_empty() {
            write!(f, "  {variant}:")?;
        }
        write!(f, "  {}", self.detail)
    }
}

/// Runs all cases, prints the table and the number of runs, and fails unless each ran as often as listed and ended as stated.
#[expect(clippy::print_stderr, reason = "the run shows its table")]
pub(crate) fn every_case_runs_and_ends_as_stated(bench: &Bench) -> anyhow::Result<()> {
    // Both wait more than they work.
    let (scripted, operator) = thread::scope(|scope| {
        let operator = scope.spawn(operator_outcomes);
        (scripted_outcomes(bench), operator.join())
    });
    let operator = operator.map_err(|_panic| anyhow::anyhow!("the operator's tests panicked"))?;
    let mut outcomes = scripted?;
    outcomes.extend(operator?);
    outcomes.sort_by(|a, b| (&a.id, &a.variant).cmp(&(&b.id, &b.variant)));

    let operator = OPERATOR.iter().map(|judge| &judge.case);
    let mut listed: BTreeMap<&str, usize> = BTreeMap::new();
    for Case { id, runs, sentence } in SCRIPTED.iter().chain(operator) {
        *listed.entry(id).or_default() += runs;
        eprintln!("interop: {id} {sentence}");
    }
    let mut executed: BTreeMap<&str, usize> = BTreeMap::new();
    for outcome in &outcomes {
        *executed.entry(outcome.id.as_str()).or_default() += 1;
        eprintln!("interop: {outcome}");
    }
    eprintln!(
        "interop: executed {} of {} runs of {} cases on the client's side",
        outcomes.len(),
        listed.values().sum::<usize>(),
        listed.len()
    );
    let distinct: BTreeSet<_> = outcomes.iter().map(|o| (&o.id, &o.variant)).collect();
    ensure!(
        distinct.len() == outcomes.len(),
        "a run is reported twice: {outcomes:#?}"
    );
    ensure!(
        executed == listed,
        "these ran: {executed:?}; these are listed: {listed:?}"
    );
    let failed: Vec<&Outcome> = outcomes.iter().filter(|outcome| !outcome.ok).collect();
    ensure!(failed.is_empty(), "not as stated: {failed:#?}");
    Ok(())
}

fn scripted_outcomes(bench: &Bench) -> anyhow::Result<Vec<Outcome>> {
    let printed = output_of(bench.peers().command("conformance"))?;
    let lines = printed.lines();
    lines
        .map(|line| serde_json::from_str(line).with_context(|| format!("reading {line:?}")))
        .collect()
}

/// One outcome per subtest.
fn operator_outcomes() -> anyhow::Result<Vec<Outcome>> {
    /// One line of `go test -json`.
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Event {
        action: String,
        package: Option<String>,
        test: Option<String>,
        elapsed: Option<f64>,
    }

    let tests: Vec<&str> = OPERATOR.iter().map(|judge| judge.test).collect();
    let run = format!("^({})$", tests.join("|"));
    let mut arguments = vec!["-json", "-count=1", "-run", &run];
    for OperatorTest { package, .. } in &OPERATOR {
        if !arguments.contains(package) {
            arguments.push(package);
        }
    }
    let printed = operator_tests(&arguments)?;
    let mut outcomes = Vec::new();
    for line in printed.lines() {
        let event: Event =
            serde_json::from_str(line).with_context(|| format!("reading {line:?}"))?;
        let name = event.test.unwrap_or_default();
        let Some((test, variant)) = name.split_once('/') else {
            continue;
        };
        let package = event.package.as_deref();
        let listed = OPERATOR
            .iter()
            .find(|judge| package == Some(judge.package) && test == judge.test);
        let Some(OperatorTest { case, .. }) = listed else {
            continue;
        };
        if ["pass", "fail", "skip"].contains(&event.action.as_str()) {
            let elapsed = Duration::try_from_secs_f64(event.elapsed.unwrap_or_default())?;
            outcomes.push(Outcome {
                id: case.id.to_owned(),
                variant: variant.to_owned(),
                ok: event.action == "pass",
                detail: format!("{test}: {}", event.action),
                ms: elapsed.as_millis().try_into()?,
            });
        }
    }
    Ok(outcomes)
}
