//! The nodes of the mesh and the agents on them, as one immutable view for routing. Data only.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use http::uri::Authority;
use mesh_shared::local_api::{Roster, RosterNode};
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

/// One view of the mesh.
#[derive(Debug, Default)]
pub struct Table {
    nodes: HashMap<NodeName, Arc<Route>>,
    /// Nodes that host an agent, in the roster's order.
    agents: HashMap<String, Vec<Arc<Route>>>,
}

impl Table {
    /// The view that `roster` gives. The node `own_node` is dialled at `own_inbound`, so that an agent reaches its own
    /// node like any other.
    pub fn new(roster: &Roster, own_node: &NodeName, own_inbound: SocketAddr) -> Self {
        let mut table = Self::default();
        for node in &roster.nodes {
            let Some(route) = Route::new(node, own_node, own_inbound).map(Arc::new) else { continue };
            for agent in &node.agents {
                table.agents.entry(agent.clone()).or_default().push(route.clone());
            }
            table.nodes.insert(node.name.clone(), route);
        }
        table
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

    /// Whether connections made by the route `before` still lead to this node: a further address is no move, but one
    /// that is gone may be the one that is connected.
    pub fn continues(&self, before: &Self) -> bool {
        before.addresses.iter().all(|address| self.addresses.contains(address))
    }
}

/// The last view with what a partial one knows better. A node that registryd merely wants to ask has no agents yet;
/// those that were known stay.
pub fn merged(last: &Roster, partial: Roster) -> Roster {
    let mut nodes: BTreeMap<NodeName, RosterNode> =
        last.nodes.iter().map(|node| (node.name.clone(), node.clone())).collect();
    for mut node in partial.nodes {
        if let Some(known) = nodes.get(&node.name) {
            if node.agents.is_empty() {
                node.agents = known.agents.clone();
            }
            if node.addresses.is_empty() {
                node.addresses = known.addresses.clone();
            }
        }
        nodes.insert(node.name.clone(), node);
    }
    Roster { revision: partial.revision, nodes: nodes.into_values().collect(), partial: last.partial }
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
}
