//! libFuzzer's door to the target `derp_client`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("derp_client", data));
