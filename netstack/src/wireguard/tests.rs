//! Two nodes back to back in memory, with loss, replay, floods and bent bytes. boringtun's clock
//! is real and does not move here: what needs its timers is provoked by hand (`renew`).

use std::net::{Ipv4Addr, Ipv6Addr};

use super::timers::{REKEY_TIMEOUT, TICK};
use super::*;

mod forge;
mod hostile;

const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

struct Side {
    key: NodePublic,
    tunnels: Tunnels,
    peers: Vec<NodePublic>,
    now: Instant,
}

/// What `handle_datagram` returned, on its own feet.
#[derive(Debug, PartialEq, Eq)]
enum Got {
    Packet(NodePublic, Vec<u8>),
    Send(NodePublic, Vec<u8>),
    Keepalive(NodePublic),
    Cookie(Vec<u8>),
    Nothing,
}

impl Side {
    #[expect(clippy::disallowed_methods, reason = "where a test's own time begins")]
    fn new(seed: u8, peers: &[NodePublic]) -> Self {
        let private = NodePrivate::from_bytes([seed; 32]);
        Self {
            key: private.public(),
            tunnels: Tunnels::new(&private),
            peers: peers.to_vec(),
            now: Instant::now(),
        }
    }

    fn receive_from(&mut self, src: IpAddr, datagram: &[u8]) -> Got {
        let mut scratch = [0; 2048];
        let peers = &self.peers;
        let mut is_peer = |key: &NodePublic| peers.contains(key);
        match self
            .tunnels
            .handle_datagram(self.now, src, datagram, &mut is_peer, &mut scratch)
        {
            Received::Packet { peer, packet, .. } => Got::Packet(peer, packet.to_vec()),
            Received::Send { peer, datagram } => Got::Send(peer, datagram.to_vec()),
            Received::Keepalive { peer } => Got::Keepalive(peer),
            Received::Cookie { datagram } => Got::Cookie(datagram.to_vec()),
            Received::Nothing => Got::Nothing,
        }
    }

    fn receive(&mut self, datagram: &[u8]) -> Got {
        self.receive_from(ADDRESS, datagram)
    }

    fn send(&mut self, to: &NodePublic, packet: &[u8]) -> (Encapsulated, Vec<u8>) {
        let mut dst = [0; DATAGRAM_BYTES_MAX];
        let outcome = self.tunnels.encapsulate(self.now, to, packet, &mut dst);
        let length = match outcome {
            Encapsulated::Datagram(length) | Encapsulated::HandshakeStarted(length) => length,
            Encapsulated::Queued | Encapsulated::Dropped => 0,
        };
        (outcome, dst[..length].to_vec())
    }

    fn seal(&mut self, to: &NodePublic, packet: &[u8]) -> Vec<u8> {
        let (outcome, datagram) = self.send(to, packet);
        assert!(matches!(outcome, Encapsulated::Datagram(_)), "{outcome:?}");
        datagram
    }

    fn initiation(&mut self, to: &NodePublic) -> Vec<u8> {
        let mut dst = [0; DATAGRAM_BYTES_MAX];
        self.tunnels.renew(self.now, to, &mut dst).unwrap().to_vec()
    }

    fn drained(&mut self, peer: &NodePublic) -> Vec<Vec<u8>> {
        let mut dst = [0; DATAGRAM_BYTES_MAX];
        std::iter::from_fn(|| self.tunnels.drain(peer, &mut dst).map(<[u8]>::to_vec)).collect()
    }
}

fn strangers() -> (Side, Side) {
    let mut a = Side::new(0x10, &[]);
    let b = Side::new(0x20, &[a.key]);
    a.peers = vec![b.key];
    (a, b)
}

/// Carries every datagram to the other side, and every answer back, until there are none.
/// Returns the packets that came out at `b` and at `a`.
fn carry(a: &mut Side, b: &mut Side, mut to_b: Vec<Vec<u8>>) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let (mut at_a, mut at_b) = (Vec::new(), Vec::new());
    while !to_b.is_empty() {
        let to_a = hand_over(a.key, b, &to_b, &mut at_b);
        to_b = hand_over(b.key, a, &to_a, &mut at_a);
    }
    (at_b, at_a)
}

