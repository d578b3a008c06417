//! Who can be reached now: the last known view of the registry, as a table for routing.
//!
//! Requests read one immutable snapshot. The last view is kept in a file, so that a sidecar that starts
//! while registryd is away still knows its peers.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use http::uri::Authority;
use mesh_shared::local_api::{Roster, RosterNode};
use mesh_shared::registry::Status;
use mesh_shared::{AgentName, NodeName};

use crate::error::ProxyError;

/// A node to which requests can be sent.
#[derive(Debug)]
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
    /// The requests under way to it. Another one where the node has moved: connections of before are not used for new
    /// requests.
    pub load: Arc<Load>,
}

/// Requests that one connection carries before another is opened; servers allow at least as many (RFC 9113,
/// section 6.5.2).
pub const STREAMS_PER_CONNECTION: usize = 100;
/// Most connections to one place of a node, for each thread.
pub const CONNECTIONS_PER_NODE: usize = 16;

/// Requests under way to a node, by the number of the connection that carries them.
#[derive(Debug, Default)]
pub struct Load([AtomicUsize; CONNECTIONS_PER_NODE]);

/// A request's place on one of the connections to a node, given back on drop.
#[derive(Debug)]
pub struct StreamPlace {
    load: Arc<Load>,
    connection: usize,
}

impl StreamPlace {
    /// The number of the connection, below [`CONNECTIONS_PER_NODE`].
    pub fn connection(&self) -> usize {
        self.connection
    }
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        self.load.0[self.connection].fetch_sub(1, Ordering::Relaxed);
    }
}

/// One view of the mesh.
#[derive(Debug, Default)]
pub struct RouteTable {
    nodes: HashMap<NodeName, Arc<Route>>,
    /// Nodes that host an agent, in the roster's order.
    agents: HashMap<String, Vec<Arc<Route>>>,
}

/// The current view, and its copy on disk.
pub struct RosterStore {
    table: ArcSwap<RouteTable>,
    own_node: NodeName,
    own_inbound: SocketAddr,
    path: PathBuf,
    state: Mutex<State>,
    turn: AtomicUsize,
}

struct State {
    last: Option<Roster>,
    /// Why there is no view, in words.
    missing: String,
}

const FILE_NAME: &str = "roster.json";

impl RosterStore {
    /// Starts with the view saved in `state_dir`, if there is one. `own_inbound` is where this node's own
    /// inbound side can be dialled, so that an agent reaches its own node like any other.
    pub fn open(state_dir: &Path, own_node: NodeName, own_inbound: SocketAddr) -> Self {
        let path = state_dir.join(FILE_NAME);
        let store = Self {
            table: ArcSwap::default(),
            own_node,
            own_inbound,
            path,
            state: Mutex::new(State { last: None, missing: "not connected yet".into() }),
            turn: AtomicUsize::new(0),
        };
        match store.read_saved() {
            Ok(Some(saved)) => {
                tracing::info!(target: "Mesh", "starting with the roster of {} nodes saved in {}", saved.nodes.len(), store.path.display());
                store.publish(saved);
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(target: "Mesh", "cannot use the saved roster {}: {error}; going on without it", store.path.display());
            }
        }
        store
    }

    fn read_saved(&self) -> std::io::Result<Option<Roster>> {
        match std::fs::read(&self.path) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes `roster` the current view; a partial one only adds to it. True if it differs from the one before.
    pub fn publish(&self, roster: Roster) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if roster.partial {
            state.missing = "registryd could not read its registry yet, see meshctl status".into();
        }
        let roster = match &state.last {
            Some(last) if roster.partial => merged(last, roster),
            _ => roster,
        };
        let same = |last: &Roster| last.nodes == roster.nodes && last.partial == roster.partial;
        if state.last.as_ref().is_some_and(same) {
            return false;
        }
        let table = RouteTable::new(&roster, &self.own_node, self.own_inbound, &self.table.load());
        self.table.store(Arc::new(table));
        state.last = Some(roster);
        true
    }

