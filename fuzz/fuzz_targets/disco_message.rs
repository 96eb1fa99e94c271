//! libFuzzer's door to the target `disco_message`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("disco_message", data));
