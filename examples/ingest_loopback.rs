//! One recording over loopback TCP into a `file://` store, both ends in one process: made to be looked at from outside.
//!
//! `ingest_loopback file:///absolute/path` serves ingest for one connection and uploads two writes over it. Each is sent only
//! after the one before was acked, so each has a journal commit of its own, and each holds a text that names it: a trace of
//! the system calls shows which commit it went into, and when its ack left. One line on stdout per write says where its bytes
//! stand: `write START END TEXT`. The invariant: it ends well only if all bytes were acked and sealed. `tests/strace_commit.sh` runs it.

#![expect(clippy::print_stdout, reason = "its stdout is what the judge reads")]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use tailtape::access::Identity;
use tailtape::asciicast::{CODE_OUTPUT, Header, encode_event, encode_header};
use tailtape::capture::{Upload, connect};
use tailtape::ids::LogKey;
use tailtape::ingest::{IngestConfig, serve_connection};
use tailtape::store::{Store, StoreConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// The texts by which the two writes are found in a trace.
const TEXTS: [&str; 2] = ["first-write-of-the-proof", "second-write-of-the-proof"];

/// Two commits and a seal take about a second and a half; what takes longer than this is broken.
const ACK_MAX: Duration = Duration::from_secs(20);

/// How often the upload is asked how far it is.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let url = std::env::args()
        .nth(1)
        .context("usage: ingest_loopback file:///absolute/path")?;
    let config = StoreConfig::new(url.parse()?, LogKey::from_bytes([7; LogKey::BYTES]));
    let store = Store::open(config).await.context("cannot open the store")?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let server = tokio::spawn(serve_one(listener, store.clone()));

    let mut upload = connect(&[address], &TcpStream::connect).await?;
    let header = encode_header(&Header {
        version: 2,
        width: 80,
        height: 24,
        ..Header::default()
    })?;
    let mut start = 0;
    for (text, prefix) in TEXTS.into_iter().zip([header, Vec::new()]) {
        let mut bytes = prefix;
        bytes.extend(encode_event(1.0, CODE_OUTPUT, text.as_bytes()));
        let end = start + u64::try_from(bytes.len())?;
        println!("write {start} {end} {text}");
        upload.write(Bytes::from(bytes)).await?;
        tokio::time::timeout(ACK_MAX, acked(&upload, end))
            .await
            .with_context(|| format!("byte {end} was not acked within {ACK_MAX:?}"))?;
        start = end;
    }
    let uploaded = upload.finish().await?;
    ensure!(
        uploaded.acked_bytes == start && uploaded.untrue_acks == 0,
        "not all was acked: {uploaded:?}"
    );
    server.await??;
    let sealed = store.stats().sealed;
    ensure!(sealed == 1, "{sealed} recordings were sealed");
    Ok(store.close().await?)
}

/// Serves the first connection that comes, until it is closed and its recording is sealed.
async fn serve_one(listener: TcpListener, store: Store) -> anyhow::Result<()> {
    let (stream, peer) = listener.accept().await?;
    drop(listener);
    let config = IngestConfig::default();
    serve_connection(
        stream,
        uploader(peer),
        store,
        config,
        CancellationToken::new(),
    )
    .await;
    Ok(())
}

/// There is no tailnet here to say who uploads.
fn uploader(peer: SocketAddr) -> Identity {
    Identity {
        stable_id: "nLoopbackCNTRL".to_owned(),
        node_name: "loopback.tail.test".to_owned(),
        user: None,
        tags: Vec::new(),
        address: peer.ip(),
        capabilities: BTreeMap::new(),
    }
}

async fn acked(upload: &Upload, offset: u64) {
    while upload.progress().acked_bytes < offset {
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}
