//! The current view of the mesh. Requests read one immutable snapshot; each new view replaces it whole.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use mesh_shared::local_api::Roster;
use mesh_shared::{AgentName, NodeName};

use crate::error::ProxyError;
use crate::roster::cache::Cache;
use crate::roster::table::{Route, Table, merged};

/// The current view, and its copy on disk.
pub struct RosterStore {
    table: ArcSwap<Table>,
    own_node: NodeName,
    own_inbound: SocketAddr,
    cache: Cache,
    state: Mutex<State>,
}

struct State {
    last: Option<Roster>,
    /// Why there is no view, in words.
    missing: String,
}

impl RosterStore {
    /// Starts with the view saved in `state_dir`, if there is one. `own_inbound` is where this node's own
    /// inbound side can be dialled.
    pub fn open(state_dir: &Path, own_node: NodeName, own_inbound: SocketAddr) -> Self {
        let store = Self {
            table: ArcSwap::default(),
            own_node,
            own_inbound,
            cache: Cache::new(state_dir),
            state: Mutex::new(State { last: None, missing: "not connected yet".into() }),
        };
        let path = store.path().display();
        match store.cache.read() {
            Ok(Some(saved)) => {
                tracing::info!(target: "Mesh", "starting with the roster of {} nodes saved in {path}", saved.nodes.len());
                store.publish(saved);
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(target: "Mesh", "cannot use the saved roster {path}: {error}; going on without it");
            }
        }
        store
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
        self.table.store(Arc::new(Table::new(&roster, &self.own_node, self.own_inbound)));
        state.last = Some(roster);
        true
    }

    /// Notes why no view arrives.
    pub fn unavailable(&self, reason: String) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).missing = reason;
    }

    /// Writes the current view for the next start.
    ///
    /// # Errors
    /// The folder cannot be written to.
    pub fn save(&self) -> std::io::Result<()> {
        let last = self.state.lock().unwrap_or_else(PoisonError::into_inner).last.clone();
        last.map_or(Ok(()), |roster| self.cache.write(&roster))
    }

    /// Where the view is kept.
    pub fn path(&self) -> &Path {
        self.cache.path()
    }

    /// Whether any view was ever had.
    pub fn is_known(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).last.is_some()
    }

    /// Whether `node` is the one on this host.
    pub fn is_own(&self, node: &NodeName) -> bool {
        *node == self.own_node
    }

    /// The way to a node whatever its state.
    ///
    /// # Errors
    /// An unknown node.
    pub fn node(&self, name: &NodeName) -> Result<Arc<Route>, ProxyError> {
        let route = self.table.load().node(name).cloned();
        route.ok_or_else(|| self.unknown(|| ProxyError::UnknownNode(name.clone())))
    }

    /// The ways to all nodes that host `agent`, whatever their state.
    ///
    /// # Errors
    /// No node hosts the agent.
    pub fn agent(&self, agent: &AgentName) -> Result<Vec<Arc<Route>>, ProxyError> {
        let routes = self.table.load().agent(agent).map(<[_]>::to_vec);
        routes.ok_or_else(|| self.unknown(|| ProxyError::UnknownAgent(agent.clone())))
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

#[cfg(test)]
mod tests {
    use mesh_shared::local_api::RosterNode;
    use mesh_shared::registry::Status;

    use super::*;

    fn node(name: &str, agents: &[&str]) -> RosterNode {
        RosterNode {
            name: name.parse().unwrap(),
            status: Status::Online,
            agents: agents.iter().map(|agent| (*agent).into()).collect(),
            addresses: vec!["127.0.0.9".parse().unwrap()],
            port: 3000,
            unresolved: None,
        }
    }

    fn store(folder: &Path) -> RosterStore {
        RosterStore::open(folder, "ct110".parse().unwrap(), "127.0.0.1:3000".parse().unwrap())
    }

    /// The code of the error, or where the first node is dialled.
    fn agent(store: &RosterStore, name: &str) -> Result<String, &'static str> {
        let routes = store.agent(&name.parse().unwrap()).map_err(|error| error.parts().1)?;
        Ok(routes[0].addresses[0].to_string())
    }

    fn node_code(store: &RosterStore, name: &str) -> Option<&'static str> {
        store.node(&name.parse().unwrap()).err().map(|error| error.parts().1)
    }

    #[test]
    fn a_view_is_replaced_only_by_another_one() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        assert_eq!(agent(&store, "grok"), Err("no_roster"));
        let mut nodes = vec![node("ct111", &["grok"])];
        assert!(store.publish(Roster { revision: 1, nodes: nodes.clone(), partial: false }));
        assert!(!store.publish(Roster { revision: 2, nodes: nodes.clone(), partial: false }));
        assert_eq!(agent(&store, "grok").as_deref(), Ok("127.0.0.9:3000"));
        assert_eq!(agent(&store, "none"), Err("unknown_agent"));
        nodes.insert(0, node("ct110", &["grok"]));
        assert!(store.publish(Roster { revision: 3, nodes, partial: false }));
        assert_eq!(agent(&store, "grok").as_deref(), Ok("127.0.0.1:3000"), "this node's own address");
    }

    #[test]
    fn a_partial_view_forgets_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let partial = |nodes| Roster { revision: 1, nodes, partial: true };
        // With nothing else known, it says where to dial, but not who is missing.
        store.publish(partial(vec![node("ct111", &[])]));
        assert_eq!(node_code(&store, "ct111"), None);
        assert_eq!(node_code(&store, "ct112"), Some("no_roster"));

        let nodes = vec![node("ct111", &["grok"]), node("ct112", &["scout"])];
        store.publish(Roster { revision: 2, nodes, partial: false });
        let mut moved = node("ct111", &[]);
        moved.addresses = vec!["127.0.0.10".parse().unwrap()];
        assert!(store.publish(partial(vec![moved, node("ct113", &[])])));
        assert_eq!(agent(&store, "grok").as_deref(), Ok("127.0.0.10:3000"));
        assert!(agent(&store, "scout").is_ok());
        assert_eq!(node_code(&store, "ct113"), None);
        assert_eq!(node_code(&store, "ct114"), Some("unknown_node"));
        store.publish(Roster { revision: 3, nodes: Vec::new(), partial: false });
        assert_eq!(node_code(&store, "ct112"), Some("unknown_node"));
    }

    #[test]
    fn the_view_survives_a_restart_and_a_bad_file_is_no_view() {
        let folder = tempfile::tempdir().unwrap();
        let first = store(folder.path());
        first.publish(Roster { revision: 1, nodes: vec![node("ct111", &[])], partial: false });
        first.save().unwrap();
        assert_eq!(node_code(&store(folder.path()), "ct111"), None);
        std::fs::write(first.path(), "{\"revision\":").unwrap();
        assert!(!store(folder.path()).is_known());
    }
}
