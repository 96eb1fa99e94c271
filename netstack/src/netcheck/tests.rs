//! `netcheck` on a small Internet: plans, phases, limits.

use super::*;
use internet::*;

mod internet;
mod schedule;

const LONG: Duration = Duration::from_secs(6);

#[test]
fn a_full_measurement_finds_latencies_home_and_endpoint() {
    let mut net = Internet::new(1);
    let map = net.regions(&[(1, 80), (2, 30), (3, 120)]);
    net.set_map(&map);
    net.run(LONG);
    let report = net.report();
    assert!(report.full && report.udp && report.ipv4 && !report.ipv6);
    assert_eq!(
        report.latency,
        [(1, ms(80)), (2, ms(30)), (3, ms(120))].into()
    );
    assert_eq!(report.latency_v4, report.latency);
    assert_eq!(report.mapping_varies_by_dest_ip, Some(false));
    assert_eq!(
        (report.home, report.home_reason),
        (Some(2), HomeReason::Fastest)
    );
    assert_eq!(net.homes, [(None, Some(2), HomeReason::Fastest)]);
    let endpoint = Endpoint {
        addr: "198.51.100.1:1024".parse().unwrap(),
        kind: EndpointKind::Stun,
    };
    assert_eq!(net.endpoints, [vec![endpoint]]);
    assert_eq!(net.net_infos.len(), 1);
    let info = &net.net_infos[0];
    assert_eq!(info.preferred_derp, 2);
    assert_eq!(info.working_udp, Some(true));
    assert_eq!(info.working_ipv6, Some(false));
    assert_eq!(info.mapping_varies_by_dest_ip, Some(false));
    let named: Vec<(&str, f64)> = info
        .derp_latency
        .iter()
        .map(|(name, seconds)| (name.as_str(), *seconds))
        .collect();
    assert_eq!(named, [("1-v4", 0.08), ("2-v4", 0.03), ("3-v4", 0.12)]);
    assert!(net.https_asked.is_empty());
}

#[test]
fn the_same_seed_sends_the_same_bytes_and_ends_the_same_way() {
    let run = |seed| {
        let mut net = Internet::new(seed);
        let map = net.regions(&[(1, 80), (2, 30), (3, 120), (4, 200)]);
        for host in net.hosts.values_mut() {
            host.loss_percent = 40;
        }
        net.set_map(&map);
        let mut first = NetCheck::new(
            [seed; 32],
            Sockets {
                ipv4: true,
                ipv6: false,
                fixed_port: None,
            },
        );
        first.set_derp_map(net.start, &map);
        net.run(LONG);
        (
            net.sent.clone(),
            net.report().latency.clone(),
            first.poll_transmit(),
        )
    };
    assert_eq!(run(9), run(9));
    assert_ne!(run(9).2, run(10).2);
}

#[test]
fn a_lost_request_is_repeated_until_one_is_answered() {
    let mut net = Internet::new(2);
    let map = net.regions(&[(1, 30), (2, 250)]);
    net.hosts.get_mut(&server(1)).unwrap().lose_first = 1;
    net.set_map(&map);
    net.run(LONG);
    // The answer to the second request comes before a third is due.
    assert_eq!(net.sent_to(server(1)), [ms(0), ms(100)]);
    assert_eq!(net.sent_to(server(2)), [ms(0), ms(100), ms(200)]);
    assert_eq!(net.report().latency, [(1, ms(30)), (2, ms(250))].into());
    assert_eq!(net.netcheck.stats().answers, 2);
    assert_eq!(net.netcheck.stats().requests_sent, 5);
}

#[test]
fn three_answers_end_a_full_measurement_after_twice_the_slowest() {
    let mut net = Internet::new(3);
    let map = net.regions(&[(1, 10), (2, 20), (3, 50), (4, 140), (5, 160)]);
    net.set_map(&map);
    net.run(LONG);
    let report = net.report();
    // Third answer at 50 ms; the fourth comes within 100 ms more, the fifth does not.
    assert_eq!(report.ended - report.began, ms(150));
    assert_eq!(
        report.latency.keys().copied().collect::<Vec<_>>(),
        [1, 2, 3, 4]
    );
    assert!(net.https_asked.is_empty());
    // What comes later is counted, and counts for nothing.
    assert!(net.netcheck.stats().unknown_txid >= 1);
    assert_eq!(net.reports.len(), 1);
}

