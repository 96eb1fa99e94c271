//! Our own client against the devnet, over loopback TCP.

mod node;
mod stun;

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use self::node::TestNode;
use super::*;
use crate::control::ControlEvent;
use crate::io::control_conn::{ControlConn, ControlConnError, ControlResponse};
use crate::key::{NodePrivate, NodePublic};
use crate::tailcfg::{
    CAPABILITY_VERSION, MapRequest, MapResponse, RegisterRequest, RegisterResponse,
};

/// Nothing here waits for time to pass; this only ends a test that hangs.
const HANG: Duration = Duration::from_secs(30);
const DERP: &str = r#"{"Regions":{"900":{"RegionID":900,"RegionCode":"dev","RegionName":"dev",
    "Nodes":[{"Name":"900a","RegionID":900,"HostName":"127.0.0.1","IPv4":"127.0.0.1","DERPPort":3340}]}}}"#;

async fn devnet() -> DevNet {
    let config = DevNetConfig {
        derp_map: serde_json::from_str(DERP).unwrap(),
        ..DevNetConfig::default()
    };
    DevNet::start(config).await.unwrap()
}

fn key_for(net: &DevNet, tags: &[&str]) -> String {
    let user = net.add_user("alice@example.com");
    let spec = AuthKeySpec {
        user,
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        reusable: true,
        ephemeral: false,
    };
    net.auth_key(spec).unwrap()
}

async fn connect(net: &DevNet, machine: &MachinePrivate) -> ControlConn {
    let connected = ControlConn::connect(&net.url(), machine, None, CAPABILITY_VERSION).await;
    let (conn, key) = connected.unwrap();
    assert_eq!(key, net.server_key());
    conn
}

/// Registers without the state machine and returns the answer.
async fn register(conn: &ControlConn, key: NodePublic, auth: Option<&str>) -> RegisterResponse {
    let request = RegisterRequest {
        version: CAPABILITY_VERSION,
        node_key: key,
        auth: auth.map(|auth| crate::tailcfg::RegisterAuth {
            auth_key: auth.to_owned(),
        }),
        ..RegisterRequest::default()
    };
    let body = serde_json::to_vec(&request).unwrap();
    let response = conn.post("/machine/register", body).await.unwrap();
    assert_eq!(response.status, 200);
    serde_json::from_slice(&response.collect().await.unwrap()).unwrap()
}

fn map_request(key: NodePublic) -> MapRequest {
    MapRequest {
        version: CAPABILITY_VERSION,
        node_key: key,
        ..MapRequest::default()
    }
}

async fn post_map(conn: &ControlConn, request: &MapRequest) -> ControlResponse {
    let body = serde_json::to_vec(request).unwrap();
    conn.post("/machine/map", body).await.unwrap()
}

#[tokio::test]
async fn two_nodes_see_each_others_endpoints_and_nothing_is_missing_for_stock_clients() {
    let net = devnet().await;
    let key = key_for(&net, &[]);
    let mut one = TestNode::new(&net, "One.example", Some(&key));
    let mut two = TestNode::new(&net, "one", Some(&key));
    one.publish("127.0.0.1:4001");
    two.publish("127.0.0.1:4002");
    let own = one.itself().await;
    assert_eq!(own.name, "one.tail.test.");
    let endpoint = |text: &'static str| {
        move |map: &MapResponse| {
            let wanted: SocketAddr = text.parse().unwrap();
            map.peers.iter().any(|peer| peer.endpoints == [wanted])
        }
    };
    let (map, _) = tokio::join!(
        one.map(endpoint("127.0.0.1:4002")),
        two.map(endpoint("127.0.0.1:4001"))
    );

    let peer = &map.peers[0];
    assert_eq!(peer.name, "one-1.tail.test.");
    assert_eq!(peer.home_derp, 900);
    assert!(!peer.disco_key.is_zero() && !peer.key.is_zero());
    assert_eq!(peer.online, Some(true));
    assert_eq!(peer.effective_allowed_ips(), peer.addresses);
    let own = map.node.unwrap();
    assert!(own.machine_authorized && own.key_expiry.is_none() && !own.stable_id.is_empty());
    assert_eq!(own.addresses[0].to_string(), "100.64.0.1/32");
    assert_eq!(own.addresses[1].to_string(), "fd7a:115c:a1e0::1:1/128");
    assert!(own.cap_map.contains_key("https://tailscale.com/cap/ssh"));
    for user in [own.user, peer.user] {
        let profile = map.user_profiles.iter().find(|found| found.id == user);
        assert_eq!(profile.unwrap().login_name, "alice@example.com");
    }
    let regions = map.derp_map.unwrap().regions.unwrap();
    assert!(regions[&900].is_some());
    assert_eq!(
        map.packet_filters.unwrap()["base"].as_ref().unwrap().len(),
        1
    );
    let endpoints = net.nodes().into_iter().map(|node| node.endpoints);
    assert_eq!(endpoints.flatten().count(), 2);
    assert!(net.nodes().iter().all(|node| node.online));
    net.shutdown().await;
}

