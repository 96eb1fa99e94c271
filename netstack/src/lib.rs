//! A tailnet node in userspace: control client, WireGuard, disco, and TCP, with no TUN device.

pub mod control;
#[cfg(feature = "devnet")]
pub mod devnet;
pub mod disco;
pub mod filter;
#[cfg(feature = "io")]
pub mod io;
pub mod key;
pub mod netmap;
pub mod noise;
pub mod path;
pub mod tailcfg;
pub mod tcpip;
pub mod wireguard;
