//! DERP frames against golden bytes (made outside this crate) and against bent and cut bytes.

use proptest::prelude::*;

use super::*;
use crate::key::NodePrivate;

/// Private keys are 32 equal bytes: the client 0x11, the relay 0x22; nonce 40 41 .. 57.
const CLIENT_INFO_FRAME: &str = concat!(
    "02000000687b4e909bbe7ffe44c465a220037d608ee35897d31ef972f07f74892cb0f73f13",
    "404142434445464748494a4b4c4d4e4f5051525354555657",
    "d5476cd4d77682a4708c8c12f764c8013094c6d092c392c6c6864f0d78cad0b8dfeab50b00384a63cb27f850ea3d2b10",
);
const SERVER_KEY_FRAME: &str =
    "010000002844455250f09f94910faa684ed28867b97f4a6a2dee5df8ce974e76b7018e3f22a1c4cf2678570f20";

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect()
}

fn node() -> NodePrivate {
    NodePrivate::from_bytes([0x11; 32])
}

fn relay() -> NodePrivate {
    NodePrivate::from_bytes([0x22; 32])
}

fn nonce() -> [u8; 24] {
    std::array::from_fn(|i| 0x40 + u8::try_from(i).unwrap())
}

/// All frames of a stream, which must end with the last of them.
fn decode(stream: &[u8]) -> Vec<Frame> {
    let mut decoder = Decoder::new();
    decoder.push(stream);
    let mut frames = Vec::new();
    while let Some(frame) = decoder.next_frame().unwrap() {
        frames.push(frame);
    }
    assert_eq!(decoder.waiting_bytes(), 0);
    frames
}

#[test]
fn client_info_is_the_published_one() {
    let frame = ClientInfo::ours().seal(nonce(), &node(), &relay().public());
    assert_eq!(frame.encode().unwrap(), bytes(CLIENT_INFO_FRAME));
    let Frame::ClientInfo { key, sealed } = decode(&bytes(CLIENT_INFO_FRAME)).remove(0) else {
        panic!("another frame");
    };
    assert_eq!(key, node().public());
    let opened = ClientInfo::open(&sealed, &relay(), &key);
    assert_eq!(opened, Ok(ClientInfo::ours()));
}

#[test]
fn server_key_is_the_published_one_and_bytes_behind_it_are_ignored() {
    let key = relay().public();
    let frame = Frame::ServerKey { key };
    assert_eq!(frame.encode().unwrap(), bytes(SERVER_KEY_FRAME));
    assert_eq!(
        decode(&bytes(SERVER_KEY_FRAME)),
        std::slice::from_ref(&frame)
    );
    let mut longer = bytes(SERVER_KEY_FRAME);
    longer[4] += 3;
    longer.extend_from_slice(b"new");
    assert_eq!(decode(&longer), [frame]);
}

#[test]
fn a_box_of_another_or_a_bent_one_does_not_open() {
    let Frame::ServerInfo { sealed } =
        ServerInfo::default().seal(nonce(), &relay(), &node().public())
    else {
        panic!("another frame");
    };
    let opened = ServerInfo::open(&sealed, &node(), &relay().public());
    assert_eq!(opened, Ok(ServerInfo::default()));
    let failed = Err(DerpError::Open { what: "ServerInfo" });
    let foreign = NodePrivate::from_bytes([0x33; 32]);
    let opened = ServerInfo::open(&sealed, &foreign, &relay().public());
    assert_eq!(opened, failed);
    for at in 0..sealed.len() {
        let mut bent = sealed.to_vec();
        bent[at] ^= 1;
        let opened = ServerInfo::open(&bent, &node(), &relay().public());
        assert_eq!(opened, failed, "byte {at}");
    }
}

