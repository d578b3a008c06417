//! Credentials, and who a peer is.

pub mod credentials;
pub mod verify;
