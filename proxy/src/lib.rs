//! The sidecar. A request's way through it:
//!
//! - **inbound** (a peer calls this host's agent): [`inbound::accept`] completes mutual TLS, in which [`tls::verify`] turns
//!   the verified certificate into a `PeerIdentity`; [`inbound::pipeline`] asks [`policy`], answers the mesh's own paths
//!   ([`mesh_api`]), and sends everything else to the agent ([`inbound::backend`]).
//! - **outbound** (this host's agent calls a peer): [`outbound::accept`] takes plain HTTP on loopback;
//!   [`outbound::pipeline`] refuses web pages ([`outbound::browser_guard`]), reads where to ([`outbound::destination`]), and
//!   sends it there over mutual TLS ([`upstream`]), to a node that [`roster`] knows.
//!
//! Both hold what is known of a request in an [`exchange`], which ends with a line of the [`access_log`], with [`metrics`]
//! and with a [`span`]. Every error that a sidecar makes is in [`error`].
//!
//! [`live`] shows operators what is in flight and what has just ended.
//!
//! [`upkeep`] is what the sidecar asks other nodes for by itself, so that trust stays current.
//!
//! Each [`worker`] does all of this on one thread. [`roster::sync`] follows registryd; requests never wait for it.
//! [`sockets`] opens the listening sockets, [`handover`] passes them on to a newer process, [`drain`] ends each side in
//! order, and [`supervisor`] tells the service manager. [`app`] only wires these together.

pub mod access_log;
pub mod admin;
pub mod app;
pub mod ca_link;
pub mod caller;
pub mod descriptors;
pub mod downstream;
pub mod drain;
pub mod error;
pub mod exchange;
pub mod handover;
pub mod http;
pub mod inbound;
pub mod io;
pub mod listener;
pub mod live;
pub mod local_socket;
pub mod mesh_api;
pub mod metrics;
pub mod outbound;
pub mod policy;
pub mod pulse;
pub mod rate;
pub mod roster;
pub mod sockets;
pub mod span;
pub mod supervisor;
pub mod tcp;
pub mod tls;
pub mod upkeep;
pub mod upstream;
pub mod worker;
