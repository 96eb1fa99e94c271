//! The counters of a node under the names by which operators know them: the layer, then the field.
//!
//! Invariant: every field of every layer's counters is in one of the two lists, once; a new field that is in neither does not compile. Called by `status.rs`'s
//! owner, the wiring of an application.

use super::status::{DropCounts, NodeStats};
use crate::path::PathStats;
use crate::relay::RelayStats;
use crate::tcpip::TcpStats;
use crate::wireguard::TunnelStats;

/// A counter's name and value.
pub type Named = (&'static str, u64);

/// See [`NodeStats::by_name`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamedStats {
    /// What was dropped, refused or left unanswered, by reason.
    pub dropped: Vec<Named>,
    /// Everything else; the last three of TCP are of the moment.
    pub counted: Vec<Named>,
}

impl NodeStats {
    /// Every counter with its name, in a fixed order.
    pub fn by_name(&self) -> NamedStats {
        let Self {
            datagrams_in,
            drops,
            held_dropped,
            tunnels,
            paths,
            relays,
            tcp,
        } = *self;
        let mut named = NamedStats::default();
        named.counted.push(("node_datagrams_in", datagrams_in));
        named.dropped.push(("node_held_dropped", held_dropped));
        named.add_drops(drops);
        named.add_tunnels(tunnels);
        named.add_paths(paths);
        named.add_relays(relays);
        named.add_tcp(tcp);
        named
    }
}

impl NamedStats {
    fn add_drops(&mut self, drops: DropCounts) {
        let DropCounts {
            before_netmap,
            malformed,
            source_not_allowed,
            filtered,
            no_route,
            events,
        } = drops;
        self.dropped.extend([
            ("node_before_netmap", before_netmap),
            ("node_malformed", malformed),
            ("node_source_not_allowed", source_not_allowed),
            ("node_filtered", filtered),
            ("node_no_route", no_route),
            ("node_events", events),
        ]);
    }

    fn add_tunnels(&mut self, tunnels: TunnelStats) {
        let TunnelStats {
            handshakes_answered,
            handshakes_completed,
            decrypted,
            cookies_sent,
            cookies_received,
            unknown_kind,
            wrong_size,
            oversize,
            unknown_index,
            bad_mac,
            unknown_peer,
            stale_initiation,
            replayed,
            undecryptable,
            malformed_packet,
            unsendable,
            queue_full,
            expired_waiting,
            refused,
        } = tunnels;
        self.counted.extend([
            ("tunnel_handshakes_answered", handshakes_answered),
            ("tunnel_handshakes_completed", handshakes_completed),
            ("tunnel_decrypted", decrypted),
            ("tunnel_cookies_received", cookies_received),
        ]);
        self.dropped.extend([
            ("tunnel_cookies_sent", cookies_sent),
            ("tunnel_unknown_kind", unknown_kind),
            ("tunnel_wrong_size", wrong_size),
            ("tunnel_oversize", oversize),
            ("tunnel_unknown_index", unknown_index),
            ("tunnel_bad_mac", bad_mac),
            ("tunnel_unknown_peer", unknown_peer),
            ("tunnel_stale_initiation", stale_initiation),
            ("tunnel_replayed", replayed),
            ("tunnel_undecryptable", undecryptable),
            ("tunnel_malformed_packet", malformed_packet),
            ("tunnel_unsendable", unsendable),
            ("tunnel_queue_full", queue_full),
            ("tunnel_expired_waiting", expired_waiting),
            ("tunnel_refused", refused),
        ]);
    }

