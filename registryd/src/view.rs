//! What is told to those who follow the mesh inside this process: that something changed. What it is, they look up by
//! name (`Inner::changes`).

/// The mesh as this node knew it at one moment.
///
/// Published through a `tokio::sync::watch` channel whenever anything but a mere `lastSeen` changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// Rises with every change, also across restarts.
    pub revision: u64,
    /// Whether the registry was read at least once since the start and, where a seed has it, somebody else is known.
    /// Until then, a missing node means nothing.
    pub have_view: bool,
}
