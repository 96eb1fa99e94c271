//! MagicDNS without DNS: node names and control's extra records to addresses.
//!
//! Invariant: only addresses of families that we have ourselves come out, IPv4 before IPv6. Called
//! by the node when a caller dials a name.
//!
//! Source: tailscale.com `ipn/ipnlocal/node_backend.go` (`dnsConfigForNetmap`); transport.md §5.5.

use std::net::IpAddr;

use super::{Netmap, single_addresses};

/// Longest name that is looked up, in bytes (RFC 1035 §2.3.4).
const NAME_BYTES_MAX: usize = 255;

impl Netmap {
    /// The addresses by which to dial `name`: a full name, with or without a trailing dot, or a
    /// short one, which is tried with our own suffix and then with the search domains. Empty: unknown.
    /// A node that has IPv4, as we do, is answered with IPv4 only.
    pub fn resolve(&self, name: &str) -> Vec<IpAddr> {
        if name.len() > NAME_BYTES_MAX {
            return Vec::new();
        }
        let name = canonical(name);
        if name.is_empty() {
            return Vec::new();
        }
        let suffix = self
            .self_node()
            .and_then(|node| node.name.split_once('.'))
            .map(|(_, suffix)| suffix);
        let search = self
            .dns_config()
            .map(|dns| dns.domains.as_slice())
            .unwrap_or_default();
        let longer = suffix
            .into_iter()
            .chain(search.iter().map(String::as_str))
            .map(|domain| canonical(&format!("{name}.{domain}")));
        std::iter::once(name.clone())
            .chain(longer)
            .map(|candidate| self.lookup(&candidate))
            .find(|addresses| !addresses.is_empty())
            .unwrap_or_default()
    }

    fn lookup(&self, canonical_name: &str) -> Vec<IpAddr> {
        let node = self
            .index
            .by_name(canonical_name)
            .and_then(|node| self.node(node));
        let found = match node {
            Some(node) => single_addresses(node),
            None => self
                .dns_config()
                .iter()
                .flat_map(|dns| &dns.extra_records)
                .filter(|record| canonical(&record.name) == canonical_name)
                .filter_map(|record| {
                    let address: IpAddr = record.value.parse().ok()?;
                    let kind_fits = match record.kind.as_str() {
                        "" => true,
                        "A" => address.is_ipv4(),
                        "AAAA" => address.is_ipv6(),
                        _ => false,
                    };
                    kind_fits.then_some(address)
                })
                .collect(),
        };
        let own = self.addresses();
        let reachable = |is_v4: bool| -> Vec<IpAddr> {
            let of_family = |address: &IpAddr| address.is_ipv4() == is_v4;
            if !own.iter().any(of_family) {
                return Vec::new();
            }
            found.iter().copied().filter(of_family).collect()
        };
        let v4 = reachable(true);
        if v4.is_empty() { reachable(false) } else { v4 }
    }
}

/// Lower case, no trailing dot.
pub(super) fn canonical(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}
