//! The tables of a devnet and what they make of a request. No IO; called by `devnet` and its server.
//!
//! Invariant: a node is identified by the machine key that its Noise session proved, never by what
//! a body says; ids and addresses are never given out twice.

mod map;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::{AuthKeySpec, DevNetError, DevSshRule};
use crate::key::{DiscoPublic, MachinePublic, NodePublic};
use crate::tailcfg::{
    DerpMap, FilterRule, Hostinfo, Login, MapRequest, NetPortRange, NodeId, PortRange,
    RegisterRequest, RegisterResponse, UserId,
};

/// Nodes at one time; everybody's netmap holds all of them, whole, at every change.
const NODES_MAX: usize = 1000;
/// Ids ever given out; keeps the addresses in 100.64.0.0/16, clear of Tailscale's own service
/// addresses (100.100.100.100, 100.115.92.0/23).
const NODE_ID_MAX: NodeId = 60_000;
/// Logins that wait for a person at one time; the oldest is forgotten.
const LOGINS_MAX: usize = 100;
/// Endpoints of one node that are passed on.
const ENDPOINTS_MAX: usize = 64;
/// A MagicDNS label's limit (RFC 1035).
const LABEL_BYTES_MAX: usize = 63;
/// The user that tagged nodes show; their tags are their identity.
const TAGGED_DEVICES: UserId = 1_000_000;
#[derive(Debug)]
pub(super) struct Tailnet {
    domain: String,
    pub(super) derp_map: DerpMap,
    pub(super) filter: Vec<FilterRule>,
    pub(super) ssh_rules: Vec<DevSshRule>,
    users: BTreeMap<UserId, String>,
    auth_keys: BTreeMap<String, AuthKey>,
    logins: Vec<PendingLogin>,
    nodes: BTreeMap<NodeId, DevNode>,
    last_node_id: NodeId,
    last_stream: u64,
}

struct AuthKey {
    spec: AuthKeySpec,
    used: bool,
}

impl std::fmt::Debug for AuthKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AuthKey(..)")
    }
}

struct PendingLogin {
    token: String,
    node_key: NodePublic,
    user: Option<UserId>,
}

impl std::fmt::Debug for PendingLogin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PendingLogin(..)")
    }
}

#[derive(Debug)]
struct DevNode {
    id: NodeId,
    machine: MachinePublic,
    key: NodePublic,
    disco: DiscoPublic,
    name: String,
    user: UserId,
    tags: Vec<String>,
    ephemeral: bool,
    expired: bool,
    hostinfo: Hostinfo,
    endpoints: Vec<SocketAddr>,
    home_derp: u32,
    cap: u32,
    /// The stream that it follows, if any; a newer one ends the older.
    stream: Option<u64>,
}

/// What becomes of a register request.
#[derive(Debug)]
pub(super) enum Registered {
    /// Answer now.
    Answer(Box<RegisterResponse>),
    /// A person has not finished yet: ask again after the next change.
    Wait,
}

/// A map request names a node that does not exist, or is not the sender's.
#[derive(Debug)]
pub(super) struct NodeNotFound;

impl Tailnet {
    pub(super) fn new(domain: String, derp_map: DerpMap) -> Self {
        let everything = NetPortRange {
            ip: "*".to_owned(),
            bits: None,
            ports: PortRange {
                first: 0,
                last: u16::MAX,
            },
        };
        let allow_all = FilterRule {
            src_ips: vec!["*".to_owned()],
            dst_ports: vec![everything],
            ..FilterRule::default()
        };
        Self {
            domain,
            derp_map,
            filter: vec![allow_all],
            ssh_rules: Vec::new(),
            users: [(TAGGED_DEVICES, "tagged-devices".to_owned())].into(),
            auth_keys: BTreeMap::new(),
            logins: Vec::new(),
            nodes: BTreeMap::new(),
            last_node_id: 0,
            last_stream: 0,
        }
    }

    pub(super) fn add_user(&mut self, login: &str) -> UserId {
        if let Some((id, _)) = self.users.iter().find(|(_, found)| *found == login) {
            return *id;
        }
        let people = self.users.range(..TAGGED_DEVICES);
        let id = people.last().map_or(1, |(id, _)| id + 1);
        self.users.insert(id, login.to_owned());
        id
    }

    pub(super) fn add_auth_key(
        &mut self,
        key: String,
        spec: AuthKeySpec,
    ) -> Result<(), DevNetError> {
        let user = spec.user;
        if !self.users.contains_key(&user) {
            return Err(DevNetError::UnknownUser { user });
        }
        if let Some(tag) = spec.tags.iter().find(|tag| !is_tag(tag)) {
            let tag = tag.clone();
            return Err(DevNetError::Tag { tag });
        }
        self.auth_keys.insert(key, AuthKey { spec, used: false });
        Ok(())
    }

