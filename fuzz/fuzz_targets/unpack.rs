//! libFuzzer's door to the target `unpack`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("unpack", data));
