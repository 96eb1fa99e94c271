//! The binary as a child process: what it says on stdout, what it is told on stdin, which sockets it has.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::soon;

/// `TCP_LISTEN` in the fourth column of `/proc/net/tcp` (include/net/tcp_states.h).
const LISTENING: &str = "0A";

/// `tailtape dev`, running; killed when dropped.
pub(crate) struct DevProcess {
    child: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
}

/// What a process is bound to.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    pub(crate) tcp_listeners: Vec<SocketAddr>,
    pub(crate) tcp_connections: Vec<SocketAddr>,
    pub(crate) udp: Vec<SocketAddr>,
}

/// `tailtape dev` with recordings below `data`; its stderr is the test's.
pub(crate) fn dev(data: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tailtape"));
    command
        .args(["dev", "--json", "--data"])
        .arg(data)
        .kill_on_drop(true);
    command
}

impl DevProcess {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        Self {
            stdin: child.stdin.take().unwrap(),
            stdout,
            child,
        }
    }

    /// The next line on stdout, which is one JSON object.
    pub(crate) async fn report(&mut self) -> Value {
        let line = soon("a report", self.stdout.next_line()).await.unwrap();
        serde_json::from_str(&line.expect("stdout is not closed")).unwrap()
    }

    pub(crate) async fn type_line(&mut self, line: &str) {
        self.stdin.write_all(line.as_bytes()).await.unwrap();
        self.stdin.write_all(b"\n").await.unwrap();
    }

    /// Asks it to stop, with its stdin still open.
    pub(crate) async fn terminate(mut self) -> (ExitStatus, Option<String>) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
        let status = soon("its end", self.child.wait()).await.unwrap();
        (status, self.stdout.next_line().await.unwrap())
    }

    /// Its sockets as the kernel has them.
    pub(crate) fn sockets(&self) -> Sockets {
        sockets_of(self.child.id().unwrap())
    }
}

/// The sockets of a process as the kernel has them.
pub(crate) fn sockets_of(pid: u32) -> Sockets {
    let process = Path::new("/proc").join(pid.to_string());
    let inodes: BTreeSet<String> = fs::read_dir(process.join("fd"))
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .filter_map(|target| {
            let inode = target.to_str()?.strip_prefix("socket:[")?;
            Some(inode.trim_end_matches(']').to_owned())
        })
        .collect();
    let mut sockets = Sockets::default();
    for table in ["tcp", "tcp6", "udp", "udp6"] {
        let Ok(text) = fs::read_to_string(process.join("net").join(table)) else {
            continue; // A kernel without IPv6 has no such table.
        };
        for row in text.lines().skip(1) {
            let columns: Vec<&str> = row.split_whitespace().collect();
            if !inodes.contains(columns[9]) {
                continue;
            }
            let address = address(columns[1]);
            match (table.starts_with("tcp"), columns[3]) {
                (true, LISTENING) => sockets.tcp_listeners.push(address),
                (true, _) => sockets.tcp_connections.push(address),
                (false, _) => sockets.udp.push(address),
            }
        }
    }
    sockets
}

/// `0100007F:1F90`, as the kernel prints it: each 32 bits of the address in the machine's order.
fn address(text: &str) -> SocketAddr {
    let (host, port) = text.split_once(':').unwrap();
    let bytes: Vec<u8> = host
        .as_bytes()
        .chunks(8)
        .flat_map(|word| {
            let word = std::str::from_utf8(word).unwrap();
            u32::from_str_radix(word, 16).unwrap().to_ne_bytes()
        })
        .collect();
    let host: IpAddr = match <[u8; 4]>::try_from(&bytes[..]) {
        Ok(v4) => v4.into(),
        Err(_) => <[u8; 16]>::try_from(&bytes[..]).unwrap().into(),
    };
    SocketAddr::new(host.to_canonical(), u16::from_str_radix(port, 16).unwrap())
}

#[test]
fn the_kernels_addresses_are_read_in_the_machines_order() {
    let word = |bytes: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(bytes));
    let v4 = format!("{}:1F90", word([127, 0, 0, 1]));
    assert_eq!(address(&v4), "127.0.0.1:8080".parse().unwrap());
    let zero = word([0; 4]);
    let v6 = format!("{zero}{zero}{zero}{}:0050", word([0, 0, 0, 1]));
    assert_eq!(address(&v6), "[::1]:80".parse().unwrap());
    let any = format!("{zero}:0050");
    assert!(!address(&any).ip().is_loopback());
}
