//! The tailnet of a run: a devnet and the node that sends, both in this process, so that they outlive every recorder.
//!
//! Invariant: a session goes where the SSH policy says, never to an address that the test knew from elsewhere. The rounds use it.

use std::net::{IpAddr, SocketAddr};

use netstack::control::AuthKey;
use netstack::devnet::{AuthKeySpec, DevNet, DevNetConfig, DevSshRule};
use netstack::io::keystore::KeyStore;
use netstack::io::{Tailnet, TailnetConfig};
use netstack::tcpip::TcpConfig;

use crate::{PATIENCE, soon};

const RECORDER_TAG: &str = "tag:recorder";

pub(crate) struct World {
    devnet: DevNet,
    sender: Tailnet,
    /// Admits recorders, as often as they lose their state.
    recorder_key: String,
}

impl World {
    pub(crate) async fn start() -> Self {
        let devnet = DevNet::start(DevNetConfig::default()).await.unwrap();
        devnet.set_ssh_policy(vec![DevSshRule {
            recorder_tag: Some(RECORDER_TAG.to_owned()),
            enforce: true,
        }]);
        let user = devnet.add_user("you@example.com");
        let key = |tags: &[&str]| {
            let spec = AuthKeySpec {
                user,
                tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
                reusable: true,
                ephemeral: false,
            };
            devnet.auth_key(spec).unwrap()
        };
        let recorder_key = key(&[RECORDER_TAG]);
        let config = TailnetConfig {
            control_url: devnet.url(),
            hostname: "ssh-node".to_owned(),
            auth_key: Some(AuthKey::new(&key(&[]))),
            ephemeral: false,
            app: "tailtape".to_owned(),
            version_text: "kill".to_owned(),
            keys: KeyStore::ephemeral(),
            bind: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
            udp_offload: true,
            tcp: TcpConfig::default(),
        };
        let sender = Tailnet::join(config, PATIENCE).await.unwrap();
        Self {
            devnet,
            sender,
            recorder_key,
        }
    }

    pub(crate) fn control_url(&self) -> String {
        self.devnet.url()
    }

    pub(crate) fn recorder_key(&self) -> &str {
        &self.recorder_key
    }

    pub(crate) fn sender(&self) -> &Tailnet {
        &self.sender
    }

    /// The recorder to which the policy sends sessions, once that is the node at `address`, and a peer: a policy may name
    /// a node before that has said how it can be reached.
    pub(crate) async fn recorder(&self, address: IpAddr) -> SocketAddr {
        let mut progress = self.sender.watch();
        let resolved = async {
            loop {
                let first = self.recorders().first().copied();
                if let Some(recorder) = first.filter(|recorder| recorder.ip() == address)
                    && self.reaches(address)
                {
                    return recorder;
                }
                progress.changed().await.unwrap();
            }
        };
        soon("the recorder's address in the SSH policy", resolved).await
    }

    /// Removes nodes of recorders that are no more, as an administrator does; the one at `address` stays.
    pub(crate) fn remove_recorders_but(&self, address: Option<IpAddr>) {
        for node in self.devnet.nodes() {
            let lives = address.is_some_and(|address| node.addresses.contains(&address));
            if !lives && node.tags.iter().any(|tag| tag == RECORDER_TAG) {
                self.devnet.remove_node(node.id).unwrap();
            }
        }
    }

    fn reaches(&self, address: IpAddr) -> bool {
        let peers = self.sender.status().peers;
        peers.iter().any(|peer| peer.addresses.contains(&address))
    }

    fn recorders(&self) -> Vec<SocketAddr> {
        let policy = self.sender.ssh_policy().unwrap_or_default();
        let recorders = policy
            .rules
            .into_iter()
            .flat_map(|rule| rule.action.recorders);
        recorders
            .map(|recorder| recorder.parse().unwrap())
            .collect()
    }
}