    /// Notes why no view arrives.
    pub fn unavailable(&self, reason: String) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).missing = reason;
    }

    /// Writes the current view for the next start; a reader never sees half of it.
    ///
    /// # Errors
    /// The folder cannot be written to.
    pub fn save(&self) -> std::io::Result<()> {
        let json = {
            let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(roster) = &state.last else { return Ok(()) };
            serde_json::to_vec(roster)?
        };
        let folder = self.path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(&json)?;
        file.as_file().sync_all()?;
        file.persist(&self.path)?;
        Ok(())
    }

    /// Where the view is kept.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether any view was ever had.
    pub fn is_known(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).last.is_some()
    }

    /// The way to a node that takes requests.
    ///
    /// # Errors
    /// An unknown node, or one that is offline.
    pub fn node(&self, name: &NodeName) -> Result<Arc<Route>, ProxyError> {
        let route = self.node_in_any_state(name)?;
        match route.status {
            Status::Offline => Err(ProxyError::NodeOffline(name.clone())),
            _ => Ok(route),
        }
    }

    /// The way to a node, for asking whether it is back.
    ///
    /// # Errors
    /// An unknown node.
    pub fn node_in_any_state(&self, name: &NodeName) -> Result<Arc<Route>, ProxyError> {
        let route = self.route(name);
        route.ok_or_else(|| self.unknown(|| ProxyError::UnknownNode(name.clone())))
    }

    /// The way to a node that hosts `agent` and takes its tasks: this one if it does, else the others in
    /// turn; degraded nodes only where there is nothing better.
    ///
    /// # Errors
    /// No node hosts the agent, or none that does is usable.
    pub fn agent(&self, agent: &AgentName) -> Result<Arc<Route>, ProxyError> {
        let table = self.table.load();
        let hosts = table
            .agents
            .get(agent.as_str())
            .ok_or_else(|| self.unknown(|| ProxyError::UnknownAgent(agent.clone())))?;
        for wanted in [Status::Online, Status::Degraded] {
            let usable = || hosts.iter().filter(|route| route.status == wanted);
            if let Some(own) = usable().find(|route| route.node == self.own_node) {
                return Ok(own.clone());
            }
            let count = usable().count();
            if count > 0 {
                let turn = self.turn.fetch_add(1, Ordering::Relaxed) % count;
                if let Some(route) = usable().nth(turn) {
                    return Ok(route.clone());
                }
            }
        }
        let nodes = hosts.iter().map(|route| format!("{} ({})", route.node, route.status.as_str()));
        Err(ProxyError::AgentOffline { agent: agent.clone(), nodes: nodes.collect::<Vec<_>>().join(", ") })
    }

    /// The way to a node whatever its state, for dialling.
    pub fn route(&self, name: &NodeName) -> Option<Arc<Route>> {
        self.table.load().nodes.get(name).cloned()
    }

    /// Without any view, nothing can be said to be unknown.
    fn unknown(&self, error: impl FnOnce() -> ProxyError) -> ProxyError {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &state.last {
            Some(last) if !last.partial => error(),
            _ => ProxyError::NoRoster(state.missing.clone()),
        }
    }
}