/// Gives `inbound` to `to`: packets go to `out`, what is to be sent back is returned.
fn hand_over(
    from: NodePublic,
    to: &mut Side,
    inbound: &[Vec<u8>],
    out: &mut Vec<Vec<u8>>,
) -> Vec<Vec<u8>> {
    let mut back = Vec::new();
    for datagram in inbound {
        match to.receive(datagram) {
            Got::Packet(peer, packet) => {
                assert_eq!(peer, from);
                out.push(packet);
            }
            Got::Send(peer, datagram) => {
                assert_eq!(peer, from);
                back.push(datagram);
            }
            Got::Keepalive(peer) => assert_eq!(peer, from),
            got @ (Got::Cookie(_) | Got::Nothing) => panic!("{got:?}"),
        }
        back.extend(to.drained(&from));
    }
    back
}

fn connected() -> (Side, Side) {
    let (mut a, mut b) = strangers();
    let initiation = a.initiation(&b.key.clone());
    carry(&mut a, &mut b, vec![initiation]);
    assert!(a.tunnels.has_session(&b.key));
    assert!(b.tunnels.has_session(&a.key));
    (a, b)
}

fn ipv4(total: usize, mark: u8) -> Vec<u8> {
    let mut packet = vec![mark; total];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&u16::try_from(total).unwrap().to_be_bytes());
    packet
}

fn ipv6(payload: usize, mark: u8) -> Vec<u8> {
    let mut packet = vec![mark; 40 + payload];
    packet[0] = 0x60;
    packet[4..6].copy_from_slice(&u16::try_from(payload).unwrap().to_be_bytes());
    packet
}

#[test]
fn a_packet_waits_for_the_handshake_and_then_arrives() {
    let (mut a, mut b) = strangers();
    assert_eq!(a.tunnels.poll_timeout(), None);
    let (outcome, initiation) = a.send(&b.key, &ipv4(60, 1));
    assert_eq!(outcome, Encapsulated::HandshakeStarted(148));
    assert_eq!(a.send(&b.key, &ipv6(33, 2)).0, Encapsulated::Queued);
    assert_eq!(a.drained(&b.key), Vec::<Vec<u8>>::new());
    assert_eq!(a.tunnels.poll_timeout(), Some(a.now + TICK));

    let (at_b, at_a) = carry(&mut a, &mut b, vec![initiation]);

    assert_eq!(at_b, [ipv4(60, 1), ipv6(33, 2)]);
    assert_eq!(at_a, Vec::<Vec<u8>>::new());
    assert_eq!(a.tunnels.stats().handshakes_completed, 1);
    assert_eq!(b.tunnels.stats().handshakes_answered, 1);
    let status = a.tunnels.status(&b.key).unwrap();
    assert_eq!(status.last_handshake, Some(a.now));
    assert_eq!(status.waiting_packets, 0);
}

#[test]
fn a_responder_sends_what_waits_once_the_first_data_message_confirms_the_session() {
    let (mut a, mut b) = strangers();
    let initiation = a.initiation(&b.key.clone());
    let Got::Send(_, response) = b.receive(&initiation) else {
        panic!("an initiation by a peer is answered");
    };
    // Not confirmed: b may not send under the new session yet, so it begins one of its own.
    let (outcome, own_initiation) = b.send(&a.key, &ipv4(50, 7));
    assert_eq!(outcome, Encapsulated::HandshakeStarted(148));
    assert_eq!(b.drained(&a.key), Vec::<Vec<u8>>::new());
    let Got::Send(_, keepalive) = a.receive(&response) else {
        panic!("a response is confirmed by a keepalive");
    };
    assert_eq!(keepalive.len(), 32);
    assert_eq!(b.receive(&keepalive), Got::Keepalive(a.key));
    let drained = b.drained(&a.key);
    assert_eq!(drained.len(), 1);
    assert_eq!(a.receive(&drained[0]), Got::Packet(b.key, ipv4(50, 7)));
    // The crossed handshake is legal and completes, too.
    let (at_a, at_b) = carry(&mut b, &mut a, vec![own_initiation]);
    assert!(at_a.is_empty() && at_b.is_empty());
    let datagram = a.seal(&b.key.clone(), &ipv4(40, 8));
    assert_eq!(b.receive(&datagram), Got::Packet(a.key, ipv4(40, 8)));
}

