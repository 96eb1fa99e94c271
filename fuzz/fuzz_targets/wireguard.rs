//! libFuzzer's door to the target `wireguard`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("wireguard", data));