    pub(super) fn approve_login(&mut self, token: &str, user: UserId) -> Result<(), DevNetError> {
        if !self.users.contains_key(&user) {
            return Err(DevNetError::UnknownUser { user });
        }
        let mut logins = self.logins.iter_mut();
        let login = logins.find(|login| login.token == token);
        login.ok_or(DevNetError::UnknownLogin)?.user = Some(user);
        Ok(())
    }

    pub(super) fn remove_node(&mut self, node: NodeId) -> Result<(), DevNetError> {
        let removed = self.nodes.remove(&node);
        removed.map(drop).ok_or(DevNetError::UnknownNode { node })
    }

    pub(super) fn expire_node(&mut self, node: NodeId) -> Result<(), DevNetError> {
        let found = self.nodes.get_mut(&node);
        found.ok_or(DevNetError::UnknownNode { node })?.expired = true;
        Ok(())
    }

    /// `token` names the login page, should one be needed; `url` is where such pages are.
    pub(super) fn register(
        &mut self,
        machine: MachinePublic,
        request: RegisterRequest,
        token: String,
        url: &str,
    ) -> Registered {
        let refused = |error: &str| {
            answer(RegisterResponse {
                error: error.to_owned(),
                ..RegisterResponse::default()
            })
        };
        if request.node_key.is_zero() {
            return refused("the node key is zero");
        }
        let mut nodes = self.nodes.values();
        if nodes.any(|node| node.key == request.node_key && node.machine != machine) {
            return refused("node exists with a different machine key");
        }
        let known = self.nodes.values().find(|node| node.machine == machine);
        let known = known.map(|node| (node.id, node.key == request.node_key, node.expired));
        if request.expiry.as_deref().is_some_and(is_past) {
            return self.log_out(known.filter(|(_, same_key, _)| *same_key));
        }
        if let Some((id, same_key, expired)) = known {
            if same_key && expired {
                return answer(RegisterResponse {
                    node_key_expired: true,
                    ..RegisterResponse::default()
                });
            }
            if !expired {
                // The machine key has been proven, so another node key of it is a rotation.
                return self.accept(id, &request);
            }
        }
        let spec = match &request.auth {
            Some(auth) if !auth.auth_key.is_empty() => match self.auth_keys.get_mut(&auth.auth_key)
            {
                None => return refused("invalid auth key"),
                Some(key) if key.used && !key.spec.reusable => {
                    return refused("auth key already used");
                }
                Some(key) => {
                    key.used = true;
                    key.spec.clone()
                }
            },
            _ => match self.login(&request, token, url) {
                Ok(user) => AuthKeySpec {
                    user,
                    tags: Vec::new(),
                    reusable: false,
                    ephemeral: request.ephemeral,
                },
                Err(pending) => return pending,
            },
        };
        let id = match known {
            Some((id, _, _)) => id,
            None => match self.create(machine, &request) {
                Some(id) => id,
                None => return refused("this devnet is full"),
            },
        };
        if let Some(node) = self.nodes.get_mut(&id) {
            node.user = if spec.tags.is_empty() {
                spec.user
            } else {
                TAGGED_DEVICES
            };
            node.tags = spec.tags;
            node.ephemeral = spec.ephemeral;
            node.expired = false;
        }
        self.accept(id, &request)
    }

    /// The user who has approved the login that `request` follows, or what to answer until then.
    fn login(
        &mut self,
        request: &RegisterRequest,
        token: String,
        url: &str,
    ) -> Result<UserId, Registered> {
        let followed = request.followup.rsplit('/').next().unwrap_or_default();
        let found = self
            .logins
            .iter()
            .position(|login| login.token == followed && login.node_key == request.node_key);
        if let Some(found) = found {
            let user = self.logins.get(found).and_then(|login| login.user);
            let user = user.ok_or(Registered::Wait)?;
            self.logins.remove(found);
            return Ok(user);
        }
        if self.logins.len() >= LOGINS_MAX {
            self.logins.remove(0);
        }
        let auth_url = format!("{url}/login/{token}");
        self.logins.push(PendingLogin {
            token,
            node_key: request.node_key,
            user: None,
        });
        Err(answer(RegisterResponse {
            auth_url,
            ..RegisterResponse::default()
        }))
    }

    fn log_out(&mut self, node: Option<(NodeId, bool, bool)>) -> Registered {
        if let Some((id, _, _)) = node {
            if self.nodes.get(&id).is_some_and(|node| node.ephemeral) {
                self.nodes.remove(&id);
            } else if let Some(node) = self.nodes.get_mut(&id) {
                node.expired = true;
                node.stream = None;
            }
        }
        answer(RegisterResponse::default())
    }

