//! Credentials, how they are renewed, who a peer is, and for how long it is trusted.

pub mod credentials;
pub mod failure;
mod fingerprint;
pub mod presented;
pub mod reload;
pub mod revocation;
pub mod trust;
pub mod verify;

use crate::http::h2::FRAME_BYTES;

/// How much is encrypted before it goes out: a whole frame of HTTP/2 with its header, so that the last bytes of each are no system
/// call and no packet of their own. So much waits where a peer does not read.
pub const WRITE_BYTES: usize = FRAME_BYTES as usize + 1024;
