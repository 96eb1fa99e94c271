//! Every table has its limit, a refused message changes nothing, and no document makes us panic.

use super::*;
use crate::tailcfg::{NetPortRange, UserProfile};

fn over(what: &'static str, count: usize, max: usize) -> Result<Changed, NetmapError> {
    Err(NetmapError::OverLimit { what, count, max })
}

fn many(count: usize, with: impl Fn(usize) -> Node) -> Vec<Node> {
    (1..=count)
        .map(|id| Node {
            id: i64::try_from(id).unwrap(),
            ..with(id)
        })
        .collect()
}

#[test]
fn peers_are_limited_and_a_refused_message_changes_nothing() {
    let mut netmap = netmap(json!([node(2, json!({}))]));
    let full = MapResponse {
        peers: many(PEERS_MAX + 1, |_| Node::default()),
        ..MapResponse::default()
    };
    assert_eq!(netmap.apply(full), over("peers", PEERS_MAX + 1, PEERS_MAX));
    let delta = MapResponse {
        node: Some(Node::default()),
        peers_changed: many(PEERS_MAX + 1, |_| Node::default()),
        domain: "changed".to_owned(),
        ..MapResponse::default()
    };
    assert_eq!(netmap.apply(delta), over("peers", PEERS_MAX + 1, PEERS_MAX));
    assert_eq!((ids(&netmap), netmap.domain()), (vec![2], ""));
    assert_eq!(netmap.self_node().unwrap().id, 1);
}

#[test]
fn what_goes_makes_room_for_what_comes() {
    let mut netmap = netmap(json!([]));
    let full = MapResponse {
        peers: many(PEERS_MAX, |_| Node::default()),
        ..MapResponse::default()
    };
    assert!(netmap.apply(full).unwrap().peers);
    let one_more = |removed: Value| {
        message(json!({"PeersRemoved": removed, "PeersChanged": [{"ID": 60_000}]}))
    };
    assert_eq!(
        netmap.apply(one_more(json!([]))),
        over("peers", PEERS_MAX + 1, PEERS_MAX)
    );
    assert_eq!(
        netmap.apply(one_more(json!([70_000]))),
        over("peers", PEERS_MAX + 1, PEERS_MAX)
    );
    assert!(netmap.apply(one_more(json!([7, 7]))).is_ok());
    assert!(
        netmap.apply(one_more(json!([]))).is_ok(),
        "the same peer again"
    );
}

#[test]
fn prefixes_bytes_and_users_are_limited() {
    let mut netmap = netmap(json!([]));
    let prefix = "10.0.0.0/8".parse().unwrap();
    let wide = Node {
        id: 2,
        allowed_ips: Some(vec![prefix; PREFIXES_MAX]),
        ..Node::default()
    };
    let wider = Node {
        addresses: vec![prefix],
        ..wide.clone()
    };
    let upsert = |node: Node| MapResponse {
        peers_changed: vec![node],
        ..MapResponse::default()
    };
    assert_eq!(
        netmap.apply(upsert(wider)),
        over("prefixes", PREFIXES_MAX + 1, PREFIXES_MAX)
    );
    assert!(netmap.apply(upsert(wide.clone())).is_ok());
    assert!(
        netmap.apply(upsert(wide)).is_ok(),
        "a replacement counts once"
    );

    let big = |id: i64| Node {
        id,
        name: "x".repeat(PEER_BYTES_MAX / 2),
        ..Node::default()
    };
    assert!(netmap.apply(upsert(big(3))).is_ok());
    let refused = netmap.apply(upsert(big(4)));
    assert!(
        matches!(
            refused,
            Err(NetmapError::OverLimit {
                what: "bytes of peers",
                ..
            })
        ),
        "{refused:?}"
    );
    let patch = json!({"PeersChangedPatch": [{"NodeID": 3, "CapMap": {"x".repeat(PEER_BYTES_MAX / 2): null}}]});
    let refused = netmap.apply(message(patch));
    assert!(
        matches!(
            refused,
            Err(NetmapError::OverLimit {
                what: "bytes of peers",
                ..
            })
        ),
        "{refused:?}"
    );

    let users = |count: i64, name: &str| {
        let profile = |id| UserProfile {
            id,
            login_name: name.to_owned(),
            ..UserProfile::default()
        };
        MapResponse {
            user_profiles: (1..=count).map(profile).collect(),
            ..MapResponse::default()
        }
    };
    let max = i64::try_from(USERS_MAX).unwrap();
    assert_eq!(
        netmap.apply(users(max + 1, "")),
        over("users", USERS_MAX + 1, USERS_MAX)
    );
    assert!(netmap.apply(users(max, "")).is_ok());
    assert!(netmap.apply(users(max, "")).is_ok(), "the same users again");
    assert!(netmap.apply(users(max, &"x".repeat(400))).is_err());
}

