//! libFuzzer's door to the target `text_forms`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("text_forms", data));
