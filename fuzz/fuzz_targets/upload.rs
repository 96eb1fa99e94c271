//! libFuzzer's door to the target `upload`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("upload", data));
