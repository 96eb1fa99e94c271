//! Connections over a pipe, whose other end the test plays, in virtual time.

#[cfg(feature = "devnet")]
mod relay;
mod tls;

use tokio::io::DuplexStream;

use super::*;
use crate::derp::client::DerpClientError;
use crate::derp::{Decoder, Frame};

const SWITCHED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\n\r\n";

fn node() -> NodePrivate {
    NodePrivate::from_bytes([0x11; 32])
}

fn peer() -> NodePublic {
    NodePrivate::from_bytes([0x33; 32]).public()
}

fn packet() -> Bytes {
    Bytes::from(vec![7; 100])
}

/// The relay's end of the pipe.
struct Relay {
    stream: DuplexStream,
    decoder: Decoder,
    key: NodePrivate,
}

impl Relay {
    async fn read_request(&mut self) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.stream.read_u8().await.unwrap());
        }
        assert!(head.starts_with(b"GET /derp HTTP/1.1\r\n"));
    }

    async fn write(&mut self, frame: &Frame) {
        let encoded = frame.encode().unwrap();
        self.stream.write_all(&encoded).await.unwrap();
    }

    async fn frame(&mut self) -> Frame {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return frame;
            }
            let mut buffer = [0; 1000];
            let read = self.stream.read(&mut buffer).await.unwrap();
            assert!(read > 0, "the client closed");
            self.decoder.push(&buffer[..read]);
        }
    }

    async fn shake_hands(&mut self) {
        self.read_request().await;
        self.stream.write_all(SWITCHED).await.unwrap();
        let key = self.key.public();
        self.write(&Frame::ServerKey { key }).await;
        let Frame::ClientInfo { key, .. } = self.frame().await else {
            panic!("no ClientInfo");
        };
        assert_eq!(self.frame().await, Frame::NotePreferred { home: true });
        let info = ServerInfo::default().seal([1; 24], &self.key, &key);
        self.write(&info).await;
    }
}

/// A pipe that holds `room_bytes` in either direction, and the attempt to connect over it.
fn begin(room_bytes: usize) -> (Relay, impl Future<Output = Result<DerpConn, DerpConnError>>) {
    let (ours, theirs) = tokio::io::duplex(room_bytes);
    let relay = Relay {
        stream: theirs,
        decoder: Decoder::new(),
        key: NodePrivate::from_bytes([0x22; 32]),
    };
    let config = DerpClientConfig {
        node: node(),
        host: "relay.example".to_owned(),
        ideal_node: None,
        home: true,
        seed: [7; 32],
    };
    (relay, DerpConn::over(ours, now(), config))
}

async fn up(room_bytes: usize) -> (Relay, DerpConn) {
    let (mut relay, connecting) = begin(room_bytes);
    let (conn, ()) = tokio::join!(connecting, relay.shake_hands());
    (relay, conn.unwrap())
}

fn client_error(error: DerpConnError) -> DerpClientError {
    let DerpConnError::Client(error) = error else {
        panic!("{error:?}");
    };
    error
}

#[tokio::test(start_paused = true)]
async fn packets_go_both_ways() {
    let (mut relay, mut conn) = up(4096).await;
    assert_eq!(conn.relay(), relay.key.public());
    conn.sender().send_packet(peer(), packet());
    let (to, packet) = (peer(), packet());
    let sent = Frame::SendPacket {
        to,
        packet: packet.clone(),
    };
    assert_eq!(relay.frame().await, sent);
    let from = peer();
    let arriving = Frame::RecvPacket {
        from,
        packet: packet.clone(),
    };
    relay.write(&arriving).await;
    let event = conn.next().await.unwrap();
    assert_eq!(event, DerpEvent::Packet { from, packet });
}

