//! The merge rules, as tables of messages and what they leave.

use std::net::IpAddr;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn key(last: u8) -> NodePublic {
    let mut bytes = [0; 32];
    bytes[31] = last;
    NodePublic::from_bytes(bytes)
}

fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A node as control writes it, `fields` laid over a plain one.
fn node(id: u8, fields: Value) -> Value {
    let mut node = json!({
        "ID": id, "StableID": format!("n{id}"), "Name": format!("Host{id}.tail.example."), "User": 1, "Key": key(id).to_string(),
        "Addresses": [format!("100.64.0.{id}/32"), format!("fd7a:115c:a1e0::{id}/128")],
    });
    for (name, value) in fields.as_object().unwrap() {
        node[name] = value.clone();
    }
    node
}

fn message(json: Value) -> MapResponse {
    serde_json::from_value(json).unwrap()
}

fn first(peers: Value) -> MapResponse {
    message(json!({
        "Node": node(1, json!({})), "Peers": peers,
        "UserProfiles": [{"ID": 1, "LoginName": "ada@example.com", "DisplayName": "Ada"}],
    }))
}

fn netmap(peers: Value) -> Netmap {
    let mut netmap = Netmap::default();
    netmap.begin_stream();
    assert!(netmap.apply(first(peers)).unwrap().any());
    netmap
}

fn tell(netmap: &mut Netmap, json: Value) {
    netmap.apply(message(json)).map(|_| ()).unwrap();
}

fn ids(netmap: &Netmap) -> Vec<i64> {
    netmap.peers().map(|node| node.id).collect()
}

#[test]
fn an_empty_netmap_knows_nobody_and_permits_nothing() {
    let netmap = Netmap::default();
    assert!(netmap.self_node().is_none());
    assert!(netmap.addresses().is_empty());
    assert_eq!(netmap.route(addr("100.64.0.2")), None);
    assert!(!netmap.source_allowed(&NodePublic::default(), addr("100.64.0.2")));
    assert_eq!(netmap.whois(addr("100.64.0.2"), addr("100.64.0.1")), None);
    assert!(netmap.rule_set().own_addresses().is_empty());
    assert!(netmap.resolve("host2").is_empty());
}

#[test]
fn a_stream_begins_with_our_own_node_or_is_broken() {
    let mut netmap = Netmap::default();
    let keep_alive = message(json!({"KeepAlive": true, "Node": node(1, json!({}))}));
    assert!(
        !netmap.apply(keep_alive).unwrap().any(),
        "a keep-alive says nothing else"
    );
    let peers_only = message(json!({"Peers": [node(2, json!({}))]}));
    assert_eq!(
        netmap.apply(peers_only),
        Err(NetmapError::StreamWithoutSelf)
    );
    assert!(netmap.apply(first(json!([]))).unwrap().self_node);
}

#[test]
fn what_was_known_stays_until_the_next_stream_speaks() {
    let mut netmap = netmap(json!([node(2, json!({}))]));
    netmap.begin_stream();
    assert_eq!(ids(&netmap), [2]);
    assert_eq!(
        netmap.apply(message(json!({"KeepAlive": true}))),
        Ok(Changed::default())
    );
    assert_eq!(
        netmap.apply(message(json!({"PeersRemoved": [2]}))),
        Err(NetmapError::StreamWithoutSelf)
    );
    assert_eq!(ids(&netmap), [2]);
    let fresh = message(json!({"Node": node(1, json!({})), "PeersChanged": [node(3, json!({}))]}));
    assert_eq!(netmap.apply(fresh), Ok(Changed::ALL));
    assert_eq!(ids(&netmap), [3]);
    assert!(netmap.user(1).is_none(), "users of the old stream are gone");
}

