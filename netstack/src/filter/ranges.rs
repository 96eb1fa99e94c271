//! Sets of addresses as sorted, merged, inclusive ranges; a look-up is one binary search.
//!
//! Invariant: ranges of one family are sorted and neither overlap nor touch; the families never mix,
//! so an IPv4-mapped IPv6 address is in no IPv4 range. Called by `rules`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// An inclusive range of addresses of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AddressRange {
    /// IPv4, as numbers.
    V4(u32, u32),
    /// IPv6, as numbers.
    V6(u128, u128),
}

impl AddressRange {
    /// All addresses of both families: what `*` means.
    pub(super) const ALL: [Self; 2] = [Self::V4(0, u32::MAX), Self::V6(0, u128::MAX)];

    /// Reads an address, a CIDR prefix without host bits, or `lo-hi`. `None`: none of these.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Self::between(address, address);
        }
        if let Some((low, high)) = text.split_once('-') {
            return Self::between(low.parse().ok()?, high.parse().ok()?);
        }
        let prefix: IpNet = text.parse().ok()?;
        (prefix.addr() == prefix.network())
            .then(|| Self::of_prefix(&prefix))
            .flatten()
    }

    /// The addresses of a prefix, its host bits ignored.
    pub(super) fn of_prefix(prefix: &IpNet) -> Option<Self> {
        Self::between(prefix.network(), prefix.broadcast())
    }

    fn between(low: IpAddr, high: IpAddr) -> Option<Self> {
        match (low, high) {
            (IpAddr::V4(low), IpAddr::V4(high)) if low <= high => {
                Some(Self::V4(low.to_bits(), high.to_bits()))
            }
            (IpAddr::V6(low), IpAddr::V6(high)) if low <= high => {
                Some(Self::V6(low.to_bits(), high.to_bits()))
            }
            (IpAddr::V4(_) | IpAddr::V6(_), IpAddr::V4(_) | IpAddr::V6(_)) => None,
        }
    }

    /// Whether the address lies in the range.
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        match (self, address) {
            (Self::V4(low, high), IpAddr::V4(address)) => {
                (Ipv4Addr::from_bits(*low)..=Ipv4Addr::from_bits(*high)).contains(&address)
            }
            (Self::V6(low, high), IpAddr::V6(address)) => {
                (Ipv6Addr::from_bits(*low)..=Ipv6Addr::from_bits(*high)).contains(&address)
            }
            (Self::V4(..), IpAddr::V6(_)) | (Self::V6(..), IpAddr::V4(_)) => false,
        }
    }
}

/// A set of addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct RangeSet {
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
}

impl RangeSet {
    /// Whether the address is in the set.
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => overlaps(&self.v4, address.to_bits(), address.to_bits()),
            IpAddr::V6(address) => overlaps(&self.v6, address.to_bits(), address.to_bits()),
        }
    }

    /// Whether any address of the range is in the set.
    pub(super) fn overlaps(&self, range: AddressRange) -> bool {
        match range {
            AddressRange::V4(low, high) => overlaps(&self.v4, low, high),
            AddressRange::V6(low, high) => overlaps(&self.v6, low, high),
        }
    }
}

impl FromIterator<AddressRange> for RangeSet {
    fn from_iter<I: IntoIterator<Item = AddressRange>>(ranges: I) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for range in ranges {
            match range {
                AddressRange::V4(low, high) => v4.push((low, high)),
                AddressRange::V6(low, high) => v6.push((low, high)),
            }
        }
        Self {
            v4: merge(v4, |end| end.saturating_add(1)),
            v6: merge(v6, |end| end.saturating_add(1)),
        }
    }
}

fn merge<T: Ord + Copy>(mut ranges: Vec<(T, T)>, successor: impl Fn(T) -> T) -> Vec<(T, T)> {
    ranges.sort_unstable();
    let mut merged: Vec<(T, T)> = Vec::with_capacity(ranges.len());
    for (low, high) in ranges {
        match merged.last_mut() {
            Some((_, end)) if low <= successor(*end) => *end = high.max(*end),
            _ => merged.push((low, high)),
        }
    }
    merged.shrink_to_fit();
    merged
}

fn overlaps<T: Ord + Copy>(ranges: &[(T, T)], low: T, high: T) -> bool {
    let candidates = ranges.partition_point(|(first, _)| *first <= high);
    candidates
        .checked_sub(1)
        .and_then(|index| ranges.get(index))
        .is_some_and(|(_, last)| *last >= low)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn entries_are_read_in_every_form_and_nothing_else() {
        let v4 = |text: &str| u32::from(text.parse::<Ipv4Addr>().unwrap());
        for (text, expected) in [
            (
                "10.0.0.1",
                Some(AddressRange::V4(v4("10.0.0.1"), v4("10.0.0.1"))),
            ),
            (
                "10.0.0.0/30",
                Some(AddressRange::V4(v4("10.0.0.0"), v4("10.0.0.3"))),
            ),
            ("0.0.0.0/0", Some(AddressRange::V4(0, u32::MAX))),
            (
                "10.0.0.1-10.0.1.0",
                Some(AddressRange::V4(v4("10.0.0.1"), v4("10.0.1.0"))),
            ),
            ("::1-::3", Some(AddressRange::V6(1, 3))),
            ("::/0", Some(AddressRange::V6(0, u128::MAX))),
            ("10.0.0.1/30", None),
            ("10.0.0.3-10.0.0.1", None),
            ("10.0.0.1-::1", None),
            ("10.0.0.0/33", None),
            ("*", None),
            ("", None),
            ("-", None),
            ("fe80::1%eth0", None),
            ("10.0.0.1-", None),
            ("host", None),
        ] {
            assert_eq!(AddressRange::parse(text), expected, "{text}");
        }
    }

    #[test]
    fn a_mapped_address_is_not_in_an_ipv4_range() {
        let set: RangeSet = [AddressRange::V4(0, u32::MAX)].into_iter().collect();
        assert!(set.contains("1.2.3.4".parse().unwrap()));
        assert!(!set.contains("::ffff:1.2.3.4".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn the_merged_set_agrees_with_the_plain_list(
            ranges in proptest::collection::vec((0_u32..64, 0_u32..64), 0..12), low in 0_u32..64, high in 0_u32..64,
        ) {
            let ranges: Vec<(u32, u32)> = ranges.into_iter().map(|(a, b)| (a.min(b), a.max(b))).collect();
            let set: RangeSet = ranges.iter().map(|(a, b)| AddressRange::V4(*a, *b)).collect();
            let (low, high) = (low.min(high), low.max(high));
            let plain = ranges.iter().any(|(a, b)| *a <= high && low <= *b);
            prop_assert_eq!(set.overlaps(AddressRange::V4(low, high)), plain);
            let contains = ranges.iter().any(|(a, b)| (*a..=*b).contains(&low));
            prop_assert_eq!(set.contains(Ipv4Addr::from_bits(low).into()), contains);
        }
    }
}
