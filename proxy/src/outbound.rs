//! Requests from this host's programs: [`accept`] takes a connection, [`pipeline`] takes each request to a peer.

pub mod accept;
pub mod browser_guard;
pub mod destination;
pub mod pipeline;
