//! A scripted recorder, spoken to over HTTP/2 in an in-memory pipe; time is paused, so waiting costs nothing.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::Frame;
use hyper::server::conn::http2 as server;
use hyper::service::service_fn;
use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;

use super::super::ack_frames::AckFrameError;
use super::super::upload::{SILENCE_MAX, UploadError, Uploaded};
use super::*;
use crate::turns::until;

type AnswerBody = BoxBody<Bytes, io::Error>;

/// What the scripted recorder saw, and the answer that the test writes frame by frame.
#[derive(Clone, Default)]
struct Seen {
    requests: Arc<Mutex<Vec<String>>>,
    chunks: Arc<Mutex<Vec<Bytes>>>,
    body_end: Arc<Mutex<Option<bool>>>,
    reads_no_body: Arc<AtomicBool>,
}

/// The recorder's side of one upload.
struct Recorder {
    seen: Seen,
    answer: mpsc::UnboundedSender<io::Result<Frame<Bytes>>>,
}

impl Recorder {
    fn say(&self, frames: &str) {
        self.answer
            .send(Ok(Frame::data(Bytes::copy_from_slice(frames.as_bytes()))))
            .unwrap();
    }

    fn received(&self) -> usize {
        self.seen
            .chunks
            .lock()
            .unwrap()
            .iter()
            .map(Bytes::len)
            .sum()
    }

    async fn until_received(&self, bytes: usize) {
        until(&format!("{bytes} bytes arrive"), || {
            (self.received() >= bytes).then_some(())
        })
        .await;
    }

    async fn until_body_end(&self) -> bool {
        until("the body ends", || *self.seen.body_end.lock().unwrap()).await
    }
}

fn empty() -> AnswerBody {
    Empty::new().map_err(|never| match never {}).boxed()
}

/// Serves one connection: HEAD is answered with `probe`, POST with `post`, and its answer's body comes from `answer`.
async fn serve(
    stream: DuplexStream,
    probe: StatusCode,
    post: StatusCode,
    seen: Seen,
    answer: mpsc::UnboundedReceiver<io::Result<Frame<Bytes>>>,
) {
    let answer = Arc::new(Mutex::new(Some(answer)));
    let service = service_fn(move |request: Request<Incoming>| {
        let seen = seen.clone();
        let answer = Arc::clone(&answer);
        async move {
            let line = format!("{} {}", request.method(), request.uri());
            seen.requests.lock().unwrap().push(line);
            let mut response = Response::new(empty());
            if request.method() == Method::HEAD {
                *response.status_mut() = probe;
                return Ok::<_, Infallible>(response);
            }
            *response.status_mut() = post;
            if post != StatusCode::OK {
                response
                    .headers_mut()
                    .insert("tailtape-reason", "store is full".parse().unwrap());
                return Ok(response);
            }
            let mut frames = answer.lock().unwrap().take().unwrap();
            *response.body_mut() = StreamBody::new(futures_util::stream::poll_fn(move |cx| {
                frames.poll_recv(cx)
            }))
            .boxed();
            tokio::spawn(async move {
                let mut body = request.into_body();
                let clean = loop {
                    if seen.reads_no_body.load(Ordering::Relaxed) {
                        std::future::pending::<()>().await;
                    }
                    match body.frame().await {
                        Some(Ok(frame)) => {
                            let bytes = frame.into_data().unwrap();
                            if !bytes.is_empty() {
                                seen.chunks.lock().unwrap().push(bytes);
                            }
                        }
                        Some(Err(_)) => break false,
                        None => break true,
                    }
                };
                *seen.body_end.lock().unwrap() = Some(clean);
            });
            Ok(response)
        }
    });
    let served = server::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
    drop(served); // How the connection ends is the uploader's affair here.
}

fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([100, 64, 0, n], 80))
}

/// An upload to a recorder that takes it.
async fn accepted() -> (Upload, Recorder) {
    let seen = Seen::default();
    let (answer, frames) = mpsc::unbounded_channel();
    let frames = Mutex::new(Some(frames));
    let served = seen.clone();
    let dial = move |_: SocketAddr| {
        let (ours, theirs) = duplex(64 * 1024);
        let frames = frames.lock().unwrap().take().unwrap();
        tokio::spawn(serve(
            theirs,
            StatusCode::OK,
            StatusCode::OK,
            served.clone(),
            frames,
        ));
        async move { Ok(ours) }
    };
    let upload = connect(&[address(9)], &dial).await.unwrap();
    (upload, Recorder { seen, answer })
}

async fn finish_and_close(upload: Upload, recorder: Recorder) -> Result<Uploaded, UploadError> {
    let closing = tokio::spawn(async move {
        assert!(recorder.until_body_end().await);
        recorder.say(&format!("{{\"ack\":{}}}", recorder.received()));
    });
    let uploaded = upload.finish().await;
    closing.await.unwrap();
    uploaded
}

