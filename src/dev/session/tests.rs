//! The default session, recorded by a recorder in memory that keeps every byte and acks it.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::BytesMut;
use http_body_util::{BodyExt, Either, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use sha2::{Digest, Sha256};
use tokio::io::{DuplexStream, duplex};
use tokio::sync::mpsc;

use super::super::screen::ScreenStyle;
use super::*;

type Kept = Arc<Mutex<BytesMut>>;

/// Answers HEAD with 200, and POST with an ack for every frame of its body.
fn keep(
    request: http::Request<Incoming>,
    kept: Kept,
) -> http::Response<Either<Empty<Bytes>, impl http_body::Body<Data = Bytes, Error = Infallible>>> {
    if request.method() == http::Method::HEAD {
        return http::Response::new(Either::Left(Empty::new()));
    }
    let (acks, mut frames) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut body = request.into_body();
        while let Some(Ok(frame)) = body.frame().await {
            let acked = {
                let mut kept = kept.lock().unwrap();
                kept.extend_from_slice(&frame.into_data().unwrap());
                kept.len()
            };
            acks.send(Ok(Frame::data(Bytes::from(format!(
                "{{\"ack\":{acked}}}\n"
            )))))
            .unwrap();
        }
    });
    let answer = StreamBody::new(futures_util::stream::poll_fn(move |cx| {
        frames.poll_recv(cx)
    }));
    http::Response::new(Either::Right(answer))
}

async fn recorded(command: &SessionCommand) -> (anyhow::Result<Streamed>, Bytes, String) {
    let kept = Kept::default();
    let store = Arc::clone(&kept);
    let dial = move |_: SocketAddr| {
        let (ours, theirs) = duplex(64 * 1024);
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let answer = keep(request, Arc::clone(&store));
                async move { Ok::<_, Infallible>(answer) }
            });
            hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(theirs), service)
                .await
        });
        async move { Ok::<DuplexStream, std::io::Error>(ours) }
    };
    let mut shown = Vec::new();
    let style = ScreenStyle {
        terminal_columns: Some(80),
        color: false,
    };
    let plan = SessionPlan {
        command,
        size: TerminalSize::DEFAULT,
        start: Instant::now(),
        recorders: &[SocketAddr::from(([100, 64, 0, 2], 80))],
        header: Bytes::from_static(b"{\"version\":2}\n"),
    };
    let encode = |seconds: f64, text: &[u8]| {
        let text = std::str::from_utf8(text).unwrap();
        let mut line = serde_json::to_vec(&(seconds, "o", text)).unwrap();
        line.push(b'\n');
        line
    };
    let streamed = record(plan, &dial, encode, &mut Screen::new(&mut shown, style)).await;
    let bytes = kept.lock().unwrap().split().freeze();
    (streamed, bytes, String::from_utf8(shown).unwrap())
}

#[tokio::test]
async fn the_default_session_is_recorded_whole_in_order_and_hashed_as_sent() {
    let (streamed, kept, shown) = recorded(&SessionCommand::from_words(Vec::new())).await;
    let streamed = streamed.unwrap();
    assert!(streamed.exit.success());
    assert_eq!(
        streamed.sha256_sent,
        <[u8; 32]>::from(Sha256::digest(&kept))
    );
    let uploaded = &streamed.uploaded;
    assert_eq!(
        (uploaded.sent_bytes, uploaded.acked_bytes),
        (kept.len() as u64, kept.len() as u64)
    );
    assert_eq!(
        (uploaded.untrue_acks, uploaded.ack_latencies.len() as u64),
        (0, streamed.events + 1)
    );

    let events: Vec<(f64, String, String)> = kept
        .split(|&byte| byte == b'\n')
        .skip(1)
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    assert_eq!(events.len() as u64, streamed.events);
    assert!(events.windows(2).all(|pair| pair[0].0 <= pair[1].0));
    let text: String = events.into_iter().map(|(_, _, text)| text).collect();
    assert!(
        text.contains("\r\n24 80\r\n") && text.contains("\r\nGrüße, 世界, 👋\r\n"),
        "{text}"
    );
    assert!(!text.contains("not found"), "{text}");
    assert!(shown.starts_with("✓ recorder 100.64.0.2:80 takes the session\n"));
    assert!(
        shown.contains("durable") && shown.ends_with("\r\x1b[2K"),
        "{shown:?}"
    );
}

#[tokio::test]
async fn a_command_that_waits_for_a_user_ends_instead() {
    let (streamed, kept, _) = recorded(&SessionCommand::from_line("cat; echo over")).await;
    assert!(streamed.unwrap().exit.success());
    assert!(kept.ends_with(b"over\\r\\n\"]\n"));
}

#[tokio::test]
async fn a_command_that_does_not_exist_ends_the_recording_unclean() {
    let missing = SessionCommand::from_words(vec![OsString::from("/nowhere/tailtape-none")]);
    let (streamed, kept, _) = recorded(&missing).await;
    assert!(
        format!("{:#}", streamed.unwrap_err()).starts_with("cannot run /nowhere/tailtape-none: ")
    );
    assert!(kept.is_empty());
}
