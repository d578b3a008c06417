#![no_main]
//! See `properties::admission`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| properties::admission(data));
