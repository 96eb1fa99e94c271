//! libFuzzer's door to the target `netmap_json`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("netmap_json", data));
