//! The nodes of the mesh and the agents on them, as one view for routing. Data only.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use http::uri::Authority;
use mesh_shared::local_api::RosterNode;
use mesh_shared::registry::Status;
use mesh_shared::{AgentName, NodeName};

/// A node to which requests can be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The name to verify.
    pub node: NodeName,
    /// The last known state.
    pub status: Status,
    /// `<node>.mesh:<port>`.
    pub authority: Authority,
    /// Where to dial, in this order; empty where the name did not resolve.
    pub addresses: Vec<SocketAddr>,
    /// Why there are no addresses.
    pub unresolved: Option<String>,
}

/// One view of the mesh. A change of one node costs what that node has, whatever the size of the mesh.
#[derive(Debug)]
pub struct Table {
    own_node: NodeName,
    own_inbound: SocketAddr,
    rows: BTreeMap<NodeName, Arc<RosterNode>>,
    nodes: HashMap<NodeName, Arc<Route>>,
    /// Nodes that host an agent, by name.
    agents: HashMap<String, Vec<Arc<Route>>>,
}

impl Table {
    /// A view without nodes. The node `own_node` is dialled at `own_inbound`, so that an agent reaches its own node
    /// like any other.
    pub fn new(own_node: NodeName, own_inbound: SocketAddr) -> Self {
        Self { own_node, own_inbound, rows: BTreeMap::new(), nodes: HashMap::new(), agents: HashMap::new() }
    }

    /// The same node's view of these nodes.
    pub fn of(&self, rows: impl IntoIterator<Item = Arc<RosterNode>>) -> Self {
        let mut table = Self::new(self.own_node.clone(), self.own_inbound);
        for row in rows {
            table.set(row);
        }
        table
    }

    /// Enters a node in place of what was known of it. Returns whether that differs.
    pub fn set(&mut self, row: Arc<RosterNode>) -> bool {
        if self.rows.get(&row.name) == Some(&row) {
            return false;
        }
        self.remove(&row.name);
        if let Some(route) = Route::new(&row, &self.own_node, self.own_inbound).map(Arc::new) {
            for agent in &row.agents {
                let hosts = self.agents.entry(agent.clone()).or_default();
                if let Err(place) = hosts.binary_search_by(|other| other.node.cmp(&row.name)) {
                    hosts.insert(place, route.clone());
                }
            }
            self.nodes.insert(row.name.clone(), route);
        }
        self.rows.insert(row.name.clone(), row);
        true
    }

    /// Takes a node out. Returns whether it was there.
    pub fn remove(&mut self, name: &NodeName) -> bool {
        let Some(row) = self.rows.remove(name) else { return false };
        self.nodes.remove(name);
        for agent in &row.agents {
            let Some(hosts) = self.agents.get_mut(agent) else { continue };
            if let Ok(place) = hosts.binary_search_by(|other| other.node.cmp(name)) {
                hosts.remove(place);
            }
            if hosts.is_empty() {
                self.agents.remove(agent);
            }
        }
        true
    }

    /// All nodes by name, as they were entered.
    pub fn rows(&self) -> &BTreeMap<NodeName, Arc<RosterNode>> {
        &self.rows
    }

    /// A node, whatever its state.
    pub fn node(&self, name: &NodeName) -> Option<&Arc<Route>> {
        self.nodes.get(name)
    }

    /// All nodes that host an agent, whatever their state.
    pub fn agent(&self, name: &AgentName) -> Option<&[Arc<Route>]> {
        self.agents.get(name.as_str()).map(Vec::as_slice)
    }
}

impl Route {
    fn new(node: &RosterNode, own_node: &NodeName, own_inbound: SocketAddr) -> Option<Self> {
        Some(Self {
            authority: format!("{}:{}", node.name.mesh_host(), node.port).parse().ok()?,
            node: node.name.clone(),
            status: node.status,
            addresses: match node.name == *own_node {
                true => vec![own_inbound],
                false => node.addresses.iter().map(|ip| SocketAddr::new(*ip, node.port)).collect(),
            },
            unresolved: node.unresolved.clone(),
        })
    }

    /// Whether connections made by the route `before` still lead to this node: a further address is not a move, but one
    /// that is gone may be the one that is connected.
    pub fn continues(&self, before: &Self) -> bool {
        before.addresses.iter().all(|address| self.addresses.contains(address))
    }
}

/// What is known of a node with what a partial view knows better. A node that registryd merely wants to ask has no
/// agents yet; those that were known stay.
pub fn merged(known: &RosterNode, partial: &RosterNode) -> RosterNode {
    let mut row = partial.clone();
    if row.agents.is_empty() {
        row.agents.clone_from(&known.agents);
    }
    if row.addresses.is_empty() {
        row.addresses.clone_from(&known.addresses);
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_moved_when_an_address_is_gone() {
        let route = |addresses: &[&str]| {
            let node = RosterNode {
                name: "ct111".parse().unwrap(),
                status: Status::Online,
                agents: Vec::new(),
                addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
                port: 3000,
                unresolved: None,
            };
            Route::new(&node, &"ct110".parse().unwrap(), "127.0.0.1:3000".parse().unwrap()).unwrap()
        };
        let before = route(&["127.0.0.8"]);
        assert!(route(&["127.0.0.8"]).continues(&before));
        assert!(route(&["127.0.0.9", "127.0.0.8"]).continues(&before));
        assert!(!route(&["127.0.0.9"]).continues(&before));
        assert!(!route(&[]).continues(&before));
    }

    /// After any sequence of changes the table equals one that is built from scratch.
    #[test]
    fn a_table_that_was_changed_is_equal_to_a_fresh_one() {
        for seed in 1..=40_u64 {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut random = |below: u64| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) % below
            };
            let mut table = Table::new("ct3".parse().unwrap(), "127.0.0.1:3000".parse().unwrap());
            let mut known: BTreeMap<NodeName, Arc<RosterNode>> = BTreeMap::new();
            for step in 0..300 {
                let name: NodeName = format!("ct{}", random(12)).parse().unwrap();
                if random(3) == 0 {
                    assert_eq!(table.remove(&name), known.remove(&name).is_some());
                } else {
                    let row = Arc::new(RosterNode {
                        name: name.clone(),
                        status: if random(2) == 0 { Status::Online } else { Status::Offline },
                        agents: (0..random(4)).map(|_| format!("agent-{}", random(5))).collect(),
                        addresses: (0..random(3)).map(|i| [10, 0, 0, i as u8].into()).collect(),
                        port: 3000 + random(2) as u16,
                        unresolved: None,
                    });
                    let differs = known.insert(name, row.clone()) != Some(row.clone());
                    assert_eq!(table.set(row), differs);
                }
                let fresh = table.of(known.values().cloned());
                let at = format!("seed {seed}, step {step}");
                assert_eq!(table.rows, fresh.rows, "{at}");
                assert_eq!(table.nodes, fresh.nodes, "{at}");
                assert_eq!(table.agents, fresh.agents, "{at}");
            }
        }
    }
}
