//! A tailnet of one machine and a node that uploads to its recorder, told line by line what to send: made to be looked at from outside.
//!
//! `devnet_sender tunnel DIR` starts a devnet, leaves an auth key for a recorder in `DIR/auth-key` and joins as a node.
//! `devnet_sender plain DIR` has ingest listen on a loopback TCP port of its own instead, with a store in memory: the same uploads
//! with WireGuard bypassed, which nothing that is shipped can do. Then each line on stdin is `record-v2 FILE`, `record-v1 FILE` or
//! `event FILE`, and each answer on stdout is one JSON object. The invariant: an upload is answered only once the recorder has acked
//! all of it, and the bytes on its way are those of the file. `tests/wire_capture.sh` runs it; it is a tool of the tests.

#![expect(clippy::print_stdout, reason = "its stdout is what the test reads")]

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use netstack::control::AuthKey;
use netstack::devnet::{AuthKeySpec, DevNet, DevNetConfig};
use netstack::io::keystore::KeyStore;
use netstack::io::{Tailnet, TailnetConfig};
use netstack::tcpip::TcpConfig;
use serde_json::json;
use tailtape::access::Identity;
use tailtape::capture::connect;
use tailtape::ids::LogKey;
use tailtape::ingest::{IngestConfig, serve_connection};
use tailtape::serve::RECORDER_PORT;
use tailtape::store::{Store, StoreConfig, StoreUrl};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// What takes longer than this is broken.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often the devnet is asked whether the recorder has joined.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// A terminal writes small pieces.
const PIECE_BYTES: usize = 700;

/// A response to HTTP/1.1 has no body and few headers.
const RESPONSE_BYTES_MAX: u64 = 4096;

const RECORDER_TAG: &str = "tag:recorder";
const USER: &str = "you@example.com";

/// How the recorder is reached.
enum Way {
    Tunnel { devnet: DevNet, node: Box<Tailnet> },
    Plain { recorder: SocketAddr },
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let usage = "usage: devnet_sender tunnel|plain DIR";
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [mode, directory] = arguments.as_slice() else {
        bail!(usage);
    };
    let way = match mode.as_str() {
        "tunnel" => Way::tunnel(Path::new(directory)).await?,
        "plain" => Way::plain().await?,
        _ => bail!(usage),
    };
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let (what, file) = line
            .split_once(' ')
            .context("a line is a word and a file")?;
        let bytes = tokio::fs::read(file)
            .await
            .context("cannot read the file")?;
        let sending = send(&way, what, &bytes);
        tokio::time::timeout(PATIENCE, sending)
            .await
            .with_context(|| format!("{what}: not within {PATIENCE:?}"))?
            .with_context(|| format!("cannot send {file} as {what}"))?;
        println!("{}", json!({ "sent": what, "bytes": bytes.len() }));
    }
    if let Way::Tunnel { devnet, node } = way {
        node.close().await;
        devnet.shutdown().await;
    }
    Ok(())
}

async fn send(way: &Way, what: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let recorder = way.recorder().await;
    match what {
        "record-v2" => record_v2(way, recorder, bytes).await,
        "record-v1" => record_v1(way.dial(recorder).await?, bytes).await,
        "event" => event(way.dial(recorder).await?, bytes).await,
        _ => bail!("there is no such upload"),
    }
}

