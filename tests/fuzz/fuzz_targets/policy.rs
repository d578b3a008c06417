#![no_main]
//! See `properties::policy`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| properties::policy(data));