#[tokio::test(start_paused = true)]
async fn reading_goes_on_while_nobody_takes_what_arrives() {
    let (mut relay, mut conn) = up(4096).await;
    let arriving = Frame::RecvPacket {
        from: peer(),
        packet: packet(),
    };
    let total = EVENTS_MAX + 700;
    for _ in 0..total {
        relay.write(&arriving).await;
    }
    relay.write(&Frame::Ping(*b"are you?")).await;
    assert_eq!(relay.frame().await, Frame::Pong(*b"are you?"));
    let stats = conn.sender().stats();
    assert_eq!(stats.packets_received, u64::try_from(total).unwrap());
    assert_eq!(stats.dropped_events, 700);
    for _ in 0..EVENTS_MAX {
        assert!(matches!(
            conn.next().await.unwrap(),
            DerpEvent::Packet { .. }
        ));
    }
    relay.write(&arriving).await;
    assert!(conn.next().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_stops_reading_is_asked_after_3_s_and_left_after_6() {
    let (relay, mut conn) = up(1024).await;
    let began = now();
    for _ in 0..100 {
        conn.sender().send_packet(peer(), packet());
    }
    let error = client_error(conn.next().await.unwrap_err());
    assert_eq!(error, DerpClientError::NoPong);
    assert_eq!(now() - began, Duration::from_secs(6));
    drop(relay);
    assert!(matches!(conn.next().await, Err(DerpConnError::GivenUp)));
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_is_silent_for_120_s_is_left() {
    let (mut relay, mut conn) = up(1024).await;
    sleep(Duration::from_secs(100)).await;
    relay.write(&Frame::KeepAlive).await;
    let began = now();
    let error = client_error(conn.next().await.unwrap_err());
    assert_eq!(error, DerpClientError::Silent);
    assert_eq!(now() - began, Duration::from_secs(120));
}

#[tokio::test(start_paused = true)]
async fn an_unanswered_question_ends_the_connection_and_an_answer_tells_the_round_trip() {
    let (mut relay, mut conn) = up(1024).await;
    conn.sender().check_alive();
    let Frame::Ping(data) = relay.frame().await else {
        panic!("no ping");
    };
    let round_trip = Duration::from_secs(2);
    sleep(round_trip).await;
    relay.write(&Frame::Pong(data)).await;
    assert_eq!(conn.next().await.unwrap(), DerpEvent::Alive { round_trip });

    conn.sender().check_alive();
    let error = client_error(conn.next().await.unwrap_err());
    assert_eq!(error, DerpClientError::NoPong);
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_never_answers_is_left_after_10_s() {
    let (relay, connecting) = begin(1024);
    let began = now();
    let error = client_error(connecting.await.unwrap_err());
    let missing = "answer the upgrade";
    assert_eq!(error, DerpClientError::Slow { missing });
    assert_eq!(now() - began, CONNECT_DURATION_MAX);
    drop(relay);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_quoted_and_a_close_before_server_info_is_told_as_such() {
    let (mut relay, connecting) = begin(1024);
    let refuse = async {
        relay.read_request().await;
        let answer = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 7\r\n\r\nnot you";
        relay.stream.write_all(answer).await.unwrap();
    };
    let (refused, ()) = tokio::join!(connecting, refuse);
    let (status, body) = (403, "not you".to_owned());
    assert_eq!(
        client_error(refused.unwrap_err()),
        DerpClientError::Refused { status, body }
    );

    let (mut relay, connecting) = begin(1024);
    let close = async {
        relay.read_request().await;
        relay.stream.write_all(SWITCHED).await.unwrap();
        let key = relay.key.public();
        relay.write(&Frame::ServerKey { key }).await;
        relay.frame().await;
        drop(relay);
    };
    let (turned_away, ()) = tokio::join!(connecting, close);
    let missing = "tell of itself";
    assert_eq!(
        client_error(turned_away.unwrap_err()),
        DerpClientError::TurnedAway { missing }
    );
}

#[tokio::test(start_paused = true)]
async fn dropping_the_connection_closes_it_and_later_sends_are_dropped() {
    let (mut relay, conn) = up(1024).await;
    let sender = conn.sender();
    drop(conn);
    sender.send_packet(peer(), packet());
    sender.check_alive();
    let mut rest = Vec::new();
    relay.stream.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"");
    assert_eq!(sender.stats().packets_sent, 0);
}
