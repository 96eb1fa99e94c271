//! One connection to a relay, from the first byte behind TLS to its end: bytes in, frames and events out.
//!
//! Invariant: it counts as up only after the relay's box opened, so that a relay which turns us away never
//! looks like one that serves us; every queue is bounded, every wait has a limit, and after an error nothing
//! more goes out. It reads no clock and draws from the seed that it is given. Called by the shell that dials
//! relays, which writes what [`DerpClient::poll_transmit`] yields and wakes it at
//! [`DerpClient::poll_timeout`].
//!
//! ```text
//! c: GET /derp, Upgrade: DERP     s: 101, ServerKey
//! c: ClientInfo, NotePreferred    s: ServerInfo            -> Up; packets go out from ClientInfo on
//! ```
//!
//! Source: tailscale.com `derp/derp_client.go`, `derp/derphttp/derphttp_client.go`.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};

use super::{
    ClientInfo, Decoder, Frame, HEADER_BYTES, KEY_BYTES, PACKET_BYTES_MAX, PeerGoneReason,
    ServerInfo,
};
use crate::key::{NodePrivate, NodePublic};

mod error;
mod outgoing;
#[cfg(test)]
mod tests;
mod upgrade;

pub use self::error::DerpClientError;
use self::outgoing::{Bucket, Outgoing};
use self::upgrade::{Answer, Step, printable};

/// From the first byte to [`DerpEvent::Up`]; the relay's own limit.
pub const HANDSHAKE_DURATION_MAX: Duration = Duration::from_secs(10);
/// Without a frame for this long the relay is dead; it speaks every 60 to 65 s.
pub const SILENCE_DURATION_MAX: Duration = Duration::from_secs(120);
/// How long a relay may take to answer our ping.
pub const PING_DURATION_MAX: Duration = Duration::from_secs(3);
/// Packets that wait to be written; then the oldest is dropped.
pub const PACKETS_MAX: usize = 32;
/// The largest head of an HTTP answer.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// How much of a refusal's body, or of a relay's complaint, is shown.
pub const BODY_BYTES_MAX: usize = 1024;
/// Events that wait to be taken: more than the smallest WireGuard messages that one read of 64 KiB holds.
const EVENTS_MAX: usize = 1024;

/// What one connection needs to know.
#[derive(Clone)]
pub struct DerpClientConfig {
    /// Who we are.
    pub node: NodePrivate,
    /// The relay's `HostName` in the DERP map.
    pub host: String,
    /// The name of the region's first node, if this is another one.
    pub ideal_node: Option<String>,
    /// Whether the relay's region is our home.
    pub home: bool,
    /// 32 bytes that nobody can guess, for nonces and pings.
    pub seed: [u8; 32],
}

impl fmt::Debug for DerpClientConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DerpClientConfig")
            .field("node", &self.node.public())
            .field("host", &self.host)
            .field("ideal_node", &self.ideal_node)
            .field("home", &self.home)
            .finish_non_exhaustive()
    }
}

/// What happened on the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DerpEvent {
    /// The relay proved its key and serves us. Once per connection.
    Up {
        /// The relay's key.
        relay: NodePublic,
        /// What it says of itself.
        info: ServerInfo,
    },
    /// A packet arrived: disco or WireGuard.
    Packet {
        /// Who sent it.
        from: NodePublic,
        /// At most [`PACKET_BYTES_MAX`] bytes, in the buffer in which they arrived.
        packet: Bytes,
    },
    /// A peer cannot be reached through this relay: forget the route, not the peer.
    PeerGone {
        /// The peer.
        peer: NodePublic,
        /// Why.
        reason: PeerGoneReason,
    },
    /// The relay says what is wrong with the connection; `None`: nothing any more.
    Health {
        /// Escaped, at most [`BODY_BYTES_MAX`] bytes of it.
        problem: Option<String>,
    },
    /// The relay goes away.
    Restarting {
        /// When to connect again.
        reconnect_in: Duration,
        /// How long to keep trying from then on.
        try_for: Duration,
    },
    /// Our ping was answered.
    Alive {
        /// From the question to the answer.
        round_trip: Duration,
    },
}