#[test]
fn two_sides_that_initiate_at_once_both_get_through() {
    let (mut a, mut b) = strangers();
    let (_, from_a) = a.send(&b.key, &ipv4(60, 1));
    let (_, from_b) = b.send(&a.key, &ipv4(61, 2));
    let Got::Send(_, response_a) = a.receive(&from_b) else {
        panic!("a answers");
    };
    let Got::Send(_, response_b) = b.receive(&from_a) else {
        panic!("b answers");
    };
    let mut to_b = vec![];
    let Got::Send(_, keepalive_a) = a.receive(&response_b) else {
        panic!("a confirms");
    };
    to_b.push(keepalive_a);
    to_b.extend(a.drained(&b.key));
    let mut to_a = vec![];
    let Got::Send(_, keepalive_b) = b.receive(&response_a) else {
        panic!("b confirms");
    };
    to_a.push(keepalive_b);
    to_a.extend(b.drained(&a.key));
    let got_b: Vec<Got> = to_b.iter().map(|datagram| b.receive(datagram)).collect();
    let got_a: Vec<Got> = to_a.iter().map(|datagram| a.receive(datagram)).collect();
    assert!(
        got_b.contains(&Got::Packet(a.key, ipv4(60, 1))),
        "{got_b:?}"
    );
    assert!(
        got_a.contains(&Got::Packet(b.key, ipv4(61, 2))),
        "{got_a:?}"
    );
}

#[test]
fn a_lost_initiation_response_or_confirmation_only_delays() {
    for lost in 0..3 {
        let (mut a, mut b) = strangers();
        let (_, first) = a.send(&b.key, &ipv4(60, 1));
        if lost > 0 {
            let Got::Send(_, response) = b.receive(&first) else {
                panic!("b answers");
            };
            if lost > 1 {
                let Got::Send(..) = a.receive(&response) else {
                    panic!("a confirms; the keepalive is lost");
                };
                // The data that follows confirms as well.
                let drained = a.drained(&b.key);
                assert_eq!(b.receive(&drained[0]), Got::Packet(a.key, ipv4(60, 1)));
                continue;
            }
        }
        assert_eq!(a.send(&b.key, &ipv4(60, 2)).0, Encapsulated::Queued);
        let again = a.initiation(&b.key.clone());
        let (at_b, _) = carry(&mut a, &mut b, vec![again]);
        assert_eq!(at_b, [ipv4(60, 1), ipv4(60, 2)], "lost message {lost}");
    }
}

#[test]
fn lost_and_reordered_data_messages_do_not_disturb_the_others() {
    let (mut a, mut b) = connected();
    let sent: Vec<Vec<u8>> = (0..100)
        .map(|mark| a.seal(&b.key.clone(), &ipv4(100, mark)))
        .collect();
    for (mark, datagram) in sent
        .iter()
        .enumerate()
        .rev()
        .filter(|(mark, _)| mark % 3 != 0)
    {
        let mark = u8::try_from(mark).unwrap();
        assert_eq!(b.receive(datagram), Got::Packet(a.key, ipv4(100, mark)));
    }
}

#[test]
fn a_data_message_is_taken_once() {
    let (mut a, mut b) = connected();
    let datagram = a.seal(&b.key.clone(), &ipv4(100, 1));
    assert_eq!(b.receive(&datagram), Got::Packet(a.key, ipv4(100, 1)));
    assert_eq!(b.receive(&datagram), Got::Nothing);
    assert_eq!(b.tunnels.stats().replayed, 1);
}

