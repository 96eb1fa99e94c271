//! When `netcheck` measures, and how the home and the endpoints fare over time.

use super::*;

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Three regions, measured once, with a node in use.
fn settled(seed: u8) -> (Internet, DerpMap) {
    let mut net = Internet::new(seed);
    let map = net.regions(&[(1, 40), (2, 100), (3, 150)]);
    net.set_map(&map);
    net.tell(|netcheck, _| netcheck.set_wanted(true));
    net.run(secs(1));
    assert_eq!(net.reports.len(), 1);
    assert_eq!(net.netcheck.home(), Some(1));
    (net, map)
}

/// Lets time pass with something sent to a peer every second.
fn in_use(net: &mut Internet, seconds: u64) {
    for _ in 0..seconds {
        net.tell(NetCheck::note_active);
        net.run(secs(1));
    }
}

#[test]
fn nothing_is_measured_without_a_map() {
    let mut net = Internet::new(20);
    net.tell(|netcheck, _| netcheck.set_wanted(true));
    net.tell(NetCheck::handle_network_change);
    net.tell(NetCheck::handle_derp_error);
    net.tell(|netcheck, now| netcheck.request_report(now, true));
    in_use(&mut net, 100);
    assert_eq!(net.netcheck.stats().runs, 0);
    assert_eq!(net.netcheck.poll_timeout(), None);
}

#[test]
fn a_node_in_use_measures_every_twenty_to_twenty_six_seconds_and_all_every_five_minutes() {
    let (mut net, _) = settled(21);
    in_use(&mut net, 1200);
    let gaps: Vec<Duration> = net
        .reports
        .windows(2)
        .map(|pair| pair[1].began - pair[0].ended)
        .collect();
    assert!(
        gaps.iter().all(|gap| (secs(20)..secs(26)).contains(gap)),
        "{gaps:?}"
    );
    let distinct: BTreeSet<&Duration> = gaps.iter().collect();
    assert!(
        distinct.len() > gaps.len() / 2,
        "the period is drawn anew each time"
    );
    let full: Vec<Instant> = net
        .reports
        .iter()
        .filter(|report| report.full)
        .map(|report| report.began)
        .collect();
    assert_eq!(full.len(), 4);
    for pair in full.windows(2) {
        let apart = pair[1] - pair[0];
        assert!((secs(300)..secs(327)).contains(&apart), "{apart:?}");
    }
    let stats = net.netcheck.stats();
    assert_eq!(
        (stats.runs, stats.full_runs),
        (u64::try_from(net.reports.len()).unwrap(), 4)
    );
    assert_eq!(net.net_infos.len(), 1, "control hears of changes only");
    assert_eq!(net.endpoints.len(), 1);
}

#[test]
fn an_idle_node_lets_its_mappings_expire_and_measures_when_it_is_used_again() {
    let (mut net, _) = settled(22);
    in_use(&mut net, 60);
    net.run(secs(46));
    let before = net.reports.len();
    net.run(secs(100));
    assert_eq!(net.reports.len(), before);
    net.tell(NetCheck::note_active);
    net.run(secs(1));
    assert_eq!(net.reports.len(), before + 1);
    // Not wanted: no peers, or no key.
    net.tell(|netcheck, _| netcheck.set_wanted(false));
    in_use(&mut net, 100);
    assert_eq!(net.reports.len(), before + 1);
}

#[test]
fn a_network_change_measures_everything_anew_and_forgets_old_latencies() {
    let (mut net, _) = settled(23);
    // Region 1 is far away on the other network: its 40 ms of before must not count.
    net.hosts.get_mut(&server(1)).unwrap().round_trip = ms(250);
    net.public_v4 = [203, 0, 113, 5];
    net.tell(NetCheck::handle_network_change);
    net.run(secs(2));
    assert_eq!(net.reports.len(), 2);
    assert!(net.report().full);
    assert_eq!(net.netcheck.home(), Some(2));
    let endpoints = net.endpoints.last().unwrap();
    let told: Vec<String> = endpoints
        .iter()
        .map(|endpoint| endpoint.addr.to_string())
        .collect();
    assert_eq!(told, ["203.0.113.5:1024", "198.51.100.1:1024"]);
    // The old one is told for five minutes and ten seconds, then the change is.
    net.run(secs(311));
    assert_eq!(
        net.endpoints.len(),
        4,
        "the old one expires, then the new one"
    );
    assert_eq!(net.endpoints[2].len(), 1);
    assert!(net.endpoints[3].is_empty());
}

