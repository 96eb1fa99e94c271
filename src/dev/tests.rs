//! The order of sessions, on a stage that records nothing.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::*;

/// Records what it is asked to, and fails for a command that has `fail` in it.
#[derive(Default)]
struct PaperStage {
    commands: Vec<SessionCommand>,
    loses_bytes: bool,
    hangs: bool,
}

impl Stage for PaperStage {
    async fn record<W: Write>(
        &mut self,
        command: &SessionCommand,
        screen: &mut Screen<W>,
    ) -> anyhow::Result<DevReport> {
        screen.step("recorded on paper")?;
        self.commands.push(command.clone());
        if self.hangs {
            std::future::pending::<()>().await;
        }
        if command
            .header_text()
            .is_some_and(|text| text.contains("fail"))
        {
            anyhow::bail!("no recorder");
        }
        Ok(DevReport::new(SessionFacts {
            recording_id: format!("r{}", self.commands.len()),
            path: "nowhere".to_owned(),
            bytes: 1,
            events: 1,
            sha256_sent: [1; 32],
            sha256_stored: [u8::from(!self.loses_bytes); 32],
            ack_latencies: vec![Duration::from_millis(1)],
            join: Duration::from_millis(1),
            transport: "paper".to_owned(),
        }))
    }
}

struct Played {
    end: anyhow::Result<bool>,
    stdout: String,
    stderr: String,
    commands: Vec<SessionCommand>,
}

async fn play(
    mut stage: PaperStage,
    flags: &str,
    typed: &str,
    shutdown: &CancellationToken,
) -> Played {
    let args = DevArgs {
        data: PathBuf::from("."),
        once: flags.contains("once"),
        json: flags.contains("json"),
        command: Vec::new(),
    };
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let style = ScreenStyle {
        terminal_columns: None,
        color: false,
    };
    let lines = CommandLines::new(typed.as_bytes());
    let mut screen = Screen::new(&mut stderr, style);
    let end = sessions(&mut stage, &args, lines, &mut stdout, &mut screen, shutdown).await;
    Played {
        end,
        stdout: String::from_utf8(stdout).unwrap(),
        stderr: String::from_utf8(stderr).unwrap(),
        commands: stage.commands,
    }
}

#[tokio::test]
async fn once_records_the_default_session_and_prints_one_object_and_nothing_else_on_stdout() {
    let played = play(
        PaperStage::default(),
        "once json",
        "ls\n",
        &CancellationToken::new(),
    )
    .await;
    assert!(played.end.unwrap());
    let report: serde_json::Value = serde_json::from_str(&played.stdout).unwrap();
    assert_eq!(
        (&report["ok"], played.stdout.lines().count()),
        (&true.into(), 1)
    );
    assert_eq!(played.commands, [SessionCommand::from_words(Vec::new())]);
    assert_eq!(played.commands[0].header_text(), None);
    assert_eq!(played.stderr, "✓ recorded on paper\n");
}

#[tokio::test]
async fn each_line_typed_records_another_session_and_one_that_fails_does_not_end_them() {
    let played = play(
        PaperStage::default(),
        "json",
        "echo a\n\nfail\nuname",
        &CancellationToken::new(),
    )
    .await;
    assert!(!played.end.unwrap(), "one session was not recorded");
    assert_eq!(played.stdout.lines().count(), 3);
    assert!(played.stderr.contains("✗ no recorder"));
    let texts: Vec<_> = played
        .commands
        .iter()
        .filter_map(SessionCommand::header_text)
        .collect();
    assert_eq!(
        texts,
        ["/bin/sh -c echo a", "/bin/sh -c fail", "/bin/sh -c uname"]
    );
}

#[tokio::test]
async fn once_fails_if_what_is_stored_is_not_what_was_sent() {
    let stage = PaperStage {
        loses_bytes: true,
        ..PaperStage::default()
    };
    let played = play(stage, "once", "", &CancellationToken::new()).await;
    assert!(!played.end.unwrap());
    assert!(played.stdout.contains("DIFFER"));
}

#[tokio::test]
async fn a_stop_during_a_session_ends_it_and_is_no_success() {
    let shutdown = CancellationToken::new();
    let stage = PaperStage {
        hangs: true,
        ..PaperStage::default()
    };
    let stop = async {
        tokio::task::yield_now().await;
        shutdown.cancel();
    };
    let (played, ()) = tokio::join!(play(stage, "", "ls\n", &shutdown), stop);
    assert!(!played.end.unwrap());
    assert!(played.stderr.contains("stopped"));
    assert!(played.stdout.is_empty());
}

#[test]
fn a_commands_words_are_joined_as_a_stock_node_joins_them() {
    let words = ["echo", "a b", "&&"].map(OsString::from).to_vec();
    let command = SessionCommand::from_words(words);
    assert_eq!(command.header_text().unwrap(), "echo a b &&");
}
