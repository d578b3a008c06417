//! Wrappers around a connection's bytes.

pub mod accepted;
pub mod early_answer;
pub mod first_bytes;
pub mod gathering;
pub mod link;
pub mod preface;
pub mod read_ahead;
pub mod readable;
pub mod rewound;
