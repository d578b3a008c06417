//! Static discovery: the peers that the configuration lists. What lives on them is learnt by asking.

use mesh_shared::config::Mesh;

use super::Candidate;

/// The peers to stay in touch with.
pub fn candidates(mesh: &Mesh) -> Vec<Candidate> {
    let others = mesh.peers.iter().filter(|peer| peer.name != mesh.node_name);
    others
        .map(|peer| Candidate {
            name: peer.name.clone(),
            host: peer.host.clone(),
            addresses: Vec::new(),
            port: peer.port,
        })
        .collect()
}
