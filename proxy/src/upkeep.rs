//! What the sidecar asks other nodes for by itself, so that trust stays current without an operator: the newest revocation
//! lists, and this node's next certificate. It is little work; what takes processor time, such as verifying signatures, runs on threads of its own.

pub mod ca;
pub mod files;
pub mod lists;
pub mod renewal;
pub mod requests;
pub mod signing;
pub mod trial;
