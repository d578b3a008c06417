//! What must hold for bytes from outside, on the seeds of the fuzz targets and some thousands of inputs made from
//! them, the same in every run.

#[path = "../fuzz/properties.rs"]
mod body;

use std::fs;
use std::path::Path;

#[test]
fn admission() {
    replay("admission", 3000, body::admission);
}

#[test]
fn certificate() {
    replay("certificate", 20_000, body::certificate);
}

#[test]
fn config() {
    replay("config", 5000, body::config);
}

#[test]
fn csr() {
    replay("csr", 3000, body::csr);
}

#[test]
fn delegation() {
    replay("delegation", 5000, body::delegation);
}

#[test]
fn destination() {
    replay("destination", 20_000, body::destination);
}

#[test]
fn dns() {
    replay("dns", 10_000, body::dns);
}

#[test]
fn etcd() {
    replay("etcd", 10_000, body::etcd);
}

#[test]
fn policy() {
    replay("policy", 20_000, body::policy);
}

#[test]
fn registry() {
    replay("registry", 10_000, body::registry);
}

#[test]
fn token() {
    replay("token", 10_000, body::token);
}

#[test]
fn trace() {
    replay("trace", 10_000, body::trace);
}

/// Checks a property on the seeds of a fuzz target and on inputs made from them.
fn replay(target: &'static str, rounds: u64, property: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let mut paths: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let seeds: Vec<_> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
    for (path, seed) in paths.iter().zip(&seeds) {
        let _input = Input { origin: path.display().to_string(), bytes: seed };
        property(seed);
    }
    for round in 1..=rounds {
        let bytes = Random(round).mutation(&seeds);
        let _input = Input { origin: format!("{target}, round {round}"), bytes: &bytes };
        property(&bytes);
    }
}

/// Tells what a property was given when it fails.
struct Input<'b> {
    origin: String,
    bytes: &'b [u8],
}

impl Drop for Input<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the input was ({}) b\"{}\"", self.origin, self.bytes.escape_ascii());
        }
    }
}

/// xorshift64*, from a seed other than 0.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`, or 0.
    fn below(&mut self, end: usize) -> usize {
        // The upper half is the better one.
        (self.next() >> 32) as usize % end.max(1)
    }

    /// A part of these bytes, of up to 32.
    fn part<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let from = self.below(bytes.len());
        &bytes[from..bytes.len().min(from + 1 + self.below(32))]
    }

    /// One of the seeds with up to eight changes.
    fn mutation(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.below(8) {
            let at = self.below(bytes.len());
            let until = bytes.len().min(at + 1 + self.below(16));
            match self.below(8) {
                0 => bytes.insert(at, self.next() as u8),
                1 => drop(bytes.drain(at..until)),
                2 => bytes.truncate(at.max(1)),
                3 => {
                    let seed = &seeds[self.below(seeds.len())];
                    let part = self.part(seed).to_vec();
                    bytes.splice(at..at, part);
                }
                4 => {
                    let part = self.part(&bytes).to_vec();
                    bytes.splice(at..until, part);
                }
                5 => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= 1 << self.below(8);
                    }
                }
                _ => {
                    // Mostly what seeds are made of, so that a letter becomes another letter.
                    let seed = &seeds[self.below(seeds.len())];
                    let other = self.part(seed)[0];
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = other;
                    }
                }
            }
        }
        bytes
    }
}
