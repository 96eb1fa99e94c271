//! Counters of the TCP room. Plain data.
//!
//! Invariant: counters only grow; the last three fields are of the moment. Filled by [`super::TcpIp`], read by `node`, the shell and tests.

/// What happened so far, and what there is now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TcpStats {
    /// Packets handed in.
    pub packets_in: u64,
    /// Packets that are no valid IP or TCP packet.
    pub malformed: u64,
    /// Fragments, which are not put together.
    pub fragments: u64,
    /// Packets to an address that is not ours, or from one that is.
    pub misdirected: u64,
    /// Connection stacks run by polls, and how many of those runs a deadline caused.
    pub stack_polls: u64,
    /// Runs caused by a deadline.
    pub timer_polls: u64,
    /// Packets that no connection claimed.
    pub unclaimed: u64,
    /// SYNs dropped because a backlog, a limit or the memory budget was reached.
    pub syn_dropped: u64,
    /// Of these, SYNs of a peer that had as many connections as one peer may have.
    pub syn_dropped_per_peer: u64,
    /// SYNs to ports on which nobody listens.
    pub refused: u64,
    /// Resets, echo replies and the like that were not sent because there had been too many in that second.
    pub stray_answers_withheld: u64,
    /// Handshakes of peers that did not finish.
    pub half_open_reaped: u64,
    /// Connections whose slot was freed.
    pub reaped: u64,
    /// Answers dropped because too many waited for one poll.
    pub answers_dropped: u64,
    /// Exchanges of a connection's rings for larger ones.
    pub rings_grown: u64,
    /// Exchanges for smaller ones.
    pub rings_shrunk: u64,
    /// Exchanges that were tried in vain; more than a few mean that smoltcp has changed under `tcpip/rebuild.rs`.
    pub fits_failed: u64,
    /// Connections now, those that nobody holds any more included.
    pub connections: usize,
    /// Handshakes of peers under way.
    pub half_open: usize,
    /// Buffer memory handed out, in bytes.
    pub buffer_bytes: usize,
}
