//! The relay's queues and clocks, in virtual time over a pipe.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::time::Instant;

use super::client::Client;
use super::session::{HANDSHAKE_DURATION_MAX, SessionError, relay};
use super::*;
use crate::derp::{ClientInfo, Decoder};

fn key(byte: u8) -> NodePrivate {
    NodePrivate::from_bytes([byte; 32])
}

fn public(byte: u8) -> NodePublic {
    key(byte).public()
}

fn packet(first: u8) -> Bytes {
    Bytes::from(vec![first; 50])
}

fn disco() -> Bytes {
    let mut packet = crate::disco::MAGIC.to_vec();
    packet.resize(100, 1);
    packet.into()
}

fn frames(bytes: &[u8]) -> Vec<Frame> {
    let mut decoder = Decoder::new();
    decoder.push(bytes);
    std::iter::from_fn(|| decoder.next_frame().unwrap()).collect()
}

fn waiting(client: &Client) -> Vec<Frame> {
    let encoded: Vec<u8> = std::iter::from_fn(|| client.pop()).flatten().collect();
    frames(&encoded)
}

#[tokio::test(start_paused = true)]
async fn queues_hold_32_of_a_kind_the_oldest_gives_way_and_disco_goes_first() {
    let client = Client::new(1, public(1));
    let mut gave_way = 0;
    for first in 0..40 {
        gave_way += u32::from(client.push_packet(public(2), packet(first)));
        gave_way += u32::from(client.push_packet(public(2), disco()));
    }
    client.push_pong(*b"the one.");
    client.push_pong(*b"another.");
    assert_eq!(gave_way, 16);
    let frames = waiting(&client);
    assert_eq!(frames[0], Frame::Pong(*b"the one."));
    let packets: Vec<&Bytes> = frames[1..]
        .iter()
        .map(|frame| {
            let Frame::RecvPacket { packet, .. } = frame else {
                panic!("{frame:?}");
            };
            packet
        })
        .collect();
    assert_eq!(packets.len(), 64);
    assert!(packets[..32].iter().all(|packet| **packet == disco()));
    let firsts: Vec<u8> = packets[32..].iter().map(|packet| packet[0]).collect();
    assert_eq!(firsts, (8..40).collect::<Vec<u8>>());
}

#[tokio::test(start_paused = true)]
async fn peers_that_are_not_here_are_told_three_times_and_then_once_a_second() {
    let mut registry = Registry::default();
    let client = registry.add(public(1)).unwrap();
    let mut told = Vec::new();
    for pause in [0, 0, 0, 0, 0, 999, 1, 0, 2500, 0, 0, 10_000, 0, 0, 0] {
        tokio::time::advance(Duration::from_millis(pause)).await;
        registry.relay(&client, public(9), disco());
        told.push(waiting(&client).len());
    }
    assert_eq!(told, [1, 1, 1, 0, 0, 0, 1, 0, 1, 1, 0, 1, 1, 1, 0]);
}

#[tokio::test(start_paused = true)]
async fn connections_are_limited_and_those_that_left_make_room() {
    let mut registry = Registry::default();
    let clients: Vec<_> = (0..registry::CLIENTS_MAX)
        .map(|_| registry.add(public(1)).unwrap())
        .collect();
    assert!(registry.add(public(2)).is_none());
    registry.remove(&clients[0]);
    registry.remove(&clients[0]);
    assert!(registry.add(public(2)).is_some());
    assert!(registry.add(public(2)).is_none());
}

/// A client's end of a pipe to a relay, after the upgrade.
async fn begin(
    room_bytes: usize,
) -> (
    DerpServer,
    DuplexStream,
    JoinHandle<Result<(), SessionError>>,
) {
    let server = DerpServer::start(DerpServerConfig::default())
        .await
        .unwrap();
    let (ours, theirs) = tokio::io::duplex(room_bytes);
    let shared = Arc::clone(&server.shared);
    let deadline = Instant::now() + HANDSHAKE_DURATION_MAX;
    let session = tokio::spawn(async move { relay(theirs, deadline, &shared).await });
    (server, ours, session)
}

async fn introduce(server: &DerpServer, stream: &mut DuplexStream) {
    let hello = ClientInfo::ours().seal([1; 24], &key(1), &server.key());
    stream.write_all(&hello.encode().unwrap()).await.unwrap();
    // ServerKey, and the smallest ServerInfo: 40 + 24 + 16 + {"version":2}.
    let mut answer = [0; 5 + 40 + 5 + 24 + 16 + 13];
    stream.read_exact(&mut answer).await.unwrap();
    assert!(matches!(
        frames(&answer)[..],
        [Frame::ServerKey { .. }, Frame::ServerInfo { .. }]
    ));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_say_who_it_is_within_10_s_is_closed() {
    let (_server, stream, session) = begin(4096).await;
    let began = Instant::now();
    let ended = session.await.unwrap();
    assert!(matches!(ended, Err(SessionError::Slow { .. })), "{ended:?}");
    assert_eq!(began.elapsed(), HANDSHAKE_DURATION_MAX);
    drop(stream);
}

#[tokio::test(start_paused = true)]
async fn a_client_hears_a_sign_of_life_every_60_to_65_s() {
    let (server, mut stream, _session) = begin(4096).await;
    introduce(&server, &mut stream).await;
    for _ in 0..5 {
        let began = Instant::now();
        let mut frame = [0; 5];
        stream.read_exact(&mut frame).await.unwrap();
        assert_eq!(frames(&frame), [Frame::KeepAlive]);
        let seconds = began.elapsed().as_secs_f64();
        assert!((60.0..65.01).contains(&seconds), "{seconds}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_for_2_s_is_closed_and_forgotten() {
    let (server, mut stream, session) = begin(1024).await;
    introduce(&server, &mut stream).await;
    assert_eq!(server.clients(), [(public(1), false)]);
    let sender = server.shared.lock().add(public(2)).unwrap();
    let began = Instant::now();
    for first in 0..40 {
        let mut registry = server.shared.lock();
        registry.relay(&sender, public(1), packet(first));
    }
    assert_eq!(server.stats().dropped_queue_full, 8);
    let ended = session.await.unwrap();
    assert!(matches!(ended, Err(SessionError::Slow { .. })), "{ended:?}");
    assert_eq!(began.elapsed(), Duration::from_secs(2));
    assert_eq!(server.clients(), [(public(2), false)]);
    drop(stream);
}