#[test]
fn filter_lists_rules_entries_and_bytes_are_limited() {
    let rule = |entries: usize, bytes: usize| FilterRule {
        src_ips: vec!["x".repeat(bytes); entries],
        dst_ports: vec![NetPortRange::default(); usize::from(entries > 0)],
        ..FilterRule::default()
    };
    let set = |rules: Vec<FilterRule>| MapResponse {
        packet_filter: Some(rules),
        ..MapResponse::default()
    };
    let mut netmap = netmap(json!([]));
    assert!(netmap.apply(set(vec![rule(0, 0); RULES_MAX])).is_ok());
    assert_eq!(
        netmap.apply(message(json!({"PacketFilters": {"one": [{}]}}))),
        over("filter rules", RULES_MAX + 1, RULES_MAX)
    );
    assert_eq!(netmap.filter_rules().count(), RULES_MAX);
    let entries = RULE_ENTRIES_MAX + 1;
    assert_eq!(
        netmap.apply(set(vec![rule(RULE_ENTRIES_MAX, 0)])),
        over("filter entries", entries, RULE_ENTRIES_MAX)
    );
    let refused = netmap.apply(set(vec![rule(1, RULE_BYTES_MAX)]));
    assert!(
        matches!(
            refused,
            Err(NetmapError::OverLimit {
                what: "bytes of filter",
                ..
            })
        ),
        "{refused:?}"
    );
    let lists: serde_json::Map<String, Value> = (0..=FILTER_LISTS_MAX)
        .map(|name| (name.to_string(), json!([])))
        .collect();
    let refused = netmap.apply(message(json!({"PacketFilters": lists})));
    assert_eq!(
        refused,
        over("filter lists", FILTER_LISTS_MAX + 2, FILTER_LISTS_MAX)
    );
}

/// Messages over few ids and addresses, so that they meet.
fn delta() -> impl Strategy<Value = Value> {
    let peer = (0_u8..6, 0_u8..4, any::<[bool; 4]>()).prop_map(|(id, last, [expired, unsigned, routes, keyless])| {
        let mut fields = json!({"Addresses": [format!("100.64.0.{last}/32")], "Expired": expired, "UnsignedPeerAPIOnly": unsigned});
        if routes {
            fields["AllowedIPs"] = json!([format!("100.64.0.{id}/32"), "100.64.0.0/24", format!("100.64.0.{last}/32")]);
        }
        if keyless {
            fields["Key"] = Value::Null;
        }
        node(id, fields)
    });
    let peers = || proptest::collection::vec(peer.clone(), 0..4);
    let ids = proptest::collection::vec(0_u8..6, 0..3);
    let patches = proptest::collection::vec(
        (0_u8..6, 0_u8..6)
            .prop_map(|(id, last)| json!({"NodeID": id, "Key": key(last).to_string()})),
        0..3,
    );
    (peers(), peers(), ids, patches, any::<bool>(), any::<bool>()).prop_map(|(full, changed, removed, patched, is_full, is_self)| {
        let mut message = json!({"PeersChanged": changed, "PeersRemoved": removed, "PeersChangedPatch": patched});
        if is_full {
            message["Peers"] = json!(full);
        }
        if is_self {
            message["Node"] = node(1, json!({}));
        }
        message
    })
}

proptest! {
    #[test]
    fn an_address_has_one_owner_however_messages_follow_each_other(deltas in proptest::collection::vec(delta(), 1..8)) {
        let mut netmap = netmap(json!([]));
        for delta in deltas {
            let text = delta.to_string();
            let whole = netmap.apply(serde_json::from_str(&text).unwrap());
            prop_assert!(whole.is_ok(), "{}", text);
            for last in 0..7 {
                let address = addr(&format!("100.64.0.{last}"));
                let speakers = netmap.peers().filter(|peer| netmap.source_allowed(&peer.key, address)).count();
                prop_assert!(speakers <= 1);
                prop_assert_eq!(netmap.route(address).is_some(), speakers == 1);
                if let (Some(route), Some(identity)) = (netmap.route(address), netmap.whois(address, addr("100.64.0.1"))) {
                    prop_assert_eq!(route, identity.key, "who speaks is who is named");
                }
            }
            prop_assert!(netmap.route(addr("100.64.0.1")).is_none(), "nobody speaks for us");
            let fresh = Index::build(&netmap.state, None);
            prop_assert_eq!(fresh.skipped(), netmap.skipped_peers(), "a delta that needs no new index changed none");
            prop_assert_eq!(fresh.unsigned(), netmap.unsigned_prefixes());
        }
    }

    #[test]
    fn a_bent_document_is_an_error_or_a_netmap_but_no_panic(at in 0_usize..2_000, byte: u8, cut in 0_usize..2_000) {
        let grant = json!({"SrcIPs": ["*", "10.0.0.0/8", "1.1.1.1-1.1.1.9"], "CapGrant": [{"Dsts": ["100.64.0.1/32"], "CapMap": {"a": [{}]}}]});
        let whole = json!({"Node": node(1, json!({})), "Peers": [node(2, json!({"KeyExpiry": "2024-02-29T23:59:59Z"}))], "PacketFilter": [grant],
            "DERPMap": {"Regions": {"1": null}}, "OnlineChange": {"2": true}, "UserProfiles": [{"ID": 1}]});
        let mut bytes = whole.to_string().into_bytes();
        let length = bytes.len();
        bytes[at % length] = byte;
        for document in [&bytes[..], &bytes[..cut % length]] {
            if let Ok(response) = serde_json::from_slice::<MapResponse>(document) {
                let mut netmap = Netmap::default();
                if netmap.apply(response).is_ok() {
                    netmap.whois(addr("100.64.0.2"), addr("100.64.0.1"));
                    netmap.resolve("host2");
                }
            }
        }
    }
}
