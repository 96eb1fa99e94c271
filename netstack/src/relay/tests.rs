//! The rules of transport.md §1.9 and §1.10, each as it shows from outside.

use super::*;
use crate::tailcfg::DerpNode;

#[expect(clippy::disallowed_methods, reason = "where a test's own time begins")]
fn start() -> Instant {
    Instant::now()
}

fn region(id: u32, host: &str) -> (u32, Arc<DerpRegion>) {
    let node = DerpNode {
        name: format!("{id}a"),
        region_id: id,
        host_name: host.to_owned(),
        ..DerpNode::default()
    };
    let region = DerpRegion {
        region_id: id,
        nodes: vec![node],
        ..DerpRegion::default()
    };
    (id, Arc::new(region))
}

fn peer(seed: u8) -> NodePublic {
    NodePublic::from_bytes([seed; 32])
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

struct Setup {
    relays: Relays,
    now: Instant,
}

impl Setup {
    /// Regions 1 to `regions`, and 1 is our home.
    fn new(regions: u32) -> Self {
        let now = start();
        let mut relays = Relays::new([7; 32]);
        let map: Vec<_> = (1..=regions).map(|id| region(id, "relay")).collect();
        relays.set_map(now, map.iter().map(|(id, region)| (*id, region)));
        relays.set_home(now, Some(1));
        Self { relays, now }
    }

    fn commands(&mut self) -> Vec<RelayCommand> {
        std::iter::from_fn(|| self.relays.poll_command()).collect()
    }

    fn opened(&mut self) -> Vec<(RelayConn, bool)> {
        let open = |command| match command {
            RelayCommand::Open { conn, home, .. } => Some((conn, home)),
            RelayCommand::Prefer { .. }
            | RelayCommand::Probe { .. }
            | RelayCommand::Close { .. } => None,
        };
        self.commands().into_iter().filter_map(open).collect()
    }

    fn closed(&mut self) -> Vec<u32> {
        let close = |command| match command {
            RelayCommand::Close { conn } => Some(conn.region),
            RelayCommand::Prefer { .. }
            | RelayCommand::Probe { .. }
            | RelayCommand::Open { .. } => None,
        };
        self.commands().into_iter().filter_map(close).collect()
    }

    fn wait(&mut self, duration: Duration) {
        self.now += duration;
        while self.relays.poll_timeout().is_some_and(|at| at <= self.now) {
            self.relays.handle_timeout(self.now);
        }
    }
}

#[test]
fn the_home_region_is_dialled_at_once_and_stays_open_however_idle() {
    let mut setup = Setup::new(3);
    let opened = setup.opened();
    assert!(matches!(opened[..], [(RelayConn { region: 1, .. }, true)]));
    setup.relays.handle_up(setup.now, opened[0].0);
    setup.wait(secs(3600));
    assert!(setup.commands().is_empty());
}

#[test]
fn another_region_is_opened_by_the_first_packet_and_closed_a_minute_after_the_last() {
    let mut setup = Setup::new(3);
    setup.opened();
    let conn = setup.relays.route(setup.now, &peer(1), 2).unwrap();
    assert_eq!(setup.opened(), [(conn, false)]);
    setup.relays.handle_up(setup.now, conn);
    for _ in 0..10 {
        setup.wait(secs(30));
        assert_eq!(setup.relays.route(setup.now, &peer(1), 2), Some(conn));
    }
    assert!(setup.commands().is_empty());
    setup.wait(secs(59));
    assert!(setup.commands().is_empty());
    setup.wait(IDLE_LOOK_INTERVAL);
    assert_eq!(setup.closed(), [2]);
    assert_eq!(setup.relays.poll_timeout(), None);
}

#[test]
fn a_failing_region_is_dialled_again_after_pauses_that_grow_to_five_seconds() {
    let mut setup = Setup::new(1);
    let mut conn = setup.opened()[0].0;
    let mut pauses = Vec::new();
    for _ in 0..12 {
        setup.relays.handle_down(setup.now, conn, None);
        assert_eq!(setup.relays.route(setup.now, &peer(1), 1), None);
        let at = setup.relays.poll_timeout().unwrap();
        pauses.push(at - setup.now);
        setup.wait(at - setup.now);
        conn = setup.opened()[0].0;
    }
    assert!(pauses[0] <= BACKOFF_FIRST, "{pauses:?}");
    assert!(
        pauses.iter().all(|pause| *pause <= BACKOFF_MAX),
        "{pauses:?}"
    );
    assert!(*pauses.last().unwrap() >= BACKOFF_MAX / 2, "{pauses:?}");
    // What delivers something is sound again.
    assert!(setup.relays.handle_received(conn, &peer(1), true));
    setup.relays.handle_down(setup.now, conn, None);
    let pause = setup.relays.poll_timeout().unwrap() - setup.now;
    assert!(pause <= BACKOFF_FIRST, "{pause:?}");
}

#[test]
fn a_relay_that_restarts_is_left_alone_for_as_long_as_it_asked_within_bounds() {
    let mut setup = Setup::new(1);
    let conn = setup.opened()[0].0;
    setup.relays.handle_down(setup.now, conn, Some(secs(10)));
    let pause = setup.relays.poll_timeout().unwrap() - setup.now;
    assert!(pause >= secs(10) && pause <= secs(16), "{pause:?}");
    setup.wait(pause);
    let conn = setup.opened()[0].0;
    setup
        .relays
        .handle_down(setup.now, conn, Some(secs(86_400)));
    let pause = setup.relays.poll_timeout().unwrap() - setup.now;
    assert!(pause <= RESTART_PAUSE_MAX + BACKOFF_MAX, "{pause:?}");
}

#[test]
fn a_peer_without_a_home_is_answered_where_it_spoke_for_as_long_as_that_connection_stands() {
    let mut setup = Setup::new(3);
    let home = setup.opened()[0].0;
    assert_eq!(setup.relays.route(setup.now, &peer(1), 0), None);
    assert!(setup.relays.handle_received(home, &peer(1), true));
    assert_eq!(setup.relays.route(setup.now, &peer(1), 0), Some(home));
    setup.relays.handle_peer_gone(home, &peer(2));
    assert_eq!(setup.relays.route(setup.now, &peer(1), 0), Some(home));
    setup.relays.handle_peer_gone(home, &peer(1));
    assert_eq!(setup.relays.route(setup.now, &peer(1), 0), None);
    setup.relays.handle_received(home, &peer(1), true);
    setup.relays.handle_down(setup.now, home, None);
    setup.wait(secs(6));
    setup.opened();
    assert_eq!(setup.relays.route(setup.now, &peer(1), 0), None);
}

#[test]
fn an_open_connection_to_the_peers_home_comes_before_what_was_learned_and_that_before_dialling() {
    let mut setup = Setup::new(3);
    let home = setup.opened()[0].0;
    setup.relays.handle_received(home, &peer(1), true);
    assert_eq!(setup.relays.route(setup.now, &peer(1), 2), Some(home));
    assert!(setup.opened().is_empty());
    let two = setup.relays.route(setup.now, &peer(2), 2).unwrap();
    assert_eq!(two.region, 2);
    assert_eq!(setup.relays.route(setup.now, &peer(1), 2), Some(two));
}

#[test]
fn strangers_and_given_up_connections_teach_nothing() {
    let mut setup = Setup::new(1);
    let first = setup.opened()[0].0;
    assert!(!setup.relays.handle_received(first, &peer(1), false));
    setup.relays.handle_down(setup.now, first, None);
    setup.wait(secs(1));
    let second = setup.opened()[0].0;
    assert!(!setup.relays.handle_received(first, &peer(1), true));
    setup.relays.handle_down(setup.now, first, None);
    setup.relays.handle_up(setup.now, first);
    assert!(!setup.relays.status()[0].up);
    setup.relays.handle_up(setup.now, second);
    assert!(setup.relays.status()[0].up);
    assert_eq!(setup.relays.stats().strangers, 2);
}

#[test]
fn a_new_home_is_told_and_the_old_one_stays_until_it_idles() {
    let mut setup = Setup::new(2);
    let one = setup.opened()[0].0;
    setup.relays.handle_up(setup.now, one);
    setup.relays.set_home(setup.now, Some(2));
    let commands = setup.commands();
    assert!(
        matches!(commands[..], [
            RelayCommand::Prefer { conn, home: false },
            RelayCommand::Open { conn: RelayConn { region: 2, .. }, home: true, .. },
        ] if conn == one),
        "{commands:?}"
    );
    assert!(setup.relays.handle_received(one, &peer(1), true));
    // Nobody looks for idle connections until one is opened that is not the home; the old home is one.
    setup.wait(secs(90));
    assert_eq!(setup.closed(), [1]);
}

#[test]
fn a_region_that_changed_is_dialled_anew_and_one_that_is_gone_is_closed() {
    let mut setup = Setup::new(2);
    let one = setup.opened()[0].0;
    let two = setup.relays.route(setup.now, &peer(1), 2).unwrap();
    setup.opened();
    let (id, moved) = region(1, "moved");
    setup.relays.set_map(setup.now, [(id, &moved)]);
    let commands = setup.commands();
    assert!(
        matches!(&commands[..], [
            RelayCommand::Close { conn: first },
            RelayCommand::Close { conn: second },
            RelayCommand::Open { conn: RelayConn { region: 1, .. }, region, home: true },
        ] if *first == one && *second == two && region.nodes[0].host_name == "moved"),
        "{commands:?}"
    );
    let (id, same) = region(1, "moved");
    setup.relays.set_map(setup.now, [(id, &same)]);
    assert!(setup.commands().is_empty());
}

#[test]
fn no_more_connections_are_open_than_the_limit_and_home_is_spared() {
    let regions = u32::try_from(OPEN_MAX).unwrap() + 10;
    let mut setup = Setup::new(regions);
    for id in 2..=regions {
        setup.now += Duration::from_millis(1);
        assert!(setup.relays.route(setup.now, &peer(1), id).is_some());
    }
    assert_eq!(setup.relays.open_regions().count(), OPEN_MAX);
    assert_eq!(setup.closed(), (2..=11).collect::<Vec<_>>());
}

#[test]
fn a_change_of_network_probes_what_is_up_and_dials_at_once_what_pauses() {
    let mut setup = Setup::new(2);
    let one = setup.opened()[0].0;
    setup.relays.handle_up(setup.now, one);
    setup.relays.handle_network_change(setup.now);
    assert!(matches!(setup.commands()[..], [RelayCommand::Probe { conn }] if conn == one));
    setup.relays.handle_down(setup.now, one, Some(secs(20)));
    setup.relays.handle_network_change(setup.now);
    setup.wait(Duration::ZERO);
    assert_eq!(setup.opened().len(), 1);
}
