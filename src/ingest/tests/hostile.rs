//! Peers that mean harm: browsers in the wrong hands, bent heads, floods, and content without end.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use super::client::{
    Client, DATA, END_STREAM, GOAWAY, HEADERS, RST_STREAM, RawClient, RawFrame, TextClient, serve,
    serve_on,
};
use super::memory_sink::{MemorySink, Mood};
use super::{EVENT, HEADER};
use crate::ingest::{Ingest, IngestConfig};

const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;

#[tokio::test(start_paused = true)]
async fn a_browser_is_refused_on_every_endpoint() {
    let sink = MemorySink::new(Mood::Prompt);
    let ingest = Ingest::new(sink.clone(), IngestConfig::default());
    let mut refused = 0;
    for field in ["Origin: http://evil.example", "Sec-Fetch-Mode: no-cors"] {
        for line in ["POST /record", "POST /v2/event", "HEAD /v2/event", "GET /"] {
            let mut client = TextClient(serve_on(&ingest, "n1").io);
            let request =
                format!("{line} HTTP/1.1\r\nHost: r\r\n{field}\r\nContent-Length: 0\r\n\r\n");
            client.write(request.as_bytes()).await;
            let answer = client.head().await;
            assert!(answer.starts_with("HTTP/1.1 403 "), "{line}: {answer}");
            refused += 1;
            assert_eq!(ingest.stats().refused_browser, refused);
        }
    }
    assert_eq!((sink.count(), sink.events().len()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_request_of_two_meanings_is_rejected_or_has_one_and_never_hides_another() {
    let hidden = "POST /record HTTP/1.1\r\nHost: r\r\nContent-Length: 6\r\n\r\nhidden";
    let table = [
        (
            "both lengths",
            "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "both lengths, reversed",
            "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
        ),
        (
            "two lengths",
            "Content-Length: 0\r\nContent-Length: 6\r\n\r\n",
        ),
        ("a list of lengths", "Content-Length: 0, 6\r\n\r\n"),
        ("a signed length", "Content-Length: +0\r\n\r\n"),
        ("a negative length", "Content-Length: -1\r\n\r\n"),
        (
            "an enormous length",
            "Content-Length: 99999999999999999999999\r\n\r\n",
        ),
        (
            "a coding twice",
            "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "chunked not last",
            "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        ),
        (
            "an unknown coding",
            "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "a folded field",
            "X-A: b\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "a space before the colon",
            "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        ),
        ("a bare CR", "X-A: b\rTransfer-Encoding: chunked\r\n\r\n"),
        ("a NUL", "X-A: b\0\r\n\r\n"),
        ("bare line feeds", "Transfer-Encoding: chunked\n\n0\n\n"),
        (
            "a chunk size with a sign",
            "Transfer-Encoding: chunked\r\n\r\n+0\r\n\r\n",
        ),
        (
            "a chunk size of 17 digits",
            "Transfer-Encoding: chunked\r\n\r\n00000000000000000\r\n\r\n",
        ),
        (
            "a chunk size that overflows",
            "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
        ),
        (
            "a chunk without its end",
            "Transfer-Encoding: chunked\r\n\r\n1\r\nab0\r\n\r\n",
        ),
        (
            "bare LF behind a chunk size",
            "Transfer-Encoding: chunked\r\n\r\n1\na\n0\n\n",
        ),
    ];
    for (what, fields) in table {
        let sink = MemorySink::new(Mood::Prompt);
        let served = serve(&sink);
        let mut client = TextClient(served.io);
        let request = format!("POST /record HTTP/1.1\r\nHost: r\r\n{fields}{hidden}");
        client.write(request.as_bytes()).await;
        client.0.shutdown().await.unwrap();
        let answer = client.rest().await;
        served.server.await.unwrap();
        assert!(answer.matches("HTTP/1.1 ").count() <= 1, "{what}: {answer}");
        assert!(sink.count() <= 1, "{what}");
        for index in 0..sink.count() {
            let end = sink.until_ended(index).await;
            let told = answer.starts_with("HTTP/1.1 200 ");
            assert_eq!(end.clean, told, "{what}: {} {answer}", end.reason);
            if end.clean {
                let stored = sink.with(index, |recorded| recorded.bytes.clone());
                assert_eq!(stored, b"", "{what}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn chunk_extensions_are_skipped_up_to_a_limit() {
    for (length, clean) in [(1000, true), (1024 * 1024, false)] {
        let sink = MemorySink::new(Mood::Prompt);
        let mut client = TextClient::begin(serve(&sink).io).await;
        let chunk = format!("3;x={}\r\nabc\r\n0\r\n\r\n", "y".repeat(length));
        // Fails when the recorder has had enough in the middle.
        drop(client.0.write_all(chunk.as_bytes()).await);
        let answer = client.rest().await;
        assert_eq!(answer.starts_with("HTTP/1.1 200 "), clean, "{answer}");
        assert_eq!(sink.until_ended(0).await.clean, clean);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_head_that_is_too_large_or_too_slow_ends_the_connection() {
    let sink = MemorySink::new(Mood::Prompt);
    let ingest = Ingest::new(sink.clone(), IngestConfig::default());
    let mut client = TextClient(serve_on(&ingest, "n1").io);
    let large = format!(
        "POST /record HTTP/1.1\r\nHost: r\r\nX: {}\r\n\r\n",
        "a".repeat(20_000)
    );
    client.write(large.as_bytes()).await;
    assert!(client.rest().await.starts_with("HTTP/1.1 431 "));
    assert_eq!(ingest.stats().refused_head, 1);

    // The second head of a connection is as bounded as the first.
    let start = Instant::now();
    let served = serve_on(&ingest, "n1");
    let mut client = TextClient(served.io);
    client
        .write(b"HEAD /v2/event HTTP/1.1\r\nHost: r\r\n\r\n")
        .await;
    client.head().await;
    client.write(b"POST /record HTTP/1.1\r\nHost: ").await;
    let dripping = tokio::spawn(async move {
        while client.0.write_all(b"r").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    served.server.await.unwrap();
    assert!(start.elapsed() <= Duration::from_secs(16));
    dripping.await.unwrap();
    assert_eq!(ingest.stats().slow_heads, 1);
    assert_eq!(sink.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_hyper_itself_refuses_for_its_head_is_counted_too() {
    let many = format!("HEAD / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(65));
    let long = format!("HEAD / HTTP/1.1\r\nx: {}\r\n\r\n", "a".repeat(100_000));
    let ingest = Ingest::new(MemorySink::new(Mood::Prompt), IngestConfig::default());
    for (count, request) in (1..).zip([many, long]) {
        let served = serve_on(&ingest, "n1");
        let (mut reader, mut writer) = tokio::io::split(served.io);
        let (written, answer) = tokio::join!(writer.write_all(request.as_bytes()), async {
            let mut answer = String::new();
            reader.read_to_string(&mut answer).await.unwrap();
            answer
        });
        written.unwrap();
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
        drop((reader, writer));
        served.server.await.unwrap();
        assert_eq!(ingest.stats().refused_head, count);
    }
    assert_eq!(ingest.stats().slow_heads, 0);
}

/// Reads frames of HTTP/2 up to the head of the answer on `stream`, or the end.
async fn head_of(client: &mut RawClient, stream: u32) -> Option<RawFrame> {
    loop {
        let frame = client.read().await?;
        if frame.kind == HEADERS && frame.stream == stream {
            return Some(frame);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn heads_that_the_frame_layer_of_http_2_refuses_are_counted_and_no_others() {
    let sink = MemorySink::new(Mood::Prompt);
    let ingest = Ingest::new(sink.clone(), IngestConfig::default());
    let mut client = RawClient::connect(serve_on(&ingest, "n1").io).await;
    // A field of 127 + 19,873 bytes, as HPACK writes lengths.
    let field = [&[0, 1, b'x', 0x7f, 0xa1, 0x9b, 0x01][..], &[b'a'; 20_000]].concat();
    client.post(1, "POST", "/v2/record").await;
    assert!(head_of(&mut client, 1).await.is_some());
    let mut refused = 0;
    for stream in [3, 5] {
        client.write(HEADERS, 0, stream, &[0x86]).await;
        for piece in field.chunks(16_000) {
            client.write(CONTINUATION, 0, stream, piece).await;
        }
        client.write(CONTINUATION, 4, stream, &[]).await;
        let head = head_of(&mut client, stream).await.unwrap();
        assert_ne!(head.flags & END_STREAM, 0);
        refused += 1;
        assert_eq!(ingest.stats().refused_head, refused);
    }
    // One that is refused by us, for another reason, and the running upload: neither counts.
    client.post(7, "POST", "/elsewhere").await;
    head_of(&mut client, 7).await.unwrap();
    client.write(DATA, END_STREAM, 1, HEADER).await;
    assert!(sink.until_ended(0).await.clean);
    client.read_all(GOAWAY).await;
    let stats = ingest.stats();
    assert_eq!((stats.refused_head, stats.refused_unknown), (2, 1));

    // A field of 4,000 bytes that goes into the table, and then is named again and again.
    let bomb = [
        &[0x40, 1, b'x', 0x7f, 0xa1, 0x1e][..],
        &[b'a'; 4_000],
        &[0xbe; 12_000],
    ]
    .concat();
    let many = vec![Vec::new(); 10];
    for (first, pieces) in [(vec![0x86], many), (bomb, Vec::new())] {
        let mut client = RawClient::connect(serve_on(&ingest, "n1").io).await;
        client.write(HEADERS, 0, 1, &first).await;
        for piece in pieces {
            client.write(CONTINUATION, 0, 1, &piece).await;
        }
        assert_eq!(client.read_all(GOAWAY).await.len(), 1);
        refused += 1;
        assert_eq!(ingest.stats().refused_head, refused);
    }
}

#[tokio::test(start_paused = true)]
async fn a_first_head_that_never_ends_is_counted_and_a_silent_peer_is_not() {
    let ingest = Ingest::new(MemorySink::new(Mood::Prompt), IngestConfig::default());
    let table: [(&[u8], u64); 6] = [
        (b"", 0),
        (b"P", 1),
        (b"PRI * HT", 1),
        (b"HEAD /v2/event HTTP/1.1\r\nHost: ", 1),
        (b"HEAD /v2/event HTTP/1.1\r\nHost: r\r\n\r\n", 0),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 0),
    ];
    let mut counted = 0;
    for (bytes, more) in table {
        let served = serve_on(&ingest, "n1");
        let mut client = TextClient(served.io);
        client.write(bytes).await;
        served.server.await.unwrap();
        counted += more;
        let what = String::from_utf8_lossy(bytes);
        assert_eq!(ingest.stats().slow_heads, counted, "{what:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_http_2_head_that_drips_ends_the_connection_and_its_uploads() {
    let sink = MemorySink::new(Mood::Prompt);
    let served = serve(&sink);
    let mut client = RawClient::connect(served.io).await;
    client.post(1, "POST", "/v2/record").await;
    client.write(DATA, 0, 1, HEADER).await;
    sink.until_received(0, HEADER.len()).await;
    let start = Instant::now();
    client.write(HEADERS, 0, 3, &[0x86]).await;
    let (mut reader, mut writer) = tokio::io::split(client.0);
    let dripping = tokio::spawn(async move {
        let head = [0, 0, 200, CONTINUATION, 0, 0, 0, 0, 3];
        writer.write_all(&head).await.unwrap();
        while writer.write_all(&[0]).await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    let mut answer = Vec::new();
    drop(reader.read_to_end(&mut answer).await);
    let end = sink.until_ended(0).await;
    assert!(start.elapsed() <= Duration::from_secs(11));
    assert!(end.reason.contains("request head"), "{}", end.reason);
    served.server.await.unwrap();
    drop(reader);
    dripping.await.unwrap();
    assert_eq!(served.ingest.stats().slow_heads, 1);
}

#[tokio::test(start_paused = true)]
async fn floods_of_frames_without_content_end_the_connection_and_leave_others_alone() {
    let sink = MemorySink::new(Mood::Prompt);
    let ingest = Ingest::new(sink.clone(), IngestConfig::default());
    let mut good = Client::connect(serve_on(&ingest, "n1").io).await;
    let mut recording = good.record().await;
    let floods: [(&str, u8, u8, u32, &[u8]); 4] = [
        ("settings", SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]),
        ("ping", PING, 0, 0, b"12345678"),
        ("priority", 2, 0, 1, &[0, 0, 0, 3, 1]),
        ("unknown", 200, 0, 0, b"x"),
    ];
    for (count, (what, kind, flags, stream, payload)) in (1..).zip(floods) {
        let served = serve_on(&ingest, "n2");
        let mut client = RawClient::connect(served.io).await;
        client.post(1, "POST", "/v2/record").await;
        client.write(DATA, 0, 1, HEADER).await;
        sink.until_received(count, HEADER.len()).await;
        flood(client, kind, flags, stream, payload).await;
        served.server.await.unwrap();
        let end = sink.until_ended(count).await;
        assert!(
            !end.clean && end.reason.contains("flood"),
            "{what}: {}",
            end.reason
        );
        let stats = ingest.stats();
        assert_eq!(stats.floods, count as u64, "{what}");
    }
    // hyper's own limits know these; each has a name too.
    let floods: [(&str, u8, &[u8], &str); 2] = [
        ("empty data", DATA, b"", "too_many_data_frames"),
        ("continuations", CONTINUATION, b"", "too_many_continuations"),
    ];
    for (count, (what, kind, payload, name)) in (5..).zip(floods) {
        let served = serve_on(&ingest, "n2");
        let mut client = RawClient::connect(served.io).await;
        client.post(1, "POST", "/v2/record").await;
        client.write(DATA, 0, 1, HEADER).await;
        sink.until_received(count, HEADER.len()).await;
        let stream = if kind == CONTINUATION { 3 } else { 1 };
        if kind == CONTINUATION {
            client.write(HEADERS, 0, stream, &[0x86]).await;
        }
        flood(client, kind, 0, stream, payload).await;
        let end = sink.until_ended(count).await;
        assert!(end.reason.contains(name), "{what}: {}", end.reason);
    }
    recording.send(EVENT).await;
    recording.end();
    assert!(sink.until_ended(0).await.clean);
}

/// Writes one frame again and again, reading what comes back, until the connection is over.
async fn flood(client: RawClient, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let (mut reader, mut writer) = tokio::io::split(client.0);
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    let mut answer = Vec::new();
    let writing = async {
        for _ in 0..100_000 {
            if writer.write_all(&frame).await.is_err() {
                return std::future::pending().await;
            }
        }
    };
    // What comes behind the end is read and dropped, so that only the end of the answer says when there was enough.
    tokio::select! {
        biased;
        _ = reader.read_to_end(&mut answer) => {}
        () = writing => panic!("100,000 frames were taken"),
    }
}

#[tokio::test(start_paused = true)]
async fn rapid_resets_end_the_connection_with_a_goaway_that_says_why() {
    const ENHANCE_YOUR_CALM: u32 = 11;
    let sink = MemorySink::new(Mood::Prompt);
    let served = serve(&sink);
    let (written, mut requests) = tokio::io::duplex(1024 * 1024);
    let mut client = RawClient::connect(written).await;
    for stream in (1..20_000).step_by(2) {
        client.post(stream, "POST", "/v2/record").await;
        client.write(RST_STREAM, 0, stream, &[0, 0, 0, 8]).await;
    }
    drop(client);
    let (mut reader, mut writer) = tokio::io::split(served.io);
    let (read, mut answer) = tokio::io::duplex(1024 * 1024);
    tokio::select! {
        biased;
        read = tokio::io::copy(&mut reader, &mut answer) => drop(read),
        all = tokio::io::copy(&mut requests, &mut writer) => panic!("{all:?} were taken"),
    }
    drop((reader, writer, answer));
    let goaways = RawClient(read).read_all(GOAWAY).await;
    let code = &goaways.last().unwrap().payload[4..8];
    assert_eq!(code, ENHANCE_YOUR_CALM.to_be_bytes());
    served.server.await.unwrap();
    assert_eq!(sink.count(), 0, "nothing is taken behind the end");
}

#[tokio::test(start_paused = true)]
async fn a_gibibyte_in_one_line_passes_in_pieces_of_a_frame() {
    const TOTAL: u64 = 1024 * 1024 * 1024;
    let sink = MemorySink::new(Mood::Discarding);
    let mut client = Client::connect(serve(&sink).io).await;
    let mut recording = client.record().await;
    let piece = Bytes::from(vec![b'a'; 256 * 1024]);
    let mut sent = 0;
    while sent < TOTAL {
        recording.send(piece.clone()).await;
        sent += piece.len() as u64;
    }
    recording.end();
    let last = recording.rest().await.pop().unwrap();
    assert_eq!(last, format!("{{\"ack\":{TOTAL}}}\n"));
    assert!(sink.until_ended(0).await.clean);
    let (largest, held) = sink.with(0, |recorded| {
        (recorded.largest_append, recorded.bytes.len())
    });
    assert!(largest <= 64 * 1024, "{largest} bytes at once");
    assert_eq!(held, 0);
}

#[tokio::test(start_paused = true)]
async fn noise_and_a_header_of_ten_mebibytes_are_stored_whole() {
    let sink = MemorySink::new(Mood::Prompt);
    let mut header = br#"{"version":2,"width":80,"height":24,"title":""#.to_vec();
    header.resize(10 * 1024 * 1024, b'a');
    header.extend_from_slice(b"\"}\n");
    let mut client = TextClient::begin(serve(&sink).io).await;
    for piece in header.chunks(100_000) {
        client.chunk(piece).await;
    }
    client.end().await;
    assert!(client.rest().await.starts_with("HTTP/1.1 200 "));
    assert!(sink.with(0, |recorded| recorded.bytes == header));
}
