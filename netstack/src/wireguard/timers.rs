//! WireGuard's timers: ticks for tunnels with state, handshakes begun and tried again.
//!
//! Invariant: a tunnel without state costs no tick; a handshake that has expired is told once, and
//! what waited for it is dropped and counted. Called by `wireguard`, and by `node` when a tick is due.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use boringtun::noise::TunnResult;
use boringtun::noise::errors::WireGuardError;

use super::wire::INITIATION_BYTES;
use super::{SCRATCH_BYTES_MIN, Tunnels};
use crate::key::NodePublic;

/// How often boringtun's timers must run: its idea of the time advances only then.
pub(super) const TICK: Duration = Duration::from_millis(250);

/// WireGuard's `Rekey-Timeout`: a handshake without answer is tried again after this.
pub(super) const REKEY_TIMEOUT: Duration = Duration::from_secs(5);

impl Tunnels {
    /// When [`Tunnels::handle_timeout`] is next due; `None` while no tunnel has state.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.tick_at
    }

    /// Runs the timers of all tunnels with state; `out` gets what is to be sent to whom:
    /// retried handshakes, rekeys, keepalives.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut dyn FnMut(&NodePublic, &[u8])) {
        if self.tick_at.is_none_or(|at| now < at) {
            return;
        }
        let mut active = std::mem::take(&mut self.active);
        active.retain(|slot| self.tick(now, *slot, out));
        self.tick_at = (!active.is_empty()).then(|| now + TICK);
        self.active = active;
    }

    /// Whether the tunnel still has state.
    fn tick(&mut self, now: Instant, slot: u32, out: &mut dyn FnMut(&NodePublic, &[u8])) -> bool {
        let Some(tunnel) = self.slots.get_mut(&slot) else {
            return false;
        };
        let mut dst = [0; SCRATCH_BYTES_MIN];
        match tunnel.tunn.update_timers(&mut dst) {
            TunnResult::WriteToNetwork(datagram) => {
                if datagram.len() == INITIATION_BYTES {
                    tunnel.attempt_at = now;
                }
                out(&tunnel.peer, datagram);
            }
            TunnResult::Err(WireGuardError::ConnectionExpired) => {
                // boringtun would say so at every tick; the next packet or initiation wakes it.
                tunnel.active = false;
                tunnel.session = false;
                self.stats.expired_waiting += u64::try_from(tunnel.waiting.len()).unwrap_or(0);
                tunnel.waiting = VecDeque::new();
                if !tunnel.authenticated {
                    self.remove(slot);
                }
                return false;
            }
            TunnResult::Err(_) => self.stats.refused += 1,
            TunnResult::Done
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => {}
        }
        tunnel.session = tunnel.tunn.time_since_last_handshake().is_some();
        // A handshake that crossed the peer's own is not retried by boringtun: it counts as
        // answered, though what confirms it may have been lost.
        if !tunnel.session && !tunnel.waiting.is_empty() && now >= tunnel.attempt_at + REKEY_TIMEOUT
        {
            tunnel.attempt_at = now;
            if let TunnResult::WriteToNetwork(datagram) =
                tunnel.tunn.format_handshake_initiation(&mut dst, false)
            {
                out(&tunnel.peer, datagram);
            }
        }
        true
    }

    pub(super) fn start_handshake(
        &mut self,
        now: Instant,
        slot: u32,
        force: bool,
        dst: &mut [u8],
    ) -> Option<usize> {
        self.activate(now, slot);
        let tunnel = self.slots.get_mut(&slot)?;
        match tunnel.tunn.format_handshake_initiation(dst, force) {
            TunnResult::WriteToNetwork(datagram) => {
                tunnel.attempt_at = now;
                Some(datagram.len())
            }
            TunnResult::Done
            | TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => None,
        }
    }

    /// Lets the tunnel's timers run. boringtun dates a handshake by its last tick: one that slept
    /// must be told the time first, or the session would be born expired.
    pub(super) fn activate(&mut self, now: Instant, slot: u32) {
        let Some(tunnel) = self.slots.get_mut(&slot) else {
            return;
        };
        if tunnel.active {
            return;
        }
        // It sleeps only once expired, and then this sets its clock and gives nothing to send.
        tunnel.tunn.update_timers(&mut [0; SCRATCH_BYTES_MIN]);
        tunnel.active = true;
        self.active.push(slot);
        self.tick_at.get_or_insert(now + TICK);
    }
}
