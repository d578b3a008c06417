#![no_main]
//! See `properties::dns`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| properties::dns(data));
