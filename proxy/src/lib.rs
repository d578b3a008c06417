//! The sidecar. A request's way through it:
//!
//! - **inbound** (a peer calls this host's agent): [`inbound`] accepts the connection and completes mutual
//!   TLS with [`credentials`]; [`verify`] turns the verified certificate into a `PeerIdentity`;
//!   [`policy`] says whether that peer may come in; [`mesh_api`] answers the mesh's own paths;
//!   everything else goes through [`headers`] and [`backend`] to the agent. [`access_log`] writes its line.
//! - **outbound** (this host's agent calls a peer): [`outbound`] accepts plain HTTP on loopback,
//!   [`outbound::browser_guard`] refuses web pages, [`outbound::destination`] reads where to,
//!   [`roster`] knows where that is, [`outbound::peers`] carries it there over mutual TLS.
//!
//! Each [`worker`] does all of this on one thread. [`registry_link`] keeps the roster up to date from registryd; requests never wait for it.
//! [`sockets`] opens the listening sockets, [`handover`] passes them on to a newer process, [`drain`] ends each side in
//! order, and [`supervisor`] tells the service manager. Every error a sidecar makes is in [`error`]. [`app`] only wires
//! these together.

pub mod access_log;
pub mod admin;
pub mod app;
pub mod caller;
pub mod descriptors;
pub mod downstream;
pub mod drain;
pub mod error;
pub mod exchange;
pub mod handover;
pub mod http;
pub mod inbound;
pub mod listener;
pub mod metrics;
pub mod outbound;
pub mod policy;
pub mod pulse;
pub mod rate;
pub mod roster;
pub mod sockets;
pub mod supervisor;
pub mod tcp;
pub mod tls;
pub mod upstream;
pub mod worker;
