//! libFuzzer's door to the target `noise_response`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("noise_response", data));
