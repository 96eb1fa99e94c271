//! The control: a node that sends to each connection what a recorder sends to an idle session, and has nothing behind it.
//!
//! It reads what comes and looks at nothing. A process of its own, started by the test from its own binary, so that its CPU time is its own; it says its
//! address on stdout.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use netstack::io::{Tailnet, TcpStream};
use tailtape::serve::RECORDER_PORT;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::PATIENCE;
use crate::session::{DATA, END_HEADERS, HEADERS, PING, SETTINGS, UPLOAD_BYTES, frame};
use crate::world::settings;

/// What recorders do, from docs/ingest.md.
const ACK_INTERVAL: Duration = Duration::from_secs(5);
const PING_INTERVAL: Duration = Duration::from_secs(20);
const BACKLOG: usize = 512;
/// As the recorder's HTTP/2 reads.
const READ_BYTES: usize = 8 << 10;

/// Serves until it is killed.
pub(crate) async fn run(control_url: &str, key_file: &Path) {
    let key = std::fs::read_to_string(key_file).unwrap();
    let node = settings(control_url, "control", &key);
    let node = Tailnet::join(node, PATIENCE).await.unwrap();
    let mut listener = node.listen(RECORDER_PORT, BACKLOG).unwrap();
    let address = SocketAddr::new(node.status().addresses[0], RECORDER_PORT);
    println!("{address}");
    while let Ok(stream) = listener.accept().await {
        // How it ends is seen by the session at the far end.
        tokio::spawn(async move { drop(serve(stream).await) });
    }
}

async fn serve(mut stream: TcpStream) -> io::Result<()> {
    let mut opening = frame(SETTINGS, 0, 0, &[]);
    opening.extend(frame(HEADERS, END_HEADERS, 1, &[0x88]));
    stream.write_all(&opening).await?;
    let ack = format!("{{\"ack\":{UPLOAD_BYTES}}}\n");
    let (ack, ping) = (
        frame(DATA, 0, 1, ack.as_bytes()),
        frame(PING, 0, 0, &[7; 8]),
    );
    let start = Instant::now();
    let mut acks = interval_at(start + ACK_INTERVAL, ACK_INTERVAL);
    let mut pings = interval_at(start + PING_INTERVAL, PING_INTERVAL);
    acks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        tokio::select! {
            read = stream.read(&mut buffer) => if read? == 0 {
                return Ok(());
            },
            _ = acks.tick() => stream.write_all(&ack).await?,
            _ = pings.tick() => stream.write_all(&ping).await?,
        }
    }
}
