//! A tailnet node in userspace: control client, WireGuard, disco, and TCP, with no TUN device.

pub mod control;
#[cfg(feature = "devnet")]
pub mod devnet;
#[cfg(feature = "io")]
pub mod io;
pub mod key;
pub mod noise;
pub mod tailcfg;
