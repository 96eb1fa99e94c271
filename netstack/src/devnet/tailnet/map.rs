//! What a devnet tells each node: the map message, whole. No IO; called by `devnet`'s server.
//!
//! Invariant: everything that stock clients insist on is in every message (control.md §9.4), and a
//! policy that enforces recording never leaves the list of recorders empty in an accepting rule.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use super::{DevNode, Tailnet};
use crate::devnet::DevNodeStatus;
use crate::tailcfg::{
    ControlDebug, DnsConfig, MapResponse, Node, NodeId, NullDefault, OnRecordingFailure, SshAction,
    SshPolicy, SshPrincipal, SshRule, UserId, UserProfile,
};

/// Where recorders listen.
const RECORDER_PORT: u16 = 80;
/// Node attribute without which stock nodes do not serve SSH.
const CAPABILITY_SSH: &str = "https://tailscale.com/cap/ssh";

impl Tailnet {
    /// Everything that the node is to know.
    pub(in crate::devnet) fn snapshot(&self, id: NodeId) -> Option<MapResponse> {
        let node = self.nodes.get(&id)?;
        let profile = |(id, login): (&UserId, &String)| UserProfile {
            id: *id,
            login_name: login.clone(),
            display_name: login.clone(),
        };
        let peers = self.nodes.values().filter(|peer| {
            // A peer without a disco key is dropped by stock clients, with a complaint.
            peer.id != id && !peer.disco.is_zero()
        });
        let mut itself = self.node(node);
        itself
            .cap_map
            .insert(CAPABILITY_SSH.to_owned(), NullDefault::default());
        Some(MapResponse {
            node: Some(itself),
            peers: peers.map(|peer| self.node(peer)).collect(),
            derp_map: Some(self.derp_map.clone()),
            user_profiles: self.users.iter().map(profile).collect(),
            domain: self.domain.clone(),
            dns_config: Some(DnsConfig {
                proxied: true,
                domains: vec![self.domain.clone()],
                ..DnsConfig::default()
            }),
            packet_filters: Some([("base".to_owned(), Some(self.filter.clone()))].into()),
            ssh_policy: Some(self.ssh_policy()),
            debug: Some(ControlDebug {
                disable_log_tail: true,
                ..ControlDebug::default()
            }),
            ..MapResponse::default()
        })
    }

    pub(in crate::devnet) fn statuses(&self) -> Vec<DevNodeStatus> {
        let status = |node: &DevNode| DevNodeStatus {
            id: node.id,
            name: self.full_name(node),
            addresses: addresses(node.id).map(|net| net.addr()).to_vec(),
            tags: node.tags.clone(),
            online: node.stream.is_some(),
            endpoints: node.endpoints.clone(),
            home_derp: node.home_derp,
        };
        self.nodes.values().map(status).collect()
    }

    fn node(&self, node: &DevNode) -> Node {
        let addresses = addresses(node.id).to_vec();
        Node {
            id: node.id,
            stable_id: format!("dev-{}", node.id),
            name: self.full_name(node),
            user: node.user,
            key: node.key,
            machine: node.machine,
            disco_key: node.disco,
            allowed_ips: Some(addresses.clone()),
            addresses,
            endpoints: node.endpoints.clone(),
            home_derp: node.home_derp,
            hostinfo: Some(node.hostinfo.clone()),
            cap: node.cap,
            tags: node.tags.clone(),
            online: Some(node.stream.is_some()),
            machine_authorized: true,
            expired: node.expired,
            ..Node::default()
        }
    }

    fn ssh_policy(&self) -> SshPolicy {
        let rules = self.ssh_rules.iter().map(|rule| {
            let recorders = match &rule.recorder_tag {
                Some(tag) => self.recorders(tag),
                None => Vec::new(),
            };
            let unrecorded = recorders.is_empty() && rule.recorder_tag.is_some();
            let action = if rule.enforce && unrecorded {
                // An empty list of recorders would mean an unrecorded session.
                SshAction {
                    reject: true,
                    message: "No session recorder has joined the tailnet.".to_owned(),
                    ..SshAction::default()
                }
            } else {
                SshAction {
                    accept: true,
                    allow_agent_forwarding: true,
                    allow_local_port_forwarding: true,
                    on_recording_failure: (rule.enforce && !recorders.is_empty()).then(fail_closed),
                    recorders,
                    ..SshAction::default()
                }
            };
            SshRule {
                principals: vec![SshPrincipal {
                    any: true,
                    ..SshPrincipal::default()
                }],
                ssh_users: [("*".to_owned(), "=".to_owned())].into(),
                action,
            }
        });
        SshPolicy {
            rules: rules.collect(),
        }
    }

    /// `ip:port` of every node with the tag: IPv4 first, lowest first.
    fn recorders(&self, tag: &str) -> Vec<String> {
        let tagged = self
            .nodes
            .values()
            .filter(|node| !node.expired && node.tags.iter().any(|found| found == tag));
        let mut ips: Vec<IpAddr> = tagged
            .flat_map(|node| addresses(node.id))
            .map(|net| net.addr())
            .collect();
        ips.sort();
        let at_port = |ip| SocketAddr::new(ip, RECORDER_PORT).to_string();
        ips.into_iter().map(at_port).collect()
    }

    fn full_name(&self, node: &DevNode) -> String {
        format!("{}.{}.", node.name, self.domain)
    }
}

fn fail_closed() -> OnRecordingFailure {
    OnRecordingFailure {
        reject_session_with_message: "This session cannot be recorded.".to_owned(),
        terminate_session_with_message: "Recording this session has failed.".to_owned(),
        notify_url: String::new(),
    }
}

/// IPv4 and IPv6 of the node, within the ranges that clients know by heart. The IPv6 addresses
/// begin at ::1:0, clear of MagicDNS's ::53.
fn addresses(id: NodeId) -> [IpNet; 2] {
    // Ids are 1..=NODE_ID_MAX, so nothing is lost.
    let [high, low] = u16::try_from(id).unwrap_or_default().to_be_bytes();
    let v4 = Ipv4Addr::new(100, 64, high, low);
    let v6 = Ipv6Addr::new(
        0xfd7a,
        0x115c,
        0xa1e0,
        0,
        0,
        0,
        1,
        u16::from_be_bytes([high, low]),
    );
    [IpNet::from(IpAddr::V4(v4)), IpNet::from(IpAddr::V6(v6))]
}
