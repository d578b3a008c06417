#![no_main]
//! See `properties::etcd`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| properties::etcd(data));