#[test]
fn relay_errors_and_network_changes_in_a_storm_measure_once_a_second() {
    let (mut net, _) = settled(24);
    for _ in 0..100 {
        net.tell(NetCheck::handle_derp_error);
        net.tell(NetCheck::handle_network_change);
        net.tell(|netcheck, now| netcheck.request_report(now, true));
        net.run(ms(100));
    }
    let runs = net.netcheck.stats().runs;
    assert!((2..=12).contains(&runs), "{runs} measurements in 10 s");
}

#[test]
fn a_relay_error_measures_the_home_and_moves_it_if_it_is_gone() {
    let (mut net, _) = settled(25);
    net.hosts.remove(&server(1));
    net.run(secs(10));
    net.tell(NetCheck::handle_derp_error);
    net.run(LONG);
    assert!(!net.report().full);
    assert_eq!(
        net.homes.last(),
        Some(&(Some(1), Some(2), HomeReason::Fastest))
    );
    assert_eq!(net.net_infos.last().unwrap().preferred_derp, 2);
}

#[test]
fn a_home_that_speaks_over_derp_is_kept_though_stun_to_it_is_silent() {
    let (mut net, _) = settled(26);
    net.hosts.remove(&server(1));
    net.tell(|netcheck, now| netcheck.request_report(now, false));
    net.tell(|netcheck, now| netcheck.note_derp_frame(now, 1));
    net.run(LONG);
    assert_eq!(net.report().home_reason, HomeReason::FastEnough);
    assert_eq!(net.netcheck.home(), Some(1));
}

#[test]
fn a_home_is_kept_while_control_is_away_and_left_when_it_is_back() {
    let (mut net, _) = settled(27);
    net.hosts.remove(&server(1));
    net.netcheck.set_control_connected(false);
    net.tell(|netcheck, now| netcheck.request_report(now, false));
    net.run(LONG);
    assert_eq!(net.report().home_reason, HomeReason::ControlAway);
    assert_eq!(net.netcheck.home(), Some(1));
    net.netcheck.set_control_connected(true);
    net.tell(|netcheck, now| netcheck.request_report(now, false));
    net.run(LONG);
    assert_eq!(net.netcheck.home(), Some(2));
}

#[test]
fn one_slow_answer_does_not_move_the_home_for_five_minutes() {
    let (mut net, _) = settled(28);
    in_use(&mut net, 30);
    // The candidate looks better than the home of now, but not than the home at its best.
    net.hosts.get_mut(&server(1)).unwrap().round_trip = ms(170);
    in_use(&mut net, 120);
    assert_eq!(net.netcheck.home(), Some(1));
    in_use(&mut net, 300);
    assert_eq!(net.netcheck.home(), Some(2));
    assert_eq!(net.homes.len(), 2);
}

#[test]
fn a_changed_map_is_measured_and_an_equal_one_is_not() {
    let (mut net, mut map) = settled(29);
    net.run(secs(2));
    net.set_map(&map);
    net.run(secs(2));
    assert_eq!(net.reports.len(), 1);
    map.regions.as_mut().unwrap().remove(&1);
    net.set_map(&map);
    net.run(secs(2));
    assert_eq!(net.reports.len(), 2);
    assert_eq!(net.netcheck.home(), Some(2));
    // No region is left.
    net.set_map(&DerpMap::default());
    assert_eq!(
        net.homes.last(),
        Some(&(Some(2), None, HomeReason::NoRegion))
    );
    in_use(&mut net, 100);
    assert_eq!(net.reports.len(), 2);
}

#[test]
fn over_hours_of_loss_a_home_whose_connection_speaks_is_kept_and_nothing_grows() {
    for seed in 0..5 {
        let mut net = Internet::new(seed);
        net.nat = Nat::Hard;
        let trips: Vec<(u32, u64)> = (1..=20).map(|id| (id, 10 + u64::from(id) * 13)).collect();
        let map = net.regions(&trips);
        for host in net.hosts.values_mut() {
            host.loss_percent = 50;
        }
        net.set_map(&map);
        net.netcheck.set_wanted(true);
        for _ in 0..3600 {
            let home = net.netcheck.home().unwrap_or_default();
            net.tell(|netcheck, now| netcheck.note_derp_frame(now, home));
            in_use(&mut net, 2);
        }
        assert!(net.reports.len() > 250);
        assert!(net.reports.iter().all(|report| report.home.is_some()));
        let took = net.reports.iter().map(|report| report.ended - report.began);
        assert!(took.max() <= Some(run::TOTAL_MAX));
        assert!(net.endpoints.iter().all(|endpoints| endpoints.len() <= 6));
        // Half of the first answers were lost: it may take a second choice to find the fastest.
        assert!(net.homes.len() <= 3, "{:?}", net.homes);
        assert!(
            net.homes
                .iter()
                .skip(1)
                .all(|(before, home, _)| home < before)
        );
    }
}
