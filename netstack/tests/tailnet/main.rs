//! Whole nodes on one machine: real sockets, real WireGuard, a devnet for control, all on loopback.
//!
//! Nothing here sleeps to get an order: tests wait for what they need, and [`HANG`] ends one that waits
//! in vain. Run by `cargo test`; needs the feature `devnet`.
#![cfg(feature = "devnet")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "test code: to panic is to fail"
)]

mod control;
mod ending;
mod relay;
mod streams;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use netstack::control::AuthKey;
use netstack::devnet::{AuthKeySpec, DevNet, DevNetConfig};
use netstack::io::keystore::KeyStore;
use netstack::io::{Tailnet, TailnetConfig, TailnetError, TcpListener, TcpStream};
use netstack::tcpip::TcpConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Ends a test that hangs; far more than a loaded machine needs.
const HANG: Duration = Duration::from_secs(60);

/// Who owns the nodes; the name must not show up in `Debug`.
const OWNER: &str = "alice@example.com";

async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(HANG, work).await {
        Ok(done) => done,
        Err(_) => panic!("hangs: {what}"),
    }
}

/// A devnet and the nodes' way into it.
struct Net {
    devnet: DevNet,
    offload: bool,
}

impl Net {
    async fn new() -> Self {
        let devnet = DevNet::start(DevNetConfig::default()).await.unwrap();
        Self {
            devnet,
            offload: true,
        }
    }

    fn auth_key(&self, tags: &[&str], reusable: bool) -> String {
        let spec = AuthKeySpec {
            user: self.devnet.add_user(OWNER),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            reusable,
            ephemeral: false,
        };
        self.devnet.auth_key(spec).unwrap()
    }

    fn config(&self, hostname: &str, auth_key: &str) -> TailnetConfig {
        TailnetConfig {
            control_url: self.devnet.url(),
            hostname: hostname.to_owned(),
            auth_key: Some(AuthKey::new(auth_key)),
            ephemeral: false,
            app: "test".to_owned(),
            version_text: "0".to_owned(),
            keys: KeyStore::ephemeral(),
            bind: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
            udp_offload: self.offload,
            tcp: TcpConfig::default(),
        }
    }

    async fn join(&self, hostname: &str) -> Tailnet {
        let config = self.config(hostname, &self.auth_key(&[], true));
        Tailnet::join(config, HANG).await.unwrap()
    }

    /// Two nodes that know each other.
    async fn pair(&self) -> (Tailnet, Tailnet) {
        let (one, two) = tokio::join!(self.join("one"), self.join("two"));
        for (node, peer) in [(&one, &two), (&two, &one)] {
            knows(node, peer).await;
        }
        (one, two)
    }
}

/// Waits until `node` satisfies `seen`, looking again at every change.
async fn sees(node: &Tailnet, what: &str, mut seen: impl FnMut(&Tailnet) -> bool) {
    let mut watch = node.watch();
    within(what, async {
        loop {
            watch.mark_unchanged();
            if seen(node) {
                return;
            }
            watch.changed().await.expect("the node lives");
        }
    })
    .await;
}

async fn knows(node: &Tailnet, peer: &Tailnet) {
    let addr = v4(peer, 0).ip();
    sees(node, "the peer in the netmap", |node| {
        let peers = node.status().peers;
        peers.iter().any(|peer| peer.addresses.contains(&addr))
    })
    .await;
}

fn v4(node: &Tailnet, port: u16) -> SocketAddr {
    address(node, port, IpAddr::is_ipv4)
}

fn v6(node: &Tailnet, port: u16) -> SocketAddr {
    address(node, port, IpAddr::is_ipv6)
}

fn address(node: &Tailnet, port: u16, family: fn(&IpAddr) -> bool) -> SocketAddr {
    let addresses = node.status().addresses;
    SocketAddr::new(addresses.into_iter().find(family).unwrap(), port)
}

/// A connection from `one` to `two`: both its ends.
async fn connection(one: &Tailnet, two: &Tailnet, port: u16) -> (TcpStream, TcpStream) {
    let mut listener = two.listen(port, 4).unwrap();
    let both = async { tokio::join!(one.dial(v4(two, port)), listener.accept()) };
    let (near, far) = within("a connection", both).await;
    (near.unwrap(), far.unwrap())
}

/// Sends back what each connection brings, until its end; ends with the node.
fn serve_echo(mut listener: TcpListener) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        while let Ok(stream) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = tokio::io::split(stream);
                // A client that goes early ends its own echo, and fails its own test.
                if tokio::io::copy(&mut read, &mut write).await.is_ok() {
                    drop(write.shutdown().await);
                }
            });
        }
    })
}

/// Writes `text` and the end, and reads what comes back, both at once.
async fn echo(stream: TcpStream, text: &[u8]) -> Vec<u8> {
    let (mut read, mut write) = tokio::io::split(stream);
    let mut got = Vec::new();
    let send = async {
        write.write_all(text).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let receive = async { read.read_to_end(&mut got).await.unwrap() };
    within("the echo", async { tokio::join!(send, receive) }).await;
    got
}

/// Bytes that no shift or swap leaves alike.
fn pattern(len: usize, salt: u64) -> Vec<u8> {
    let mut state = salt;
    std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        state.to_be_bytes()[0]
    })
    .take(len)
    .collect()
}