/// What was counted on one connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DerpClientStats {
    /// Packets handed to the writer.
    pub packets_sent: u64,
    /// Packets received, dropped ones included.
    pub packets_received: u64,
    /// Packets that a newer one pushed out of the queue.
    pub dropped_queue_full: u64,
    /// Packets beyond the rate that the relay allows.
    pub dropped_rate: u64,
    /// Packets longer than a relay takes.
    pub dropped_too_long: u64,
    /// Events that nobody took in time, or that came before [`DerpEvent::Up`].
    pub dropped_events: u64,
    /// Answers to pings of a relay that does not read them.
    pub dropped_pongs: u64,
    /// Frames of kinds that we do not know.
    pub skipped_frames: u64,
}

/// How far the connection is.
#[derive(Debug)]
enum State {
    /// Waits for 101.
    Upgrade(Answer),
    /// Waits for ServerKey.
    Key,
    /// ClientInfo is out; waits for ServerInfo.
    Info { relay: NodePublic },
    /// Serves us.
    Up { relay: NodePublic },
    /// Over.
    Ended(DerpClientError),
}

/// A ping that is not answered yet.
#[derive(Debug)]
struct Ping {
    data: [u8; 8],
    sent_at: Instant,
}

/// One connection to a relay.
pub struct DerpClient {
    node: NodePrivate,
    home: bool,
    rng: ChaCha20Rng,
    state: State,
    decoder: Decoder,
    outgoing: Outgoing,
    bucket: Option<Bucket>,
    events: VecDeque<DerpEvent>,
    ping: Option<Ping>,
    began_at: Instant,
    last_frame_at: Instant,
    stats: DerpClientStats,
}

