//! libFuzzer's door to the target `ack_frames`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("ack_frames", data));
