//! Streams between nodes: bytes, ends, refusals, many at once, and futures that are dropped half-way.

use std::io::ErrorKind;
use std::task::{Context, Waker};

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_come_back_on_both_families_with_offload_and_without() {
    for offload in [true, false] {
        let mut net = Net::new().await;
        net.offload = offload;
        let (one, two) = net.pair().await;
        serve_echo(two.listen(80, 4).unwrap());
        for remote in [v4(&two, 80), v6(&two, 80)] {
            let stream = within("dial", one.dial(remote)).await.unwrap();
            assert_eq!(stream.peer_addr(), remote);
            let text = pattern(300_000, 1);
            assert!(echo(stream, &text).await == text);
        }
        let peer = &one.status().peers[0];
        assert_eq!(peer.direct, Some(two.endpoints()[0]));
        assert!(peer.session);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_mebibytes_pass_both_ways_at_once() {
    let net = Net::new().await;
    let (one, two) = net.pair().await;
    let (near, far) = connection(&one, &two, 80).await;
    let (up, down) = (pattern(8 << 20, 2), pattern(8 << 20, 3));
    let (got_down, got_up) = within("16 MiB", async {
        tokio::join!(echo(near, &up), echo(far, &down))
    })
    .await;
    assert!(got_up == up && got_down == down);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn either_side_may_finish_sending_first() {
    let net = Net::new().await;
    let (one, two) = net.pair().await;
    for (port, dialler_first) in [(80, true), (81, false)] {
        let (near, far) = connection(&one, &two, port).await;
        let (mut first, mut second) = if dialler_first {
            (near, far)
        } else {
            (far, near)
        };
        within("half-close", async {
            first.write_all(b"question").await.unwrap();
            first.shutdown().await.unwrap();
            let mut got = Vec::new();
            second.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, b"question");
            let answer = pattern(200_000, 4);
            got.clear();
            // More than both rings hold while nobody reads.
            let write = async {
                second.write_all(&answer).await.unwrap();
                second.shutdown().await.unwrap();
            };
            let (read, ()) = tokio::join!(first.read_to_end(&mut got), write);
            assert_eq!(read.unwrap(), answer.len());
            assert!(got == answer);
            // To finish again changes nothing; to write is an error.
            first.shutdown().await.unwrap();
            let error = first.write_all(b"more").await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_stream_delivers_what_was_written_and_then_its_end() {
    let net = Net::new().await;
    let (one, two) = net.pair().await;
    let text = pattern(60_000, 5);
    for port in 80..90 {
        let (mut near, mut far) = connection(&one, &two, port).await;
        within("writing", near.write_all(&text)).await.unwrap();
        drop(near);
        let mut got = Vec::new();
        within("reading", far.read_to_end(&mut got)).await.unwrap();
        assert!(got == text);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_dropped_with_bytes_unread_resets_its_peer() {
    let net = Net::new().await;
    let (one, two) = net.pair().await;
    let (mut near, mut far) = connection(&one, &two, 80).await;
    within("a byte", async {
        near.write_all(b"one two").await.unwrap();
        far.read_exact(&mut [0; 3]).await.unwrap();
    })
    .await;
    drop(far);
    let error = within("the reset", near.read_to_end(&mut Vec::new())).await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_and_addresses_that_nobody_has_are_refused_at_once() {
    let net = Net::new().await;
    let (one, two) = net.pair().await;
    let closed = within("a closed port", one.dial(v4(&two, 81))).await;
    assert_eq!(closed.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    let listener = two.listen(81, 4).unwrap();
    assert!(two.listen(81, 4).is_err());
    within("an open port", one.dial(v4(&two, 81)))
        .await
        .unwrap();
    drop(listener);
    let closed = within("the port closed again", one.dial(v4(&two, 81))).await;
    assert_eq!(closed.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    drop(two.listen(81, 4).unwrap());
    for nobody in ["100.64.99.99:80", "192.0.2.1:80", "[fd7a:115c:a1e0::9]:80"] {
        let error = one.dial(nobody.parse().unwrap()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::HostUnreachable, "{nobody}");
    }
    let own = one.dial(v4(&one, 80)).await.unwrap_err();
    assert_eq!(own.kind(), ErrorKind::HostUnreachable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_connections_work_at_once() {
    let net = Net::new().await;
    let (one, two) = net.pair().await;
    serve_echo(two.listen(80, 500).unwrap());
    let mut clients = tokio::task::JoinSet::new();
    for n in 0..500 {
        let (one, remote) = (one.clone(), v4(&two, 80));
        clients.spawn(async move {
            let stream = within("dial", one.dial(remote)).await.unwrap();
            let text = pattern(4_000, n);
            assert!(echo(stream, &text).await == text);
        });
    }
    within("all of them", clients.join_all()).await;
    assert_eq!(two.stats().tcp.half_open, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn futures_dropped_half_way_lose_nothing() {
    /// Polls once and drops the future if it is not ready.
    fn once<T>(future: impl Future<Output = T>) -> Option<T> {
        let mut context = Context::from_waker(Waker::noop());
        match std::pin::pin!(future).poll(&mut context) {
            std::task::Poll::Ready(done) => Some(done),
            std::task::Poll::Pending => None,
        }
    }
    let net = Net::new().await;
    let (one, two) = net.pair().await;
    let mut listener = two.listen(80, 4).unwrap();
    assert!(once(listener.accept()).is_none());
    // A dial that is given up: the peer sees it come and go, or not at all.
    assert!(once(one.dial(v4(&two, 80))).is_none());
    let near = within("dial", one.dial(v4(&two, 80))).await.unwrap();
    let mut far = within("accept", async {
        loop {
            let stream = listener.accept().await.unwrap();
            if stream.peer_addr() == near.local_addr() {
                return stream;
            }
        }
    })
    .await;
    let text = pattern(400_000, 6);
    let (mut read, mut write) = tokio::io::split(near);
    let echoed = tokio::spawn(async move {
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.unwrap();
        far.write_all(&got).await.unwrap();
    });
    within("cancelled writes and reads", async {
        let mut sent = 0;
        while sent < text.len() {
            match once(write.write(&text[sent..])) {
                Some(count) => sent += count.unwrap(),
                None => sent += write.write(&text[sent..]).await.unwrap(),
            }
        }
        write.shutdown().await.unwrap();
        let (mut got, mut buf) = (Vec::new(), [0; 1_000]);
        loop {
            let count = match once(read.read(&mut buf)) {
                Some(count) => count.unwrap(),
                None => read.read(&mut buf).await.unwrap(),
            };
            if count == 0 {
                break;
            }
            got.extend_from_slice(&buf[..count]);
        }
        assert!(got == text);
    })
    .await;
    echoed.await.unwrap();
}
