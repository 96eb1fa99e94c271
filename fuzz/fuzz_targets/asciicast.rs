//! libFuzzer's door to the target `asciicast`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("asciicast", data));
