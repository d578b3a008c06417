//! The connections on which requests come, below HTTP: [`socket`] and, for peers, [`watch`].

pub mod socket;
pub mod watch;
