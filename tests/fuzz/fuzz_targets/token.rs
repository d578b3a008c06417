#![no_main]
//! See `properties::token`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| properties::token(data));
