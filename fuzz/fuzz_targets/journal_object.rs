//! libFuzzer's door to the target `journal_object`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("journal_object", data));
