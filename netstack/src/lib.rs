//! A tailnet node in userspace: control client, WireGuard, disco, and TCP, with no TUN device.
//!
//! ```text
//!            application            streams, whois
//!  io        Tailnet, streams, driver: the only code that touches sockets, clocks and tasks
//!  node      the one state machine, which owns
//!            control · netmap · netcheck · filter · path · relay · wireguard · tcpip
//!  wire      noise · disco · derp · stun · tailcfg · key
//! ```
//!
//! The core is sans-IO: bytes, commands and time go in; datagrams, requests, events and the next
//! deadline come out. It builds without a runtime (`--no-default-features`). It knows nothing of
//! recordings. The feature `devnet` adds a control server for one machine.

pub mod control;
pub mod derp;
#[cfg(feature = "devnet")]
pub mod devnet;
pub mod disco;
pub mod filter;
#[cfg(feature = "io")]
pub mod io;
pub mod key;
pub mod netcheck;
pub mod netmap;
pub mod node;
pub mod noise;
pub mod path;
pub mod relay;
pub mod stun;
pub mod tailcfg;
pub mod tcpip;
pub mod wireguard;