#[test]
fn three_answers_end_an_incremental_measurement_after_once_the_slowest() {
    for (full, ends) in [(false, ms(56)), (true, ms(84))] {
        let mut net = Internet::new(3);
        let map = net.regions(&[(1, 20), (2, 21), (3, 22), (4, 28)]);
        net.set_map(&internet::map(&[4]));
        net.set_map(&map);
        net.run(LONG);
        assert_eq!(net.netcheck.home(), Some(4));
        net.hosts.remove(&server(3));
        net.tell(|netcheck, now| netcheck.request_report(now, full));
        net.run(LONG);
        let report = net.report();
        assert_eq!(report.full, full);
        assert_eq!(report.ended - report.began, ends);
        let answered: Vec<u32> = report.latency.keys().copied().collect();
        assert_eq!(answered, [1, 2, 4]);
    }
}

#[test]
fn a_silent_home_is_tried_by_https_if_fewer_than_three_regions_answer() {
    let mut net = Internet::new(3);
    let map = net.regions(&[(1, 50), (2, 60), (3, 70), (4, 80)]);
    net.set_map(&map);
    net.run(LONG);
    net.hosts.remove(&server(1));
    net.tell(|netcheck, now| netcheck.request_report(now, false));
    net.run(LONG);
    // Regions 1, 2 and 3 were asked, and two answered.
    assert_eq!(net.https_asked, [1]);
    let report = net.report();
    assert_eq!(report.ended - report.began, run::STUN_MAX + ms(1));
    assert_eq!(
        (report.home, report.home_reason),
        (Some(2), HomeReason::Fastest)
    );
}

#[test]
fn one_lost_datagram_among_near_regions_does_not_move_the_home() {
    for full in [true, false] {
        let mut net = Internet::new(18);
        let map = net.regions(&[(1, 20), (2, 21), (3, 22), (4, 28)]);
        net.set_map(&internet::map(&[4]));
        assert_eq!(net.netcheck.home(), Some(4));
        net.set_map(&map);
        net.run(LONG);
        assert_eq!(net.report().home_reason, HomeReason::FastEnough);
        net.hosts.get_mut(&server(4)).unwrap().lose_first = 1;
        net.tell(|netcheck, now| netcheck.request_report(now, full));
        net.run(LONG);
        assert_eq!(net.report().full, full);
        assert_eq!(net.netcheck.home(), Some(4));
        // A home that is gone had its chances, and holds nothing up for seconds.
        net.hosts.remove(&server(4));
        net.tell(|netcheck, now| netcheck.request_report(now, full));
        net.run(LONG);
        assert_eq!(net.netcheck.home(), Some(1));
        assert!(net.report().ended - net.report().began < Duration::from_secs(1));
        assert!(net.https_asked.is_empty());
    }
}

#[test]
fn an_incremental_plan_asks_the_home_four_times_and_the_fastest_twice() {
    let mut net = Internet::new(4);
    let map = net.regions(&[(1, 300), (2, 305), (3, 310), (4, 315), (5, 320)]);
    net.set_map(&map);
    net.run(LONG);
    assert_eq!(net.netcheck.home(), Some(1));
    let before = net.sent.len();
    let began = net.now - net.start;
    net.hosts.clear();
    net.tell(|netcheck, now| netcheck.request_report(now, false));
    net.run(LONG);
    net.sent.drain(..before);
    let after = |id| -> Vec<Duration> {
        net.sent_to(server(id))
            .iter()
            .map(|at| *at - began)
            .collect()
    };
    // The pauses: 1.2 times the last latency and 50 ms for each attempt.
    assert_eq!(after(1), [ms(0), ms(410), ms(870), ms(1380)]);
    assert_eq!(after(2), [ms(0), ms(416)]);
    assert_eq!(after(3), [ms(0)]);
    assert!(after(4).is_empty() && after(5).is_empty());
}