#[test]
fn a_mesh_key_is_never_in_client_info_and_limits_are_read_from_server_info() {
    let json = serde_json::to_string(&ClientInfo::ours()).unwrap();
    assert_eq!(json, r#"{"version":2,"CanAckPings":true}"#);
    let info: ServerInfo = serde_json::from_str(
        r#"{"version":2,"TokenBucketBytesPerSecond":1000,"TokenBucketBytesBurst":2000,"New":[]}"#,
    )
    .unwrap();
    assert_eq!((info.bytes_per_second, info.burst_bytes), (1000, 2000));
}

#[test]
fn unknown_kinds_are_skipped_by_their_length_and_not_kept() {
    let mut decoder = Decoder::new();
    let mut header = vec![0x7f];
    header.extend_from_slice(&100_000_u32.to_be_bytes());
    decoder.push(&header);
    assert_eq!(decoder.next_frame(), Ok(None));
    for _ in 0..100 {
        decoder.push(&[0; 1000]);
        assert_eq!(decoder.next_frame(), Ok(None));
        assert_eq!(decoder.waiting_bytes(), 0);
    }
    decoder.push(&Frame::KeepAlive.encode().unwrap());
    assert_eq!(decoder.next_frame(), Ok(Some(Frame::KeepAlive)));
    assert_eq!(decoder.skipped_frames(), 1);
}

#[test]
fn a_frame_that_announces_too_much_is_refused_by_its_header_alone() {
    for kind in 0..=255 {
        let max = payload_bytes_max(kind);
        for (length, refused) in [(max, false), (max + 1, true), (usize::MAX >> 32, true)] {
            let mut decoder = Decoder::new();
            decoder.push(&[kind]);
            decoder.push(&u32::try_from(length).unwrap().to_be_bytes());
            let expected = if refused {
                Err(DerpError::TooLong { kind, length, max })
            } else {
                Ok(None)
            };
            assert_eq!(decoder.next_frame(), expected, "kind {kind:#x}");
        }
    }
}

#[test]
fn a_packet_that_is_too_long_is_not_encoded() {
    let to = node().public();
    let longest = Bytes::from(vec![0; PACKET_BYTES_MAX]);
    let frame = Frame::SendPacket {
        to,
        packet: longest,
    };
    let encoded = frame.encode().unwrap();
    assert_eq!(encoded.len(), HEADER_BYTES + 32 + PACKET_BYTES_MAX);
    assert_eq!(decode(&encoded), [frame]);
    let packet = Bytes::from(vec![0; PACKET_BYTES_MAX + 1]);
    let refused = Frame::SendPacket { to, packet }.encode();
    assert!(matches!(refused, Err(DerpError::TooLong { .. })));
}

#[test]
fn a_frame_without_its_fixed_part_is_refused() {
    let fixed = [
        (SERVER_KEY, 40),
        (CLIENT_INFO, 72),
        (SERVER_INFO, 40),
        (SEND_PACKET, 32),
        (RECV_PACKET, 32),
        (NOTE_PREFERRED, 1),
        (PEER_GONE, 32),
        (PEER_PRESENT, 32),
        (FORWARD_PACKET, 64),
        (CLOSE_PEER, 32),
        (PING, 8),
        (PONG, 8),
        (RESTARTING, 8),
    ];
    for (kind, needed) in fixed {
        let mut payload = MAGIC.to_vec();
        payload.resize(needed, 1);
        let whole = Frame::parse(kind, payload.clone().into());
        assert!(matches!(whole, Ok(Some(_))), "kind {kind:#x}: {whole:?}");
        for length in 0..needed {
            let cut = Bytes::copy_from_slice(&payload[..length]);
            let refused = Frame::parse(kind, cut);
            let expected = Err(DerpError::Length { kind, length });
            assert_eq!(refused, expected, "kind {kind:#x}");
        }
    }
    let two = Frame::parse(NOTE_PREFERRED, Bytes::from_static(&[1, 0]));
    assert!(matches!(two, Err(DerpError::Length { .. })));
    let no_magic = Frame::parse(SERVER_KEY, vec![0; 40].into());
    assert_eq!(no_magic, Err(DerpError::Magic));
}

#[test]
fn a_peer_that_is_gone_without_a_reason_is_disconnected() {
    let peer = node().public();
    let gone = |reason| Ok(Some(Frame::PeerGone { peer, reason }));
    let mut payload = peer.as_bytes().to_vec();
    assert_eq!(
        Frame::parse(PEER_GONE, payload.clone().into()),
        gone(PeerGoneReason::Disconnected)
    );
    payload.push(1);
    assert_eq!(
        Frame::parse(PEER_GONE, payload.into()),
        gone(PeerGoneReason::NotHere)
    );
}

#[test]
fn a_packet_shares_the_buffer_in_which_it_arrived() {
    let frame = |first: u8| Frame::RecvPacket {
        from: node().public(),
        packet: vec![first; 100].into(),
    };
    let stream = [frame(1), frame(2)].map(|frame| frame.encode().unwrap());
    let mut decoder = Decoder::new();
    decoder.push(&stream.concat());
    let mut places = Vec::new();
    while let Some(Frame::RecvPacket { packet, .. }) = decoder.next_frame().unwrap() {
        places.push(packet.as_ptr().addr());
    }
    assert_eq!(places[1] - places[0], 100 + HEADER_BYTES + 32);
}

fn any_frame() -> impl Strategy<Value = Frame> {
    let key = || any::<[u8; 32]>().prop_map(NodePublic::from_bytes);
    let packet = || prop::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from);
    let sealed = || prop::collection::vec(any::<u8>(), 40..200).prop_map(Bytes::from);
    let millis = || any::<u32>().prop_map(|millis| Duration::from_millis(millis.into()));
    prop_oneof![
        key().prop_map(|key| Frame::ServerKey { key }),
        (key(), sealed()).prop_map(|(key, sealed)| Frame::ClientInfo { key, sealed }),
        sealed().prop_map(|sealed| Frame::ServerInfo { sealed }),
        (key(), packet()).prop_map(|(to, packet)| Frame::SendPacket { to, packet }),
        (key(), packet()).prop_map(|(from, packet)| Frame::RecvPacket { from, packet }),
        Just(Frame::KeepAlive),
        any::<bool>().prop_map(|home| Frame::NotePreferred { home }),
        (key(), any::<u8>()).prop_map(|(peer, reason)| Frame::PeerGone {
            peer,
            reason: PeerGoneReason::from_byte(reason)
        }),
        key().prop_map(|peer| Frame::PeerPresent { peer }),
        (key(), key(), packet()).prop_map(|(from, to, packet)| Frame::ForwardPacket {
            from,
            to,
            packet
        }),
        Just(Frame::WatchConns),
        key().prop_map(|peer| Frame::ClosePeer { peer }),
        any::<[u8; 8]>().prop_map(Frame::Ping),
        any::<[u8; 8]>().prop_map(Frame::Pong),
        packet().prop_map(|text| Frame::Health { text }),
        (millis(), millis()).prop_map(|(reconnect_in, try_for)| Frame::Restarting {
            reconnect_in,
            try_for
        }),
    ]
}

proptest! {
    #[test]
    fn frames_survive_a_stream_cut_anywhere(
        frames in prop::collection::vec(any_frame(), 1..20),
        cuts in prop::collection::vec(1_usize..200, 1..50),
    ) {
        let stream: Vec<u8> = frames.iter().flat_map(|frame| frame.encode().unwrap()).collect();
        let mut decoder = Decoder::new();
        let (mut rest, mut seen) = (stream.as_slice(), Vec::new());
        let mut cuts = cuts.iter().cycle();
        while !rest.is_empty() {
            let (piece, later) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
            rest = later;
            decoder.push(piece);
            while let Some(frame) = decoder.next_frame().unwrap() {
                seen.push(frame);
            }
        }
        prop_assert_eq!(seen, frames);
        prop_assert_eq!(decoder.waiting_bytes(), 0);
    }

    #[test]
    fn any_bytes_are_read_or_refused(stream in prop::collection::vec(any::<u8>(), 0..600)) {
        let mut decoder = Decoder::new();
        decoder.push(&stream);
        while let Ok(Some(frame)) = decoder.next_frame() {
            prop_assert!(frame.encode().unwrap().len() <= HEADER_BYTES + PAYLOAD_BYTES_MAX);
        }
    }
}
