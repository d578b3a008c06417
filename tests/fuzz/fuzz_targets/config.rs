#![no_main]
//! See `properties::config`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| properties::config(data));
