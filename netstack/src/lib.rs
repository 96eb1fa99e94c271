//! A tailnet node in userspace: control client, WireGuard, disco, and TCP, with no TUN device.

pub mod disco;
pub mod key;
pub mod path;
pub mod tailcfg;
pub mod wireguard;
