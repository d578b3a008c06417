//! Requests from peers: [`accept`] takes a connection through mutual TLS, [`pipeline`] takes each request to the agent.

pub mod accept;
pub mod admission;
pub mod backend;
pub mod lists;
pub mod pipeline;
pub mod slots;