impl fmt::Debug for DerpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DerpClient")
            .field("node", &self.node.public())
            .field("home", &self.home)
            .field("state", &self.state)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl DerpClient {
    /// Begins with the request for the upgrade.
    ///
    /// # Errors
    /// [`DerpClientError::Host`].
    pub fn new(now: Instant, config: DerpClientConfig) -> Result<Self, DerpClientError> {
        let mut outgoing = Outgoing::default();
        outgoing.owe(upgrade::request(
            &config.host,
            config.ideal_node.as_deref(),
        )?);
        Ok(Self {
            node: config.node,
            home: config.home,
            rng: ChaCha20Rng::from_seed(config.seed),
            state: State::Upgrade(Answer::new()),
            decoder: Decoder::new(),
            outgoing,
            bucket: None,
            events: VecDeque::new(),
            ping: None,
            began_at: now,
            last_frame_at: now,
            stats: DerpClientStats::default(),
        })
    }

    /// Takes bytes of the relay. Take the events before the next ones.
    ///
    /// # Errors
    /// Why the connection is over; close it. The same again at every later call.
    pub fn handle_bytes(&mut self, now: Instant, bytes: &[u8]) -> Result<(), DerpClientError> {
        let read = self.read(now, bytes);
        self.ended_by(read)
    }

    /// The stream has ended, or broke.
    pub fn handle_end(&mut self) -> DerpClientError {
        let error = match &self.state {
            State::Upgrade(answer) => answer.refused().unwrap_or(DerpClientError::TurnedAway {
                missing: "answer the upgrade",
            }),
            State::Key => DerpClientError::TurnedAway {
                missing: "tell its key",
            },
            State::Info { .. } => DerpClientError::TurnedAway {
                missing: "tell of itself",
            },
            State::Up { .. } => DerpClientError::Closed,
            State::Ended(error) => error.clone(),
        };
        self.end(error.clone());
        error
    }

    /// When [`Self::handle_timeout`] is due; `None` once it is over.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let life = match &self.state {
            State::Upgrade(_) | State::Key | State::Info { .. } => {
                self.began_at + HANDSHAKE_DURATION_MAX
            }
            State::Up { .. } => self.last_frame_at + SILENCE_DURATION_MAX,
            State::Ended(_) => return None,
        };
        let pong = self
            .ping
            .as_ref()
            .map(|ping| ping.sent_at + PING_DURATION_MAX);
        Some(pong.map_or(life, |pong| pong.min(life)))
    }

    /// Time has passed.
    ///
    /// # Errors
    /// As [`Self::handle_bytes`].
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), DerpClientError> {
        let overdue = |since: Instant, limit| now.saturating_duration_since(since) >= limit;
        let slow = |missing| DerpClientError::Slow { missing };
        let late = overdue(self.began_at, HANDSHAKE_DURATION_MAX);
        let outcome = match &self.state {
            State::Upgrade(answer) if late => {
                Err(answer.refused().unwrap_or(slow("answer the upgrade")))
            }
            State::Key if late => Err(slow("tell its key")),
            State::Info { .. } if late => Err(slow("tell of itself")),
            State::Up { .. } if overdue(self.last_frame_at, SILENCE_DURATION_MAX) => {
                Err(DerpClientError::Silent)
            }
            State::Ended(error) => return Err(error.clone()),
            State::Upgrade(_) | State::Key | State::Info { .. } | State::Up { .. } => {
                match &self.ping {
                    Some(ping) if overdue(ping.sent_at, PING_DURATION_MAX) => {
                        Err(DerpClientError::NoPong)
                    }
                    Some(_) | None => Ok(()),
                }
            }
        };
        self.ended_by(outcome)
    }

    /// The next bytes to write, whole frames.
    pub fn poll_transmit(&mut self) -> Option<Bytes> {
        let open = match &self.state {
            State::Info { .. } | State::Up { .. } => true,
            State::Upgrade(_) | State::Key => false,
            State::Ended(_) => return None,
        };
        self.outgoing.pop(open)
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<DerpEvent> {
        self.events.pop_front()
    }

    /// Queues a packet for `to`; it may be lost, as on any network.
    pub fn send_packet(&mut self, now: Instant, to: NodePublic, packet: Bytes) {
        if matches!(self.state, State::Ended(_)) {
            return;
        }
        if packet.len() > PACKET_BYTES_MAX {
            self.stats.dropped_too_long += 1;
            return;
        }
        let frame_bytes = HEADER_BYTES + KEY_BYTES + packet.len();
        if let Some(bucket) = &mut self.bucket
            && !bucket.take(now, frame_bytes)
        {
            self.stats.dropped_rate += 1;
            return;
        }
        // The length was checked just now, so it encodes.
        if let Ok(frame) = (Frame::SendPacket { to, packet }).encode() {
            self.outgoing.push_packet(frame);
        }
    }

    /// Tells the relay whether its region is our home.
    pub fn set_home(&mut self, home: bool) {
        let told = matches!(self.state, State::Info { .. } | State::Up { .. });
        if told && self.home != home {
            self.owe(&Frame::NotePreferred { home });
        }
        self.home = home;
    }

    /// Asks whether the relay is still there: after a change of network, or when a write does not end.
    /// It is answered by [`DerpEvent::Alive`], or the connection ends. Does nothing before it is up, which
    /// has a limit of its own, and while a ping is under way: a relay answers one at a time.
    pub fn check_alive(&mut self, now: Instant) {
        if !self.is_up() || self.ping.is_some() {
            return;
        }
        let mut data = [0; 8];
        self.rng.fill_bytes(&mut data);
        self.owe(&Frame::Ping(data));
        self.ping = Some(Ping { data, sent_at: now });
    }

    /// Whether the relay serves us.
    pub fn is_up(&self) -> bool {
        matches!(self.state, State::Up { .. })
    }

    /// What was counted so far.
    pub fn stats(&self) -> DerpClientStats {
        DerpClientStats {
            packets_sent: self.outgoing.sent_packets,
            dropped_queue_full: self.outgoing.dropped_packets,
            dropped_pongs: self.outgoing.dropped_pongs,
            skipped_frames: self.decoder.skipped_frames(),
            ..self.stats
        }
    }

    fn read(&mut self, now: Instant, bytes: &[u8]) -> Result<(), DerpClientError> {
        match &mut self.state {
            State::Ended(error) => return Err(error.clone()),
            State::Upgrade(answer) => match answer.push(bytes)? {
                Step::More => return Ok(()),
                Step::Switched(rest) => {
                    self.state = State::Key;
                    self.decoder.push(rest);
                }
            },
            State::Key | State::Info { .. } | State::Up { .. } => self.decoder.push(bytes),
        }
        let skipped = self.decoder.skipped_frames();
        while let Some(frame) = self.decoder.next_frame()? {
            self.last_frame_at = now;
            self.handle_frame(now, frame)?;
        }
        if self.decoder.skipped_frames() != skipped {
            self.last_frame_at = now;
        }
        Ok(())
    }

    fn handle_frame(&mut self, now: Instant, frame: Frame) -> Result<(), DerpClientError> {
        let relay = match (&self.state, &frame) {
            (State::Key, Frame::ServerKey { key }) => {
                self.introduce(*key);
                return Ok(());
            }
            (State::Info { relay } | State::Up { relay }, _) => *relay,
            (State::Key | State::Upgrade(_), _) => {
                return Err(DerpClientError::Order { kind: frame.kind() });
            }
            (State::Ended(error), _) => return Err(error.clone()),
        };
        match frame {
            Frame::ServerInfo { sealed } => {
                let info = ServerInfo::open(&sealed, &self.node, &relay)?;
                self.bucket = Bucket::new(now, &info);
                if !self.is_up() {
                    self.state = State::Up { relay };
                    self.tell(DerpEvent::Up { relay, info });
                }
            }
            Frame::RecvPacket { from, packet } => {
                self.stats.packets_received += 1;
                self.tell(DerpEvent::Packet { from, packet });
            }
            Frame::PeerGone { peer, reason } => self.tell(DerpEvent::PeerGone { peer, reason }),
            Frame::Ping(data) => self.owe(&Frame::Pong(data)),
            Frame::Pong(data) => {
                if let Some(ping) = self.ping.take_if(|ping| ping.data == data) {
                    let round_trip = now.saturating_duration_since(ping.sent_at);
                    self.tell(DerpEvent::Alive { round_trip });
                }
            }
            Frame::Health { text } => {
                let problem = (!text.is_empty()).then(|| printable(&text));
                self.tell(DerpEvent::Health { problem });
            }
            Frame::Restarting {
                reconnect_in,
                try_for,
            } => self.tell(DerpEvent::Restarting {
                reconnect_in,
                try_for,
            }),
            // A relay that begins without an answer to the upgrade repeats its key; the rest is for relays.
            Frame::ServerKey { .. }
            | Frame::KeepAlive
            | Frame::ClientInfo { .. }
            | Frame::SendPacket { .. }
            | Frame::NotePreferred { .. }
            | Frame::PeerPresent { .. }
            | Frame::ForwardPacket { .. }
            | Frame::WatchConns
            | Frame::ClosePeer { .. } => {}
        }
        Ok(())
    }

    /// Answers the relay's key with who we are. The preference behind it makes this connection the one that
    /// gets our packets, should the relay still know an older one.
    fn introduce(&mut self, relay: NodePublic) {
        let mut nonce = [0; 24];
        self.rng.fill_bytes(&mut nonce);
        let info = ClientInfo::ours().seal(nonce, &self.node, &relay);
        self.owe(&info);
        self.owe(&Frame::NotePreferred { home: self.home });
        self.state = State::Info { relay };
    }

    /// Queues a frame of fixed, small size, which always encodes.
    fn owe(&mut self, frame: &Frame) {
        if let Ok(frame) = frame.encode() {
            self.outgoing.owe(frame);
        }
    }

    /// Before it is up nothing is told, so that a relay cannot fill the queue in front of that news; stock
    /// relays tell of themselves before they relay.
    fn tell(&mut self, event: DerpEvent) {
        if self.is_up() && self.events.len() < EVENTS_MAX {
            self.events.push_back(event);
        } else {
            self.stats.dropped_events += 1;
        }
    }

    fn ended_by(&mut self, outcome: Result<(), DerpClientError>) -> Result<(), DerpClientError> {
        if let Err(error) = &outcome {
            self.end(error.clone());
        }
        outcome
    }

    fn end(&mut self, error: DerpClientError) {
        self.state = State::Ended(error);
        self.outgoing.clear();
        self.ping = None;
    }
}
