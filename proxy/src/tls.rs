//! Credentials, how they are renewed, who a peer is, and for how long it is trusted.

pub mod credentials;
pub mod failure;
mod fingerprint;
pub mod presented;
pub mod reload;
pub mod revocation;
pub mod trust;
pub mod verify;
