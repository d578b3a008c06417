//! What the sidecar asks other nodes for by itself, so that trust stays current without hands: the newest revocation
//! lists. It runs on the main thread, with connections of its own; requests of agents never wait for it.

pub mod lists;
pub mod requests;
