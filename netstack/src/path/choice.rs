//! Which of two proven addresses is the better one.
//!
//! Invariant: a matter of the two addresses and their latencies alone. Called by `path/peer.rs`.
//!
//! Source: tailscale.com `wgengine/magicsock/endpoint.go`, `betterAddr`.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Whether `a` is to replace `b` as the best address, given the latency of each.
///
/// Points: the faster one gets the percentage by which it is faster; then 50 for loopback, else
/// 30 for link-local, else 20 for private addresses; then 10 for IPv6. A lead of one point over
/// none is not worth a change.
pub(super) fn better(a: (SocketAddr, Duration), b: (SocketAddr, Duration)) -> bool {
    if a.0 == b.0 {
        return false;
    }
    let a_points = kind_points(a.0.ip()) + lead_percent(a.1, b.1);
    let b_points = kind_points(b.0.ip()) + lead_percent(b.1, a.1);
    if a_points <= 1 && b_points == 0 {
        return false;
    }
    a_points > b_points
}

/// By how many percent `own` is faster than `other`; 0 if it is not.
fn lead_percent(own: Duration, other: Duration) -> u128 {
    if own >= other {
        return 0;
    }
    // `other` is the larger and so not zero.
    100 - (own.as_nanos() * 100)
        .checked_div(other.as_nanos())
        .unwrap_or(100)
}

fn kind_points(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) if ip.is_loopback() => 50,
        IpAddr::V4(ip) if ip.is_link_local() => 30,
        IpAddr::V4(ip) if ip.is_private() => 20,
        IpAddr::V4(_) => 0,
        IpAddr::V6(ip) if ip.is_loopback() => 60,
        IpAddr::V6(ip) if ip.is_unicast_link_local() => 40,
        IpAddr::V6(ip) if ip.is_unique_local() => 30,
        IpAddr::V6(_) => 10,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_better_address_is_the_faster_the_closer_and_the_newer_family() {
        // a, its ms, b, its ms, whether a is better, whether b is better than a
        let table = [
            ("192.0.2.1:1", 10, "192.0.2.2:1", 10, false, false),
            ("192.0.2.1:1", 5, "192.0.2.2:1", 10, true, false),
            // One percent faster is not worth a change, two are.
            ("192.0.2.1:1", 990, "192.0.2.2:1", 1000, false, false),
            ("192.0.2.1:1", 980, "192.0.2.2:1", 1000, true, false),
            // IPv6 at the same latency, and up to ten percent slower.
            ("[2001:db8::1]:1", 10, "192.0.2.2:1", 10, true, false),
            ("[2001:db8::1]:1", 100, "192.0.2.2:1", 95, true, false),
            ("[2001:db8::1]:1", 100, "192.0.2.2:1", 90, false, false),
            ("[2001:db8::1]:1", 100, "192.0.2.2:1", 80, false, true),
            // Private beats public at the same latency, not at five times.
            ("10.0.0.1:1", 10, "192.0.2.2:1", 10, true, false),
            ("10.0.0.1:1", 50, "192.0.2.2:1", 10, false, true),
            ("169.254.0.1:1", 10, "10.0.0.1:1", 10, true, false),
            ("127.0.0.1:1", 10, "169.254.0.1:1", 10, true, false),
            ("[::1]:1", 10, "127.0.0.1:1", 10, true, false),
            ("[fe80::1]:1", 10, "169.254.0.1:1", 10, true, false),
            ("[fd00::1]:1", 10, "10.0.0.1:1", 10, true, false),
            // The same address is never better than itself, however fast.
            ("192.0.2.1:1", 1, "192.0.2.1:1", 10, false, false),
            ("192.0.2.1:1", 0, "192.0.2.2:1", 0, false, false),
        ];
        for (a, a_ms, b, b_ms, a_wins, b_wins) in table {
            let first = (a.parse().unwrap(), Duration::from_millis(a_ms));
            let second = (b.parse().unwrap(), Duration::from_millis(b_ms));
            assert_eq!(
                better(first, second),
                a_wins,
                "{a} {a_ms} ms, {b} {b_ms} ms"
            );
            assert_eq!(
                better(second, first),
                b_wins,
                "{b} {b_ms} ms, {a} {a_ms} ms"
            );
        }
    }
}
