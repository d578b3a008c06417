//! Peers come in: [`accept`] takes a connection through mutual TLS, [`pipeline`] takes each request to the agent.

pub mod accept;
pub mod admission;
pub mod backend;
pub mod delegation;
pub mod lists;
pub mod mesh_api;
pub mod pipeline;
pub mod slots;
