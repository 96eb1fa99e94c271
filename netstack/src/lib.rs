//! A tailnet node in userspace: control client, WireGuard, disco, and TCP, with no TUN device.

pub mod filter;
pub mod key;
pub mod netmap;
pub mod tailcfg;