#[tokio::test]
async fn the_map_names_the_relays_that_were_added() {
    let net = devnet().await;
    let config = DerpServerConfig {
        region_id: 901,
        ..DerpServerConfig::default()
    };
    let relay = net.add_relay(config).await.unwrap();
    let mut one = TestNode::new(&net, "one", Some(&key_for(&net, &[])));
    let map = one.map(|map| map.derp_map.is_some()).await;
    let regions = map.derp_map.unwrap().regions.unwrap();
    assert_eq!(regions.keys().copied().collect::<Vec<_>>(), [900, 901]);
    let node = regions[&901].as_ref().unwrap().nodes[0].clone();
    assert_eq!(node.derp_port, relay.address().port());
    assert_eq!(node.cert_name, relay.region().nodes[0].cert_name);
    net.shutdown().await;
}

#[tokio::test]
async fn a_later_change_of_endpoints_reaches_the_peers() {
    let net = devnet().await;
    let key = key_for(&net, &[]);
    let mut one = TestNode::new(&net, "one", Some(&key));
    let mut two = TestNode::new(&net, "two", Some(&key));
    one.itself().await;
    two.map(|map| map.peers.len() == 1).await;
    one.publish("[::1]:7");
    let moved = |map: &MapResponse| map.peers.iter().any(|peer| peer.endpoints.len() == 1);
    // Both have to run: one publishes, two listens.
    tokio::select! {
        map = two.map(moved) => assert_eq!(map.peers[0].endpoints[0].port(), 7),
        () = one.until(|_| None) => {}
    }
}

#[tokio::test]
async fn an_unknown_or_used_up_key_is_refused() {
    let net = devnet().await;
    let user = net.add_user("bob");
    let once = AuthKeySpec {
        user,
        tags: Vec::new(),
        reusable: false,
        ephemeral: false,
    };
    let once = net.auth_key(once).unwrap();
    let mut good = TestNode::new(&net, "good", Some(&once));
    good.itself().await;
    for (key, wanted) in [
        ("tskey-auth-wrong", "invalid auth key"),
        (once.as_str(), "auth key already used"),
    ] {
        let mut node = TestNode::new(&net, "bad", Some(key));
        let reason = node.until(|event| {
            if let ControlEvent::Refused { reason } = event {
                Some(reason)
            } else {
                None
            }
        });
        assert_eq!(reason.await, wanted);
    }
    assert_eq!(net.nodes().len(), 1);
}

