#![no_main]
//! See `properties::destination`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| properties::destination(data));