#[test]
fn a_replayed_initiation_is_refused_and_leaves_the_session_alone() {
    let (mut a, mut b) = strangers();
    let initiation = a.initiation(&b.key.clone());
    carry(&mut a, &mut b, vec![initiation.clone()]);
    assert_eq!(b.receive(&initiation), Got::Nothing);
    assert_eq!(b.tunnels.stats().stale_initiation, 1);
    let datagram = a.seal(&b.key.clone(), &ipv4(100, 1));
    assert_eq!(b.receive(&datagram), Got::Packet(a.key, ipv4(100, 1)));
}

#[test]
fn a_duplicated_response_is_refused_and_leaves_the_session_alone() {
    let (mut a, mut b) = strangers();
    let initiation = a.initiation(&b.key.clone());
    let Got::Send(_, response) = b.receive(&initiation) else {
        panic!("b answers");
    };
    assert!(matches!(a.receive(&response), Got::Send(..)));
    assert_eq!(a.receive(&response), Got::Nothing);
    assert_eq!(a.tunnels.stats().unknown_index, 1);
    let datagram = a.seal(&b.key.clone(), &ipv4(100, 1));
    assert_eq!(b.receive(&datagram), Got::Packet(a.key, ipv4(100, 1)));
}

#[test]
fn an_initiation_by_an_unknown_key_or_by_ourselves_leaves_no_state() {
    let (mut a, mut b) = strangers();
    b.peers.clear();
    let initiation = a.initiation(&b.key.clone());
    assert_eq!(b.receive(&initiation), Got::Nothing);
    assert_eq!(b.tunnels.stats().unknown_peer, 1);
    assert_eq!(b.tunnels.slots.len(), 0);
    assert_eq!(b.tunnels.poll_timeout(), None);

    let key = a.key;
    a.peers = vec![key];
    let to_itself = a.initiation(&key);
    assert_eq!(a.receive(&to_itself), Got::Nothing);
    assert_eq!(a.tunnels.stats().unknown_peer, 1);
}

#[test]
fn an_initiation_that_does_not_authenticate_leaves_no_state() {
    let (mut a, mut b) = strangers();
    let mut initiation = a.initiation(&b.key.clone());
    // The static key (40..88) opens for anyone; the timestamp (88..116) only for its owner. The
    // first MAC is keyed with b's public key alone, so a forger can make it good again.
    initiation[90] ^= 1;
    assert_eq!(b.receive(&initiation), Got::Nothing);
    assert_eq!(b.tunnels.stats().bad_mac, 1);
    forge::remac(&mut initiation, &b.key);
    assert_eq!(b.receive(&initiation), Got::Nothing);
    assert_eq!(b.tunnels.stats().undecryptable, 1);
    assert_eq!(b.tunnels.slots.len(), 0);
}

#[test]
fn a_flood_of_initiations_does_not_keep_a_peer_out() {
    let (mut a, mut b) = strangers();
    // `now` stands still, so all of this happens within one second of the gate.
    let mut flood = Side::new(0x30, &[]);
    let flooding = IpAddr::V6(Ipv6Addr::LOCALHOST);
    let victim = b.key;
    for _ in 0..1000 {
        let initiation = flood.initiation(&victim);
        assert!(matches!(
            b.receive_from(flooding, &initiation),
            Got::Nothing | Got::Cookie(_)
        ));
    }
    let stats = b.tunnels.stats();
    assert_eq!(stats.unknown_peer, INITIATIONS_PER_SECOND);
    assert_eq!(stats.cookies_sent, 1000 - INITIATIONS_PER_SECOND);
    assert_eq!(b.tunnels.slots.len(), 0);

    // The peer proves its address with the cookie, and is let in though the flood goes on.
    let initiation = a.initiation(&victim);
    let Got::Cookie(cookie) = b.receive(&initiation) else {
        panic!("under load everyone is asked for a cookie");
    };
    assert_eq!(cookie.len(), COOKIE_BYTES);
    assert_eq!(a.receive(&cookie), Got::Nothing);
    assert_eq!(a.tunnels.stats().cookies_received, 1);
    let with_cookie = a.initiation(&victim);
    // The cookie is good for one address only.
    assert!(matches!(
        b.receive_from(flooding, &with_cookie),
        Got::Cookie(_)
    ));
    carry(&mut a, &mut b, vec![with_cookie]);
    assert!(b.tunnels.has_session(&a.key));
}

