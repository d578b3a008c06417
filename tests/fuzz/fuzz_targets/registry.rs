#![no_main]
//! See `properties::registry`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| properties::registry(data));
