//! DERP: frames out of a stream cut anywhere, and a whole connection to a relay that says anything.
//!
//! Seeds: the vectors of transport.md A, and scripts.

use std::time::Duration;

use netstack::derp::client::{
    DerpClient, DerpClientConfig, DerpClientError, DerpEvent, PACKETS_MAX,
};
use netstack::derp::{
    ClientInfo, Decoder, Frame, HEADER_BYTES, PAYLOAD_BYTES_MAX, ServerInfo, payload_bytes_max,
};
use netstack::key::{NodePrivate, NodePublic};

use super::script::{Script, bend, epoch, pieces, whatever};

/// The first byte says how the rest, a stream, is cut; then the rest as JSON, and as a bent box.
pub fn derp_frame(data: &[u8]) {
    let (cut, stream) = data.split_first().unwrap_or((&0, &[]));
    let (whole, refused) = decode(std::iter::once(stream));
    let (cut, refused_cut) = decode(pieces(stream, *cut).into_iter());
    assert_eq!(whole, cut);
    assert_eq!(refused, refused_cut);
    for frame in &whole {
        let encoded = frame.encode();
        let encoded = encoded.unwrap_or_else(|error| panic!("{frame:?}: {error}"));
        let mut decoder = Decoder::new();
        decoder.push(&encoded);
        assert_eq!(decoder.next_frame(), Ok(Some(frame.clone())));
        assert_eq!(decoder.waiting_bytes(), 0);
    }

    if let Ok(info) = serde_json::from_slice::<ServerInfo>(stream) {
        let Frame::ServerInfo { sealed } = info.seal([1; 24], &relay(), &node().public()) else {
            panic!("another frame");
        };
        let relay = relay().public();
        assert_eq!(ServerInfo::open(&sealed, &node(), &relay), Ok(info));
        let mut bent = sealed.to_vec();
        let mut script = Script::new(stream);
        while script.step().is_some() {
            bend(&mut script, &mut bent);
        }
        let opened = ServerInfo::open(&bent, &node(), &relay);
        assert_eq!(opened.is_ok(), bent == sealed);
    }
    whatever(ClientInfo::open(stream, &relay(), &node().public()));
}

fn decode<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Frame>, bool) {
    let (mut decoder, mut frames) = (Decoder::new(), Vec::new());
    for piece in pieces {
        decoder.push(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return (frames, true),
            }
        }
        assert!(decoder.waiting_bytes() < HEADER_BYTES + PAYLOAD_BYTES_MAX);
    }
    (frames, false)
}

fn node() -> NodePrivate {
    NodePrivate::from_bytes([0x11; 32])
}

fn relay() -> NodePrivate {
    NodePrivate::from_bytes([0x22; 32])
}

fn peer() -> NodePublic {
    NodePublic::from_bytes([0x33; 32])
}

/// What the other end has seen of the client.
#[derive(Default)]
struct Seen {
    request: bool,
    introduced: bool,
    decoder: Decoder,
    ping: Option<[u8; 8]>,
    ups: u32,
    error: Option<DerpClientError>,
}

/// Each step's code says what happens next:
///
/// ```text
/// 0 bytes of the relay  1 time (u16 ms)  2 we send (piece)     3 the answer to the upgrade
/// 4 ServerKey           5 ServerInfo with a rate (u16) and a burst (u16)
/// 6 we ask whether it lives   7 it answers   8 our home changes   9 a frame (kind, piece)
/// 10 all is written     11 the stream ends   12 many packets arrive (u8)
/// ```
pub fn derp_client(data: &[u8]) {
    let mut now = epoch();
    let config = DerpClientConfig {
        node: node(),
        host: "relay.example".to_owned(),
        ideal_node: Some("1a".to_owned()),
        home: true,
        seed: [7; 32],
    };
    let Ok(mut client) = DerpClient::new(now, config) else {
        panic!("the host name is one");
    };
    let mut script = Script::new(data);
    let mut seen = Seen::default();
    while let Some(code) = script.step() {
        let outcome = match code % 13 {
            0 => client.handle_bytes(now, script.piece()),
            1 => {
                now += Duration::from_millis(script.u16().into());
                client.handle_timeout(now)
            }
            2 => {
                let packet = script.piece().to_vec();
                client.send_packet(now, peer(), packet.into());
                Ok(())
            }
            3 => client.handle_bytes(now, b"HTTP/1.1 101 Switching\r\nUpgrade: DERP\r\n\r\n"),
            4 => {
                let key = relay().public();
                say(&mut client, now, &Frame::ServerKey { key })
            }
            5 => {
                let info = ServerInfo {
                    version: 2,
                    bytes_per_second: script.u16().into(),
                    burst_bytes: script.u16().into(),
                };
                let frame = info.seal(script.array(), &relay(), &node().public());
                say(&mut client, now, &frame)
            }
            6 => {
                client.check_alive(now);
                Ok(())
            }
            7 => match seen.ping.take() {
                Some(data) => say(&mut client, now, &Frame::Pong(data)),
                None => Ok(()),
            },
            8 => {
                client.set_home(code & 16 != 0);
                Ok(())
            }
            9 => {
                let (kind, payload) = (script.byte(), script.piece());
                let payload = payload.get(..payload_bytes_max(kind)).unwrap_or(payload);
                let length = u32::try_from(payload.len()).unwrap_or(0);
                let frame = [&[kind], length.to_be_bytes().as_slice(), payload].concat();
                client.handle_bytes(now, &frame)
            }
            10 => {
                let packets = written(&mut client, &mut seen);
                assert!(packets <= PACKETS_MAX);
                Ok(())
            }
            11 => Err(client.handle_end()),
            _ => {
                let from = peer();
                let packet = vec![0; 10].into();
                let count = usize::from(script.byte()) * 8;
                let frame = Frame::RecvPacket { from, packet }.encode();
                let frames = frame.unwrap_or_default().repeat(count);
                client.handle_bytes(now, &frames)
            }
        };
        check(&mut client, now, outcome, &mut seen);
        if code & 64 != 0 {
            events(&mut client, &mut seen);
        }
    }
    events(&mut client, &mut seen);
}

