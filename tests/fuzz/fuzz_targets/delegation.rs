#![no_main]
//! See `properties::delegation`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| properties::delegation(data));