#[test]
fn a_datagram_for_a_tunnel_that_is_gone_hits_no_other() {
    let (mut a, mut b) = connected();
    let stale = a.seal(&b.key.clone(), &ipv4(100, 1));
    b.tunnels.retain_peers(&|_| false);
    assert!(!b.tunnels.has_session(&a.key));
    assert_eq!(b.receive(&stale), Got::Nothing);
    assert_eq!(b.tunnels.stats().unknown_index, 1);
    // A new tunnel for the same peer has another slot.
    let initiation = a.initiation(&b.key.clone());
    carry(&mut a, &mut b, vec![initiation]);
    assert_eq!(b.receive(&stale), Got::Nothing);
    assert_eq!(b.tunnels.stats().unknown_index, 2);
}

#[test]
fn two_peers_are_told_apart_by_index() {
    let (mut a, mut b) = connected();
    let mut c = Side::new(0x40, &[b.key]);
    b.peers.push(c.key);
    let initiation = c.initiation(&b.key.clone());
    carry(&mut c, &mut b, vec![initiation]);
    let from_a = a.seal(&b.key.clone(), &ipv4(100, 1));
    let from_c = c.seal(&b.key.clone(), &ipv4(100, 2));
    assert_eq!(b.receive(&from_c), Got::Packet(c.key, ipv4(100, 2)));
    assert_eq!(b.receive(&from_a), Got::Packet(a.key, ipv4(100, 1)));
    // c's message under a's index is not a's.
    let mut crossed = c.seal(&b.key.clone(), &ipv4(100, 3));
    crossed[4..8].copy_from_slice(&a.seal(&b.key.clone(), &ipv4(100, 4))[4..8]);
    assert_eq!(b.receive(&crossed), Got::Nothing);
    assert_eq!(b.tunnels.stats().undecryptable, 1);
}

#[test]
fn data_messages_are_padded_to_sixteen_bytes_and_come_out_as_they_went_in() {
    let (mut a, mut b) = connected();
    for length in 40..=MTU_BYTES {
        for packet in [ipv4(length, 9), ipv6(length - 40, 9)] {
            let datagram = a.seal(&b.key.clone(), &packet);
            assert_eq!((datagram.len() - 32) % 16, 0, "{length}");
            assert!(datagram.len() - 32 - packet.len() < 16, "{length}");
            assert!(datagram.len() <= DATAGRAM_BYTES_MAX, "{length}");
            assert_eq!(b.receive(&datagram), Got::Packet(a.key, packet));
        }
    }
}

#[test]
fn a_packet_too_large_or_without_room_is_dropped_before_it_is_encrypted() {
    let (mut a, b) = connected();
    assert_eq!(
        a.send(&b.key, &ipv4(MTU_BYTES + 1, 0)).0,
        Encapsulated::Dropped
    );
    assert_eq!(a.send(&b.key, &[]).0, Encapsulated::Dropped);
    let mut short = [0; DATAGRAM_BYTES_MAX - 1];
    let outcome = a
        .tunnels
        .encapsulate(a.now, &b.key, &ipv4(60, 0), &mut short);
    assert_eq!(outcome, Encapsulated::Dropped);
    assert_eq!(a.tunnels.drain(&b.key, &mut short), None);
    assert_eq!(a.tunnels.stats().unsendable, 3);
}