    fn add_paths(&mut self, paths: PathStats) {
        let PathStats {
            pings_received,
            pongs_received,
            pings_sent,
            pongs_sent,
            not_disco,
            unknown_sender,
            unopened,
            malformed,
            duplicate_pings,
            pongs_withheld,
            unknown_txid,
            call_me_maybe_over_udp,
            calls_received,
            calls_withheld,
            calls_sent,
            pongs_over_relay,
            unknown_kind,
            queue_full,
        } = paths;
        self.counted.extend([
            ("path_pings_received", pings_received),
            ("path_pongs_received", pongs_received),
            ("path_pings_sent", pings_sent),
            ("path_pongs_sent", pongs_sent),
            ("path_calls_received", calls_received),
            ("path_calls_sent", calls_sent),
        ]);
        self.dropped.extend([
            ("path_not_disco", not_disco),
            ("path_unknown_sender", unknown_sender),
            ("path_unopened", unopened),
            ("path_malformed", malformed),
            ("path_duplicate_pings", duplicate_pings),
            ("path_pongs_withheld", pongs_withheld),
            ("path_unknown_txid", unknown_txid),
            ("path_call_me_maybe_over_udp", call_me_maybe_over_udp),
            ("path_calls_withheld", calls_withheld),
            ("path_pongs_over_relay", pongs_over_relay),
            ("path_unknown_kind", unknown_kind),
            ("path_queue_full", queue_full),
        ]);
    }

    fn add_relays(&mut self, relays: RelayStats) {
        let RelayStats {
            routed,
            no_relay,
            received,
            strangers,
            failures,
            peers_gone,
        } = relays;
        self.counted.extend([
            ("relay_routed", routed),
            ("relay_received", received),
            ("relay_failures", failures),
            ("relay_peers_gone", peers_gone),
        ]);
        self.dropped
            .extend([("relay_no_relay", no_relay), ("relay_strangers", strangers)]);
    }

    fn add_tcp(&mut self, tcp: TcpStats) {
        let TcpStats {
            packets_in,
            malformed,
            fragments,
            misdirected,
            stack_polls,
            timer_polls,
            unclaimed,
            syn_dropped,
            syn_dropped_per_peer,
            refused,
            stray_answers_withheld,
            half_open_reaped,
            reaped,
            answers_dropped,
            rings_grown,
            rings_shrunk,
            fits_failed,
            connections,
            half_open,
            buffer_bytes,
        } = tcp;
        self.dropped.extend([
            ("tcp_malformed", malformed),
            ("tcp_fragments", fragments),
            ("tcp_misdirected", misdirected),
            ("tcp_unclaimed", unclaimed),
            ("tcp_syn_dropped", syn_dropped),
            ("tcp_syn_dropped_per_peer", syn_dropped_per_peer),
            ("tcp_refused", refused),
            ("tcp_stray_answers_withheld", stray_answers_withheld),
            ("tcp_half_open_reaped", half_open_reaped),
            ("tcp_answers_dropped", answers_dropped),
        ]);
        self.counted.extend([
            ("tcp_packets_in", packets_in),
            ("tcp_stack_polls", stack_polls),
            ("tcp_timer_polls", timer_polls),
            ("tcp_reaped", reaped),
            ("tcp_rings_grown", rings_grown),
            ("tcp_rings_shrunk", rings_shrunk),
            ("tcp_fits_failed", fits_failed),
            ("tcp_connections", count(connections)),
            ("tcp_half_open", count(half_open)),
            ("tcp_buffer_bytes", count(buffer_bytes)),
        ]);
    }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_name_is_there_once_and_carries_its_own_field() {
        let stats = NodeStats {
            datagrams_in: 7,
            drops: DropCounts {
                filtered: 3,
                ..DropCounts::default()
            },
            tcp: TcpStats {
                syn_dropped: 5,
                connections: 2,
                ..TcpStats::default()
            },
            ..NodeStats::default()
        };
        let NamedStats { dropped, counted } = stats.by_name();
        let names: BTreeSet<&str> = dropped
            .iter()
            .chain(&counted)
            .map(|(name, _)| *name)
            .collect();
        assert_eq!(names.len(), dropped.len() + counted.len());
        let some = |list: &[Named]| -> Vec<Named> {
            list.iter()
                .copied()
                .filter(|(_, value)| *value > 0)
                .collect()
        };
        assert_eq!(
            some(&dropped),
            [("node_filtered", 3), ("tcp_syn_dropped", 5)]
        );
        assert_eq!(
            some(&counted),
            [("node_datagrams_in", 7), ("tcp_connections", 2)]
        );
    }
}
