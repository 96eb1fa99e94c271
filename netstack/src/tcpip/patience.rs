//! How long a connection waits for what, on smoltcp's clock: [`TcpConfig`] read once.
//!
//! Invariant: nothing here changes after [`super::TcpIp::new`]. Called by [`super::connection`].

use smoltcp::time::Duration;

use super::TcpConfig;

/// The waits of [`TcpConfig`] on smoltcp's clock.
#[derive(Clone, Debug)]
pub(super) struct Patience {
    pub(super) half_open: Duration,
    pub(super) connect: Duration,
    pub(super) linger: Duration,
    pub(super) keep_alive_idle: Option<Duration>,
    pub(super) keep_alive_interval: Duration,
    pub(super) dead: Option<Duration>,
    pub(super) unacknowledged: Duration,
    pub(super) closing: Duration,
}

impl Patience {
    pub(super) fn new(config: &TcpConfig) -> Self {
        let interval = Duration::from(config.keep_alive_interval);
        let keep_alive_idle = config.keep_alive_idle.map(Duration::from);
        Self {
            half_open: config.half_open_timeout.into(),
            connect: config.connect_timeout.into(),
            linger: config.linger_max.into(),
            keep_alive_idle,
            keep_alive_interval: interval,
            dead: keep_alive_idle.map(|idle| idle + interval * config.keep_alive_probes.max(1)),
            unacknowledged: config.unacknowledged_timeout.into(),
            closing: config.closing_timeout.into(),
        }
    }
}