impl Way {
    async fn tunnel(directory: &Path) -> anyhow::Result<Self> {
        let devnet = DevNet::start(DevNetConfig::default()).await?;
        let user = devnet.add_user(USER);
        let key = |tags: &[&str]| {
            devnet.auth_key(AuthKeySpec {
                user,
                tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
                reusable: false,
                ephemeral: false,
            })
        };
        std::fs::write(directory.join("auth-key"), key(&[RECORDER_TAG])?)?;
        let config = TailnetConfig {
            control_url: devnet.url(),
            hostname: "ssh-node".to_owned(),
            auth_key: Some(AuthKey::new(&key(&[])?)),
            ephemeral: false,
            app: "tailtape".to_owned(),
            version_text: env!("CARGO_PKG_VERSION").to_owned(),
            keys: KeyStore::ephemeral(),
            bind: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))],
            udp_offload: true,
            tcp: TcpConfig::default(),
        };
        let node = Tailnet::join(config, PATIENCE).await?;
        let control = devnet.address();
        println!(
            "{}",
            json!({ "control_url": devnet.url(), "control_port": control.port() })
        );
        Ok(Self::Tunnel {
            devnet,
            node: Box::new(node),
        })
    }

    async fn plain() -> anyhow::Result<Self> {
        let key = LogKey::from_bytes([7; LogKey::BYTES]);
        let store = Store::open(StoreConfig::new(StoreUrl::Memory, key)).await?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let recorder = listener.local_addr()?;
        println!("{}", json!({ "recorder_port": recorder.port() }));
        tokio::spawn(accept(listener, store));
        Ok(Self::Plain { recorder })
    }

    /// Where the recorder is, once it is there.
    async fn recorder(&self) -> SocketAddr {
        let devnet = match self {
            Self::Plain { recorder } => return *recorder,
            Self::Tunnel { devnet, .. } => devnet,
        };
        loop {
            let nodes = devnet.nodes();
            let mut recorders = nodes
                .iter()
                .filter(|node| node.online && node.tags.iter().any(|tag| tag == RECORDER_TAG));
            if let Some(address) = recorders.find_map(|node| node.addresses.first()) {
                return SocketAddr::new(*address, RECORDER_PORT);
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    async fn dial(&self, recorder: SocketAddr) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Tunnel { node, .. } => Box::new(node.dial(recorder).await?),
            Self::Plain { .. } => Box::new(TcpStream::connect(recorder).await?),
        })
    }
}

async fn accept(listener: TcpListener, store: Store) -> io::Result<()> {
    loop {
        let (stream, peer) = listener.accept().await?;
        let identity = Identity {
            stable_id: "nLoopbackCNTRL".to_owned(),
            node_name: "loopback.tail.test".to_owned(),
            user: None,
            tags: Vec::new(),
            address: peer.ip(),
            capabilities: BTreeMap::new(),
        };
        let config = IngestConfig::default();
        let serving = serve_connection(
            stream,
            identity,
            store.clone(),
            config,
            CancellationToken::new(),
        );
        tokio::spawn(serving);
    }
}

/// `POST /v2/record`, as the recorder's own client sends it.
async fn record_v2(way: &Way, recorder: SocketAddr, cast: &[u8]) -> anyhow::Result<()> {
    let mut upload = connect(&[recorder], &|recorder| way.dial(recorder)).await?;
    for piece in cast.chunks(PIECE_BYTES) {
        upload.write(Bytes::copy_from_slice(piece)).await?;
    }
    let uploaded = upload.finish().await?;
    ensure!(
        uploaded.acked_bytes == u64::try_from(cast.len())? && uploaded.untrue_acks == 0,
        "not all was acked: {uploaded:?}"
    );
    Ok(())
}

/// `POST /record`, as a stock node sends it: nothing of the body before the 100, and a chunk for each piece.
async fn record_v1(mut stream: Box<dyn Stream>, cast: &[u8]) -> anyhow::Result<()> {
    let head = "POST /record HTTP/1.1\r\nHost: recorder\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n";
    stream.write_all(head.as_bytes()).await?;
    stream.flush().await?;
    let mut go_on = [0; b"HTTP/1.1 100 Continue\r\n\r\n".len()];
    stream.read_exact(&mut go_on).await?;
    ensure!(
        &go_on == b"HTTP/1.1 100 Continue\r\n\r\n",
        "the recorder does not take it: {:?}",
        String::from_utf8_lossy(&go_on)
    );
    for piece in cast.chunks(PIECE_BYTES) {
        let size = format!("{:x}\r\n", piece.len());
        stream
            .write_all(&[size.as_bytes(), piece, b"\r\n"].concat())
            .await?;
    }
    stream.write_all(b"0\r\n\r\n").await?;
    ok(stream).await
}

/// `POST /v2/event`, as a stock proxy sends it.
async fn event(mut stream: Box<dyn Stream>, body: &[u8]) -> anyhow::Result<()> {
    let head = format!(
        "POST /v2/event HTTP/1.1\r\nHost: recorder\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat()).await?;
    ok(stream).await
}

/// Reads until the recorder closes the connection; its status must be 200.
async fn ok(mut stream: Box<dyn Stream>) -> anyhow::Result<()> {
    stream.flush().await?;
    let mut response = Vec::new();
    (&mut stream)
        .take(RESPONSE_BYTES_MAX)
        .read_to_end(&mut response)
        .await?;
    let response = String::from_utf8_lossy(&response);
    ensure!(
        response.starts_with("HTTP/1.1 200 "),
        "the recorder answered {response:?}"
    );
    Ok(())
}
