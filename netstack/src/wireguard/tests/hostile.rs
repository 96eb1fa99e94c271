//! Sizes, buffers, counters and bytes that no honest peer sends. Called by nobody: tests alone.

use proptest::prelude::*;

use super::*;

#[test]
fn no_size_of_any_kind_panics() {
    let (mut a, mut b) = connected();
    let sealed = a.seal(&b.key.clone(), &ipv4(60, 1));
    let mut datagram = vec![0; 65_535];
    // A live index, so that data messages get as far as they can.
    datagram[4..8].copy_from_slice(&sealed[4..8]);
    datagram[8..12].copy_from_slice(&sealed[4..8]);
    for kind in 0..=u8::MAX {
        datagram[0] = kind;
        for size in 0..=datagram.len() {
            assert_eq!(
                b.receive(&datagram[..size]),
                Got::Nothing,
                "kind {kind}, {size} bytes"
            );
        }
    }
    let stats = b.tunnels.stats();
    assert_eq!(stats.oversize, 65_535 - (2048 + 16));
    // The tunnel survived.
    assert_eq!(b.receive(&sealed), Got::Packet(a.key, ipv4(60, 1)));
}

#[test]
fn scratch_space_of_any_size_is_safe() {
    let (mut a, mut b) = connected();
    let data = a.seal(&b.key.clone(), &ipv4(600, 1));
    let initiation = a.initiation(&b.key.clone());
    for size in 0..SCRATCH_BYTES_MIN {
        let mut scratch = vec![0; size];
        for datagram in [&data, &initiation] {
            let got =
                b.tunnels
                    .handle_datagram(b.now, ADDRESS, datagram, &mut |_| true, &mut scratch);
            assert_eq!(got, Received::Nothing);
        }
    }
    let mut scratch = vec![0; data.len() - 16];
    let got = b
        .tunnels
        .handle_datagram(b.now, ADDRESS, &data, &mut |_| true, &mut scratch);
    assert!(matches!(got, Received::Packet { .. }));
}

#[test]
fn a_counter_that_no_session_reaches_is_refused() {
    let (mut a, mut b) = connected();
    let mut datagram = a.seal(&b.key.clone(), &ipv4(60, 1));
    datagram[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    assert_eq!(b.receive(&datagram), Got::Nothing);
    assert_eq!(b.tunnels.stats().replayed, 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn bent_bytes_never_panic_and_never_pass(
        noise in proptest::collection::vec(any::<u8>(), 0..300),
        at in any::<prop::sample::Index>(),
        flip in 1..=u8::MAX,
    ) {
        let (mut a, mut b) = connected();
        let to = b.key;
        prop_assert_eq!(b.receive(&noise), Got::Nothing);
        let mut data = a.seal(&to, &ipv4(100, 1));
        let at_data = at.index(data.len());
        data[at_data] ^= flip;
        prop_assert_eq!(b.receive(&data), Got::Nothing);
        // The second MAC (132..148) counts only under load.
        let mut initiation = a.initiation(&to);
        initiation[at.index(132)] ^= flip;
        prop_assert_eq!(b.receive(&initiation), Got::Nothing);
        let Got::Send(_, mut response) = b.receive(&a.initiation(&to)) else {
            panic!("b answers");
        };
        response[at.index(76)] ^= flip;
        prop_assert_eq!(a.receive(&response), Got::Nothing);
    }
}
