//! Seed discovery: one node that is known by name, and whoever it knows.

use mesh_shared::NodeName;
use mesh_shared::config::{Seed, StaticPeer};

use super::Candidate;

/// The seed to join, where DNS or the configured peers say that it is; `None` on the seed itself.
pub fn candidate(seed: &Seed, peers: &[StaticPeer], local: &NodeName) -> Option<Candidate> {
    let listed = peers.iter().find(|peer| peer.name == seed.node);
    (seed.node != *local).then(|| Candidate {
        name: seed.node.clone(),
        host: listed.map_or_else(|| seed.node.mesh_host(), |peer| peer.host.clone()),
        addresses: Vec::new(),
        port: seed.port,
    })
}
