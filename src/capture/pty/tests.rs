//! Real commands under real terminals.

use std::os::unix::process::ExitStatusExt;

use super::*;

const SIZE: TerminalSize = TerminalSize {
    columns: 97,
    rows: 31,
};

/// Far longer than any of these takes; it only keeps a hang from hanging the suite.
const PATIENCE: Duration = Duration::from_secs(20);

fn shell(script: &str) -> PtySession {
    let command = ["/bin/sh", "-c", script].map(OsString::from);
    PtySession::spawn(&command, SIZE, Instant::now()).unwrap()
}

async fn output_of(session: &mut PtySession) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    while let Some(chunk) = timeout(PATIENCE, session.next_chunk()).await.unwrap() {
        chunks.push(chunk);
    }
    chunks
}

fn text(chunks: &[Chunk]) -> String {
    let bytes: Vec<u8> = chunks
        .iter()
        .flat_map(|chunk| chunk.bytes.to_vec())
        .collect();
    String::from_utf8(bytes).unwrap()
}

async fn first_number(session: &mut PtySession) -> Pid {
    let chunk = timeout(PATIENCE, session.next_chunk())
        .await
        .unwrap()
        .unwrap();
    let text = String::from_utf8(chunk.bytes.to_vec()).unwrap();
    let first_line = text.lines().next().unwrap();
    Pid::from_raw(first_line.parse().unwrap()).unwrap()
}

async fn wait_until_gone(pid: Pid) {
    let gone = async {
        while rustix::process::test_kill_process(pid).is_ok() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, gone).await.unwrap();
}

#[tokio::test]
async fn a_command_sees_a_terminal_of_the_size_asked_for() {
    let mut session = shell("test -t 0 && test -t 1 && test -t 2 && echo \"$TERM\" && stty size");
    assert_eq!(
        text(&output_of(&mut session).await),
        "xterm-256color\r\n31 97\r\n"
    );
    assert!(session.wait().await.unwrap().success());
}

#[tokio::test]
async fn all_output_arrives_in_order_with_times_that_never_fall() {
    let mut session = shell("i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done");
    let chunks = output_of(&mut session).await;
    let expected: String = (0..20_000).map(|i| format!("line {i}\r\n")).collect();
    assert!(text(&chunks) == expected);
    assert!(chunks.windows(2).all(|pair| pair[0].at <= pair[1].at));
    assert!(
        chunks
            .iter()
            .all(|chunk| (1..=CHUNK_BYTES_MAX).contains(&chunk.bytes.len()))
    );
}

#[tokio::test]
async fn the_exit_status_is_the_commands_own() {
    let mut session = shell("echo bye; exit 7");
    output_of(&mut session).await;
    assert_eq!(session.wait().await.unwrap().code(), Some(7));
    let session = shell("kill -TERM $$");
    assert_eq!(session.wait().await.unwrap().signal(), Some(15));
}

#[tokio::test]
async fn a_session_ends_with_its_command_though_a_process_it_left_keeps_the_terminal() {
    let mut session = shell("trap '' HUP; sleep 60 & echo $!; exit 3");
    let left = first_number(&mut session).await;
    output_of(&mut session).await;
    assert_eq!(session.wait().await.unwrap().code(), Some(3));
    rustix::process::kill_process(left, Signal::KILL).unwrap();
}

#[tokio::test]
async fn a_command_that_closes_its_terminal_is_waited_for() {
    let mut session = shell("exec </dev/null >/dev/null 2>&1; sleep 0.2; exit 5");
    output_of(&mut session).await;
    assert_eq!(session.wait().await.unwrap().code(), Some(5));
}

#[tokio::test]
async fn an_end_of_input_ends_a_command_that_reads_its_terminal() {
    let mut session = shell("stty -echo; echo ready; cat; echo done");
    timeout(PATIENCE, session.next_chunk())
        .await
        .unwrap()
        .unwrap();
    session.end_input();
    assert!(text(&output_of(&mut session).await).ends_with("done\r\n"));
}

#[tokio::test]
async fn an_end_of_input_reaches_a_command_that_sets_its_terminal_up_late() {
    // Leaving canonical mode turns an end-of-file that was typed before into a zero byte; the next one counts.
    let mut session = shell("sleep 0.2; stty raw; dd bs=1 count=2 2>/dev/null | od -An -tx1");
    session.end_input();
    let text = text(&output_of(&mut session).await);
    assert!(text.contains("04"), "{text:?}");
}

#[tokio::test]
async fn a_dropped_session_leaves_no_process_and_no_zombie() {
    let mut session = shell("echo $$; while :; do sleep 1; done");
    let leader = first_number(&mut session).await;
    drop(session);
    wait_until_gone(leader).await;
}

#[tokio::test]
async fn a_command_deaf_to_the_hangup_is_killed() {
    let mut session = shell("trap '' HUP; echo $$; while :; do sleep 1; done");
    let leader = first_number(&mut session).await;
    drop(session);
    wait_until_gone(leader).await;
}

#[tokio::test]
async fn a_command_whose_output_nobody_takes_is_held_up() {
    let mut session = shell("echo $$; exec yes");
    let leader = first_number(&mut session).await;
    let held_up = async {
        // A process asleep in a write to a full terminal: state S in the kernel's words.
        loop {
            let stat =
                std::fs::read_to_string(format!("/proc/{}/stat", leader.as_raw_nonzero())).unwrap();
            if session.chunks.len() == CHUNKS_QUEUED_MAX && stat.contains("(yes) S") {
                break;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, held_up).await.unwrap();
    drop(session);
    wait_until_gone(leader).await;
}

#[tokio::test]
async fn a_command_that_does_not_exist_is_named_in_the_error() {
    let command = [OsString::from("/nowhere/tailtape-no-such-command")];
    let error = PtySession::spawn(&command, SIZE, Instant::now()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot run /nowhere/tailtape-no-such-command"
    );
    assert!(matches!(
        PtySession::spawn(&[], SIZE, Instant::now()),
        Err(PtyError::NoCommand)
    ));
}
