//! Runs a test once more: in a mount namespace of its own, or without the rights by which root overrules file modes.
//!
//! Invariant: a test whose surroundings are refused fails and says why; it is never skipped. Called by each test.

use std::future::Future;
use std::process::{Command, Stdio};

use rustix::process::geteuid;

/// Set in the second run of a test.
const INSIDE: &str = "TAILTAPE_TEST_INSIDE";

/// Runs `scenario`, the body of the test `name`, where file systems can be mounted and nobody else sees them.
pub(crate) fn may_mount(name: &str, scenario: impl Future<Output = ()>) {
    // A user namespace gives the right to make the other one; root that may not make user namespaces needs none.
    let ways: [&[&str]; 2] = [&["unshare", "-Urm"], &["unshare", "-m"]];
    run(name, &ways, scenario);
}

/// Runs `scenario`, the body of the test `name`, where a file's mode holds for root too.
pub(crate) fn may_not_overrule(name: &str, scenario: impl Future<Output = ()>) {
    let without_rights: &[&str] = &["setpriv", "--bounding-set=-all", "--inh-caps=-all"];
    let ways = match geteuid().is_root() {
        true => [without_rights],
        false => [&["env"] as &[&str]],
    };
    run(name, &ways, scenario);
}

#[expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test asks whether it is its own second run, and passes on what that one said"
)]
fn run(name: &str, ways: &[&[&str]], scenario: impl Future<Output = ()>) {
    if std::env::var_os(INSIDE).is_some() {
        tokio::runtime::Runtime::new().unwrap().block_on(scenario);
        return;
    }
    let mut refusals = String::new();
    let mut possible = |way: &&&[&str]| {
        let tried = command(way).arg("true").output().unwrap();
        refusals += &String::from_utf8_lossy(&tried.stderr);
        tried.status.success()
    };
    let Some(way) = ways.iter().find(|way| possible(way)) else {
        panic!("this machine does not let the test have its surroundings ({ways:?}): {refusals}");
    };
    let ran = command(way)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    print!("{said}");
    eprint!("{}", String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "the second run failed");
    assert!(said.contains("1 passed"), "the second run ran no test");
}

fn command(way: &[&str]) -> Command {
    let mut command = Command::new(way[0]);
    command.args(&way[1..]).stdin(Stdio::null());
    command
}
