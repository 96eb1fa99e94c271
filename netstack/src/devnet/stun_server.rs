//! A STUN server on loopback, as strict as a relay's, with faults to be switched on. Called by
//! `devnet`'s operator; its nodes find it in the DERP map.
//!
//! Invariant: it answers only requests that a relay would answer, to where they came from, at most
//! once; answers that wait for their delay are bounded. Dropping it ends it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::{DevNet, DevNetError};
use crate::stun;
use crate::tailcfg::{DerpMap, DerpNode, DerpRegion};

/// Answers that wait; more are dropped, as a network would.
const DELAYED_MAX: usize = 1024;
/// Longer than any request that is answered.
const DATAGRAM_BYTES_MAX: usize = 1500;

/// What is wrong with the server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StunFaults {
    /// Answers nothing.
    pub silent: bool,
    /// Says that it saw this address instead of the true one.
    pub answer_with: Option<SocketAddr>,
    /// Answers this much later.
    pub delay: Duration,
}

/// What the server has done since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StunServerStats {
    /// Requests as relays answer them.
    pub requests: u64,
    /// Other datagrams; nothing answers them.
    pub refused: u64,
    /// Answers sent.
    pub answers: u64,
}

/// A running server.
#[derive(Debug)]
pub struct StunServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Shared {
    faults: Mutex<StunFaults>,
    requests: AtomicU64,
    refused: AtomicU64,
    answers: AtomicU64,
}

impl StunServer {
    /// Starts a server at a loopback address; port 0 for any.
    ///
    /// # Errors
    /// [`DevNetError::NotLoopback`], [`DevNetError::Listen`].
    pub async fn start(bind: SocketAddr) -> Result<Self, DevNetError> {
        if !bind.ip().is_loopback() {
            return Err(DevNetError::NotLoopback { bind });
        }
        let failed = |source| DevNetError::Listen { bind, source };
        let socket = UdpSocket::bind(bind).await.map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        let shared = Arc::new(Shared::default());
        let task = tokio::spawn(serve(socket, Arc::clone(&shared)));
        Ok(Self {
            address,
            shared,
            task,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Replaces the faults; requests that came before keep theirs.
    pub fn set_faults(&self, faults: StunFaults) {
        *self.shared.lock() = faults;
    }

    /// What it has done.
    pub fn stats(&self) -> StunServerStats {
        StunServerStats {
            requests: self.shared.requests.load(Ordering::Relaxed),
            refused: self.shared.refused.load(Ordering::Relaxed),
            answers: self.shared.answers.load(Ordering::Relaxed),
        }
    }

    /// Names this server in a DERP map: at the first node of the region, or as a region of its own,
    /// which relays nothing.
    pub fn enter_in(&self, map: &mut DerpMap, region: u32) {
        let ip = self.address.ip().to_string();
        let known = map.regions.get_or_insert_default();
        let entry = known.entry(region).or_default();
        let entry = entry.get_or_insert_with(|| DerpRegion {
            region_id: region,
            region_code: format!("stun{region}"),
            region_name: format!("STUN {region}"),
            ..DerpRegion::default()
        });
        if entry.nodes.is_empty() {
            entry.nodes.push(DerpNode {
                name: format!("{region}s"),
                region_id: region,
                host_name: ip.clone(),
                stun_only: true,
                ..DerpNode::default()
            });
        }
        if let Some(node) = entry.nodes.first_mut() {
            node.stun_port = self.address.port().into();
            node.stun_test_ip = ip;
        }
    }
}

impl Drop for StunServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl DevNet {
    /// Starts a STUN server beside the control server and names it in the DERP map. The map keeps
    /// the name when the server is dropped: requests to it are then lost, as to a dead relay.
    ///
    /// # Errors
    /// [`DevNetError::Listen`].
    pub async fn start_stun(&self, region: u32) -> Result<StunServer, DevNetError> {
        let server = StunServer::start(SocketAddr::new(self.address.ip(), 0)).await?;
        self.shared
            .change(|tailnet| server.enter_in(&mut tailnet.derp_map, region));
        Ok(server)
    }
}

impl Shared {
    /// Never held over an await.
    fn lock(&self) -> std::sync::MutexGuard<'_, StunFaults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer to a datagram, if it gets one, and how much later.
    fn answer(&self, datagram: &[u8], src: SocketAddr) -> Option<(Vec<u8>, Duration)> {
        let Ok(txid) = stun::parse_request(datagram) else {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        let faults = *self.lock();
        self.requests.fetch_add(1, Ordering::Relaxed);
        let answer = stun::answer(txid, faults.answer_with.unwrap_or(src));
        (!faults.silent).then_some((answer, faults.delay))
    }
}

async fn serve(socket: UdpSocket, shared: Arc<Shared>) {
    let mut buffer = [0; DATAGRAM_BYTES_MAX];
    let mut delayed: BTreeMap<(Instant, u64), (SocketAddr, Vec<u8>)> = BTreeMap::new();
    let mut count = 0;
    loop {
        let due = delayed.first_key_value().map(|((at, _), _)| *at);
        let wait = async {
            match due {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => Some(received),
            () = wait => None,
        };
        let (to, answer) = match received {
            // An error here is an ICMP message about an earlier answer: its receiver is gone.
            Some(Err(_)) => continue,
            Some(Ok((length, src))) => {
                let datagram = buffer.get(..length).unwrap_or_default();
                let Some((answer, delay)) = shared.answer(datagram, src) else {
                    continue;
                };
                if !delay.is_zero() {
                    if delayed.len() < DELAYED_MAX {
                        count += 1;
                        delayed.insert((Instant::now() + delay, count), (src, answer));
                    }
                    continue;
                }
                (src, answer)
            }
            None => match delayed.pop_first() {
                Some((_, due)) => due,
                None => continue,
            },
        };
        if socket.send_to(&answer, to).await.is_ok() {
            shared.answers.fetch_add(1, Ordering::Relaxed);
        }
    }
}
