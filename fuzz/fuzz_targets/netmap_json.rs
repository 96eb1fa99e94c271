//! libFuzzer's door to `fuzz::netmap_json`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::netmap_json(data));
