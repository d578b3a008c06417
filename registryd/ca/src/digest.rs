//! SHA-256, and bytes as text.

use aws_lc_rs::digest::{SHA256, digest};

/// SHA-256 of something.
pub type Digest = [u8; 32];

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> Digest {
    let mut value = [0; 32];
    value.copy_from_slice(digest(&SHA256, bytes).as_ref());
    value
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
