//! Which peers count, which addresses they own, who they are, and how they are named.

use super::*;

#[test]
fn peers_that_we_cannot_deal_with_are_skipped_and_counted() {
    let netmap = netmap(json!([
        node(2, json!({})),
        node(3, json!({"Key": null})),
        node(4, json!({"Expired": true})),
        node(5, json!({"IsWireGuardOnly": true})),
        node(6, json!({"SelfNodeV4MasqAddrForThisPeer": "100.64.9.9"})),
        node(7, json!({"SelfNodeV6MasqAddrForThisPeer": "::9"})),
        node(8, json!({"ID": 0})),
        node(9, json!({"Key": key(1).to_string()})),
        node(10, json!({"KeyExpiry": "whenever"})),
        node(11, json!({"Key": key(12).to_string()})),
        node(12, json!({})),
    ]));
    assert_eq!(ids(&netmap), [2, 12]);
    let expected = SkippedPeers {
        without_id: 1,
        zero_key: 1,
        repeated_key: 2,
        expired: 2,
        wireguard_only: 1,
        masqueraded: 2,
    };
    assert_eq!(netmap.skipped_peers(), expected);
    for skipped in (3..=10).map(|last| addr(&format!("100.64.0.{last}"))) {
        assert_eq!(netmap.route(skipped), None, "{skipped}");
    }
    assert!(netmap.peer_by_stable_id("n4").is_some());
    assert!(netmap.peer(&key(1)).is_none(), "our own key is no peer's");
}

#[test]
fn a_key_expires_by_the_clock_that_we_were_told() {
    let mut netmap = netmap(json!([
        node(2, json!({"KeyExpiry": "2024-02-29T23:59:59Z"})),
        node(3, json!({"KeyExpiry": "0001-01-01T00:00:00Z"}))
    ]));
    assert_eq!(ids(&netmap), [2, 3]);
    assert_eq!(netmap.next_expiry(), Some(1_709_251_199));
    assert_eq!(
        netmap.handle_wall_time(1_709_251_198),
        Changed {
            peers: true,
            ..Changed::default()
        }
    );
    assert_eq!(ids(&netmap), [2, 3]);
    assert!(netmap.handle_wall_time(1_709_251_199).peers);
    assert_eq!(ids(&netmap), [3]);
    assert!(!netmap.source_allowed(&key(2), addr("100.64.0.2")));
    assert!(
        !netmap.handle_wall_time(1_709_251_200).any(),
        "nothing more expires"
    );
    assert!(
        netmap.handle_wall_time(1_709_251_000).peers,
        "the clock was set back"
    );
    assert_eq!(ids(&netmap), [2, 3]);
}

#[test]
fn a_route_is_the_owner_or_else_the_longest_prefix() {
    let allowed = |prefixes: Value| json!({"AllowedIPs": prefixes});
    let netmap = netmap(json!([
        node(
            2,
            allowed(json!(["100.64.0.2/32", "10.0.0.0/8", "0.0.0.0/0", "::/0"]))
        ),
        node(
            3,
            allowed(json!([
                "100.64.0.3/32",
                "10.1.0.0/16",
                "10.1.2.3/32",
                "fd00::/8"
            ]))
        ),
        node(4, allowed(json!([]))),
        node(5, allowed(Value::Null)),
        node(
            6,
            json!({"AllowedIPs": ["100.64.0.6/32", "100.64.0.0/10", "100.64.0.1/32", "100.64.0.5/32", "fd7a:115c:a1e0::/48"]})
        ),
    ]));
    for (address, expected) in [
        ("100.64.0.2", Some(2)),
        ("10.9.9.9", Some(2)),
        ("10.1.9.9", Some(3)),
        ("10.1.2.3", Some(3)),
        ("fd00::1", Some(3)),
        ("100.64.0.4", None),
        ("100.64.0.5", Some(5)),
        ("fd7a:115c:a1e0::5", Some(5)),
        ("100.64.0.1", None),
        ("fd7a:115c:a1e0::1", None),
        ("100.64.7.7", Some(6)),
        ("100.100.100.100", None),
        ("fd7a:115c:a1e0::53", None),
        ("fd7a:115c:a1e0::2", None),
        ("8.8.8.8", None),
        ("2001:db8::1", None),
        ("::ffff:100.64.0.2", None),
    ] {
        let route = netmap.route(addr(address));
        assert_eq!(route, expected.map(key), "{address}");
        for peer in 2..=6 {
            assert_eq!(
                netmap.source_allowed(&key(peer), addr(address)),
                expected == Some(peer),
                "{address} from {peer}"
            );
        }
    }
}

