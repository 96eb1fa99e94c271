//! A connection to a relay, played by the test byte for byte, in virtual time.

use super::*;
use crate::derp::DerpError;

const SWITCHED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\nDerp-Version: 2\r\nDerp-Public-Key: nodekey:whatever\r\n\r\n";

#[expect(
    clippy::disallowed_methods,
    reason = "an Instant can be had in no other way, and only differences to it count"
)]
fn epoch() -> Instant {
    Instant::now()
}

fn node() -> NodePrivate {
    NodePrivate::from_bytes([0x11; 32])
}

fn relay() -> NodePrivate {
    NodePrivate::from_bytes([0x22; 32])
}

fn peer() -> NodePublic {
    NodePrivate::from_bytes([0x33; 32]).public()
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn config() -> DerpClientConfig {
    DerpClientConfig {
        node: node(),
        host: "relay.example".to_owned(),
        ideal_node: None,
        home: true,
        seed: [7; 32],
    }
}

/// Both ends: the client, and what the relay has read of it.
struct World {
    client: DerpClient,
    now: Instant,
    sent: Decoder,
}

impl World {
    fn new() -> Self {
        let now = epoch();
        let mut client = DerpClient::new(now, config()).unwrap();
        let request = client.poll_transmit().unwrap();
        assert!(request.ends_with(b"\r\n\r\n"));
        Self {
            client,
            now,
            sent: Decoder::new(),
        }
    }

    /// Up, with the events taken.
    fn up(info: &ServerInfo) -> Self {
        let mut world = Self::new();
        world.bytes(SWITCHED).unwrap();
        world.frame(&key()).unwrap();
        world.frame(&server_info(info)).unwrap();
        let frames = world.sent();
        assert!(matches!(
            frames[..],
            [
                Frame::ClientInfo { .. },
                Frame::NotePreferred { home: true }
            ]
        ));
        let up = world.client.poll_event();
        assert!(matches!(up, Some(DerpEvent::Up { relay: key, .. }) if key == relay().public()));
        assert_eq!(world.client.poll_event(), None);
        world
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), DerpClientError> {
        self.client.handle_bytes(self.now, bytes)
    }

    fn frame(&mut self, frame: &Frame) -> Result<(), DerpClientError> {
        let encoded = frame.encode().unwrap();
        self.bytes(&encoded)
    }

    fn sent(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some(bytes) = self.client.poll_transmit() {
            self.sent.push(&bytes);
            while let Some(frame) = self.sent.next_frame().unwrap() {
                frames.push(frame);
            }
        }
        frames
    }

    fn events(&mut self) -> Vec<DerpEvent> {
        std::iter::from_fn(|| self.client.poll_event()).collect()
    }

    /// Lets the time until the next deadline pass, which must be `expected` away.
    fn wait(&mut self, expected: Duration) -> Result<(), DerpClientError> {
        let due = self.client.poll_timeout().unwrap();
        assert_eq!(due - self.now, expected);
        let before = due - Duration::from_nanos(1);
        assert_eq!(self.client.handle_timeout(before), Ok(()));
        self.now = due;
        self.client.handle_timeout(due)
    }
}

fn key() -> Frame {
    Frame::ServerKey {
        key: relay().public(),
    }
}

fn server_info(info: &ServerInfo) -> Frame {
    info.seal([9; 24], &relay(), &node().public())
}

fn plain() -> ServerInfo {
    ServerInfo {
        version: 2,
        ..ServerInfo::default()
    }
}

fn packet(first: u8) -> Bytes {
    Bytes::from(vec![first; 100])
}

#[test]
fn the_request_is_the_one_that_relays_expect() {
    let request = upgrade::request("relay.example", Some("1a")).unwrap();
    let expected = "GET /derp HTTP/1.1\r\nHost: relay.example\r\nConnection: Upgrade\r\nUpgrade: DERP\r\nIdeal-Node: 1a\r\n\r\n";
    assert_eq!(request, expected);
    let request = upgrade::request("2001:db8::1", None).unwrap();
    assert!(request.starts_with(b"GET /derp HTTP/1.1\r\nHost: [2001:db8::1]\r\n"));
}

#[test]
fn a_name_of_the_map_adds_no_line_to_the_request() {
    for host in ["", "a\r\nEvil: 1", "a b", "r\u{e9}lais", &"a".repeat(256)] {
        let refused = upgrade::request(host, None);
        assert!(
            matches!(refused, Err(DerpClientError::Host { .. })),
            "{host:?}"
        );
    }
    let request = upgrade::request("a", Some("x\r\nEvil: 1")).unwrap();
    assert!(!request.windows(4).any(|four| four == b"Evil"));
}

#[test]
fn the_connection_is_up_only_after_the_relays_box_opened() {
    let mut world = World::new();
    assert_eq!(world.sent(), []);
    world.bytes(SWITCHED).unwrap();
    assert_eq!(world.sent(), []);
    world.frame(&key()).unwrap();
    let frames = world.sent();
    let [Frame::ClientInfo { key, sealed }, rest] = &frames[..] else {
        panic!("{frames:?}");
    };
    assert_eq!(*key, node().public());
    let opened = ClientInfo::open(sealed, &relay(), key);
    assert_eq!(opened, Ok(ClientInfo::ours()));
    assert_eq!(*rest, Frame::NotePreferred { home: true });
    assert!(!world.client.is_up());
    assert_eq!(world.events(), []);
    world.frame(&server_info(&plain())).unwrap();
    assert!(world.client.is_up());
    let relay = relay().public();
    let info = plain();
    assert_eq!(world.events(), [DerpEvent::Up { relay, info }]);
}

#[test]
fn a_box_under_another_key_ends_the_connection() {
    let mut world = World::new();
    world.bytes(SWITCHED).unwrap();
    world.frame(&key()).unwrap();
    let foreign = NodePrivate::from_bytes([0x44; 32]);
    let info = plain().seal([9; 24], &foreign, &node().public());
    let failed = Err(DerpClientError::Frame(DerpError::Open {
        what: "ServerInfo",
    }));
    assert_eq!(world.frame(&info), failed);
    assert_eq!(world.frame(&server_info(&plain())), failed);
    assert_eq!(world.client.poll_timeout(), None);
    assert_eq!(world.sent(), []);
}

#[test]
fn the_whole_handshake_may_arrive_in_one_piece_or_byte_by_byte() {
    let mut stream = SWITCHED.to_vec();
    let recv = Frame::RecvPacket {
        from: peer(),
        packet: packet(5),
    };
    for frame in [key(), server_info(&plain()), recv] {
        stream.extend_from_slice(&frame.encode().unwrap());
    }
    for size in [1, 7, stream.len()] {
        let mut world = World::new();
        for piece in stream.chunks(size) {
            world.bytes(piece).unwrap();
        }
        let events = world.events();
        assert!(matches!(
            events[..],
            [DerpEvent::Up { .. }, DerpEvent::Packet { .. }]
        ));
    }
}

#[test]
fn a_relay_that_refuses_is_quoted_escaped_and_cut() {
    let mut world = World::new();
    let refusal = b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 12\r\n\r\n";
    assert_eq!(world.bytes(refusal), Ok(()));
    let refused = |status, body: &str| {
        Err(DerpClientError::Refused {
            status,
            body: body.to_owned(),
        })
    };
    assert_eq!(
        world.bytes(b"no\x1b[2Jno!\r\n "),
        refused(426, "no\\u{1b}[2Jno!")
    );

    let mut world = World::new();
    let long = [b"HTTP/1.1 503 Busy\r\n\r\n".as_slice(), &[b'x'; 5000]].concat();
    assert_eq!(world.bytes(&long), refused(503, &"x".repeat(1024)));

    let mut world = World::new();
    world.bytes(b"HTTP/1.1 403 Forbidden\r\n\r\ngo").unwrap();
    assert_eq!(Err(world.client.handle_end()), refused(403, "go"));
}

#[test]
fn an_answer_that_is_no_http_or_has_no_end_is_refused() {
    let mut world = World::new();
    let answer = world.bytes(b"SSH-2.0-OpenSSH_9.9\r\n");
    assert!(matches!(answer, Err(DerpClientError::Http { .. })));

    let mut world = World::new();
    let mut fed = b"HTTP/1.1 101 Switching\r\n".to_vec();
    while fed.len() < HEAD_BYTES_MAX + 100 {
        fed.extend_from_slice(&[b"X: ".as_slice(), &[b'y'; 400], b"\r\n"].concat());
    }
    let too_long = fed.chunks(1000).find_map(|piece| world.bytes(piece).err());
    assert_eq!(too_long, Some(DerpClientError::HeadTooLong));
}

#[test]
fn a_relay_that_keeps_silent_in_the_handshake_is_given_up_after_its_limit() {
    let slow = |missing| Err(DerpClientError::Slow { missing });
    let mut world = World::new();
    assert_eq!(world.wait(seconds(10)), slow("answer the upgrade"));
    let mut world = World::new();
    world.now += seconds(4);
    world.bytes(SWITCHED).unwrap();
    assert_eq!(world.wait(seconds(6)), slow("tell its key"));
    let mut world = World::new();
    world.bytes(SWITCHED).unwrap();
    world.frame(&key()).unwrap();
    assert_eq!(world.wait(seconds(10)), slow("tell of itself"));
}

#[test]
fn an_end_before_the_relay_told_of_itself_means_turned_away() {
    let mut world = World::new();
    world.bytes(SWITCHED).unwrap();
    world.frame(&key()).unwrap();
    let missing = "tell of itself";
    let end = world.client.handle_end();
    assert_eq!(end, DerpClientError::TurnedAway { missing });
    let mut world = World::up(&plain());
    assert_eq!(world.client.handle_end(), DerpClientError::Closed);
    assert_eq!(world.client.handle_end(), DerpClientError::Closed);
}

#[test]
fn a_relay_that_is_silent_for_120_s_is_dead_and_any_frame_is_a_sign_of_life() {
    let mut world = World::up(&plain());
    let unknown = [0x7e, 0, 0, 0, 1, 0];
    let keep_alive = Frame::KeepAlive.encode().unwrap();
    for sign in [keep_alive.as_ref(), &unknown] {
        world.now += seconds(119);
        world.bytes(sign).unwrap();
        assert_eq!(world.client.handle_timeout(world.now), Ok(()));
    }
    assert_eq!(world.wait(seconds(120)), Err(DerpClientError::Silent));
}

#[test]
fn our_ping_is_answered_within_3_s_or_the_connection_ends() {
    let mut world = World::up(&plain());
    world.client.check_alive(world.now);
    world.client.check_alive(world.now);
    let frames = world.sent();
    let [Frame::Ping(data)] = frames[..] else {
        panic!("{frames:?}");
    };
    world.now += seconds(2);
    world.frame(&Frame::Pong([0; 8])).unwrap();
    assert_eq!(world.events(), []);
    world.frame(&Frame::Pong(data)).unwrap();
    let round_trip = seconds(2);
    assert_eq!(world.events(), [DerpEvent::Alive { round_trip }]);

    world.client.check_alive(world.now);
    world.frame(&Frame::KeepAlive).unwrap();
    assert_eq!(world.wait(seconds(3)), Err(DerpClientError::NoPong));
}

#[test]
fn pings_of_the_relay_are_answered_and_a_flood_of_them_is_not_kept() {
    let mut world = World::up(&plain());
    world.frame(&Frame::Ping(*b"12345678")).unwrap();
    assert_eq!(world.sent(), [Frame::Pong(*b"12345678")]);
    for _ in 0..100 {
        world.frame(&Frame::Ping(*b"flooding")).unwrap();
    }
    assert_eq!(world.sent().len(), 8);
    assert_eq!(world.client.stats().dropped_pongs, 92);
}

#[test]
fn packets_wait_for_the_relays_key_and_the_oldest_give_way() {
    let mut world = World::new();
    for first in 0..40 {
        world.client.send_packet(world.now, peer(), packet(first));
    }
    assert_eq!(world.sent(), []);
    world.bytes(SWITCHED).unwrap();
    world.frame(&key()).unwrap();
    let frames = world.sent();
    let packets: Vec<u8> = frames
        .iter()
        .filter_map(|frame| {
            let Frame::SendPacket { packet, .. } = frame else {
                return None;
            };
            Some(packet[0])
        })
        .collect();
    assert_eq!(packets, (8..40).collect::<Vec<u8>>());
    assert!(matches!(frames[0], Frame::ClientInfo { .. }));
    let stats = world.client.stats();
    assert_eq!((stats.packets_sent, stats.dropped_queue_full), (32, 8));
}

#[test]
fn a_packet_that_no_relay_takes_is_dropped_and_counted() {
    let mut world = World::up(&plain());
    let packet = Bytes::from(vec![0; PACKET_BYTES_MAX + 1]);
    world.client.send_packet(world.now, peer(), packet);
    assert_eq!(world.sent(), []);
    assert_eq!(world.client.stats().dropped_too_long, 1);
}

#[test]
fn packets_beyond_the_relays_rate_are_dropped() {
    let mut world = World::up(&ServerInfo {
        version: 2,
        bytes_per_second: 1370,
        burst_bytes: 274,
    });
    // A frame has 5 + 32 + 100 bytes, so two fill the burst and ten pass in a second.
    for expected in [2, 1, 1] {
        for first in 0..5 {
            world.client.send_packet(world.now, peer(), packet(first));
        }
        assert_eq!(world.sent().len(), expected);
        world.now += Duration::from_millis(100);
    }
    assert_eq!(world.client.stats().dropped_rate, 11);
    world.now += seconds(1000);
    for first in 0..5 {
        world.client.send_packet(world.now, peer(), packet(first));
    }
    assert_eq!(world.sent().len(), 2);
}

#[test]
fn a_rate_that_makes_no_sense_harms_nothing() {
    for (bytes_per_second, burst_bytes) in [(-1, -1), (0, 5), (i64::MAX, i64::MAX), (1, -1)] {
        let mut world = World::up(&ServerInfo {
            version: 2,
            bytes_per_second,
            burst_bytes,
        });
        world.now += seconds(1_000_000);
        world.client.send_packet(world.now, peer(), packet(1));
        let sent = world.sent().len();
        assert_eq!(sent, usize::from(bytes_per_second != 1));
    }
}

#[test]
fn what_the_relay_tells_becomes_events() {
    let mut world = World::up(&plain());
    let (from, peer) = (peer(), peer());
    let health = |text: &'static [u8]| Frame::Health {
        text: Bytes::from_static(text),
    };
    let (reconnect_in, try_for) = (seconds(1), seconds(9));
    let told = [
        Frame::RecvPacket {
            from,
            packet: packet(1),
        },
        Frame::PeerGone {
            peer,
            reason: PeerGoneReason::NotHere,
        },
        health(b"two of you\n"),
        health(b""),
        Frame::Restarting {
            reconnect_in,
            try_for,
        },
        key(),
        Frame::KeepAlive,
        Frame::WatchConns,
    ];
    for frame in &told {
        world.frame(frame).unwrap();
    }
    world.bytes(&[0x99, 0, 0, 0, 2, 1, 2]).unwrap();
    let expected = [
        DerpEvent::Packet {
            from,
            packet: packet(1),
        },
        DerpEvent::PeerGone {
            peer,
            reason: PeerGoneReason::NotHere,
        },
        DerpEvent::Health {
            problem: Some("two of you".to_owned()),
        },
        DerpEvent::Health { problem: None },
        DerpEvent::Restarting {
            reconnect_in,
            try_for,
        },
    ];
    assert_eq!(world.events(), expected);
    assert_eq!(world.client.stats().skipped_frames, 1);
}

