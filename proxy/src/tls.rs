//! Credentials, who a peer is, and for how long it is trusted.

pub mod credentials;
pub mod trust;
pub mod verify;