#[test]
fn without_udp_the_relays_are_timed_by_https_within_five_seconds() {
    let mut net = Internet::new(5);
    let map = map(&[1, 2, 3, 4]);
    net.https = [(1, ms(90)), (2, ms(40)), (4, ms(60_000))].into();
    net.set_map(&map);
    net.run(Duration::from_secs(10));
    assert_eq!(net.https_asked, [1, 2, 3, 4]);
    let report = net.report();
    assert!(!report.udp && !report.ipv4);
    assert_eq!(report.latency_https, [(1, ms(90)), (2, ms(40))].into());
    assert_eq!(report.latency, report.latency_https);
    assert_eq!(report.home, Some(2));
    assert_eq!(report.ended - report.began, run::TOTAL_MAX);
    let info = net.netcheck.net_info();
    assert_eq!(info.working_udp, Some(false));
    assert!(info.derp_latency.is_empty());
    assert!(net.endpoints.is_empty());
    // The answer that came at last belongs to no measurement.
    net.run(Duration::from_secs(60));
    assert_eq!(net.reports.len(), 1);
}

#[test]
fn if_nothing_answers_the_lot_decides_and_later_holds() {
    let homes: BTreeSet<Option<u32>> = (0..20)
        .map(|seed| {
            let mut net = Internet::new(seed);
            net.set_map(&map(&[1, 2, 3, 4]));
            net.run(LONG);
            assert_eq!(net.report().home_reason, HomeReason::Drawn);
            let home = net.netcheck.home();
            net.tell(NetCheck::handle_network_change);
            net.run(LONG);
            assert_eq!(net.report().home_reason, HomeReason::NothingBetter);
            assert_eq!(net.netcheck.home(), home);
            home
        })
        .collect();
    assert_eq!(
        homes,
        [Some(1), Some(2), Some(3), Some(4)].into(),
        "a fleet spreads out"
    );
}

#[test]
fn a_sole_region_is_home_at_once_and_still_tells_our_endpoint() {
    let mut net = Internet::new(6);
    let map = net.regions(&[(9, 30)]);
    net.set_map(&map);
    assert_eq!(net.homes, [(None, Some(9), HomeReason::OnlyRegion)]);
    assert_eq!(net.net_infos[0].preferred_derp, 9);
    net.run(LONG);
    assert_eq!(net.endpoints.len(), 1);
    assert_eq!(net.report().ended - net.report().began, ms(30));
    assert_eq!(net.report().mapping_varies_by_dest_ip, None);
}

#[test]
fn both_families_are_measured_and_a_silent_one_holds_nothing_up() {
    let sockets = Sockets {
        ipv4: true,
        ipv6: true,
        fixed_port: None,
    };
    let mut net = Internet::with_sockets(7, sockets);
    let map = net.regions(&[(1, 30), (2, 60)]);
    net.host(server_v6(2), 20);
    net.set_map(&map);
    net.run(LONG);
    let report = net.report();
    assert_eq!(report.latency_v4, [(1, ms(30)), (2, ms(60))].into());
    assert_eq!(report.latency_v6, [(2, ms(20))].into());
    assert_eq!(report.latency, [(1, ms(30)), (2, ms(20))].into());
    assert_eq!(
        report.public_v6,
        Some("[2001:db8:99::1]:41641".parse().unwrap())
    );
    // The last request to the silent address goes out at 200 ms; twice 30 ms is waited for it.
    assert_eq!(report.ended - report.began, ms(260));
    assert_eq!(net.netcheck.net_info().working_ipv6, Some(true));
    assert_eq!(net.netcheck.endpoints().len(), 2);
}

#[test]
fn no_measure_no_home_is_not_asked_and_avoid_only_if_it_is_home() {
    let mut net = Internet::new(8);
    let mut map = net.regions(&[(1, 5), (2, 6), (3, 70), (4, 80)]);
    alter(&mut map, 1, |region| region.no_measure_no_home = true);
    alter(&mut map, 2, |region| region.avoid = true);
    net.set_map(&map);
    net.run(LONG);
    assert_eq!(net.asked(), [server(3), server(4)].into());
    assert_eq!(net.netcheck.home(), Some(3));
    // The home becomes one to avoid: it is measured still, and kept.
    alter(&mut map, 3, |region| region.avoid = true);
    net.set_map(&map);
    net.run(LONG);
    assert_eq!(net.report().home, Some(3));
    assert!(net.report().latency.contains_key(&3));
    // It becomes one that is never home.
    alter(&mut map, 3, |region| region.no_measure_no_home = true);
    net.set_map(&map);
    assert_eq!(
        net.netcheck.home(),
        Some(4),
        "the only one that may be home"
    );
}

