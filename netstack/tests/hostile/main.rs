//! A whole node on a real UDP socket, and a stranger who sends it whatever a datagram can hold.
//!
//! A process of its own, because it reads its resident set from the kernel. The stranger waits for the node after each few datagrams, so
//! that none is lost in the socket and every size is really looked at. Run by `cargo test`; needs the feature `devnet`.
#![cfg(feature = "devnet")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test program: to panic is to fail, and it prints what it measured"
)]

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use netstack::control::AuthKey;
use netstack::devnet::{AuthKeySpec, DevNet, DevNetConfig};
use netstack::io::keystore::KeyStore;
use netstack::io::{Tailnet, TailnetConfig, TcpStream};
use netstack::tcpip::TcpConfig;
use netstack::wireguard::TunnelStats;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Ends a test that hangs; far more than a loaded machine needs.
const HANG: Duration = Duration::from_secs(60);
/// The largest payload of a UDP datagram over IPv4.
const SIZE_MAX: usize = 65_507;
/// So many bytes wait in the node's socket at most: less than any kernel's default room for them.
const UNREAD_BYTES_MAX: usize = 32 << 10;
/// More than the node may grow by: its own buffers for reading are 64 KiB each.
const GROWTH_BYTES_MAX: usize = 16 << 20;

async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(HANG, work).await {
        Ok(done) => done,
        Err(_) => panic!("hangs: {what}"),
    }
}

async fn join(devnet: &DevNet, hostname: &str) -> Tailnet {
    let spec = AuthKeySpec {
        user: devnet.add_user("alice@example.com"),
        tags: Vec::new(),
        reusable: true,
        ephemeral: false,
    };
    let config = TailnetConfig {
        control_url: devnet.url(),
        hostname: hostname.to_owned(),
        auth_key: Some(AuthKey::new(&devnet.auth_key(spec).unwrap())),
        ephemeral: false,
        app: "test".to_owned(),
        version_text: "0".to_owned(),
        keys: KeyStore::ephemeral(),
        bind: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
        udp_offload: true,
        tcp: TcpConfig::default(),
    };
    Tailnet::join(config, HANG).await.unwrap()
}

/// A connection from `one` to `two`, as soon as they know each other.
async fn connection(one: &Tailnet, two: &Tailnet) -> (TcpStream, TcpStream) {
    let mut listener = two.listen(80, 4).unwrap();
    let own = two.status().addresses[0];
    let mut watch = one.watch();
    let known = |one: &Tailnet| {
        let peers = one.status().peers;
        peers.iter().any(|peer| peer.addresses.contains(&own))
    };
    while !known(one) {
        watch.changed().await.unwrap();
    }
    let both = async { tokio::join!(one.dial(SocketAddr::new(own, 80)), listener.accept()) };
    let (near, far) = within("a connection", both).await;
    (near.unwrap(), far.unwrap())
}

async fn greet(near: &mut TcpStream, far: &mut TcpStream, text: &[u8]) {
    near.write_all(text).await.unwrap();
    let mut got = vec![0; text.len()];
    within("a greeting", far.read_exact(&mut got))
        .await
        .unwrap();
    assert_eq!(got, text);
}

/// Every datagram that a tunnel drops is in one of these.
fn dropped(stats: TunnelStats) -> u64 {
    stats.unknown_kind
        + stats.wrong_size
        + stats.oversize
        + stats.unknown_index
        + stats.bad_mac
        + stats.unknown_peer
        + stats.stale_initiation
        + stats.replayed
        + stats.undecryptable
        + stats.malformed_packet
        + stats.cookies_sent
        + stats.refused
}

/// Resident memory of this process, in bytes.
fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let kib: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datagrams_of_every_size_leave_a_node_and_its_peers_alone() {
    let devnet = DevNet::start(DevNetConfig::default()).await.unwrap();
    let (one, two) = tokio::join!(join(&devnet, "one"), join(&devnet, "two"));
    let (mut near, mut far) = connection(&one, &two).await;
    greet(&mut near, &mut far, b"before").await;
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    stranger.connect(two.endpoints()[0]).unwrap();
    let mut noise: Vec<u8> = (0..=SIZE_MAX)
        .map(|at| u8::try_from((at * 151 + at / 256) % 256).unwrap())
        .collect();
    let (before, resident) = (two.stats(), resident_bytes());
    let (mut sent, mut unread_bytes) = (0_u64, 0);
    for size in 0..=SIZE_MAX {
        // Every small size as each kind; the larger ones in turn.
        let kinds: &[u8] = if size <= 2_048 {
            &[1, 2, 3, 4, 0xa5]
        } else {
            let turn = size % 5;
            &[1, 2, 3, 4, 0xa5][turn..=turn]
        };
        for &kind in kinds {
            noise[..4].copy_from_slice(&[kind, 0, 0, 0]);
            stranger.send(&noise[..size]).unwrap();
            sent += 1;
            unread_bytes += size + 1_024;
            if unread_bytes >= UNREAD_BYTES_MAX || size == SIZE_MAX {
                within("the datagrams to be read", async {
                    // The pair has packets of its own, keepalives at least, so this may let a few more wait.
                    while dropped(two.stats().tunnels) < dropped(before.tunnels) + sent {
                        tokio::task::yield_now().await;
                    }
                })
                .await;
                unread_bytes = 0;
            }
        }
    }
    let (after, resident_after) = (two.stats(), resident_bytes());
    println!(
        "{sent} datagrams: {:?}; resident {} KiB before, {} KiB after",
        after.tunnels,
        resident >> 10,
        resident_after >> 10
    );
    assert_eq!(dropped(after.tunnels) - dropped(before.tunnels), sent);
    assert_eq!(after.drops, before.drops);
    assert!(resident_after < resident + GROWTH_BYTES_MAX);
    greet(&mut near, &mut far, b"after").await;
    assert_eq!(
        (two.stats().tcp.connections, two.stats().tcp.half_open),
        (1, 0)
    );
}
