//! The limits and timeouts of the TCP room, complete and plain: every table and every wait in it is bounded by a field here.
//!
//! Made by whoever joins a tailnet and read by [`super::TcpIp`] alone; nothing here changes after [`super::TcpIp::new`].

use std::time::Duration;

/// What [`super::TcpIp`] may hold and how long it waits.
#[derive(Clone, Debug)]
pub struct TcpConfig {
    /// Memory for the buffers of all connections together, in bytes.
    pub buffer_budget_bytes: usize,
    /// Connections in all, those that are half open, closed but still held, or closing in the background included.
    pub connections_max: usize,
    /// Connections with one remote address.
    pub connections_per_peer_max: usize,
    /// Connections in all whose handshake a peer began and did not finish.
    pub half_open_max: usize,
    /// The same for one remote address; nor has one more of a listener's backlog than it leaves free, so never more than half.
    pub half_open_per_peer_max: usize,
    /// How long a peer may take to finish a handshake that it began.
    pub half_open_timeout: Duration,
    /// How long a dialled peer may take to answer.
    pub connect_timeout: Duration,
    /// Resets, echo replies and other answers to packets of no connection, in any second and to all peers together.
    pub stray_answers_per_second_max: u32,
    /// Largest receive buffer of a connection, in bytes: what bulk gets while memory is plenty. It bounds the window that we announce. An idle
    /// connection has 16 KiB.
    pub receive_buffer_bytes: usize,
    /// Largest send buffer of a connection, in bytes. An idle connection has 4 KiB.
    pub send_buffer_bytes: usize,
    /// Silence after which a peer is asked whether it still lives (RFC 9293 §3.8.4), `None` for never.
    pub keep_alive_idle: Option<Duration>,
    /// Time between two such questions while none is answered.
    pub keep_alive_interval: Duration,
    /// Unanswered questions after which the connection is given up.
    pub keep_alive_probes: u32,
    /// Silence after which a connection with unacknowledged bytes, or an unacknowledged FIN, is given up (the user timeout of RFC 9293 §3.8.3).
    pub unacknowledged_timeout: Duration,
    /// Silence after which a connection that nobody holds any more is given up.
    pub closing_timeout: Duration,
    /// Longest life of a connection that nobody holds any more, however talkative its peer is.
    pub linger_max: Duration,
}

impl Default for TcpConfig {
    /// Room for some ten thousand sessions, and patience for sessions that idle for days.
    fn default() -> Self {
        Self {
            buffer_budget_bytes: 1 << 30,
            connections_max: 16_384,
            connections_per_peer_max: 8_192,
            half_open_max: 1_024,
            half_open_per_peer_max: 256,
            half_open_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(30),
            stray_answers_per_second_max: 1_000,
            receive_buffer_bytes: 256 << 10,
            send_buffer_bytes: 64 << 10,
            // Linux' defaults for the three, which peers and middle boxes are used to.
            keep_alive_idle: Some(Duration::from_secs(2 * 60 * 60)),
            keep_alive_interval: Duration::from_secs(75),
            keep_alive_probes: 9,
            // Where Linux' default of 15 retransmissions gives up.
            unacknowledged_timeout: Duration::from_secs(15 * 60),
            closing_timeout: Duration::from_secs(60),
            linger_max: Duration::from_secs(5 * 60),
        }
    }
}