#[tokio::test]
async fn the_ssh_policy_names_the_recorders_that_have_the_tag() {
    let net = devnet().await;
    net.set_ssh_policy(vec![DevSshRule {
        recorder_tag: Some("tag:recorder".to_owned()),
        enforce: true,
    }]);
    let mut host = TestNode::new(&net, "host", Some(&key_for(&net, &[])));
    let map = host.map(|map| map.ssh_policy.is_some()).await;
    let action = &map.ssh_policy.unwrap().rules[0].action;
    assert!(
        action.reject && !action.accept && action.recorders.is_empty(),
        "nobody could record"
    );

    let mut recorder = TestNode::new(&net, "rec", Some(&key_for(&net, &["tag:recorder"])));
    let own = recorder.itself().await;
    assert_eq!(own.tags, ["tag:recorder"]);
    let recorded = |map: &MapResponse| {
        let rules = map.ssh_policy.as_ref().map(|policy| &policy.rules);
        rules.is_some_and(|rules| !rules[0].action.recorders.is_empty())
    };
    let map = host.map(recorded).await;
    let action = &map.ssh_policy.unwrap().rules[0].action;
    assert_eq!(
        action.recorders,
        ["100.64.0.2:80", "[fd7a:115c:a1e0::1:2]:80"]
    );
    let failure = action.on_recording_failure.as_ref().unwrap();
    assert!(action.accept && !failure.reject_session_with_message.is_empty());
    assert!(!failure.terminate_session_with_message.is_empty());
    let tagged = map.user_profiles.iter().find(|user| user.id == own.user);
    assert_eq!(tagged.unwrap().login_name, "tagged-devices");
}

#[tokio::test]
async fn an_unknown_node_is_not_found_and_a_foreign_one_neither() {
    let net = devnet().await;
    let key = NodePrivate::generate(&mut OsRng).public();
    let conn = connect(&net, &MachinePrivate::generate(&mut OsRng)).await;
    assert_eq!(post_map(&conn, &map_request(key)).await.status, 404);
    let auth = key_for(&net, &[]);
    assert_eq!(register(&conn, key, Some(&auth)).await.error, "");
    assert_eq!(post_map(&conn, &map_request(key)).await.status, 200);

    let other = connect(&net, &MachinePrivate::generate(&mut OsRng)).await;
    assert_eq!(post_map(&other, &map_request(key)).await.status, 404);
    let stolen = register(&other, key, Some(&auth)).await;
    assert_eq!(stolen.error, "node exists with a different machine key");
}

#[tokio::test]
async fn a_stream_in_zstd_decodes() {
    let net = devnet().await;
    let conn = connect(&net, &MachinePrivate::generate(&mut OsRng)).await;
    let key = NodePrivate::generate(&mut OsRng).public();
    register(&conn, key, Some(&key_for(&net, &[]))).await;
    let mut request = map_request(key);
    request.stream = true;
    request.keep_alive = true;
    request.compress = "zstd".to_owned();
    let mut response = post_map(&conn, &request).await;
    let mut bytes = Vec::new();
    let message = loop {
        bytes.extend(response.chunk().await.unwrap().unwrap());
        if let Some((length, rest)) = bytes.split_first_chunk::<4>()
            && let Some(message) = rest.get(..u32::from_le_bytes(*length) as usize)
        {
            break message;
        }
    };
    let json = zstd::bulk::decompress(message, 1 << 20).unwrap();
    let map: MapResponse = serde_json::from_slice(&json).unwrap();
    assert_eq!(map.node.unwrap().key, key);
}