/// The last view with what a partial one knows better. A node that registryd merely wants to ask has no agents yet;
/// those that were known stay.
fn merged(last: &Roster, partial: Roster) -> Roster {
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

impl RouteTable {
    fn new(roster: &Roster, own_node: &NodeName, own_inbound: SocketAddr, before: &Self) -> Self {
        let mut table = Self::default();
        for node in &roster.nodes {
            let before = before.nodes.get(&node.name).map(|route| &**route);
            let Some(route) = Route::new(node, own_node, own_inbound, before).map(Arc::new) else { continue };
            for agent in &node.agents {
                table.agents.entry(agent.clone()).or_default().push(route.clone());
            }
            table.nodes.insert(node.name.clone(), route);
        }
        table
    }
}

impl Route {
    /// A place for one more request, on the first connection that has one; `None`: all are full.
    pub fn enter(&self) -> Option<StreamPlace> {
        let free = |count: &AtomicUsize| {
            let free = count.fetch_add(1, Ordering::Relaxed) < STREAMS_PER_CONNECTION;
            if !free {
                count.fetch_sub(1, Ordering::Relaxed);
            }
            free
        };
        let connection = self.load.0.iter().position(free)?;
        Some(StreamPlace { load: self.load.clone(), connection })
    }

    fn new(
        node: &RosterNode,
        own_node: &NodeName,
        own_inbound: SocketAddr,
        before: Option<&Self>,
    ) -> Option<Self> {
        let addresses: Vec<SocketAddr> = match node.name == *own_node {
            true => vec![own_inbound],
            false => node.addresses.iter().map(|ip| SocketAddr::new(*ip, node.port)).collect(),
        };
        // A further address is no move; one that is gone may be the one that is connected.
        let stayed = |before: &&Self| before.addresses.iter().all(|address| addresses.contains(address));
        Some(Self {
            load: before.filter(stayed).map(|before| before.load.clone()).unwrap_or_default(),
            authority: format!("{}:{}", node.name.mesh_host(), node.port).parse().ok()?,
            node: node.name.clone(),
            status: node.status,
            addresses,
            unresolved: node.unresolved.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, status: Status, agents: &[&str]) -> RosterNode {
        RosterNode {
            name: name.parse().unwrap(),
            status,
            agents: agents.iter().map(|agent| (*agent).into()).collect(),
            addresses: vec!["127.0.0.9".parse().unwrap()],
            port: 3000,
            unresolved: None,
        }
    }

    fn store(folder: &Path) -> RosterStore {
        RosterStore::open(folder, "ct110".parse().unwrap(), "127.0.0.1:3000".parse().unwrap())
    }

    #[test]
    fn an_agent_is_looked_for_at_home_first_then_in_turn() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let grok = "grok".parse().unwrap();
        assert_eq!(store.agent(&grok).unwrap_err().parts().1, "no_roster");
        let mut nodes = vec![
            node("ct111", Status::Online, &["grok"]),
            node("ct112", Status::Online, &["grok"]),
            node("ct113", Status::Updating, &["grok", "alone"]),
        ];
        store.publish(Roster { revision: 1, nodes: nodes.clone(), partial: false });
        let picked: std::collections::HashSet<_> =
            (0..4).map(|_| store.agent(&grok).unwrap().node.to_string()).collect();
        assert_eq!(picked.len(), 2);
        assert_eq!(store.agent(&"alone".parse().unwrap()).unwrap_err().parts().1, "agent_offline");
        assert_eq!(store.agent(&"none".parse().unwrap()).unwrap_err().parts().1, "unknown_agent");
        nodes.push(node("ct110", Status::Online, &["grok"]));
        assert!(store.publish(Roster { revision: 2, nodes: nodes.clone(), partial: false }));
        assert!(!store.publish(Roster { revision: 3, nodes, partial: false }));
        assert_eq!(store.agent(&grok).unwrap().node.as_str(), "ct110");
        assert_eq!(store.agent(&grok).unwrap().addresses[0].to_string(), "127.0.0.1:3000");
    }

    #[test]
    fn a_partial_view_forgets_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let partial = |nodes| Roster { revision: 1, nodes, partial: true };
        // With nothing else known, it says where to dial, but not who is missing.
        store.publish(partial(vec![node("ct111", Status::Online, &[])]));
        assert!(store.node(&"ct111".parse().unwrap()).is_ok());
        assert_eq!(store.node(&"ct112".parse().unwrap()).unwrap_err().parts().1, "no_roster");

        let nodes = vec![node("ct111", Status::Online, &["grok"]), node("ct112", Status::Online, &["scout"])];
        store.publish(Roster { revision: 2, nodes, partial: false });
        let mut moved = node("ct111", Status::Online, &[]);
        moved.addresses = vec!["127.0.0.10".parse().unwrap()];
        assert!(store.publish(partial(vec![moved, node("ct113", Status::Online, &[])])));
        assert_eq!(
            store.agent(&"grok".parse().unwrap()).unwrap().addresses[0].to_string(),
            "127.0.0.10:3000"
        );
        assert!(store.agent(&"scout".parse().unwrap()).is_ok());
        assert!(store.node(&"ct113".parse().unwrap()).is_ok());
        assert_eq!(store.node(&"ct114".parse().unwrap()).unwrap_err().parts().1, "unknown_node");
        store.publish(Roster { revision: 3, nodes: Vec::new(), partial: false });
        assert_eq!(store.node(&"ct112".parse().unwrap()).unwrap_err().parts().1, "unknown_node");
    }

    #[test]
    fn the_view_survives_a_restart_and_a_bad_file_is_no_view() {
        let folder = tempfile::tempdir().unwrap();
        let first = store(folder.path());
        let nodes = vec![node("ct111", Status::Online, &[])];
        first.publish(Roster { revision: 1, nodes, partial: false });
        first.save().unwrap();
        assert!(store(folder.path()).node(&"ct111".parse().unwrap()).is_ok());
        std::fs::write(folder.path().join(FILE_NAME), "{\"revision\":").unwrap();
        assert!(!store(folder.path()).is_known());
    }
}