#[test]
fn an_address_of_two_peers_belongs_to_the_usable_one() {
    let same = |fields: Value| {
        let mut fields = fields;
        fields["Addresses"] = json!(["100.64.0.2/32"]);
        fields
    };
    let netmap = netmap(json!([
        node(2, json!({})),
        node(3, same(json!({"Expired": true})))
    ]));
    assert_eq!(netmap.route(addr("100.64.0.2")), Some(key(2)));
    assert_eq!(
        netmap
            .whois(addr("100.64.0.2"), addr("100.64.0.1"))
            .unwrap()
            .node_id,
        2
    );
}

fn with_grants() -> Netmap {
    let mut netmap = netmap(json!([
        node(2, json!({})),
        node(3, json!({"Tags": ["tag:ci"], "User": 77})),
        node(4, json!({"User": 99})),
        node(
            5,
            json!({"Addresses": ["fd7a:115c:a1e0::5/128", "100.64.0.5/32"]})
        ),
        node(6, json!({"UnsignedPeerAPIOnly": true})),
    ]));
    let grant = |sources: Value, dsts: Value, caps: Value| json!({"SrcIPs": sources, "CapGrant": [{"Dsts": dsts, "CapMap": caps}]});
    let own = json!(["100.64.0.1/32", "fd7a:115c:a1e0::1/128"]);
    let rules = json!([
        grant(json!(["100.64.0.2"]), own.clone(), json!({"a": [{"role": "viewer"}]})),
        grant(json!(["100.64.0.0/24"]), own.clone(), json!({"a": [{"role": "admin"}, 7], "empty": null})),
        grant(json!(["fd7a:115c:a1e0::/64"]), own.clone(), json!({"six": [1]})),
        grant(json!(["*"]), json!(["100.64.0.9/32"]), json!({"elsewhere": null})),
        grant(json!(["cap:x"]), own, json!({"by-attribute": null})),
        {"SrcIPs": ["100.64.0.2"], "CapGrant": [{"Dsts": ["100.64.0.1/32"], "Caps": ["deprecated"]}]},
    ]);
    assert!(
        netmap
            .apply(message(json!({"PacketFilter": rules})))
            .unwrap()
            .filter
    );
    netmap
}

#[test]
fn whois_names_the_user_and_joins_the_values_of_all_grants() {
    let netmap = with_grants();
    let identity = netmap
        .whois(addr("100.64.0.2"), addr("100.64.0.1"))
        .unwrap();
    assert_eq!(
        (
            identity.node_id,
            identity.stable_id.as_str(),
            identity.name.as_str()
        ),
        (2, "n2", "Host2.tail.example")
    );
    assert_eq!(
        (
            identity.key,
            identity.user.as_ref().unwrap().login_name.as_str()
        ),
        (key(2), "ada@example.com")
    );
    assert_eq!(
        identity.addresses,
        [addr("100.64.0.2"), addr("fd7a:115c:a1e0::2")]
    );
    let expected =
        json!({"a": [{"role": "viewer"}, {"role": "admin"}, 7], "empty": [], "deprecated": []});
    assert_eq!(json!(identity.capabilities), expected);
    let mapped = netmap.whois(addr("::ffff:100.64.0.2"), addr("::ffff:100.64.0.1"));
    assert_eq!(
        mapped.as_ref(),
        Some(&identity),
        "a mapped address is the address that it maps"
    );
    let over_v6 = netmap.whois(addr("fd7a:115c:a1e0::2"), addr("fd7a:115c:a1e0::1"));
    assert_eq!(
        over_v6,
        Some(identity),
        "the first address judges, whichever connected"
    );
}

#[test]
fn whois_judges_each_kind_of_node_by_its_own_rule() {
    let netmap = with_grants();
    let own = addr("100.64.0.1");
    let tagged = netmap.whois(addr("100.64.0.3"), own).unwrap();
    assert_eq!(
        (tagged.user, tagged.tags),
        (None, vec!["tag:ci".to_owned()])
    );
    assert_eq!(
        netmap.whois(addr("100.64.0.4"), own),
        None,
        "its user is unknown"
    );
    let six_first = netmap.whois(addr("100.64.0.5"), own).unwrap();
    assert_eq!(json!(six_first.capabilities), json!({"six": [1]}));
    let unsigned = netmap.whois(addr("100.64.0.6"), own).unwrap();
    assert!(unsigned.capabilities.is_empty());
    assert_eq!(netmap.whois(own, own).unwrap().node_id, 1);
    assert_eq!(netmap.whois(addr("100.64.0.99"), own), None);
    assert_eq!(
        netmap.whois(addr("100.64.0.2"), addr("100.64.0.9")),
        None,
        "not our address"
    );
}

