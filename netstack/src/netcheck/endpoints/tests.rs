//! Which endpoints are told, for how long, and how many.

use super::*;

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn seen(pairs: &[(&str, &str)]) -> Vec<Seen> {
    let seen = pairs.iter().map(|(server, mapped)| Seen {
        server: addr(server),
        mapped: addr(mapped),
    });
    seen.collect()
}

fn some_time() -> Instant {
    #[expect(
        clippy::disallowed_methods,
        reason = "an Instant can be had in no other way, and only differences to it count"
    )]
    Instant::now()
}

#[test]
fn the_first_of_each_family_is_told_and_others_once_two_servers_saw_them() {
    let told = worth_telling(&seen(&[
        ("192.0.2.1:3478", "198.51.100.1:1"),
        ("192.0.2.2:3478", "198.51.100.1:2"),
        ("[2001:db8::1]:3478", "[2001:db8::9]:1"),
        ("192.0.2.3:3478", "198.51.100.1:3"),
        ("192.0.2.4:3478", "198.51.100.1:2"),
        ("192.0.2.3:3478", "198.51.100.1:3"),
    ]));
    let expected = ["198.51.100.1:1", "198.51.100.1:2", "[2001:db8::9]:1"];
    assert_eq!(told, expected.map(addr));
    assert!(worth_telling(&[]).is_empty());
}

#[test]
fn the_mapping_varies_if_two_servers_differ_and_does_not_if_two_addresses_agree() {
    type Case<'a> = (&'a [(&'a str, &'a str)], Option<bool>);
    let table: [Case<'_>; 6] = [
        (&[], None),
        (&[("192.0.2.1:1", "198.51.100.1:1")], None),
        (
            &[
                ("192.0.2.1:1", "198.51.100.1:1"),
                ("192.0.2.2:1", "198.51.100.1:1"),
            ],
            Some(false),
        ),
        (
            &[
                ("192.0.2.1:1", "198.51.100.1:1"),
                ("192.0.2.2:1", "198.51.100.1:2"),
            ],
            Some(true),
        ),
        // Two ports of one server: agreement proves nothing, difference does.
        (
            &[
                ("192.0.2.1:1", "198.51.100.1:1"),
                ("192.0.2.1:2", "198.51.100.1:1"),
            ],
            None,
        ),
        // IPv6 has no such NAT.
        (
            &[
                ("[2001:db8::1]:1", "[2001:db8::9]:1"),
                ("[2001:db8::2]:1", "[2001:db8::9]:2"),
            ],
            None,
        ),
    ];
    for (pairs, varies) in table {
        assert_eq!(mapping_varies(&seen(pairs)), varies, "{pairs:?}");
    }
}

#[test]
fn an_endpoint_is_told_for_five_minutes_and_ten_seconds_after_it_was_last_seen() {
    let start = some_time();
    let (one, other) = (addr("198.51.100.1:1"), addr("[2001:db8::9]:1"));
    let mut tracked = Tracked::default();
    assert_eq!(tracked.poll_timeout(), None);
    tracked.note(start, &[one, other]);
    let later = start + Duration::from_secs(100);
    tracked.note(later, &[other]);
    assert_eq!(tracked.poll_timeout(), Some(start + LIFETIME));
    assert!(!tracked.expire(start + LIFETIME - Duration::from_millis(1)));
    assert_eq!(tracked.list(), [other, one]);
    assert!(tracked.expire(start + LIFETIME));
    assert_eq!(tracked.list(), [other]);
    assert_eq!(tracked.poll_timeout(), Some(later + LIFETIME));
    assert!(tracked.expire(later + LIFETIME));
    assert!(tracked.list().is_empty());
}

#[test]
fn of_one_address_the_six_seen_last_are_kept_and_forty_eight_in_all() {
    let start = some_time();
    let mut tracked = Tracked::default();
    for port in 1..=10 {
        let now = start + Duration::from_secs(port.into());
        tracked.note(now, &[SocketAddr::from(([198, 51, 100, 1], port))]);
    }
    let ports: Vec<u16> = tracked.list().iter().map(SocketAddr::port).collect();
    assert_eq!(ports, [10, 9, 8, 7, 6, 5]);
    let many: Vec<SocketAddr> = (0..200)
        .map(|host| SocketAddr::from(([203, 0, 113, host], 1)))
        .collect();
    tracked.note(start + Duration::from_secs(20), &many);
    assert_eq!(tracked.list().len(), ENDPOINTS_MAX);
}

#[test]
fn the_kinds_have_the_numbers_of_the_map_request() {
    assert_eq!(EndpointKind::Stun.number(), 2);
    assert_eq!(EndpointKind::StunWithLocalPort.number(), 4);
}
