//! libFuzzer's door to the target `records_json`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("records_json", data));
