//! The connections on which requests come, below HTTP: [`socket`], [`refusal`] and
//! [`interim`] for HTTP/1.1 and, for peers, [`watch`].

pub mod interim;
pub mod refusal;
pub mod socket;
pub mod watch;