#[tokio::test(start_paused = true)]
async fn a_session_goes_up_line_by_line_and_its_acks_are_timed() {
    let (mut upload, recorder) = accepted().await;
    assert_eq!(
        *recorder.seen.requests.lock().unwrap(),
        [
            "HEAD http://100.64.0.9:80/v2/record",
            "POST http://100.64.0.9:80/v2/record"
        ]
    );
    upload
        .write(Bytes::from_static(b"{\"version\":2}\n"))
        .await
        .unwrap();
    recorder.until_received(14).await;
    upload
        .write(Bytes::from_static(b"[0,\"o\",\"x\"]\n"))
        .await
        .unwrap();
    recorder.until_received(26).await;
    assert_eq!(
        recorder.seen.chunks.lock().unwrap().len(),
        2,
        "one DATA frame per line"
    );

    tokio::time::advance(Duration::from_millis(40)).await;
    recorder.say(r#"{}{"ack":14}  {"ack":26,"receipt":["x"]}"#);
    until("26 bytes are acked", || {
        (upload.progress().acked_bytes >= 26).then_some(())
    })
    .await;
    assert!(upload.progress().last_ack.unwrap() >= Duration::from_millis(40));

    let uploaded = finish_and_close(upload, recorder).await.unwrap();
    assert_eq!(
        (
            uploaded.sent_bytes,
            uploaded.acked_bytes,
            uploaded.untrue_acks
        ),
        (26, 26, 0)
    );
    assert_eq!(
        (uploaded.ack_latencies.len(), uploaded.recorder),
        (2, address(9))
    );
}

#[tokio::test(start_paused = true)]
async fn a_session_of_no_bytes_is_whole() {
    let (upload, recorder) = accepted().await;
    let uploaded = finish_and_close(upload, recorder).await.unwrap();
    assert_eq!((uploaded.sent_bytes, uploaded.acked_bytes), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_error_frame_fails_the_upload_with_the_recorders_words() {
    let (mut upload, recorder) = accepted().await;
    recorder.say(r#"{"ack":0}{"error":"disk full"}"#);
    let error = upload.ended().await;
    assert!(
        matches!(&error, UploadError::Failed { message, .. } if message == "disk full"),
        "{error}"
    );
    assert!(upload.write(Bytes::from_static(b"x")).await.is_err());
    drop(upload);
    assert!(
        !recorder.until_body_end().await,
        "the recorder must not see a clean end"
    );
}

#[tokio::test(start_paused = true)]
async fn an_error_frame_after_the_whole_body_is_still_a_failure() {
    let (upload, recorder) = accepted().await;
    let failing = tokio::spawn(async move {
        assert!(recorder.until_body_end().await);
        recorder.say(r#"{"error":"late"}"#);
    });
    assert!(matches!(
        upload.finish().await,
        Err(UploadError::Failed { .. })
    ));
    failing.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_ends_before_the_session_fails_the_next_write() {
    let (mut upload, recorder) = accepted().await;
    recorder.say(r#"{"ack":0}"#);
    drop(recorder);
    let error = upload.ended().await;
    assert!(matches!(error, UploadError::EndedEarly { .. }), "{error}");
    let error = upload.write(Bytes::from_static(b"x")).await.unwrap_err();
    assert!(matches!(error, UploadError::EndedEarly { .. }), "{error}");
    assert!(upload.finish().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_ends_inside_a_frame_fails_the_upload() {
    let (mut upload, recorder) = accepted().await;
    recorder.say(r#"{"ack":1"#);
    drop(recorder);
    let error = upload.ended().await;
    let UploadError::Acks { source, .. } = error else {
        panic!("{error}");
    };
    assert!(
        matches!(source, AckFrameError::EndsInside { held_bytes: 8 }),
        "{source}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_reset_loses_the_recorder() {
    let (mut upload, recorder) = accepted().await;
    recorder.answer.send(Err(io::Error::other("gone"))).unwrap();
    let error = upload.ended().await;
    assert!(matches!(error, UploadError::Lost { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_recorder_silent_for_thirty_seconds_is_dead_and_white_space_is_silence() {
    let (mut upload, recorder) = accepted().await;
    let begin = Instant::now();
    tokio::time::sleep(Duration::from_secs(20)).await;
    recorder.say("{}");
    tokio::time::sleep(Duration::from_secs(20)).await;
    recorder.say(" \n");
    let error = upload.ended().await;
    assert!(matches!(error, UploadError::Silent { .. }), "{error}");
    assert!(begin.elapsed() >= Duration::from_secs(20) + SILENCE_MAX);
    assert!(begin.elapsed() < Duration::from_secs(21) + SILENCE_MAX);
}

#[tokio::test(start_paused = true)]
async fn silence_while_the_recorder_closes_the_recording_is_death_too() {
    let (upload, _recorder) = accepted().await;
    assert!(matches!(
        upload.finish().await,
        Err(UploadError::Silent { .. })
    ));
}

#[tokio::test(start_paused = true)]
async fn a_dropped_upload_is_never_a_clean_end() {
    let (mut upload, recorder) = accepted().await;
    upload
        .write(Bytes::from_static(b"half a li"))
        .await
        .unwrap();
    recorder.until_received(9).await;
    drop(upload);
    assert!(!recorder.until_body_end().await);
}

#[tokio::test(start_paused = true)]
async fn a_recorder_that_stops_reading_holds_the_session_up() {
    let (mut upload, recorder) = accepted().await;
    recorder.seen.reads_no_body.store(true, Ordering::Relaxed);
    let line = Bytes::from(vec![b'x'; 16 * 1024]);
    let mut written = 0;
    let held_up = timeout(SILENCE_MAX / 2, async {
        loop {
            upload.write(line.clone()).await.unwrap();
            written += line.len();
        }
    })
    .await;
    assert!(held_up.is_err());
    assert!(recorder.received() <= line.len());
    // The recorder's window, which this server leaves at 1 MiB, and as much on our side; nothing grows beyond.
    assert!(
        written <= 3 * UNSENT_BYTES_MAX,
        "{written} bytes were let in"
    );
    assert!(matches!(upload.ended().await, UploadError::Silent { .. }));
}

#[tokio::test(start_paused = true)]
async fn recorders_are_tried_in_list_order_until_one_takes_the_session() {
    let seen = Seen::default();
    let dialled = Arc::new(Mutex::new(Vec::new()));
    let (answer, frames) = mpsc::unbounded_channel();
    let frames = Mutex::new(Some(frames));
    let (log, served) = (Arc::clone(&dialled), seen.clone());
    let dial = move |recorder: SocketAddr| {
        log.lock().unwrap().push(recorder);
        let (ours, theirs) = duplex(64 * 1024);
        let frames = frames
            .lock()
            .unwrap()
            .take()
            .filter(|_| recorder == address(4))
            .or_else(|| Some(mpsc::unbounded_channel().1));
        let (probe, post) = match recorder {
            a if a == address(2) => (StatusCode::NOT_FOUND, StatusCode::OK),
            a if a == address(3) => (StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE),
            _ => (StatusCode::OK, StatusCode::OK),
        };
        tokio::spawn(serve(theirs, probe, post, served.clone(), frames.unwrap()));
        async move {
            match recorder {
                a if a == address(1) => Err(io::ErrorKind::ConnectionRefused.into()),
                _ => Ok(ours),
            }
        }
    };
    let list = [1, 2, 3, 4, 5].map(address);
    let upload = connect(&list, &dial).await.unwrap();
    assert_eq!(upload.recorder(), address(4));
    assert_eq!(*dialled.lock().unwrap(), list[..4]);
    drop(answer);

    let error = connect(&list[1..3], &dial).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "no recorder takes the session; \
         100.64.0.2:80: it does not take recordings: HEAD /v2/record gave 404 Not Found; \
         100.64.0.3:80: it refuses this recording: 503 Service Unavailable (store is full)"
    );
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_recorder_costs_five_seconds_and_all_of_them_thirty() {
    let dial = |_: SocketAddr| std::future::pending::<io::Result<DuplexStream>>();
    let begin = Instant::now();
    let list: Vec<SocketAddr> = (1..=20).map(address).collect();
    let error = connect(&list, &dial).await.unwrap_err();
    assert_eq!(error.attempts.len(), 20);
    assert!(
        error
            .attempts
            .iter()
            .all(|(_, error)| matches!(error, AttemptError::DialTimedOut))
    );
    assert!(begin.elapsed() >= DIALS_MAX && begin.elapsed() < DIALS_MAX + Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_recorder_that_accepts_and_says_nothing_is_left_after_the_probes_time() {
    let kept = Mutex::new(Vec::new());
    let dial = |_: SocketAddr| {
        let (ours, theirs) = duplex(64 * 1024);
        kept.lock().unwrap().push(theirs);
        async move { Ok(ours) }
    };
    let begin = Instant::now();
    let error = connect(&[address(1)], &dial).await.unwrap_err();
    assert!(matches!(error.attempts[0].1, AttemptError::ProbeTimedOut));
    assert!(begin.elapsed() >= PROBE_MAX && begin.elapsed() < PROBE_MAX + Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_answers_the_preface_in_http_1_is_no_recorder() {
    let dial = |_: SocketAddr| {
        let (ours, mut theirs) = duplex(64 * 1024);
        tokio::spawn(async move {
            theirs
                .write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
                .await
                .unwrap();
        });
        async move { Ok(ours) }
    };
    let error = connect(&[address(1)], &dial).await.unwrap_err();
    assert!(
        matches!(error.attempts[0].1, AttemptError::Http(_)),
        "{error}"
    );
}

#[tokio::test]
async fn without_a_recorder_the_error_says_so() {
    let dial = |_: SocketAddr| std::future::pending::<io::Result<DuplexStream>>();
    let error = connect(&[], &dial).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "there is no recorder to send the session to"
    );
}
