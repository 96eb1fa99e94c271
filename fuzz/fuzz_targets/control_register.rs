//! libFuzzer's door to the target `control_register`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("control_register", data));