#[test]
fn an_unsigned_peer_closes_a_filter_that_would_admit_it() {
    let open = json!([{"SrcIPs": ["100.64.0.0/24"], "DstPorts": [{"IP": "*", "Ports": {"First": 80, "Last": 80}}]}]);
    let mut netmap = netmap(json!([node(2, json!({}))]));
    tell(&mut netmap, json!({"PacketFilter": open}));
    assert_eq!(netmap.rule_set().unusable(), None);
    let unsigned = node(
        3,
        json!({"UnsignedPeerAPIOnly": true, "AllowedIPs": ["10.0.0.0/8"]}),
    );
    assert!(
        netmap
            .apply(message(json!({"PeersChanged": [unsigned]})))
            .unwrap()
            .filter
    );
    assert_eq!(
        netmap.rule_set().unusable(),
        Some(crate::filter::Unusable::UnsignedPeer)
    );
    assert_eq!(
        netmap.unsigned_prefixes().len(),
        2,
        "its addresses; the extra prefix is ignored"
    );
    assert!(
        netmap
            .apply(message(json!({"PeersRemoved": [3]})))
            .unwrap()
            .filter
    );
    assert_eq!(netmap.rule_set().unusable(), None);
}

#[test]
fn the_rules_follow_our_own_addresses() {
    let mut netmap = netmap(json!([]));
    let moved = message(json!({"Node": node(1, json!({"Addresses": ["100.64.0.77/32"]}))}));
    let changed = netmap.apply(moved).unwrap();
    assert!(changed.self_node && changed.filter);
    assert_eq!(netmap.rule_set().own_addresses(), [addr("100.64.0.77")]);
}

#[test]
fn a_cap_source_is_an_own_address_of_a_signed_peer_with_the_attribute() {
    let cap = json!({"host": null});
    let netmap = netmap(json!([
        node(
            2,
            json!({"CapMap": cap, "AllowedIPs": ["100.64.0.2/32", "10.0.0.0/8"]})
        ),
        node(3, json!({"CapMap": cap, "UnsignedPeerAPIOnly": true})),
        node(4, json!({"CapMap": cap, "Expired": true})),
        node(5, json!({})),
    ]));
    assert!(netmap.source_has_cap(addr("100.64.0.2"), "host"));
    assert!(!netmap.source_has_cap(addr("100.64.0.2"), "guest"));
    for other in [
        "10.0.0.1",
        "100.64.0.3",
        "100.64.0.4",
        "100.64.0.5",
        "100.64.0.1",
    ] {
        assert!(!netmap.source_has_cap(addr(other), "host"), "{other}");
    }
}

#[test]
fn names_are_resolved_short_and_long_in_families_that_we_have() {
    let mut netmap = netmap(json!([
        node(2, json!({})),
        node(3, json!({"Addresses": ["fd7a:115c:a1e0::3/128"]})),
        node(4, json!({"Expired": true}))
    ]));
    tell(
        &mut netmap,
        json!({"DNSConfig": {"Domains": ["corp.example"], "ExtraRecords": [
            {"Name": "db.corp.example", "Value": "10.0.0.5"}, {"Name": "db.corp.example", "Type": "AAAA", "Value": "10.0.0.6"},
            {"Name": "host2.tail.example", "Value": "10.0.0.7"}, {"Name": "txt.corp.example", "Type": "TXT", "Value": "10.0.0.8"}]}}),
    );
    for (name, expected) in [
        ("host2", vec!["100.64.0.2"]),
        ("HOST2.Tail.Example.", vec!["100.64.0.2"]),
        ("host3", vec!["fd7a:115c:a1e0::3"]),
        ("host1", vec!["100.64.0.1"]),
        ("db", vec!["10.0.0.5"]),
        ("db.corp.example", vec!["10.0.0.5"]),
        ("txt", vec![]),
        ("host4", vec![]),
        ("host2.other.example", vec![]),
        (".", vec![]),
        ("", vec![]),
    ] {
        let expected: Vec<IpAddr> = expected.into_iter().map(addr).collect();
        assert_eq!(netmap.resolve(name), expected, "{name}");
    }
    assert!(netmap.resolve(&"a".repeat(10_000)).is_empty());
    let six_only =
        message(json!({"Node": node(1, json!({"Addresses": ["fd7a:115c:a1e0::1/128"]}))}));
    assert!(netmap.apply(six_only).unwrap().self_node);
    assert_eq!(netmap.resolve("host2"), [addr("fd7a:115c:a1e0::2")]);
    assert!(netmap.resolve("db").is_empty());
}
