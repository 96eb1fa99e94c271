//! What one measurement says of the network, in the reader's terms and in control's.
//!
//! Invariant: data only; built once, when the measurement ends. Called by `netcheck`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::endpoints;
use super::home::HomeReason;
use super::run::Measured;
use crate::tailcfg::NetInfo;

/// The outcome of one measurement.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// When the measurement began.
    pub began: Instant,
    /// When it ended.
    pub ended: Instant,
    /// It asked every measurable region, not only the fastest and the home.
    pub full: bool,
    /// Some STUN server answered.
    pub udp: bool,
    /// One saw an IPv4 address of ours.
    pub ipv4: bool,
    /// One saw an IPv6 address of ours.
    pub ipv6: bool,
    /// Hard NAT: two servers saw different IPv4 endpoints. `None`: no two could be compared.
    pub mapping_varies_by_dest_ip: Option<bool>,
    /// Where the first server to answer saw us, by IPv4.
    pub public_v4: Option<SocketAddr>,
    /// Where the first server to answer saw us, by IPv6.
    pub public_v6: Option<SocketAddr>,
    /// Region id to STUN round trip by IPv4.
    pub latency_v4: BTreeMap<u32, Duration>,
    /// Region id to STUN round trip by IPv6.
    pub latency_v6: BTreeMap<u32, Duration>,
    /// Region id to HTTPS round trip, for regions that STUN could not measure.
    pub latency_https: BTreeMap<u32, Duration>,
    /// Region id to the lowest of these.
    pub latency: BTreeMap<u32, Duration>,
    /// The home region afterwards; `None`: there is none to choose.
    pub home: Option<u32>,
    /// Why that one.
    pub home_reason: HomeReason,
}

impl Report {
    pub(super) fn new(
        began: Instant,
        ended: Instant,
        full: bool,
        measured: Measured,
        home: (Option<u32>, HomeReason),
    ) -> Self {
        let first = |is_family: fn(&SocketAddr) -> bool| {
            let mapped = measured.seen.iter().map(|seen| seen.mapped);
            mapped.into_iter().find(is_family)
        };
        let (public_v4, public_v6) = (first(SocketAddr::is_ipv4), first(SocketAddr::is_ipv6));
        Self {
            began,
            ended,
            full,
            udp: !measured.seen.is_empty(),
            ipv4: public_v4.is_some(),
            ipv6: public_v6.is_some(),
            mapping_varies_by_dest_ip: endpoints::mapping_varies(&measured.seen),
            public_v4,
            public_v6,
            latency: measured.best(),
            latency_v4: measured.v4,
            latency_v6: measured.v6,
            latency_https: measured.https,
            home: home.0,
            home_reason: home.1,
        }
    }
}

/// What control is to know; before the first report, the home alone. `mapping_varies` is what the
/// last report knew that could compare two servers.
pub(super) fn net_info(
    home: Option<u32>,
    mapping_varies: Option<bool>,
    report: Option<&Report>,
) -> NetInfo {
    let mut info = NetInfo {
        preferred_derp: home.unwrap_or_default(),
        mapping_varies_by_dest_ip: mapping_varies,
        ..NetInfo::default()
    };
    let Some(report) = report else {
        return info;
    };
    info.working_udp = Some(report.udp);
    info.working_ipv6 = Some(report.ipv6);
    for (latencies, family) in [(&report.latency_v4, "v4"), (&report.latency_v6, "v6")] {
        let named =
            |(id, latency): (&u32, &Duration)| (format!("{id}-{family}"), latency.as_secs_f64());
        info.derp_latency.extend(latencies.iter().map(named));
    }
    info
}

/// Whether the difference is worth a message to control and, from there, to every peer: that of
/// latencies alone never is.
pub(super) fn is_news(told: &NetInfo, now: &NetInfo) -> bool {
    told.preferred_derp != now.preferred_derp
        || told.working_udp != now.working_udp
        || told.working_ipv6 != now.working_ipv6
        || told.mapping_varies_by_dest_ip != now.mapping_varies_by_dest_ip
}