#[test]
fn a_region_of_stun_servers_alone_gives_an_endpoint_and_is_nobodys_home() {
    let mut net = Internet::new(9);
    let mut map = net.regions(&[(1, 5), (2, 60), (3, 70)]);
    alter(&mut map, 1, |region| region.nodes[0].stun_only = true);
    net.set_map(&map);
    net.run(LONG);
    assert_eq!(net.netcheck.home(), Some(2));
    assert_eq!(net.report().latency.get(&1), Some(&ms(5)));
}

#[test]
fn the_map_says_where_and_whether_a_node_does_stun() {
    let at = |text: &str| -> SocketAddr { text.parse().unwrap() };
    type Change = fn(&mut DerpNode);
    let table: [(Change, Option<&str>); 10] = [
        (|_| {}, Some("192.0.2.1:3478")),
        (|node| node.stun_port = 5000, Some("192.0.2.1:5000")),
        (|node| node.stun_port = -1, None),
        (|node| node.stun_port = 70_000, None),
        (
            |node| node.stun_test_ip = "127.0.0.7".to_owned(),
            Some("127.0.0.7:3478"),
        ),
        (|node| node.stun_test_ip = "::1".to_owned(), None),
        (
            |node| node.stun_test_ip = "::ffff:127.0.0.7".to_owned(),
            Some("127.0.0.7:3478"),
        ),
        (|node| node.ipv4 = "none".to_owned(), None),
        (|node| node.ipv4 = "224.0.0.1".to_owned(), None),
        (
            |node| {
                node.ipv4.clear();
                node.host_name = "127.0.0.9".to_owned();
            },
            Some("127.0.0.9:3478"),
        ),
    ];
    for (change, asked) in table {
        let mut net = Internet::new(10);
        let mut map = map(&[1]);
        alter(&mut map, 1, |region| change(&mut region.nodes[0]));
        net.set_map(&map);
        assert_eq!(net.asked(), asked.map(at).into_iter().collect());
        assert!(net.resolved.is_empty());
    }
}

#[test]
fn a_node_without_address_is_asked_once_its_name_is_resolved() {
    let mut net = Internet::new(11);
    let mut map = net.regions(&[(1, 30), (2, 300)]);
    alter(&mut map, 1, |region| region.nodes[0].ipv4.clear());
    net.names = [("relay1.example".to_owned(), vec![server(1).ip()])].into();
    net.resolver_takes = ms(150);
    net.hosts.get_mut(&server(1)).unwrap().lose_first = 1;
    net.set_map(&map);
    net.run(LONG);
    assert_eq!(net.resolved, ["relay1.example"]);
    // Its pauses are counted from the resolver's answer.
    assert_eq!(net.sent_to(server(1)), [ms(150), ms(250)]);
    assert_eq!(net.report().latency.get(&1), Some(&ms(30)));
    // The name is known in the next, and asked anew in a full one, which does not wait for it.
    net.tell(|netcheck, now| netcheck.request_report(now, false));
    net.run(LONG);
    assert_eq!(net.resolved.len(), 1);
    net.names.clear();
    net.tell(|netcheck, now| netcheck.request_report(now, true));
    net.run(LONG);
    assert_eq!(net.resolved.len(), 2);
    assert_eq!(
        net.report().latency.get(&1),
        Some(&ms(30)),
        "the old address serves"
    );
}

#[test]
fn a_name_that_does_not_resolve_leaves_its_region_to_https() {
    let mut net = Internet::new(12);
    let mut map = net.regions(&[(1, 30), (2, 60)]);
    alter(&mut map, 1, |region| region.nodes[0].ipv4.clear());
    net.https = [(1, ms(10))].into();
    net.set_map(&map);
    net.run(LONG);
    assert_eq!(net.https_asked, [1]);
    assert!(net.sent_to(server(1)).is_empty());
    assert_eq!(net.report().latency_https, [(1, ms(10))].into());
}

#[test]
fn the_attempts_go_round_the_nodes_of_a_region() {
    let mut net = Internet::new(13);
    let mut map = map(&[1]);
    alter(&mut map, 1, |region| {
        region.nodes = [1, 2, 3].map(node).to_vec();
        region.nodes[1].stun_port = -1;
    });
    net.set_map(&map);
    net.run(LONG);
    assert_eq!(net.sent_to(server(1)), [ms(0), ms(200)]);
    assert_eq!(net.sent_to(server(3)), [ms(100)]);
}

