//! libFuzzer's door to the target `manifest_json`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("manifest_json", data));
