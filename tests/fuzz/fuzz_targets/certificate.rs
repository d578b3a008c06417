#![no_main]
//! See `properties::certificate`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| properties::certificate(data));
