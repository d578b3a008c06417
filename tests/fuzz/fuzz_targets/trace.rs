#![no_main]
//! See `properties::trace`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| properties::trace(data));
