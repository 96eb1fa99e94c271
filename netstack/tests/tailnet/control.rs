//! Control as a node's owner sees it: joining, WhoIs, changes, refusals, and a server that goes away.

use netstack::io::Trouble;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whois_names_the_owner_or_the_tags_and_nobody_else() {
    let net = Net::new().await;
    let (one, two) = net.pair().await;
    let config = net.config("rec", &net.auth_key(&["tag:recorder"], true));
    let tagged = Tailnet::join(config, HANG).await.unwrap();
    knows(&two, &tagged).await;
    let local = v4(&two, 0).ip();
    let owned = two.whois(v4(&one, 0).ip(), local).unwrap();
    assert_eq!(owned.name, "one.tail.test");
    assert_eq!(owned.user.unwrap().login_name, OWNER);
    assert!(owned.tags.is_empty());
    let tagged = two.whois(v6(&tagged, 0).ip(), local).unwrap();
    assert_eq!(tagged.tags, ["tag:recorder"]);
    assert!(tagged.user.is_none());
    assert!(two.whois("100.64.99.99".parse().unwrap(), local).is_none());
    assert!(two.whois(v4(&one, 0).ip(), v4(&one, 0).ip()).is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_joins_and_one_that_goes_are_seen_by_who_watches() {
    let net = Net::new().await;
    let (one, two) = net.pair().await;
    let online = |node: &Tailnet, name: &str| {
        let peers = node.status().peers;
        let peer = peers.into_iter().find(|peer| peer.name.starts_with(name));
        peer.and_then(|peer| peer.online)
    };
    sees(&one, "two online", |one| online(one, "two") == Some(true)).await;
    let three = net.join("three").await;
    sees(&one, "three", |one| online(one, "three") == Some(true)).await;
    within("close", three.close()).await;
    sees(&one, "three offline", |one| {
        online(one, "three") == Some(false)
    })
    .await;
    drop(two);
    sees(&one, "two offline", |one| online(one, "two") == Some(false)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_keeps_a_node_out_is_in_the_error() {
    let net = Net::new().await;
    let config = net.config("bad", "tskey-auth-wrong");
    let error = within("a refusal", Tailnet::join(config, HANG))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, TailnetError::NotJoined { trouble: Some(Trouble::Refused(_)), waited } if *waited < HANG)
    );
    assert!(error.to_string().contains("invalid auth key"), "{error}");

    let mut config = net.config("lost", "tskey-auth-unused");
    let unused = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    config.control_url = format!("http://{}", unused.local_addr().unwrap());
    drop(unused);
    let lost = Tailnet::start(config).unwrap();
    sees(&lost, "the reason", |lost| {
        let trouble = lost.watch().borrow().trouble.clone();
        matches!(trouble, Some(Trouble::Unreachable(reason)) if reason.contains("refused"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_outlive_control_and_a_server_with_another_key_is_not_trusted() {
    let net = Net::new().await;
    let (one, two) = net.pair().await;
    let (near, far) = connection(&one, &two, 80).await;
    let bind = net.devnet.address();
    net.devnet.shutdown().await;
    sees(&one, "control gone", |one| {
        matches!(one.watch().borrow().trouble, Some(Trouble::Unreachable(_)))
    })
    .await;
    let text = pattern(100_000, 8);
    let (back, forth) = tokio::join!(echo(near, &text), echo(far, &text));
    assert!(back == text && forth == text);
    let config = DevNetConfig {
        bind,
        ..DevNetConfig::default()
    };
    let _impostor = DevNet::start(config).await.unwrap();
    sees(&one, "the changed key", |one| {
        let trouble = one.watch().borrow().trouble.clone();
        matches!(trouble, Some(Trouble::Unreachable(reason)) if reason.contains("is pinned") && reason.contains("remove `control`"))
    })
    .await;
    assert_eq!(one.status().peers.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_comes_back_as_itself_with_its_stored_keys() {
    let net = Net::new().await;
    let dir = tempfile::tempdir().unwrap();
    let mut addresses = Vec::new();
    // The auth key is good for the first time only.
    let auth_key = net.auth_key(&[], false);
    for _ in 0..2 {
        let mut config = net.config("stays", &auth_key);
        config.keys = KeyStore::open(dir.path()).unwrap();
        let node = Tailnet::join(config, HANG).await.unwrap();
        addresses.push(node.status().addresses);
        within("close", node.close()).await;
    }
    assert_eq!(addresses[0], addresses[1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_addresses_that_peers_can_be_told_are_bound() {
    let net = Net::new().await;
    let with = |bind: &[&str]| {
        let mut config = net.config("binds", "tskey-auth-unused");
        config.bind = bind.iter().map(|addr| addr.parse().unwrap()).collect();
        Tailnet::start(config)
    };
    for unspecified in ["0.0.0.0:0", "[::]:0"] {
        let refused = with(&[unspecified]);
        assert!(matches!(refused, Err(TailnetError::BindUnspecified { .. })));
    }
    let twice = with(&["127.0.0.1:0", "[::1]:0", "127.0.0.1:0"]);
    assert!(matches!(twice, Err(TailnetError::BindTwice { .. })));
    let both = with(&["127.0.0.1:0", "[::1]:0"]).unwrap();
    assert_eq!(both.endpoints().len(), 2);
    assert!(both.endpoints().iter().all(|addr| addr.ip().is_loopback()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn debug_shows_no_secret_and_nobody() {
    let net = Net::new().await;
    let key = net.auth_key(&[], true);
    let config = net.config("one", &key);
    assert!(!format!("{config:?}").contains(&key));
    let (one, two) = net.pair().await;
    let (near, _far) = connection(&one, &two, 80).await;
    for shown in [
        format!("{one:?}"),
        format!("{near:?}"),
        format!("{:#?}", two),
    ] {
        for secret in ["tskey", OWNER, "tail.test"] {
            assert!(!shown.contains(secret), "{secret} in {shown}");
        }
        assert!(shown.len() < 8_000, "{} bytes", shown.len());
    }
}
