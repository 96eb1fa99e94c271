//! A node for the tests, run as a driver would run it. Called by the devnet's tests.

use rand_core::{OsRng, RngCore};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::{DevNet, HANG};
use crate::control::{AuthKey, Control, ControlConfig, ControlEvent, ControlRequest, RequestId};
use crate::io::control_conn::{ControlClient, ControlResponse};
use crate::key::{DiscoPrivate, MachinePrivate};
use crate::tailcfg::{CAPABILITY_VERSION, MapResponse, NetInfo, Node};

enum Input {
    Answer(RequestId, u16, Vec<u8>),
    Bytes(RequestId, bytes::Bytes),
    Failed(RequestId, String),
}

/// A node as a driver would run it: control's state machine, and requests carried by tasks.
pub(super) struct TestNode {
    control: Control,
    client: ControlClient,
    input: mpsc::Receiver<Input>,
    sender: mpsc::Sender<Input>,
}

impl TestNode {
    pub(super) fn new(net: &DevNet, hostname: &str, auth_key: Option<&str>) -> Self {
        let config = ControlConfig {
            hostname: hostname.to_owned(),
            auth_key: auth_key.map(AuthKey::new),
            ephemeral: false,
            app: "test".to_owned(),
            version_text: "0".to_owned(),
            capability_version: CAPABILITY_VERSION,
        };
        let machine = MachinePrivate::generate(&mut OsRng);
        let disco = DiscoPrivate::generate(&mut OsRng).public();
        let mut seed = [0; 32];
        OsRng.fill_bytes(&mut seed);
        let (sender, input) = mpsc::channel(16);
        Self {
            control: Control::new(config, None, disco, seed, Instant::now().into_std()),
            client: ControlClient::new(&net.url(), machine, None, CAPABILITY_VERSION),
            input,
            sender,
        }
    }

    pub(super) fn publish(&mut self, endpoint: &str) {
        let net_info = NetInfo {
            preferred_derp: 900,
            ..NetInfo::default()
        };
        let endpoints = vec![(endpoint.parse().unwrap(), 1)];
        let now = Instant::now().into_std();
        self.control.set_network(now, endpoints, net_info);
    }

    async fn event(&mut self) -> ControlEvent {
        loop {
            if let Some(event) = self.control.poll_event() {
                return event;
            }
            while let Some(request) = self.control.poll_request(Instant::now().into_std()) {
                tokio::spawn(carry(self.client.clone(), request, self.sender.clone()));
            }
            let wake = match self.control.poll_timeout() {
                Some(at) => Instant::from_std(at),
                None => Instant::now() + HANG,
            };
            let input = tokio::select! {
                input = self.input.recv() => input,
                () = sleep_until(wake) => None,
            };
            let now = Instant::now().into_std();
            match input {
                Some(Input::Answer(id, status, body)) => {
                    self.control.handle_response(now, id, status, None, &body);
                }
                Some(Input::Bytes(id, bytes)) => self.control.handle_map_bytes(now, id, &bytes),
                Some(Input::Failed(id, reason)) => self.control.handle_failed(now, id, reason),
                None => self.control.handle_timeout(now),
            }
        }
    }

    /// Goes on until an event that `pick` takes.
    pub(super) async fn until<T>(&mut self, mut pick: impl FnMut(ControlEvent) -> Option<T>) -> T {
        let search = async {
            loop {
                if let Some(found) = pick(self.event().await) {
                    return found;
                }
            }
        };
        timeout(HANG, search).await.expect("the event comes")
    }

    /// The first map message that `fits`.
    pub(super) async fn map(&mut self, fits: impl Fn(&MapResponse) -> bool) -> MapResponse {
        self.until(|event| {
            if let ControlEvent::Map(map) = event
                && fits(&map)
            {
                Some(*map)
            } else {
                None
            }
        })
        .await
    }

    pub(super) async fn itself(&mut self) -> Node {
        self.map(|map| map.node.is_some()).await.node.unwrap()
    }
}

async fn carry(client: ControlClient, request: ControlRequest, to: mpsc::Sender<Input>) {
    let id = request.id();
    let is_stream = matches!(request, ControlRequest::MapStream { .. });
    let last = match client.send(request).await {
        Err(error) => Input::Failed(id, error.to_string()),
        Ok(response) if is_stream && response.status == 200 => stream(id, response, &to).await,
        Ok(response) => {
            let status = response.status;
            match response.collect().await {
                Ok(body) => Input::Answer(id, status, body.to_vec()),
                Err(error) => Input::Failed(id, error.to_string()),
            }
        }
    };
    // The test may be over.
    to.send(last).await.unwrap_or_default();
}

async fn stream(id: RequestId, mut response: ControlResponse, to: &mpsc::Sender<Input>) -> Input {
    let mut next = Input::Answer(id, 200, Vec::new());
    loop {
        if to.send(next).await.is_err() {
            return Input::Failed(id, "over".to_owned());
        }
        next = match response.chunk().await {
            Ok(Some(bytes)) => Input::Bytes(id, bytes),
            Ok(None) => return Input::Failed(id, "end of stream".to_owned()),
            Err(error) => return Input::Failed(id, error.to_string()),
        };
    }
}
