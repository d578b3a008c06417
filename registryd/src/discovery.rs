//! Finding other nodes.
//!
//! What any mode finds is a [`Candidate`]: a claim. It enters the registry only after the node has answered for
//! itself through the own sidecar, that is, after mutual TLS with the right name has worked once.

use std::net::IpAddr;

use mesh_shared::NodeName;

/// A node that may exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its name, by its own or another's account.
    pub name: NodeName,
    /// Address or host name to dial when `<name>.mesh` does not resolve.
    pub host: String,
    /// Addresses already known, as mDNS brings them; may be empty.
    pub addresses: Vec<IpAddr>,
    /// Its inbound port.
    pub port: u16,
}

/// What an engine that watches the network (mDNS) reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sighting {
    /// A node announced itself, or announced itself again.
    Found(Candidate),
    /// A node said goodbye. Not authenticated: registryd asks the node itself before it believes it.
    Goodbye(NodeName),
}

mod engine;
pub mod mdns;
pub mod seed;
pub mod static_peers;

pub use engine::{farewell, run};
