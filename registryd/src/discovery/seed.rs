//! Seed discovery: one node that is known by name, and whoever it knows.

use mesh_shared::NodeName;
use mesh_shared::config::Seed;

use super::Candidate;

/// The seed to join; `None` on the seed itself.
pub fn candidate(seed: &Seed, local: &NodeName) -> Option<Candidate> {
    (seed.node != *local).then(|| Candidate {
        name: seed.node.clone(),
        host: seed.node.mesh_host(),
        addresses: Vec::new(),
        port: seed.port,
    })
}
