//! The control client: the map stream in any split, and answers of any kind.
//!
//! Seeds: register answers and map frames as servers send them.

use std::time::{Duration, Instant};

use netstack::control::{AuthKey, Control, ControlConfig, ControlEvent, ControlRequest, RequestId};
use netstack::key::{DiscoPublic, NodePrivate};
use netstack::tailcfg::CAPABILITY_VERSION;

use super::script::{Script, epoch, pieces};

const ACCEPTED: &[u8] = br#"{"User":{"ID":1},"MachineAuthorized":true}"#;
/// What a server's words may become at most: the part that is kept, escaped, and what is put before it.
const REASON_CHARS_MAX: usize = 300;

pub fn config(auth_key: Option<AuthKey>) -> ControlConfig {
    ControlConfig {
        hostname: "rec".to_owned(),
        auth_key,
        ephemeral: false,
        app: "test".to_owned(),
        version_text: "0".to_owned(),
        capability_version: CAPABILITY_VERSION,
    }
}

/// A client with a stored key, registered, and its open stream.
fn following() -> (Control, RequestId) {
    let key = NodePrivate::from_bytes([3; 32]);
    let disco = DiscoPublic::from_bytes([5; 32]);
    let now = epoch();
    let mut control = Control::new(config(None), Some(key), disco, [1; 32], now);
    let register = control.poll_request(now).expect("it registers at once");
    control.handle_response(now, register.id(), 200, None, ACCEPTED);
    assert!(matches!(
        control.poll_event(),
        Some(ControlEvent::Registered)
    ));
    let stream = control.poll_request(now).expect("the stream comes first");
    control.handle_response(now, stream.id(), 200, None, b"");
    (control, stream.id())
}

/// What the client says to a stream that came in these pieces.
fn follow<'a>(wire: impl IntoIterator<Item = &'a [u8]>) -> Vec<String> {
    let (mut control, id) = following();
    let (now, mut said) = (epoch(), Vec::new());
    let (mut up, mut down) = (false, false);
    for piece in wire {
        control.handle_map_bytes(now, id, piece);
        while let Some(event) = control.poll_event() {
            assert!(!down, "after the end: {event:?}");
            match &event {
                ControlEvent::StreamUp => {
                    assert!(!up, "up twice");
                    up = true;
                }
                ControlEvent::Map(map) => {
                    assert!(up, "a map before the stream is up");
                    assert!(!map.keep_alive);
                }
                ControlEvent::StreamDown { reason } => {
                    assert!(reason.chars().count() <= REASON_CHARS_MAX, "{reason}");
                    down = true;
                }
                ControlEvent::Cancel { id: given_up, .. } => assert_eq!(*given_up, id),
                ControlEvent::NodeKey(_)
                | ControlEvent::Registered
                | ControlEvent::NeedsLogin { .. }
                | ControlEvent::Refused { .. }
                | ControlEvent::RegisterFailed { .. }
                | ControlEvent::NodeRemoved => panic!("from a stream: {event:?}"),
            }
            said.push(format!("{event:?}"));
        }
    }
    said
}

/// A byte that decides the cuts; the rest are messages with a zero byte between them, and, once
/// more, the stream as it is.
pub fn control_map(data: &[u8]) {
    let Some((seed, data)) = data.split_first() else {
        return;
    };
    let mut framed = Vec::new();
    for message in data.split(|byte| *byte == 0) {
        let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
        framed.extend_from_slice(&length.to_le_bytes());
        framed.extend_from_slice(message);
    }
    for wire in [framed.as_slice(), data] {
        assert_eq!(follow(pieces(wire, *seed)), follow([wire]));
    }
}

/// One byte says what is known at the start; then answers: to which request, status, pause, body.
pub fn control_register(data: &[u8]) {
    let mut script = Script::new(data);
    let known = script.byte();
    let auth_key = (known & 1 != 0).then(|| AuthKey::new("tskey-auth-x"));
    let stored = (known & 2 != 0).then(|| NodePrivate::from_bytes([3; 32]));
    let disco = DiscoPublic::from_bytes([5; 32]);
    let mut now = epoch();
    let mut control = Control::new(config(auth_key), stored, disco, [1; 32], now);
    let mut open = Vec::new();
    while let Some(step) = script.step() {
        ask(&mut control, now, &mut open);
        let status = [200, 200, 200, 400, 401, 404, 429, 500][usize::from(step & 7)];
        let pause = (step & 8 != 0).then(|| Duration::from_secs(script.byte().into()));
        let chosen = (step >> 4) as usize % open.len().max(1);
        if step & 0x80 != 0 || open.is_empty() {
            pass(&mut control, &mut now);
        } else {
            let (id, kind) = open.remove(chosen);
            control.handle_response(now, id, status, pause, script.piece());
            if status != 200 {
                hear(&mut control, now, &mut open);
                let again = open.iter().any(|(_, other)| *other == kind);
                assert!(!again, "{kind} asked again without a pause");
                continue;
            }
            if kind == "/stream" && status == 200 {
                control.handle_map_bytes(now, id, script.piece());
                open.push((id, kind));
            }
        }
        hear(&mut control, now, &mut open);
    }
}

/// Takes the requests that are due: at most one of each kind is in flight.
fn ask(control: &mut Control, now: Instant, open: &mut Vec<(RequestId, &'static str)>) {
    for asked in 0.. {
        assert!(asked < 8, "requests without end");
        let Some(request) = control.poll_request(now) else {
            return;
        };
        let kind = match &request {
            ControlRequest::Register { .. } => "/register",
            ControlRequest::MapStream { .. } => "/stream",
            ControlRequest::MapUpdate { .. } => "/update",
        };
        assert!(open.iter().all(|(_, other)| *other != kind), "two {kind}");
        open.push((request.id(), kind));
    }
}

/// Lets time pass to the next deadline; what was due then is not due any more.
fn pass(control: &mut Control, now: &mut Instant) {
    if let Some(at) = control.poll_timeout() {
        *now = (*now).max(at);
        control.handle_timeout(*now);
    }
}

/// Takes the events; requests that were given up, or whose stream has ended, are no longer open.
fn hear(control: &mut Control, now: Instant, open: &mut Vec<(RequestId, &'static str)>) {
    while let Some(event) = control.poll_event() {
        match event {
            ControlEvent::NodeKey(key) => {
                let ours = control.node_key().map(NodePrivate::public);
                assert_eq!(ours, Some(key.public()));
            }
            ControlEvent::Cancel { id, .. } => open.retain(|(other, _)| *other != id),
            ControlEvent::StreamDown { reason } => {
                assert!(reason.chars().count() <= REASON_CHARS_MAX, "{reason}");
                open.retain(|(_, kind)| *kind != "/stream");
            }
            ControlEvent::Refused { reason } | ControlEvent::RegisterFailed { reason } => {
                assert!(reason.chars().count() <= REASON_CHARS_MAX, "{reason}");
            }
            ControlEvent::Registered
            | ControlEvent::NeedsLogin { .. }
            | ControlEvent::NodeRemoved
            | ControlEvent::StreamUp
            | ControlEvent::Map(_) => {}
        }
    }
    ask(control, now, open);
    assert!(
        control.poll_timeout().is_none_or(|at| at > now),
        "a deadline that has passed stays due"
    );
}