    fn create(&mut self, machine: MachinePublic, request: &RegisterRequest) -> Option<NodeId> {
        if self.nodes.len() >= NODES_MAX || self.last_node_id >= NODE_ID_MAX {
            return None;
        }
        self.last_node_id += 1;
        let id = self.last_node_id;
        let hostinfo = request.hostinfo.clone().unwrap_or_default();
        let node = DevNode {
            id,
            machine,
            key: request.node_key,
            disco: DiscoPublic::default(),
            name: self.free_name(&hostinfo.hostname),
            user: 0,
            tags: Vec::new(),
            ephemeral: false,
            expired: false,
            hostinfo,
            endpoints: Vec::new(),
            home_derp: 0,
            cap: u32::from(request.version),
            stream: None,
        };
        self.nodes.insert(id, node);
        Some(id)
    }

    fn accept(&mut self, id: NodeId, request: &RegisterRequest) -> Registered {
        let mut response = RegisterResponse {
            machine_authorized: true,
            ..RegisterResponse::default()
        };
        if let Some(node) = self.nodes.get_mut(&id) {
            node.key = request.node_key;
            node.cap = u32::from(request.version);
            let login_name = self.users.get(&node.user).cloned().unwrap_or_default();
            response.user = Login {
                id: node.user,
                display_name: login_name.clone(),
                ..Login::default()
            };
            response.login = Login {
                id: node.user,
                provider: "dev".to_owned(),
                display_name: login_name.clone(),
                login_name,
            };
        }
        answer(response)
    }

    /// The node that `machine` may speak for with `key`.
    pub(super) fn find(
        &self,
        machine: MachinePublic,
        key: NodePublic,
    ) -> Result<NodeId, NodeNotFound> {
        let mut nodes = self.nodes.values();
        let found = nodes.find(|node| node.key == key && node.machine == machine);
        found.map(|node| node.id).ok_or(NodeNotFound)
    }

    /// A lite update: what the node says of itself. Returns whether anything changed.
    pub(super) fn update(&mut self, id: NodeId, request: MapRequest) -> bool {
        let Some(node) = self.nodes.get_mut(&id) else {
            return false;
        };
        let mut endpoints = request.endpoints;
        endpoints.truncate(ENDPOINTS_MAX);
        let mut changed = std::mem::replace(&mut node.endpoints, endpoints) != node.endpoints;
        changed |= std::mem::replace(&mut node.disco, request.disco_key) != node.disco;
        node.cap = u32::from(request.version);
        if let Some(mut hostinfo) = request.hostinfo {
            if let Some(net_info) = &hostinfo.net_info
                && net_info.preferred_derp != 0
            {
                changed |= node.home_derp != net_info.preferred_derp;
                node.home_derp = net_info.preferred_derp;
            }
            if hostinfo.net_info.is_none() {
                hostinfo.net_info = node.hostinfo.net_info.take();
            }
            changed |= hostinfo != node.hostinfo;
            node.hostinfo = hostinfo;
        }
        changed
    }

    /// Begins a stream and returns its number; an earlier one of the node ends.
    pub(super) fn begin_stream(&mut self, id: NodeId) -> u64 {
        self.last_stream += 1;
        if let Some(node) = self.nodes.get_mut(&id) {
            node.stream = Some(self.last_stream);
        }
        self.last_stream
    }

    pub(super) fn has_stream(&self, id: NodeId, stream: u64) -> bool {
        self.nodes
            .get(&id)
            .is_some_and(|node| node.stream == Some(stream))
    }

    pub(super) fn end_stream(&mut self, id: NodeId, stream: u64) {
        if let Some(node) = self.nodes.get_mut(&id)
            && node.stream == Some(stream)
        {
            node.stream = None;
        }
    }

    /// A label made of `wanted` that no other node has.
    fn free_name(&self, wanted: &str) -> String {
        let label = label(wanted);
        let taken = |name: &str| self.nodes.values().any(|node| node.name == name);
        let numbered = (1..=NODES_MAX).map(|number| format!("{label}-{number}"));
        std::iter::once(label.clone())
            .chain(numbered)
            .find(|name| !taken(name))
            .unwrap_or(label)
    }
}

fn answer(response: RegisterResponse) -> Registered {
    Registered::Answer(Box::new(response))
}

/// A host name as a DNS label.
fn label(wanted: &str) -> String {
    let first = wanted.split('.').next().unwrap_or_default();
    let plain = |c: char| match c.to_ascii_lowercase() {
        c if c.is_ascii_alphanumeric() => c,
        _ => '-',
    };
    // Room is left for a number behind it.
    let text: String = first.chars().map(plain).take(LABEL_BYTES_MAX - 5).collect();
    match text.trim_matches('-') {
        "" => "node".to_owned(),
        text => text.to_owned(),
    }
}

fn is_tag(tag: &str) -> bool {
    tag.strip_prefix("tag:").is_some_and(|name| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-';
        name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.chars().all(allowed)
    })
}

/// Clients log out with a time in 1970; Go's zero time, of the year 1, means none.
fn is_past(expiry: &str) -> bool {
    expiry.starts_with("19")
}
