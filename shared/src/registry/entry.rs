//! One entry of the registry, and the text that it stands for.

use std::sync::Arc;

use serde_json::Value;

use super::node::{Node, Status};
use crate::json;
use crate::name::NodeName;

/// One entry: a node, or something that another program put there.
///
/// What is not changed is written back exactly as it was read. Cloning is cheap (a reference count).
#[derive(Debug, Clone)]
pub struct Entry(Arc<Held>);

#[derive(Debug, Clone)]
struct Held {
    /// The entry as it is in the file.
    raw: String,
    /// Its key as it stands there, where that says more than a text can hold.
    key: Option<String>,
    name: Option<NodeName>,
    node: Option<Arc<Node>>,
    problem: Option<String>,
}

/// The indent of an entry's line in the file.
const ENTRY_INDENT: usize = 4;

impl Entry {
    pub(super) fn read(raw: &str, key: Option<String>) -> Self {
        let (node, problem) = match json::read::<Node>(raw) {
            Ok(node) => (Some(node), None),
            // Without a name it is not meant to be one.
            Err(error) => {
                let named = json::read::<Value>(raw).is_ok_and(|value| value["name"].is_string());
                (None, named.then(|| error.to_string()))
            }
        };
        let name = node.as_ref().and_then(Node::node_name);
        Self(Arc::new(Held { raw: raw.into(), key, name, node: node.map(Arc::new), problem }))
    }

    /// An entry as a store keeps it by itself; `None` for what is not JSON.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        json::check(text).ok()?;
        Some(Self::read(text, None))
    }

    /// Its key as it is in the file, where that says more than a text can hold.
    pub(super) fn key(&self) -> Option<&String> {
        self.0.key.as_ref()
    }

    /// The node's name, if that is a valid one.
    pub(super) fn node_name(&self) -> Option<&NodeName> {
        self.0.name.as_ref()
    }

    /// Whether both are one entry that was read once.
    pub(super) fn is_shared_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The node, if this entry has at least a name and a host.
    pub fn node(&self) -> Option<&Arc<Node>> {
        self.0.node.as_ref()
    }

    /// Why the entry does not count as a node although it has a name.
    pub fn problem(&self) -> Option<&str> {
        self.0.problem.as_deref()
    }

    /// The entry as it is in the file.
    pub fn text(&self) -> &str {
        &self.0.raw
    }

    /// Makes the entry say what `node` says. What it says already stays as another program wrote it.
    pub fn update(&mut self, node: Node) {
        let wanted = serde_json::to_value(&node).unwrap_or_default();
        let held = Arc::make_mut(&mut self.0);
        held.raw = json::updated(&held.raw, &wanted, ENTRY_INDENT);
        (held.name, held.problem) = (node.node_name(), None);
        held.node = Some(Arc::new(node));
    }

    /// Marks the node offline, as of `last_seen` if given, and leaves everything else as another program wrote it.
    pub fn mark_offline(&mut self, last_seen: Option<u64>) {
        let held = Arc::make_mut(&mut self.0);
        let Some(node) = held.node.as_mut().map(Arc::make_mut) else { return };
        node.status = Status::Offline;
        held.raw = json::with(&held.raw, "status", &Status::Offline.as_str().into(), ENTRY_INDENT);
        if let Some(last_seen) = last_seen {
            node.last_seen = last_seen;
            held.raw = json::with(&held.raw, "lastSeen", &last_seen.into(), ENTRY_INDENT);
        }
    }
}

impl From<Node> for Entry {
    fn from(node: Node) -> Self {
        // A struct of texts and numbers cannot fail to serialize.
        let value = serde_json::to_value(&node).unwrap_or_default();
        let raw = json::pretty(&value, ENTRY_INDENT);
        let name = node.node_name();
        Self(Arc::new(Held { raw, key: None, name, node: Some(Arc::new(node)), problem: None }))
    }
}

/// Whether both say the same, however they are written.
impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
            || self.text() == other.text()
            || (self.node() == other.node()
                && json::read::<Value>(self.text()).ok() == json::read::<Value>(other.text()).ok())
    }
}