#[test]
fn what_decrypts_to_no_ip_packet_is_dropped_and_counted() {
    let (mut a, mut b) = connected();
    let mut longer_than_it_is = ipv4(60, 0);
    longer_than_it_is[3] = 200;
    let mut shorter_than_a_header = ipv4(60, 0);
    shorter_than_a_header[3] = 5;
    let packets = [
        longer_than_it_is,
        shorter_than_a_header,
        vec![0x45; 8],
        vec![0x70; 64],
    ];
    for (count, packet) in packets.into_iter().enumerate() {
        let datagram = a.seal(&b.key.clone(), &packet);
        assert_eq!(b.receive(&datagram), Got::Keepalive(a.key));
        assert_eq!(
            b.tunnels.stats().malformed_packet,
            u64::try_from(count + 1).unwrap()
        );
    }
}

#[test]
fn packets_that_wait_are_few_and_differ() {
    let (mut a, b) = strangers();
    let first = a.send(&b.key, &ipv4(60, 0)).0;
    assert_eq!(first, Encapsulated::HandshakeStarted(148));
    assert_eq!(a.send(&b.key, &ipv4(60, 0)).0, Encapsulated::Dropped);
    for mark in 1..8 {
        assert_eq!(a.send(&b.key, &ipv4(60, mark)).0, Encapsulated::Queued);
    }
    assert_eq!(a.send(&b.key, &ipv4(60, 8)).0, Encapsulated::Dropped);
    assert_eq!(a.tunnels.stats().queue_full, 2);
    assert_eq!(
        a.tunnels.status(&b.key).unwrap().waiting_packets,
        WAITING_PACKETS_MAX
    );
}

#[test]
fn a_handshake_is_initiated_once_and_not_over_a_session() {
    let (mut a, mut b) = strangers();
    let mut dst = [0; SCRATCH_BYTES_MIN];
    let initiation = a
        .tunnels
        .initiate(a.now, &b.key, &mut dst)
        .unwrap()
        .to_vec();
    assert_eq!(a.tunnels.initiate(a.now, &b.key, &mut dst), None);
    carry(&mut a, &mut b, vec![initiation]);
    assert_eq!(a.tunnels.initiate(a.now, &b.key, &mut dst), None);
    assert!(a.tunnels.renew(a.now, &b.key, &mut dst).is_some());
}

#[test]
fn timers_run_every_quarter_second_while_there_is_state_and_send_nothing_untimely() {
    let (mut a, b) = connected();
    let mut at = a.tunnels.poll_timeout().unwrap();
    for _ in 0..8 {
        a.tunnels
            .handle_timeout(at, &mut |peer, _| panic!("nothing is due to {peer:?}"));
        assert_eq!(a.tunnels.poll_timeout(), Some(at + TICK));
        at += TICK;
    }
    assert!(a.tunnels.has_session(&b.key));
    a.tunnels.retain_peers(&|_| false);
    a.tunnels
        .handle_timeout(at, &mut |peer, _| panic!("{peer:?} is gone"));
    assert_eq!(a.tunnels.poll_timeout(), None);
}

#[test]
fn an_unanswered_crossed_handshake_is_tried_again_while_packets_wait() {
    let (mut a, mut b) = strangers();
    // a answers b's initiation, its own is lost, and so is b's confirmation.
    let (_, _lost) = a.send(&b.key, &ipv4(60, 1));
    let from_b = b.initiation(&a.key.clone());
    assert!(matches!(a.receive(&from_b), Got::Send(..)));
    let mut sent = Vec::new();
    let at = a.now + REKEY_TIMEOUT + TICK;
    a.tunnels.handle_timeout(at, &mut |peer, datagram| {
        assert_eq!(*peer, b.key);
        sent.push(datagram.to_vec());
    });
    assert_eq!(sent.len(), 1);
    let (at_b, _) = carry(&mut a, &mut b, sent);
    assert_eq!(at_b, [ipv4(60, 1)]);
}
