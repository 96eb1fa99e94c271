//! The devnet's STUN server against real sockets, and `netcheck` against it.

use std::net::IpAddr;

use tokio::net::UdpSocket;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};

use super::*;
use crate::netcheck::{EndpointKind, HomeReason, NetCheck, NetCheckEvent, Sockets};
use crate::stun::{self, Answer, TxId};

const ONE: TxId = [1; 12];
const TWO: TxId = [2; 12];

async fn server() -> (StunServer, UdpSocket) {
    let server = StunServer::start("127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server.address()).await.unwrap();
    (server, socket)
}

async fn answer(socket: &UdpSocket) -> Answer {
    let mut buffer = [0; 100];
    let length = timeout(HANG, socket.recv(&mut buffer))
        .await
        .unwrap()
        .unwrap();
    stun::parse_answer(&buffer[..length]).unwrap()
}

/// Waits for a count without letting the runtime sleep, so that paused time does not move.
async fn until(server: &StunServer, reached: impl Fn(StunServerStats) -> bool) {
    while !reached(server.stats()) {
        yield_now().await;
    }
}

#[tokio::test]
async fn the_server_tells_a_client_its_own_address_and_ignores_foreign_requests() {
    let (server, socket) = server().await;
    let mut foreign = stun::request(TWO);
    foreign[30] ^= 1;
    socket.send(&foreign).await.unwrap();
    socket.send(b"not stun").await.unwrap();
    socket.send(&stun::request(ONE)).await.unwrap();
    let mapped = socket.local_addr().unwrap();
    assert_eq!(answer(&socket).await, Answer { txid: ONE, mapped });
    until(&server, |stats| stats.answers == 1).await;
    let expected = StunServerStats {
        requests: 1,
        refused: 2,
        answers: 1,
    };
    assert_eq!(server.stats(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_server_with_faults_is_silent_or_lies_or_is_late() {
    let (server, socket) = server().await;
    let lie = "203.0.113.9:99".parse().unwrap();
    server.set_faults(StunFaults {
        silent: true,
        ..StunFaults::default()
    });
    socket.send(&stun::request([0; 12])).await.unwrap();
    until(&server, |stats| stats.requests == 1).await;
    server.set_faults(StunFaults {
        answer_with: Some(lie),
        delay: Duration::from_secs(3600),
        ..StunFaults::default()
    });
    socket.send(&stun::request(ONE)).await.unwrap();
    until(&server, |stats| stats.requests == 2).await;
    server.set_faults(StunFaults::default());
    socket.send(&stun::request(TWO)).await.unwrap();
    until(&server, |stats| stats.answers == 1).await;
    // The second came first, and the silent one not at all.
    let mapped = socket.local_addr().unwrap();
    let mut buffer = [0; 100];
    let length = socket.recv(&mut buffer).await.unwrap();
    let first = stun::parse_answer(&buffer[..length]).unwrap();
    assert_eq!(first, Answer { txid: TWO, mapped });
    let length = socket.recv(&mut buffer).await.unwrap();
    let late = stun::parse_answer(&buffer[..length]).unwrap();
    assert_eq!(
        late,
        Answer {
            txid: ONE,
            mapped: lie
        }
    );
}

#[tokio::test]
async fn a_stun_server_listens_on_loopback_only() {
    let outside = StunServer::start("0.0.0.0:0".parse().unwrap()).await;
    assert!(matches!(outside, Err(DevNetError::NotLoopback { .. })));
}

#[tokio::test]
async fn nodes_find_the_servers_in_their_map_and_netcheck_finds_its_endpoint_and_home() {
    let net = devnet().await;
    let at_relay = net.start_stun(900).await.unwrap();
    let alone = net.start_stun(901).await.unwrap();
    alone.set_faults(StunFaults {
        answer_with: Some("127.0.0.1:9".parse().unwrap()),
        ..StunFaults::default()
    });
    let key = key_for(&net, &[]);
    let mut node = TestNode::new(&net, "one", Some(&key));
    let map = node
        .map(|map| map.derp_map.is_some())
        .await
        .derp_map
        .unwrap();
    let regions = map.regions.as_ref().unwrap();
    let relay = &regions[&900].as_ref().unwrap().nodes[0];
    assert_eq!((relay.derp_port, relay.stun_only), (3340, false));
    assert_eq!(relay.stun_port, i32::from(at_relay.address().port()));
    assert_eq!(relay.stun_test_ip, "127.0.0.1");
    assert!(regions[&901].as_ref().unwrap().nodes[0].stun_only);

    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let sockets = Sockets {
        ipv4: true,
        ipv6: false,
        fixed_port: None,
    };
    let mut netcheck = NetCheck::new([5; 32], sockets);
    netcheck.set_control_connected(true);
    netcheck.set_derp_map(Instant::now().into_std(), &map);
    let report = timeout(HANG, measure(&mut netcheck, &socket))
        .await
        .unwrap();
    assert_eq!(
        (report.home, report.home_reason),
        (Some(900), HomeReason::OnlyRegion)
    );
    assert!(report.udp && report.ipv4);
    assert_eq!(
        report.latency.keys().copied().collect::<Vec<_>>(),
        [900, 901]
    );
    // The liar makes it look like a hard NAT.
    assert_eq!(report.mapping_varies_by_dest_ip, Some(true));
    let local = socket.local_addr().unwrap();
    let public = report.public_v4.unwrap();
    assert!(public == local || public.port() == 9, "{public}");
    let endpoints = netcheck.endpoints();
    assert_eq!(
        (endpoints.len(), endpoints[0].kind),
        (1, EndpointKind::Stun)
    );
    assert_eq!(at_relay.stats().refused + alone.stats().refused, 0);
}

/// Drives `netcheck` on a real socket until its report.
async fn measure(netcheck: &mut NetCheck, socket: &UdpSocket) -> crate::netcheck::Report {
    let mut buffer = [0; 1500];
    loop {
        while let Some((to, datagram)) = netcheck.poll_transmit() {
            socket.send_to(&datagram, to).await.unwrap();
        }
        while let Some(event) = netcheck.poll_event() {
            let now = Instant::now().into_std();
            match event {
                NetCheckEvent::Report(report) => return *report,
                NetCheckEvent::Https { id, .. } => netcheck.handle_https(now, id, None),
                NetCheckEvent::Resolve { host } => {
                    let ip: Option<IpAddr> = host.parse().ok();
                    netcheck.handle_resolved(now, &host, ip.as_slice());
                }
                NetCheckEvent::Home { .. }
                | NetCheckEvent::NetInfo(_)
                | NetCheckEvent::Endpoints(_) => {}
            }
        }
        let wake = Instant::from_std(netcheck.poll_timeout().unwrap());
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => Some(received.unwrap().0),
            () = sleep_until(wake) => None,
        };
        let now = Instant::now().into_std();
        match received {
            Some(length) => netcheck.handle_datagram(now, &buffer[..length]),
            None => netcheck.handle_timeout(now),
        }
    }
}
