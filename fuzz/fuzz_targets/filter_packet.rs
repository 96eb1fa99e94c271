//! libFuzzer's door to `fuzz::filter_packet`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::filter_packet(data));