fn say(
    client: &mut DerpClient,
    now: std::time::Instant,
    frame: &Frame,
) -> Result<(), DerpClientError> {
    let encoded = frame.encode();
    client.handle_bytes(now, &encoded.unwrap_or_default())
}

/// What must hold after every step.
fn check(
    client: &mut DerpClient,
    now: std::time::Instant,
    outcome: Result<(), DerpClientError>,
    seen: &mut Seen,
) {
    match (outcome, &seen.error) {
        (Err(error), None) => seen.error = Some(error),
        (Err(error), Some(first)) => assert_eq!(error, *first),
        (Ok(()), _) => {}
    }
    match &seen.error {
        None => assert!(client.poll_timeout().is_some()),
        Some(first) => {
            assert_eq!(client.poll_timeout(), None);
            assert_eq!(client.poll_transmit(), None);
            assert_eq!(client.handle_timeout(now).as_ref(), Err(first));
            assert!(!client.is_up());
        }
    }
}

/// Reads all that is to be written, as a relay would; how many packets it was.
fn written(client: &mut DerpClient, seen: &mut Seen) -> usize {
    let mut packets = 0;
    while let Some(bytes) = client.poll_transmit() {
        if !seen.request {
            assert!(bytes.starts_with(b"GET /derp HTTP/1.1\r\n") && bytes.ends_with(b"\r\n\r\n"));
            seen.request = true;
            continue;
        }
        seen.decoder.push(&bytes);
        let Ok(Some(frame)) = seen.decoder.next_frame() else {
            panic!("not a whole frame");
        };
        assert_eq!(seen.decoder.waiting_bytes(), 0);
        match frame {
            Frame::ClientInfo { key, sealed } => {
                assert!(!seen.introduced);
                seen.introduced = true;
                assert_eq!(key, node().public());
                // The relay may have shown any key; only for ours can the box be opened here.
                if let Ok(info) = ClientInfo::open(&sealed, &relay(), &key) {
                    assert_eq!(info, ClientInfo::ours());
                }
            }
            Frame::Ping(data) => seen.ping = Some(data),
            Frame::SendPacket { to, .. } => {
                assert_eq!(to, peer());
                packets += 1;
            }
            Frame::Pong(_) | Frame::NotePreferred { .. } => {}
            Frame::ServerKey { .. }
            | Frame::ServerInfo { .. }
            | Frame::RecvPacket { .. }
            | Frame::KeepAlive
            | Frame::PeerGone { .. }
            | Frame::PeerPresent { .. }
            | Frame::ForwardPacket { .. }
            | Frame::WatchConns
            | Frame::ClosePeer { .. }
            | Frame::Health { .. }
            | Frame::Restarting { .. } => panic!("this is not for a client to send"),
        }
        assert!(seen.introduced, "something goes before ClientInfo");
    }
    packets
}

fn events(client: &mut DerpClient, seen: &mut Seen) {
    let mut count = 0;
    while let Some(event) = client.poll_event() {
        count += 1;
        assert!(seen.ups == 1 || matches!(event, DerpEvent::Up { .. }));
        match event {
            DerpEvent::Up { .. } => seen.ups += 1,
            DerpEvent::Health { problem } => {
                let problem = problem.unwrap_or_default();
                assert!(!problem.chars().any(char::is_control));
            }
            DerpEvent::Packet { .. }
            | DerpEvent::PeerGone { .. }
            | DerpEvent::Restarting { .. }
            | DerpEvent::Alive { .. } => {}
        }
    }
    assert!(count <= 1024);
    assert!(seen.ups <= 1);
    if client.is_up() {
        assert_eq!(seen.ups, 1);
    }
}
