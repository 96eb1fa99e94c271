//! A tailnet node in userspace: control client, WireGuard, disco, and TCP, with no TUN device.

pub mod key;
pub mod tailcfg;
pub mod tcpip;
