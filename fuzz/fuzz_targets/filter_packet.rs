//! libFuzzer's door to the target `filter_packet`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("filter_packet", data));
