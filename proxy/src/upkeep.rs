//! What the sidecar asks other nodes for by itself, so that trust stays current without hands: the newest revocation
//! lists. It is little work; what takes processor time, such as verifying signatures, runs on threads of its own.

pub mod lists;
pub mod requests;
