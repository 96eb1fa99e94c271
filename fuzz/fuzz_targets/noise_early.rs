//! libFuzzer's door to the target `noise_early`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("noise_early", data));
