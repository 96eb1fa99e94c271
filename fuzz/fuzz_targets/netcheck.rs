//! libFuzzer's door to the target `netcheck`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("netcheck", data));
