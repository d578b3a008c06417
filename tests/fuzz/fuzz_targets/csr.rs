#![no_main]
//! See `properties::csr`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| properties::csr(data));
