//! A tailnet node in userspace: control client, WireGuard, disco, and TCP, with no TUN device.

pub mod control;
pub mod key;
pub mod noise;
pub mod tailcfg;
