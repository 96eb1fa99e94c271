//! What needs no server, and servers that misbehave.

use super::*;

async fn error_for(url: &str) -> ControlConnError {
    let machine = MachinePrivate::from_bytes([1; 32]);
    ControlConn::connect(url, &machine, None, 130)
        .await
        .unwrap_err()
}

#[tokio::test]
async fn urls_that_cannot_be_used_are_named() {
    for url in [
        "https://control.example.com",
        "ftp://127.0.0.1",
        "127.0.0.1:80",
        "http://user@127.0.0.1",
        "http://127.0.0.1/path",
        "",
        "not a url",
    ] {
        assert!(
            matches!(error_for(url).await, ControlConnError::Url { .. }),
            "{url}"
        );
    }
}

#[tokio::test]
async fn plain_http_is_refused_beyond_private_addresses() {
    for url in [
        "http://192.0.2.1",
        "http://[2001:db8::1]",
        "http://100.64.0.1",
    ] {
        assert!(
            matches!(error_for(url).await, ControlConnError::NotPrivate { .. }),
            "{url}"
        );
    }
}

#[test]
fn retry_after_is_read_in_seconds_and_anything_else_is_none() {
    let read = |value: &'static str| {
        let mut headers = HeaderMap::new();
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static(value));
        retry_after(&headers)
    };
    assert_eq!(read(" 17 "), Some(Duration::from_secs(17)));
    for other in [
        "",
        "-1",
        "1.5",
        "Wed, 21 Oct 2026 07:28:00 GMT",
        "99999999999999999999",
    ] {
        assert_eq!(read(other), None, "{other}");
    }
    assert_eq!(retry_after(&HeaderMap::new()), None);
}

mod noise_stream {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use zeroize::Zeroizing;

    use super::NoiseStream;
    use crate::key::MachinePrivate;
    use crate::noise::{Initiator, Records, Responder, encode_early_payload};

    fn records() -> (Records, Records) {
        let server = MachinePrivate::from_bytes([2; 32]);
        let client = MachinePrivate::from_bytes([3; 32]);
        let (initiator, initiation) =
            Initiator::new(&client, server.public(), 130, Zeroizing::new([4; 32])).unwrap();
        let ephemeral = Zeroizing::new([5; 32]);
        let responder = Responder::handle_initiation(&server, &initiation, ephemeral).unwrap();
        let client = initiator.handle_response(&responder.response).unwrap();
        (client, responder.records)
    }

    /// Two ends over a pipe that takes `bytes` at a time.
    fn pair(bytes: usize) -> (NoiseStream<DuplexStream>, NoiseStream<DuplexStream>) {
        let (client, server) = records();
        let (near, far) = duplex(bytes);
        let client = NoiseStream::client(near, client);
        (client, NoiseStream::server(far, server))
    }

    #[tokio::test]
    async fn bytes_pass_both_ways_through_a_narrow_pipe_after_the_early_payload() {
        for width in [1, 7, 5000, 1 << 20] {
            let (mut client, mut server) = pair(width);
            let size = if width == 1 { 10_000 } else { 200_000 };
            let sent: Vec<u8> = (0..size).map(|at: u32| at.to_le_bytes()[0]).collect();
            let early = encode_early_payload(b"{}").unwrap();
            let to_client = async {
                server.write_all(&early).await.unwrap();
                server.write_all(&sent).await.unwrap();
                server.flush().await.unwrap();
                let mut got = vec![0; sent.len()];
                server.read_exact(&mut got).await.unwrap();
                assert_eq!(got, sent);
            };
            let to_server = async {
                let mut got = vec![0; sent.len()];
                client.read_exact(&mut got).await.unwrap();
                assert_eq!(got, sent);
                client.write_all(&sent).await.unwrap();
                client.flush().await.unwrap();
            };
            tokio::join!(to_client, to_server);
        }
    }

    #[tokio::test]
    async fn a_client_writes_before_the_server_has_said_anything() {
        let (mut client, mut server) = pair(100);
        client.write_all(b"PRI").await.unwrap();
        client.flush().await.unwrap();
        let mut got = [0; 3];
        server.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"PRI");
    }

    #[tokio::test]
    async fn an_end_within_a_record_is_an_error_and_between_records_is_not() {
        let (client, mut server) = records();
        let mut wire = Vec::new();
        server
            .seal(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00settings", &mut wire)
            .unwrap();
        for (missing, clean) in [(0, true), (1, false)] {
            let (near, mut far) = duplex(1000);
            let mut stream = NoiseStream::client(near, records().0);
            far.write_all(&wire[..wire.len() - missing]).await.unwrap();
            drop(far);
            let mut got = Vec::new();
            let result = stream.read_to_end(&mut got).await;
            assert_eq!(result.is_ok(), clean);
            assert_eq!(got.ends_with(b"settings"), clean);
        }
        drop(client);
    }
}

#[tokio::test]
async fn a_server_that_closes_after_the_upgrade_is_explained() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_buf(&mut head).await.unwrap();
        }
        let answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
    };
    let machine = MachinePrivate::from_bytes([1; 32]);
    let pinned = Some(MachinePrivate::from_bytes([2; 32]).public());
    let connect = ControlConn::connect(&url, &machine, pinned, 130);
    let (result, ()) = tokio::join!(connect, server);
    assert!(matches!(result, Err(ControlConnError::ClosedAfterUpgrade)));
}