#[test]
fn peer_deltas_are_merged_in_upstreams_order() {
    let two = || json!([node(2, json!({})), node(3, json!({}))]);
    let online = |netmap: &Netmap, id: u8| netmap.peer(&key(id)).and_then(|node| node.online);
    for (name, delta, expected) in [
        ("an empty list is absent", json!({"Peers": []}), vec![2, 3]),
        (
            "a list replaces",
            json!({"Peers": [node(4, json!({}))]}),
            vec![4],
        ),
        (
            "a list makes deltas void",
            json!({"Peers": [node(4, json!({}))], "PeersRemoved": [4], "PeersChanged": [node(5, json!({}))]}),
            vec![4],
        ),
        ("removal", json!({"PeersRemoved": [2, 99]}), vec![3]),
        ("removal of all", json!({"PeersRemoved": [2, 3]}), vec![]),
        (
            "upsert",
            json!({"PeersChanged": [node(2, json!({})), node(4, json!({}))]}),
            vec![2, 3, 4],
        ),
        (
            "removal comes before change",
            json!({"PeersRemoved": [2], "PeersChanged": [node(2, json!({}))]}),
            vec![2, 3],
        ),
        (
            "a patch of nobody",
            json!({"PeersChangedPatch": [{"NodeID": 99, "DERPRegion": 1}], "OnlineChange": {"98": true}, "PeerSeenChange": {"97": true}}),
            vec![2, 3],
        ),
    ] {
        let mut netmap = netmap(two());
        tell(&mut netmap, delta);
        assert_eq!(ids(&netmap), expected, "{name}");
    }

    let mut netmap = netmap(two());
    let changed = netmap
        .apply(message(json!({
            "PeersChanged": [node(2, json!({"Online": false, "HomeDERP": 7}))],
            "OnlineChange": {"2": true, "3": false},
            "PeersChangedPatch": [{"NodeID": 3, "Online": true}],
        })))
        .unwrap();
    assert_eq!(
        changed,
        Changed {
            peers: true,
            ..Changed::default()
        }
    );
    assert_eq!(
        (online(&netmap, 2), online(&netmap, 3)),
        (Some(true), Some(true))
    );
}

#[test]
fn a_patch_changes_what_it_names_and_nothing_else() {
    let mut netmap = netmap(json!([node(
        2,
        json!({"HomeDERP": 7, "Cap": 100, "CapMap": {"old": null}, "Online": true})
    )]));
    let disco = format!("discokey:{}", "ab".repeat(32));
    tell(
        &mut netmap,
        json!({"PeersChangedPatch": [{"NodeID": 2, "Key": key(9).to_string(), "DiscoKey": disco, "Endpoints": ["192.0.2.1:41641"], "CapMap": {"new": [1]}}]}),
    );
    assert!(netmap.peer(&key(2)).is_none());
    let peer = netmap.peer(&key(9)).unwrap();
    assert_eq!(
        (peer.home_derp, peer.cap, peer.online),
        (7, 100, Some(true))
    );
    assert_eq!(peer.endpoints, ["192.0.2.1:41641".parse().unwrap()]);
    assert_eq!(peer.cap_map.keys().collect::<Vec<_>>(), ["new"]);
    assert_eq!(peer.disco_key.to_string(), disco);
    assert_eq!(netmap.route(addr("100.64.0.2")), Some(key(9)));
    tell(
        &mut netmap,
        json!({"PeersChangedPatch": [{"NodeID": 2, "DERPRegion": 3, "Cap": 130, "KeyExpiry": "2020-01-01T00:00:00Z"}]}),
    );
    let peer = netmap.peer(&key(9)).unwrap();
    assert_eq!(
        (peer.home_derp, peer.cap, peer.endpoints.len()),
        (3, 130, 1)
    );
}

#[test]
fn last_seen_follows_the_clock_that_we_were_told() {
    let mut netmap = netmap(json!([node(
        2,
        json!({"LastSeen": "2020-01-01T00:00:00Z"})
    )]));
    let seen = |netmap: &Netmap| netmap.peer(&key(2)).unwrap().last_seen.clone();
    tell(&mut netmap, json!({"PeerSeenChange": {"2": false}}));
    assert_eq!(seen(&netmap), None);
    assert!(netmap.handle_wall_time(1_709_251_199).peers);
    tell(&mut netmap, json!({"PeerSeenChange": {"2": true}}));
    assert_eq!(seen(&netmap).as_deref(), Some("2024-02-29T23:59:59Z"));
}

#[test]
fn named_filter_lists_are_set_deleted_and_reset() {
    let rule = |port: u16| json!({"SrcIPs": ["*"], "DstPorts": [{"IP": "*", "Ports": {"First": port, "Last": port}}]});
    let mut netmap = netmap(json!([]));
    assert_eq!(netmap.filter_rules().count(), 0);
    for (delta, expected) in [
        (json!({"PacketFilter": [rule(1)]}), vec![1]),
        (json!({}), vec![1]),
        (
            json!({"PacketFilter": null, "PacketFilters": null}),
            vec![1],
        ),
        (
            json!({"PacketFilters": {"more": [rule(2), rule(3)]}}),
            vec![1, 2, 3],
        ),
        (json!({"PacketFilters": {"more": [rule(4)]}}), vec![1, 4]),
        (json!({"PacketFilters": {"base": null}}), vec![4]),
        (
            json!({"PacketFilter": [rule(5)], "PacketFilters": {"more": null}}),
            vec![5],
        ),
        (json!({"PacketFilters": {"*": [rule(9)]}}), vec![5]),
        (
            json!({"PacketFilter": [rule(6)], "PacketFilters": {"*": null, "x": [rule(7)]}}),
            vec![7],
        ),
        (json!({"PacketFilter": []}), vec![7]),
        (json!({"PacketFilters": {"*": null}}), vec![]),
    ] {
        let has_filter = delta
            .get("PacketFilter")
            .is_some_and(|list| !list.is_null())
            || delta
                .get("PacketFilters")
                .is_some_and(|lists| !lists.is_null());
        let changed = netmap.apply(message(delta.clone())).unwrap();
        assert_eq!(changed.filter, has_filter, "{delta}");
        let ports: Vec<u16> = netmap
            .filter_rules()
            .map(|rule| rule.dst_ports[0].ports.first)
            .collect();
        assert_eq!(ports, expected, "{delta}");
    }
}

