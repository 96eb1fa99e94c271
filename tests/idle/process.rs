//! The two child processes, and what the kernel says of them: resident memory and CPU time.
//!
//! Invariant: both are killed by their own pids, when dropped at the latest.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tailtape::status::Client;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::soon;
use crate::world::World;

/// The first argument of this test's binary when it is to be the control.
pub(crate) const CONTROL_WORD: &str = "control";
/// `USER_HZ` on every architecture that we build for.
const TICK: Duration = Duration::from_millis(10);
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// So many looks in a row must show the same journal.
const CALM_LOOKS: u32 = 5;

/// A child process.
pub(crate) struct Process(Child);

/// From `/proc/<pid>/smaps_rollup`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    pub(crate) resident_bytes: u64,
    pub(crate) anonymous_bytes: u64,
}

pub(crate) struct Recorder {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
    client: Client,
    log: PathBuf,
}

pub(crate) struct Control {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
}

/// Of the whole machine over one, five and fifteen minutes (proc_loadavg(5)).
pub(crate) fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap();
    let averages: Vec<&str> = text.split(' ').take(3).collect();
    averages.join(" ")
}

impl Process {
    pub(crate) fn spawn(mut command: Command) -> Self {
        Self(command.kill_on_drop(true).spawn().unwrap())
    }

    fn file(&self, name: &str) -> String {
        let pid = self.0.id().unwrap();
        fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap()
    }

    pub(crate) fn memory(&self) -> Memory {
        let text = self.file("smaps_rollup");
        let bytes = |field: &str| {
            let line = text.lines().find(|line| line.starts_with(field)).unwrap();
            let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
            kib << 10
        };
        Memory {
            resident_bytes: bytes("Rss:"),
            anonymous_bytes: bytes("Anonymous:"),
        }
    }

    /// User and system time of all its threads, those that have ended too (proc_pid_stat(5), fields 14 and 15).
    pub(crate) fn cpu(&self) -> Duration {
        let text = self.file("stat");
        // The name stands in parentheses and may hold anything.
        let (_, fields) = text.rsplit_once(") ").unwrap();
        let ticks = fields.split(' ').skip(11).take(2);
        let ticks: u32 = ticks.map(|ticks| ticks.parse::<u32>().unwrap()).sum();
        TICK * ticks
    }

    fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.0.try_wait().unwrap()
    }
}

impl Recorder {
    /// As soon as it is healthy.
    pub(crate) async fn start(command: Command, client: Client, log: PathBuf) -> Self {
        let mut process = Process::spawn(command);
        let address = soon("a healthy recorder", async {
            loop {
                if client.health().await.is_ok_and(|health| health.healthy()) {
                    break client.status().await.unwrap().node.addresses[0];
                }
                let ended = process.ended();
                assert!(ended.is_none(), "{}", fs::read_to_string(&log).unwrap());
                tokio::time::sleep(LOOK_INTERVAL / 10).await;
            }
        })
        .await;
        Self {
            process,
            address: SocketAddr::new(address, tailtape::serve::RECORDER_PORT),
            client,
            log,
        }
    }

    /// Until it has so many recordings and its journal stands still.
    pub(crate) async fn until_settled(&mut self, world: &World, sessions: usize) {
        soon("a calm recorder", async {
            let mut calm = 0;
            let mut names = world.journal_names();
            while calm < CALM_LOOKS {
                tokio::time::sleep(LOOK_INTERVAL).await;
                let now = world.journal_names();
                calm = if now == names { calm + 1 } else { 0 };
                names = now;
            }
        })
        .await;
        let open = self.client.status().await.unwrap().recordings_open;
        assert_eq!(open, u64::try_from(sessions).unwrap());
    }

    pub(crate) async fn journal_puts(&self) -> u64 {
        let store = self.client.status().await.unwrap().store;
        store.counters["journal_puts"]
    }

    pub(crate) fn assert_alive(&mut self) {
        let ended = self.process.ended();
        assert!(
            ended.is_none(),
            "{}",
            fs::read_to_string(&self.log).unwrap()
        );
    }
}

impl Control {
    /// As soon as it takes connections.
    pub(crate) async fn start(world: &World) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .arg(CONTROL_WORD)
            .arg(world.control_url())
            .arg(world.key_file("control-key"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut process = Process::spawn(command);
        let mut lines = BufReader::new(process.0.stdout.take().unwrap()).lines();
        let line = soon("the control's address", lines.next_line()).await;
        let address = line.unwrap().unwrap().parse().unwrap();
        world.until_reachable(address).await;
        Self { process, address }
    }

    pub(crate) fn assert_alive(&mut self) {
        assert!(self.process.ended().is_none(), "the control ended");
    }
}
