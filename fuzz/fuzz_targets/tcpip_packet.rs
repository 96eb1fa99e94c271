//! libFuzzer's door to the target `tcpip_packet`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("tcpip_packet", data));
