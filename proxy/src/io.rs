//! Wrappers around a connection's bytes.

pub mod early_answer;
pub mod first_bytes;
pub mod link;
pub mod read_ahead;