#[test]
fn events_that_nobody_takes_are_bounded() {
    let mut world = World::up(&plain());
    let frame = Frame::RecvPacket {
        from: peer(),
        packet: packet(1),
    };
    for _ in 0..EVENTS_MAX + 10 {
        world.frame(&frame).unwrap();
    }
    assert_eq!(world.events().len(), EVENTS_MAX);
    assert_eq!(world.client.stats().dropped_events, 10);
}

#[test]
fn nothing_is_told_before_the_connection_is_up() {
    let mut world = World::new();
    world.bytes(SWITCHED).unwrap();
    world.frame(&key()).unwrap();
    let (from, packet) = (peer(), packet(1));
    let frame = Frame::RecvPacket { from, packet };
    for _ in 0..EVENTS_MAX + 10 {
        world.frame(&frame).unwrap();
    }
    assert_eq!(world.events(), []);
    world.frame(&server_info(&plain())).unwrap();
    assert!(matches!(world.events()[..], [DerpEvent::Up { .. }]));
}

#[test]
fn a_frame_before_the_relays_key_is_refused() {
    let mut world = World::new();
    world.bytes(SWITCHED).unwrap();
    let refused = world.frame(&Frame::KeepAlive);
    assert_eq!(refused, Err(DerpClientError::Order { kind: 6 }));
}

#[test]
fn the_home_is_told_when_it_changes() {
    let mut world = World::up(&plain());
    world.client.set_home(true);
    assert_eq!(world.sent(), []);
    world.client.set_home(false);
    assert_eq!(world.sent(), [Frame::NotePreferred { home: false }]);
}

#[test]
fn debug_shows_no_secret() {
    let world = World::up(&plain());
    let shown = format!("{:?} {:?}", world.client, config());
    let seven = "7, 7, 7";
    assert!(
        !shown.contains("11111111") && !shown.contains(seven),
        "{shown}"
    );
}
