//! The connections on which requests come, below HTTP: [`socket`], [`refusal`] and, for peers, [`watch`].

pub mod refusal;
pub mod socket;
pub mod watch;
