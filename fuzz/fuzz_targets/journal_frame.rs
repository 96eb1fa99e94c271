//! libFuzzer's door to the target `journal_frame`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("journal_frame", data));