#[tokio::test]
async fn a_lite_update_is_answered_with_an_empty_200() {
    let net = devnet().await;
    let conn = connect(&net, &MachinePrivate::generate(&mut OsRng)).await;
    let key = NodePrivate::generate(&mut OsRng).public();
    register(&conn, key, Some(&key_for(&net, &[]))).await;
    let mut request = map_request(key);
    request.omit_peers = true;
    let response = post_map(&conn, &request).await;
    assert_eq!(response.status, 200);
    assert!(response.collect().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_second_stream_of_a_node_ends_the_first() {
    let net = devnet().await;
    let conn = connect(&net, &MachinePrivate::generate(&mut OsRng)).await;
    let key = NodePrivate::generate(&mut OsRng).public();
    register(&conn, key, Some(&key_for(&net, &[]))).await;
    let mut request = map_request(key);
    request.stream = true;
    let mut first = post_map(&conn, &request).await;
    first.chunk().await.unwrap().unwrap();
    let mut second = post_map(&conn, &request).await;
    second.chunk().await.unwrap().unwrap();
    let end = timeout(HANG, async {
        while first.chunk().await.unwrap().is_some() {}
    });
    end.await.expect("the first stream ends");
    assert!(net.nodes()[0].online);
}

#[tokio::test]
async fn unknown_paths_are_answered_and_the_connection_stays() {
    let net = devnet().await;
    let conn = connect(&net, &MachinePrivate::generate(&mut OsRng)).await;
    for (path, wanted) in [
        ("/machine/whatever", 501),
        ("/machine/set-dns", 200),
        ("/machine/register", 400),
        ("/machine/map", 400),
        ("/other", 404),
    ] {
        let response = conn.post(path, vec![b'x'; 100_000]).await.unwrap();
        assert_eq!(response.status, wanted, "{path}");
        response.collect().await.unwrap();
    }
    assert!(!conn.is_closed());
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused() {
    let net = devnet().await;
    let conn = connect(&net, &MachinePrivate::generate(&mut OsRng)).await;
    let sent = conn.post("/machine/map", vec![b'x'; 2 << 20]).await;
    assert!(sent.is_err() || sent.is_ok_and(|response| response.status == 413));
    let response = conn.post("/machine/whatever", Vec::new()).await.unwrap();
    assert_eq!(response.status, 501);
}

#[tokio::test]
async fn a_login_page_waits_for_its_approval() {
    let net = devnet().await;
    let mut node = TestNode::new(&net, "person", None);
    let url = node.until(|event| {
        if let ControlEvent::NeedsLogin { url } = event {
            Some(url)
        } else {
            None
        }
    });
    let url = url.await;
    assert!(url.starts_with(&net.url()));
    assert!(matches!(
        net.approve_login("http://x/login/guess", 1),
        Err(DevNetError::UnknownUser { user: 1 })
    ));
    let user = net.add_user("carol");
    assert!(net.approve_login("http://x/login/guess", user).is_err());
    net.approve_login(&url, user).unwrap();
    assert_eq!(node.itself().await.user, user);
}

#[tokio::test]
async fn a_removed_node_comes_back_with_its_auth_key_as_a_new_node() {
    let net = devnet().await;
    let key = key_for(&net, &[]);
    let mut node = TestNode::new(&net, "node", Some(&key));
    let mut peer = TestNode::new(&net, "peer", Some(&key));
    let first = node.itself().await;
    tokio::select! {
        _ = peer.map(|map| map.peers.len() == 1) => {}
        () = node.until(|_| None) => {}
    }
    net.remove_node(first.id).unwrap();
    let gone = peer.map(|map| map.peers.is_empty() && !map.peers_removed.is_empty());
    assert_eq!(gone.await.peers_removed, [first.id]);
    // Maps from before the removal may still be on their way.
    let other_id = |map: &MapResponse| map.node.as_ref().is_some_and(|node| node.id != first.id);
    let again = node.map(other_id).await.node.unwrap();
    assert_ne!(again.key, first.key);
    assert!(matches!(
        net.remove_node(first.id),
        Err(DevNetError::UnknownNode { .. })
    ));
}

#[tokio::test]
async fn an_expired_node_gets_a_new_key_and_keeps_its_address() {
    let net = devnet().await;
    let mut node = TestNode::new(&net, "node", Some(&key_for(&net, &[])));
    let first = node.itself().await;
    net.expire_node(first.id).unwrap();
    let again = node.map(|map| {
        let node = map.node.as_ref();
        node.is_some_and(|node| node.key != first.key)
    });
    let again = again.await.node.unwrap();
    assert!(!again.expired);
    assert_eq!((again.id, again.addresses), (first.id, first.addresses));
}

#[tokio::test]
async fn logging_out_removes_an_ephemeral_node_and_expires_another() {
    let net = devnet().await;
    let user = net.add_user("dave");
    for ephemeral in [true, false] {
        let spec = AuthKeySpec {
            user,
            tags: Vec::new(),
            reusable: false,
            ephemeral,
        };
        let auth = net.auth_key(spec).unwrap();
        let conn = connect(&net, &MachinePrivate::generate(&mut OsRng)).await;
        let key = NodePrivate::generate(&mut OsRng).public();
        register(&conn, key, Some(&auth)).await;
        assert_eq!(net.nodes().len(), 1);
        let logout = RegisterRequest {
            version: CAPABILITY_VERSION,
            node_key: key,
            expiry: Some("1970-01-01T00:02:03Z".to_owned()),
            ..RegisterRequest::default()
        };
        let body = serde_json::to_vec(&logout).unwrap();
        conn.post("/machine/register", body).await.unwrap();
        assert_eq!(net.nodes().len(), usize::from(!ephemeral));
        if !ephemeral {
            assert!(register(&conn, key, None).await.node_key_expired);
        }
    }
}

#[tokio::test]
async fn a_devnet_listens_on_loopback_only() {
    let config = DevNetConfig {
        bind: "0.0.0.0:0".parse().unwrap(),
        ..DevNetConfig::default()
    };
    assert!(matches!(
        DevNet::start(config).await,
        Err(DevNetError::NotLoopback { .. })
    ));
}

#[tokio::test]
async fn an_auth_key_needs_a_known_user_and_real_tags() {
    let net = devnet().await;
    let spec = |user, tag: &str| AuthKeySpec {
        user,
        tags: vec![tag.to_owned()],
        reusable: false,
        ephemeral: false,
    };
    let user = net.add_user("erin");
    assert_eq!(net.add_user("erin"), user);
    assert!(net.auth_key(spec(user + 1, "tag:x")).is_err());
    for tag in ["x", "tag:", "tag:1x", "tag:a b"] {
        assert!(net.auth_key(spec(user, tag)).is_err(), "{tag}");
    }
    let one = net.auth_key(spec(user, "tag:x-1")).unwrap();
    assert_ne!(one, net.auth_key(spec(user, "tag:x-1")).unwrap());
}

#[tokio::test]
async fn a_pinned_key_that_is_not_the_servers_is_an_error() {
    let net = devnet().await;
    let machine = MachinePrivate::generate(&mut OsRng);
    let other = MachinePrivate::generate(&mut OsRng).public();
    let result = ControlConn::connect(&net.url(), &machine, Some(other), 130).await;
    let Err(ControlConnError::KeyChanged {
        pinned, offered, ..
    }) = result
    else {
        panic!("{result:?}");
    };
    assert_eq!((pinned, offered), (other, net.server_key()));
}

#[tokio::test]
async fn plain_requests_get_plain_answers() {
    let net = devnet().await;
    let initiation = "A".repeat(136);
    for (head, wanted) in [
        ("GET /key?v=130 HTTP/1.1\r\n".to_owned(), "200"),
        ("GET /key HTTP/1.1\r\n".to_owned(), "400"),
        ("GET /key?v=x HTTP/1.1\r\n".to_owned(), "400"),
        ("GET / HTTP/1.1\r\n".to_owned(), "404"),
        ("POST /ts2021 HTTP/1.1\r\n".to_owned(), "400"),
        (
            format!(
                "POST /ts2021 HTTP/1.1\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\nX-Tailscale-Handshake: {initiation}\r\n"
            ),
            "400",
        ),
    ] {
        let mut stream = TcpStream::connect(net.address()).await.unwrap();
        let request = format!("{head}Host: x\r\nContent-Length: 0\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, *format!("HTTP/1.1 {wanted}").as_bytes(), "{head}");
    }
}

#[tokio::test]
async fn shutdown_closes_what_was_open() {
    let net = devnet().await;
    let mut node = TestNode::new(&net, "node", Some(&key_for(&net, &[])));
    node.itself().await;
    let address = net.address();
    net.shutdown().await;
    let down = node.until(|event| {
        if let ControlEvent::StreamDown { reason } = event {
            Some(reason)
        } else {
            None
        }
    });
    assert!(!down.await.is_empty());
    assert!(TcpStream::connect(address).await.is_err());
}
