//! Wrappers around a connection's bytes.

pub mod early_answer;
pub mod first_bytes;
pub mod gathering;
pub mod link;
pub mod preface;
pub mod read_ahead;
