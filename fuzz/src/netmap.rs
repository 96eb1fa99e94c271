//! What the control server says, and the packets that its filter lets through.
//!
//! Seeds: real map messages and packets.

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use netstack::filter::{Filter, PacketView, RuleSet, Transport, Verdict};
use netstack::netmap::Netmap;
use netstack::tailcfg::{FilterRule, MapResponse};

const OWN: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(100, 64, 0, 1)),
    IpAddr::V6(std::net::Ipv6Addr::new(
        0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 1,
    )),
];

/// The bytes are one IP packet, which comes in from a peer.
pub fn filter_packet(data: &[u8]) {
    static CLOSED: LazyLock<Arc<RuleSet>> = LazyLock::new(|| rule_set("[]"));
    static OPEN: LazyLock<Arc<RuleSet>> = LazyLock::new(|| {
        rule_set(
            r#"[{"SrcIPs":["cap:host","100.64.0.0/10","fd7a:115c:a1e0::-fd7a:115c:a1e0::ff"],
            "DstPorts":[{"IP":"*","Ports":{"First":80,"Last":80}}]}]"#,
        )
    });

    let view = PacketView::parse(data);
    if let Ok(view) = &view {
        assert!(view.ip_bytes <= data.len() && view.payload.len() <= view.ip_bytes);
        let trimmed = data.get(..view.ip_bytes).unwrap_or_default();
        assert_eq!(
            PacketView::parse(trimmed).as_ref(),
            Ok(view),
            "padding does not count"
        );
    }

    let mut filter = Filter::drop_all();
    let verdict = filter.check_in(data, false, &|_| true);
    assert_eq!(
        verdict == Verdict::Accept,
        data.is_empty(),
        "drop-all accepts nothing"
    );

    filter.replace_rules(Arc::clone(&CLOSED));
    let closed = filter.check_in(data, false, &|_| true);
    if let (Ok(view), Verdict::Accept) = (&view, closed) {
        assert!(OWN.contains(&view.dst), "accepted, but not for us");
        assert!(
            !view.transport.is_tcp_open(),
            "a SYN came in without a rule"
        );
        assert!(!matches!(
            view.transport,
            Transport::Udp { .. } | Transport::Other
        ));
    }
    filter.note_out(data);
    filter.replace_rules(Arc::clone(&OPEN));
    let open = filter.check_in(data, false, &|cap| cap == "host");
    assert!(
        closed != Verdict::Accept || open == Verdict::Accept,
        "a rule can only open"
    );
    let jailed = filter.check_in(data, true, &|_| true);
    assert!(
        jailed != Verdict::Accept || open == Verdict::Accept,
        "jail can only close"
    );
}

fn rule_set(json: &str) -> Arc<RuleSet> {
    let rules: Vec<FilterRule> = serde_json::from_str(json).unwrap_or_default();
    Arc::new(RuleSet::compile(&rules, &OWN, &[]).0)
}

/// The bytes are one message of the map stream: the first one, and then a delta.
pub fn netmap_json(data: &[u8]) {
    let Ok(response) = serde_json::from_slice::<MapResponse>(data) else {
        return;
    };
    if let Ok(text) = serde_json::to_vec(&response) {
        let again = serde_json::from_slice::<MapResponse>(&text);
        assert!(again.is_ok(), "what we write, we cannot read: {again:?}");
    }
    let mut netmap = Netmap::default();
    netmap.begin_stream();
    if netmap.apply(response.clone()).is_ok() {
        check_netmap(&netmap);
        assert!(netmap.handle_wall_time(1_800_000_000).peers);
        check_netmap(&netmap);
    }

    let mut known = Netmap::default();
    let first: MapResponse = serde_json::from_str(FIRST).unwrap_or_default();
    assert!(known.apply(first).is_ok());
    let peers_before = known.peers().count();
    match known.apply(response) {
        Ok(_) => check_netmap(&known),
        Err(_) => assert_eq!(
            known.peers().count(),
            peers_before,
            "half a message was merged"
        ),
    }
}

/// What our node and three peers look like before the delta comes.
const FIRST: &str = r#"{"Node":{"ID":1,"Key":"nodekey:0000000000000000000000000000000000000000000000000000000000000001","Name":"us.tail.example.",
"Addresses":["100.64.0.1/32","fd7a:115c:a1e0::1/128"]},"Peers":[
{"ID":2,"Key":"nodekey:0000000000000000000000000000000000000000000000000000000000000002","Tags":["tag:a"],"Addresses":["100.64.0.2/32"]},
{"ID":3,"Key":"nodekey:0000000000000000000000000000000000000000000000000000000000000003","User":1,"Addresses":["100.64.0.3/32"],"AllowedIPs":["100.64.0.3/32","10.0.0.0/8"]},
{"ID":4,"Key":"nodekey:0000000000000000000000000000000000000000000000000000000000000004","User":1,"Addresses":["fd7a:115c:a1e0::4/128"]}],
"UserProfiles":[{"ID":1,"LoginName":"ada@example.com"}]}"#;

fn check_netmap(netmap: &Netmap) {
    let own = netmap.addresses();
    for address in &own {
        assert_eq!(
            netmap.route(*address),
            None,
            "a peer would be spoken to at our address"
        );
    }
    for node in netmap.peers() {
        for address in node.addresses.iter().map(|prefix| prefix.addr()) {
            let Some(key) = netmap.route(address) else {
                continue;
            };
            assert!(netmap.source_allowed(&key, address));
            if let Some(identity) = own.first().and_then(|own| netmap.whois(address, *own))
                && address.to_canonical() == address
            {
                assert_eq!(identity.key, key, "who speaks is not who is named");
            }
        }
        netmap.resolve(&node.name);
    }
    netmap.rule_set().caps(OWN[0], OWN[0]);
}
