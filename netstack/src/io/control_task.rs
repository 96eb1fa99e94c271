//! Carries one control request out and gives the node what came of it.
//!
//! Invariant: each request ends in exactly one of response or failure (a map stream: its head, bytes,
//! then a failure); bodies other than the stream are bounded. The lock is never held across an await.
//! Called by `io/driver.rs`.

use std::sync::{Arc, Mutex, PoisonError};

use super::control_conn::{ControlClient, ControlConnError};
use super::driver::{Shared, now, unix_seconds};
use super::keystore::KeyStore;
use crate::control::{ControlRequest, RequestId};

/// What a request needs beside itself.
#[derive(Debug, Clone)]
pub(super) struct ControlTask {
    pub(super) shared: Arc<Shared>,
    pub(super) client: ControlClient,
    pub(super) keys: Arc<Mutex<KeyStore>>,
    pub(super) url: Arc<str>,
}

impl ControlTask {
    /// Runs until the request is answered, or the map stream has ended.
    pub(super) async fn carry_out(self, request: ControlRequest) {
        let id = request.id();
        let is_stream = matches!(request, ControlRequest::MapStream { .. });
        let reason = match self.exchange(id, is_stream, request).await {
            Ok(()) if !is_stream => return,
            Ok(()) => "control ended the map stream".to_owned(),
            Err(error) => chain(&error),
        };
        self.with_node(|node| node.control().handle_failed(now(), id, reason));
    }

    async fn exchange(
        &self,
        id: RequestId,
        is_stream: bool,
        request: ControlRequest,
    ) -> Result<(), ControlConnError> {
        let mut response = self.client.send(request).await?;
        self.keep_server_key().await;
        let (status, retry_after) = (response.status, response.retry_after);
        if !is_stream || status != 200 {
            let body = response.collect().await?;
            self.with_node(|node| {
                node.control()
                    .handle_response(now(), id, status, retry_after, &body);
            });
            return Ok(());
        }
        self.with_node(|node| {
            node.control()
                .handle_response(now(), id, status, retry_after, &[]);
        });
        while let Some(bytes) = response.chunk().await? {
            self.with_node(|node| {
                node.control().handle_map_bytes(now(), id, &bytes);
                node.handle_wall_time(now(), unix_seconds());
            });
        }
        Ok(())
    }

    /// The server's key is pinned where the node's keys are kept.
    async fn keep_server_key(&self) {
        let Some(key) = self.client.server_key().await else {
            return;
        };
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let known = keys.control_key(&self.url);
        if matches!(known, Ok(Some(known)) if known == key) {
            return;
        }
        if let Err(error) = keys.put_control_key(&self.url, key) {
            tracing::error!(%error, "cannot write the control server's key; it is asked for again");
        }
    }

    fn with_node(&self, act: impl FnOnce(&mut crate::node::Node)) {
        act(&mut self.shared.lock().node);
        self.shared.kick();
    }
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
