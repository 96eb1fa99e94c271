//! A peer of the tailnet that means harm, or speaks another protocol: port 80 answers with an end, and recordings stay what they are.

use tailtape::ingest::IngestConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::soon;
use crate::tailnet::LoopbackTailnet;
use crate::uploader::Uploader;

/// Bytes of one write; a body is made of many.
const PIECE_BYTES: usize = 64 * 1024;

/// Sends `request` as it stands and reads until the recorder closes, or resets, the connection.
async fn answer_to(tailnet: &LoopbackTailnet, request: &[u8]) -> Vec<u8> {
    let mut stream = tailnet.dial().await;
    let mut answer = Vec::new();
    let exchange = async {
        // Both fail when the recorder has had enough in the middle, which is an end too.
        let sent = stream.write_all(request).await;
        let read = stream.read_to_end(&mut answer).await;
        drop((sent, read));
    };
    soon("the end of the connection", exchange).await;
    answer
}

#[tokio::test]
async fn what_is_no_upload_is_refused_or_cut_off_and_never_becomes_a_recording() {
    let config = IngestConfig {
        header_read_timeout: std::time::Duration::from_millis(500),
        idle_limit: std::time::Duration::from_millis(500),
        close_limit: std::time::Duration::from_millis(100),
        ..IngestConfig::default()
    };
    let mut tailnet = LoopbackTailnet::start(config).await;
    let long_field = [
        b"POST /v2/record HTTP/1.1\r\nHost: r\r\nx: ".as_slice(),
        &vec![b'a'; 1024 * 1024],
        b"\r\n\r\n",
    ]
    .concat();
    let many_fields = [
        b"HEAD /v2/record HTTP/1.1\r\nHost: r\r\n".as_slice(),
        &b"x: y\r\n".repeat(1000),
        b"\r\n",
    ]
    .concat();
    let mut noise = vec![0_u8; 256 * 1024];
    let mut state = 0x9e37_79b9_u32;
    for byte in &mut noise {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        *byte = state.to_le_bytes()[3];
    }
    let preface_then_noise = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &noise].concat();
    let cases: [(&str, &[u8]); 9] = [
        ("noise", &noise),
        ("the preface, then noise", &preface_then_noise),
        ("a head without end", b"POST /v2/record HTTP/1.1\r\nHost: r\r\nx: "),
        ("a field of 1 MiB", &long_field),
        ("a thousand fields", &many_fields),
        (
            "both lengths",
            b"POST /v2/record HTTP/1.1\r\nHost: r\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nPOST /v2/record HTTP/1.1\r\n\r\n",
        ),
        (
            "two lengths",
            b"POST /v2/record HTTP/1.1\r\nHost: r\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        ),
        (
            "an upgrade to h2c",
            b"POST /v2/record HTTP/1.1\r\nHost: r\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nContent-Length: 0\r\n\r\n",
        ),
        (
            "a bent chunk",
            b"POST /v2/record HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nx",
        ),
    ];
    for (what, request) in cases {
        let answer = answer_to(&tailnet, request).await;
        let answer = String::from_utf8_lossy(&answer);
        let answers = answer.matches("HTTP/1.1 ").count();
        assert_eq!(
            answer.matches("HTTP/1.1 4").count(),
            answers,
            "{what}: {answer:?}"
        );
        assert!(!answer.contains("200"), "{what}: {answer:?}");
    }

    // All of that later, a session is recorded, and it is the first.
    let mut uploader = Uploader::connect(tailnet.uploader(), tailnet.address).await;
    let mut upload = uploader.record().await;
    assert_eq!(upload.status, 200);
    upload.send("after the storm\n").await;
    upload.end();
    while soon("the end of the answer", upload.ack()).await.is_some() {}
    assert_eq!(tailnet.next_manifest().await.bytes, 16);
}

#[tokio::test]
async fn a_header_line_of_ten_mebibytes_is_stored_whole_and_flagged() {
    let mut tailnet = LoopbackTailnet::start(IngestConfig::default()).await;
    let mut uploader = Uploader::connect(tailnet.uploader(), tailnet.address).await;
    let mut upload = uploader.record().await;
    let mut sent = br#"{"version":2,"width":80,"height":24,"title":""#.to_vec();
    sent.resize(10 * 1024 * 1024, b'a');
    sent.extend_from_slice(b"\"}\n[0.5,\"o\",\"x\"]\n");
    for piece in sent.chunks(PIECE_BYTES) {
        upload.send(piece.to_vec()).await;
    }
    upload.end();
    let mut last = None;
    while let Some(acked) = soon("the end of the answer", upload.ack()).await {
        last = Some(acked);
    }
    assert_eq!(last, Some(sent.len() as u64));
    let manifest = tailnet.next_manifest().await;
    assert!(manifest.clean);
    assert!(
        manifest.flags.contains(&"line_too_long".to_owned()),
        "{:?}",
        manifest.flags
    );
    assert!(
        tailnet.stored(&manifest) == sent,
        "stored bytes are the bytes sent"
    );
}
