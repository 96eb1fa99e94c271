//! Nodes that go: by being dropped, closed in order, removed or cut off; what the others see of it.

use std::io::ErrorKind;

use netstack::io::Trouble;
use netstack::tailcfg::{FilterRule, NetPortRange, PortRange};

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_node_resets_its_peers_and_its_own_streams_end() {
    let net = Net::new().await;
    let (one, two) = net.pair().await;
    let (mut near, mut far) = connection(&one, &two, 80).await;
    let mut listener = two.listen(81, 4).unwrap();
    let waiting = tokio::spawn(async move { listener.accept().await.map(drop) });
    let (_silent, busy) = connection(&one, &two, 82).await;
    let (mut reading, mut writing) = tokio::io::split(busy);
    let blocked = tokio::spawn(async move {
        // Nobody reads at the other end: this waits for room.
        loop {
            if let Err(error) = writing.write_all(&[0; 65_536]).await {
                return error;
            }
        }
    });
    drop(two);
    let remote = within("the peer's end", near.read(&mut [0; 8])).await;
    assert_eq!(remote.unwrap_err().kind(), ErrorKind::ConnectionReset);
    let local = [
        within("read", far.read(&mut [0; 8])).await.map(drop),
        within("write", far.write_all(b"x")).await,
        within("split read", reading.read(&mut [0; 8]))
            .await
            .map(drop),
        within("accept", waiting).await.unwrap(),
        Err(within("blocked write", blocked).await.unwrap()),
    ];
    for outcome in local {
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::NotConnected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_node_first_delivers_what_was_written() {
    let net = Net::new().await;
    let (one, two) = net.pair().await;
    let (mut near, mut far) = connection(&one, &two, 80).await;
    let (idle, mut idle_far) = connection(&one, &two, 81).await;
    let text = pattern(60_000, 7);
    let reader = tokio::spawn(async move {
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.map(|_| got)
    });
    within("writing", near.write_all(&text)).await.unwrap();
    drop(near);
    let clone = one.clone();
    within("close", one.close()).await;
    let got = within("reading", reader).await.unwrap();
    assert!(got.unwrap() == text);
    // What was held open until the end is reset, on both sides.
    let error = within("the idle one", idle_far.read(&mut [0; 8])).await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::ConnectionReset);
    drop(idle);
    let error = within("dial", clone.dial(v4(&two, 80))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotConnected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_that_allows_one_port_refuses_the_others() {
    let net = Net::new().await;
    let (one, two) = net.pair().await;
    serve_echo(two.listen(80, 4).unwrap());
    serve_echo(two.listen(81, 4).unwrap());
    within("before", one.dial(v4(&two, 81))).await.unwrap();
    let before = two.watch().borrow().netmap_generation;
    net.devnet.set_filter(vec![FilterRule {
        src_ips: vec!["*".to_owned()],
        dst_ports: vec![NetPortRange {
            ip: "*".to_owned(),
            bits: None,
            ports: PortRange {
                first: 80,
                last: 80,
            },
        }],
        ..FilterRule::default()
    }]);
    sees(&two, "the new filter", |two| {
        two.watch().borrow().netmap_generation > before
    })
    .await;
    let stream = within("port 80", one.dial(v4(&two, 80))).await.unwrap();
    assert_eq!(echo(stream, b"still").await, b"still");
    for remote in [v4(&two, 81), v6(&two, 81)] {
        let error = within("port 81", one.dial(remote)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
    assert!(two.stats().drops.filtered >= 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_is_cut_off_and_comes_back_under_another_address() {
    let net = Net::new().await;
    let (one, two) = net.pair().await;
    let (mut near, mut far) = connection(&one, &two, 80).await;
    let old = v4(&one, 0).ip();
    let id = net
        .devnet
        .nodes()
        .into_iter()
        .find(|node| node.addresses.contains(&old));
    net.devnet.remove_node(id.unwrap().id).unwrap();
    for stream in [&mut near, &mut far] {
        let error = within("the end", stream.read(&mut [0; 8]))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
    }
    assert!(two.whois(old, v4(&two, 0).ip()).is_none());
    sees(&one, "a new address", |one| {
        !one.status().addresses.contains(&old)
    })
    .await;
    knows(&two, &one).await;
    knows(&one, &two).await;
    connection(&one, &two, 81).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_whose_key_is_used_up_says_what_control_says() {
    let net = Net::new().await;
    let config = net.config("once", &net.auth_key(&[], false));
    let node = Tailnet::join(config, HANG).await.unwrap();
    net.devnet.remove_node(net.devnet.nodes()[0].id).unwrap();
    sees(&node, "the refusal", |node| {
        let trouble = node.watch().borrow().trouble.clone();
        matches!(trouble, Some(Trouble::Refused(reason)) if reason.contains("already used"))
    })
    .await;
}
