//! The registry in etcd: each entry is a key, and so is each node's life.
//!
//! `<prefix>/nodes/<name>` holds the entry as it would stand in `mesh.json`. `<prefix>/alive/<name>` is bound to a lease
//! whose time to live is the node's own ttl; its value says which node renews the lease: the node itself, or one that it
//! joined through. A heartbeat renews a lease and writes nothing; a change of one node is one write of one key, and
//! reaches everybody as one event of a watch.
//!
//! `connection` speaks to one member of the cluster, `keeper` brings entries and leases up to date, `worker` follows
//! the watch and continues with another member when one fails.

pub mod connection;
mod keeper;
pub mod worker;

use std::time::{Duration, Instant};

use mesh_shared::NodeName;
use mesh_shared::registry::Registry;

use super::{Ledger, Wish};

/// A ledger that says what single entries have to say.
pub trait Speak: Ledger {
    /// Whose entries this node writes: its own, and those of nodes that speak to it over the network.
    fn speaks_for(&self) -> Vec<NodeName>;
    /// Brings the entries of those nodes, as they are at this moment, up to date. May be asked again with newer ones
    /// before anything is written.
    fn amend_entries(&self, entries: &mut Registry);
    /// For whom this node is to hold leases.
    fn living(&self) -> Vec<Living>;
    /// The nodes that are to be taken out, of those wished for and of those that have been offline for long.
    fn to_forget(&self, wish: &Wish) -> Vec<NodeName>;
    /// Notes that a node was taken out.
    fn forgotten(&self, name: &NodeName);
}

/// A node that gives signs of life to this one, or is this one.
#[derive(Debug, Clone)]
pub struct Living {
    /// Which.
    pub name: NodeName,
    /// The silence after which it counts as offline.
    pub ttl: Duration,
    /// When it gave the last sign.
    pub at: Instant,
}

/// The names of the keys.
#[derive(Debug, Clone)]
pub struct Keys {
    prefix: String,
}

/// What a key is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// The entry of a node.
    Entry(NodeName),
    /// The life of a node.
    Alive(NodeName),
}

impl Keys {
    /// Below a prefix without a final slash.
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.into() }
    }

    /// What all keys begin with.
    pub fn all(&self) -> String {
        format!("{}/", self.prefix)
    }

    /// What all keys of entries begin with.
    pub fn entries(&self) -> String {
        format!("{}/nodes/", self.prefix)
    }

    /// What all keys of lives begin with.
    pub fn lives(&self) -> String {
        format!("{}/alive/", self.prefix)
    }

    /// The key of a node's entry.
    pub fn entry(&self, name: &NodeName) -> String {
        format!("{}{name}", self.entries())
    }

    /// The key of a node's life.
    pub fn alive(&self, name: &NodeName) -> String {
        format!("{}{name}", self.lives())
    }

    /// What a key is about; `None` where it is somebody else's. A name has one way to be written.
    pub fn parse(&self, key: &[u8]) -> Option<Key> {
        let rest = std::str::from_utf8(key).ok()?.strip_prefix(&self.prefix)?;
        let named = |text: &str| text.parse::<NodeName>().ok().filter(|name| name.as_str() == text);
        match rest.strip_prefix("/nodes/") {
            Some(name) => named(name).map(Key::Entry),
            None => named(rest.strip_prefix("/alive/")?).map(Key::Alive),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_tells_its_node_in_one_way_only() {
        let keys = Keys::new("/mesh");
        let ct110: NodeName = "ct110".parse().unwrap();
        assert_eq!(keys.parse(keys.entry(&ct110).as_bytes()), Some(Key::Entry(ct110.clone())));
        assert_eq!(keys.parse(keys.alive(&ct110).as_bytes()), Some(Key::Alive(ct110)));
        for other in
            ["/mesh/nodes/CT110", "/mesh/nodes/a/b", "/mesh/nodes/", "/mesh2/nodes/ct110", "/mesh/x/ct110"]
        {
            assert_eq!(keys.parse(other.as_bytes()), None, "{other}");
        }
    }
}
