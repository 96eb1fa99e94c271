//! libFuzzer's door to the target `stun_message`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("stun_message", data));
