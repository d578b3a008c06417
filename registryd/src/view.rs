//! The immutable snapshot of the mesh that readers such as the DNS server work from.

use mesh_shared::NodeName;
use mesh_shared::local_api::NodeView;

/// The mesh as this node knew it at one moment.
///
/// Published through a `tokio::sync::watch` channel whenever anything but a mere `lastSeen` changes, so ages in it
/// are those of the last change.
#[derive(Debug, Clone)]
pub struct View {
    /// Rises with every view, also across restarts.
    pub revision: u64,
    /// Whether the registry was read at least once since the start and, where a seed has it, somebody else is known.
    /// Until then, a missing node means nothing.
    pub have_view: bool,
    /// This node.
    pub local: NodeName,
    /// Nodes that the configuration or somebody else names, but that have not answered for themselves yet.
    pub wanted: Vec<NodeName>,
    /// All nodes with valid names, the own one among them, ordered by name. `node.status` is the judged one.
    pub nodes: Vec<NodeView>,
}

impl View {
    /// A view before anything is known.
    pub fn empty(local: NodeName, revision: u64) -> Self {
        Self { revision, have_view: false, local, wanted: Vec::new(), nodes: Vec::new() }
    }

    /// The node of this name, if it is known.
    pub fn node(&self, name: &NodeName) -> Option<&NodeView> {
        self.nodes
            .binary_search_by(|view| view.node.name.as_str().cmp(name.as_str()))
            .ok()
            .and_then(|i| self.nodes.get(i))
    }
}