#[test]
fn a_derp_map_is_replaced_but_for_what_it_leaves_out() {
    let mut netmap = netmap(json!([]));
    assert!(netmap.derp_map().is_none());
    let regions = |netmap: &Netmap| -> Vec<u32> {
        netmap
            .derp_map()
            .unwrap()
            .regions
            .iter()
            .flatten()
            .map(|(id, _)| *id)
            .collect()
    };
    let scores = |netmap: &Netmap| {
        netmap
            .derp_map()
            .unwrap()
            .home_params
            .clone()
            .and_then(|params| params.region_score)
            .map(|scores| scores.len())
    };
    for (map, expected_regions, expected_scores) in [
        (
            json!({"Regions": {"1": {"RegionID": 1}, "2": null}}),
            vec![1],
            None,
        ),
        (
            json!({"HomeParams": {"RegionScore": {"1": 0.5}}}),
            vec![1],
            Some(1),
        ),
        (json!({"Regions": {"3": {"RegionID": 3}}}), vec![3], Some(1)),
        (
            json!({"HomeParams": {"RegionScore": null}}),
            vec![3],
            Some(1),
        ),
        (json!({"HomeParams": {"RegionScore": {}}}), vec![3], Some(0)),
        (json!({"Regions": {}}), vec![], Some(0)),
    ] {
        assert!(
            netmap
                .apply(message(json!({"DERPMap": map})))
                .unwrap()
                .derp_map
        );
        assert_eq!(
            (regions(&netmap), scores(&netmap)),
            (expected_regions, expected_scores),
            "{map}"
        );
    }
}

#[test]
fn users_are_merged_and_the_rest_is_replaced_only_when_present() {
    let mut netmap = netmap(json!([]));
    let delta = message(
        json!({"UserProfiles": [{"ID": 2, "LoginName": "bob@example.com"}], "SSHPolicy": {"rules": [{}]},
        "DNSConfig": {"CertDomains": ["a.b"]}, "Domain": "tail.example", "Health": ["bad"]}),
    );
    let changed = netmap.apply(delta).unwrap();
    assert_eq!(
        changed,
        Changed {
            users: true,
            ssh_policy: true,
            dns: true,
            ..Changed::default()
        }
    );
    let changed = netmap
        .apply(message(
            json!({"UserProfiles": [{"ID": 2, "LoginName": "bob@example.com"}]}),
        ))
        .unwrap();
    assert!(!changed.any(), "the same profile again is no change");
    assert_eq!(netmap.user(1).unwrap().login_name, "ada@example.com");
    assert_eq!(netmap.user(2).unwrap().login_name, "bob@example.com");
    assert_eq!(netmap.ssh_policy().unwrap().rules.len(), 1);
    assert_eq!(netmap.dns_config().unwrap().cert_domains, ["a.b"]);
    assert_eq!(
        (netmap.domain(), netmap.health()),
        ("tail.example", &["bad".to_owned()][..])
    );
    tell(&mut netmap, json!({"Health": []}));
    assert!(netmap.health().is_empty());
}

#[test]
fn old_forms_of_a_node_are_folded_into_the_new() {
    let netmap = netmap(json!([
        node(2, json!({"DERP": "127.3.3.40:17", "Capabilities": ["x"]})),
        node(3, json!({"DERP": "127.3.3.40:17", "HomeDERP": 4}))
    ]));
    assert_eq!(netmap.peer(&key(2)).unwrap().home_derp, 17);
    assert!(netmap.peer(&key(2)).unwrap().cap_map.contains_key("x"));
    assert_eq!(netmap.peer(&key(3)).unwrap().home_derp, 4);
}

mod limits;
mod routes;
