//! Our devnet as the tailnet under test. It runs on its own threads, so that the scenarios may block.

use anyhow::Context;
use netstack::devnet::{AuthKeySpec, DevNet, DevNetConfig};
use netstack::tailcfg::DerpMap;
use tokio::runtime::Runtime;

/// Who owns every node without tags.
pub(crate) const USER: &str = "alice@example.com";

/// A running devnet.
#[derive(Debug)]
pub(crate) struct OwnControl {
    // Dropped before the runtime that drives it.
    devnet: DevNet,
    recorder_key: String,
    client_key: String,
    _runtime: Runtime,
}

impl OwnControl {
    /// Starts a devnet with one user, a key for `tag:recorder` and a reusable key for everything else.
    pub(crate) fn start(derp_map: DerpMap) -> anyhow::Result<Self> {
        let runtime = Runtime::new().context("starting a runtime")?;
        let devnet = runtime.block_on(DevNet::start(DevNetConfig {
            derp_map,
            ..DevNetConfig::default()
        }))?;
        let user = devnet.add_user(USER);
        let recorder_key = devnet.auth_key(AuthKeySpec {
            user,
            tags: vec!["tag:recorder".to_owned()],
            reusable: false,
            ephemeral: false,
        })?;
        let client_key = devnet.auth_key(AuthKeySpec {
            user,
            tags: Vec::new(),
            reusable: true,
            ephemeral: false,
        })?;
        Ok(Self {
            devnet,
            recorder_key,
            client_key,
            _runtime: runtime,
        })
    }

    /// Its URL.
    pub(crate) fn url(&self) -> String {
        self.devnet.url()
    }

    /// For the recorder, once.
    pub(crate) fn recorder_key(&self) -> &str {
        &self.recorder_key
    }

    /// For any number of clients.
    pub(crate) fn client_key(&self) -> &str {
        &self.client_key
    }
}
