//! Our own client against the devnet, over loopback TCP.