#[test]
fn a_hard_nat_is_seen_and_a_fixed_port_offered() {
    let sockets = Sockets {
        ipv4: true,
        ipv6: false,
        fixed_port: Some(41641),
    };
    let mut net = Internet::with_sockets(14, sockets);
    net.nat = Nat::Hard;
    let map = net.regions(&[(1, 30), (2, 60), (3, 90)]);
    net.set_map(&map);
    net.run(LONG);
    assert_eq!(net.report().mapping_varies_by_dest_ip, Some(true));
    let told: Vec<(String, u8)> = net
        .netcheck
        .endpoints()
        .iter()
        .map(|endpoint| (endpoint.addr.to_string(), endpoint.kind.number()))
        .collect();
    let expected = [
        ("198.51.100.1:2001".to_owned(), 2),
        ("198.51.100.1:41641".to_owned(), 4),
    ];
    assert_eq!(told, expected);
    // One region alone cannot tell; what was known of this network stays.
    net.hosts.retain(|addr, _| *addr == server(1));
    net.tell(|netcheck, now| netcheck.request_report(now, false));
    net.run(LONG);
    assert_eq!(net.report().mapping_varies_by_dest_ip, None);
    assert_eq!(
        net.netcheck.net_info().mapping_varies_by_dest_ip,
        Some(true)
    );
    assert_eq!(net.net_infos.len(), 1, "no news for control");
}

#[test]
fn only_an_outstanding_transaction_is_answered_and_only_once() {
    let mut net = Internet::new(15);
    let map = map(&[1, 2]);
    net.netcheck.set_derp_map(net.now, &map);
    let (_, request) = net.netcheck.poll_transmit().unwrap();
    let txid = stun::parse_request(&request).unwrap();
    let mapped = "198.51.100.1:5".parse().unwrap();
    let now = net.now + ms(10);
    let forged = stun::answer([7; 12], mapped);
    net.netcheck.handle_datagram(now, &forged);
    // Addresses that nobody can have.
    for text in [
        "0.0.0.0:5",
        "224.0.0.1:5",
        "255.255.255.255:5",
        "198.51.100.1:0",
        "[::]:5",
    ] {
        net.netcheck
            .handle_datagram(now, &stun::answer(txid, text.parse().unwrap()));
    }
    net.netcheck.handle_datagram(now, &request);
    net.netcheck
        .handle_datagram(now, &stun::answer(txid, mapped));
    net.netcheck
        .handle_datagram(now, &stun::answer(txid, mapped));
    let stats = net.netcheck.stats();
    assert_eq!(
        (stats.answers, stats.unknown_txid, stats.malformed),
        (1, 2, 6)
    );
}

#[test]
fn a_score_makes_a_slow_region_home() {
    let mut net = Internet::new(16);
    let mut map = net.regions(&[(1, 30), (2, 60)]);
    score(&mut map, &[(1, 4.0), (2, 0.0)]);
    net.set_map(&map);
    net.run(LONG);
    assert_eq!(net.netcheck.home(), Some(2));
    assert_eq!(
        net.report().latency.get(&1),
        Some(&ms(30)),
        "reported as measured"
    );
}

#[test]
fn a_huge_map_is_cut_to_what_is_affordable() {
    let sockets = Sockets {
        ipv4: true,
        ipv6: true,
        fixed_port: None,
    };
    let mut net = Internet::with_sockets(17, sockets);
    let mut map = map(&(1..=200).collect::<Vec<_>>());
    for id in 1..=200 {
        alter(&mut map, id, |region| {
            region.nodes = (0..50).map(|_| node(id)).collect();
            for (at, node) in region.nodes.iter_mut().enumerate() {
                node.ipv4.clear();
                node.ipv6.clear();
                node.host_name = format!("{at}.relay{id}.example");
            }
        });
        for at in 0..50 {
            let both = vec![server(id).ip(), server_v6(id).ip()];
            net.names.insert(format!("{at}.relay{id}.example"), both);
        }
    }
    net.set_map(&map);
    net.run(LONG);
    assert_eq!(
        net.resolved.len(),
        regions::REGIONS_MAX * regions::SERVERS_MAX
    );
    assert_eq!(net.sent.len(), regions::REGIONS_MAX * 2 * 3);
    assert_eq!(net.https_asked.len(), 32);
}
