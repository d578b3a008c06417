//! The current view of the mesh. A lookup holds its lock only briefly; registryd's changes are entered node by node.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use mesh_shared::local_api::{Roster, RosterNode, RosterUpdate};
use mesh_shared::registry::Status;
use mesh_shared::{AgentName, NodeName};

use crate::error::ProxyError;
use crate::roster::cache::Cache;
use crate::roster::table::{Route, Table, merged};

/// The current view, and its copy on disk.
pub struct RosterStore {
    view: RwLock<View>,
    own_node: NodeName,
    cache: Cache,
    /// One at a time, so that the last to end has written the newest.
    saving: Mutex<()>,
}

struct View {
    table: Table,
    /// The revision of registryd's that this is, where it is exactly that.
    revision: Option<u64>,
    /// Whether any view was ever had.
    known: bool,
    /// Whether there may be nodes that are not in it.
    partial: bool,
    /// Whether the copy on disk is an older one.
    unsaved: bool,
    /// Why there is no view, in words.
    missing: String,
}

/// A difference to another view than the one that is here.
#[derive(Debug, thiserror::Error)]
#[error("it sent the changes since revision {0} of its roster, but this sidecar has another one")]
pub struct OutOfStep(u64);

impl RosterStore {
    /// Starts with the view saved in `state_dir`, if there is one. `own_inbound` is where this node's own
    /// inbound side can be dialled.
    pub fn open(state_dir: &Path, own_node: NodeName, own_inbound: SocketAddr) -> Self {
        let view = View {
            table: Table::new(own_node.clone(), own_inbound),
            revision: None,
            known: false,
            partial: false,
            unsaved: false,
            missing: "not connected yet".into(),
        };
        let store = Self {
            view: RwLock::new(view),
            own_node,
            cache: Cache::new(state_dir),
            saving: Mutex::default(),
        };
        let path = store.path().display();
        match store.cache.read() {
            Ok(Some(saved)) => {
                tracing::info!(target: "Mesh", "starting with the roster of {} nodes saved in {path}", saved.nodes.len());
                let revision = Some(saved.revision).filter(|revision| *revision > 0);
                store.publish_whole(saved.nodes, revision, saved.partial);
                store.write().unsaved = false;
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(target: "Mesh", "cannot use the saved roster {path}: {error}; continuing without it");
            }
        }
        store
    }

    /// Brings the view up to date; a partial roster only adds to it. True if it differs from before.
    ///
    /// # Errors
    /// A difference to a view that is not here. Nothing is changed; the next update has to be a whole one.
    pub fn publish(&self, update: RosterUpdate) -> Result<bool, OutOfStep> {
        let Some(since) = update.since else {
            return Ok(match update.partial && self.is_known() {
                true => self.add_partial(&update.nodes),
                false => {
                    let revision = Some(update.revision).filter(|_| !update.partial);
                    self.publish_whole(update.nodes, revision, update.partial)
                }
            });
        };
        let mut view = self.write();
        if view.revision != Some(since) {
            view.revision = None;
            return Err(OutOfStep(since));
        }
        view.revision = Some(update.revision);
        let mut news = false;
        for name in &update.removed {
            news |= view.table.remove(name);
        }
        for row in update.nodes {
            news |= view.table.set(row);
        }
        view.unsaved |= news;
        Ok(news)
    }

    /// The table is made before the lock is taken: nobody waits for all of it.
    fn publish_whole(&self, rows: Vec<Arc<RosterNode>>, revision: Option<u64>, partial: bool) -> bool {
        let mut table = self.read().table.of(rows);
        let mut view = self.write();
        let same = view.known && view.partial == partial && view.table.rows() == table.rows();
        (view.revision, view.known, view.partial) = (revision, true, partial);
        if partial {
            view.missing = "registryd could not read its registry yet, see meshctl status".into();
        }
        if !same {
            std::mem::swap(&mut view.table, &mut table);
            view.unsaved = true;
        }
        // What it replaces is dropped when nobody waits any more.
        drop(view);
        !same
    }

    fn add_partial(&self, rows: &[Arc<RosterNode>]) -> bool {
        let mut view = self.write();
        // What comes of it is not a view of registryd's.
        view.revision = None;
        view.missing = "registryd could not read its registry yet, see meshctl status".into();
        let mut news = false;
        for row in rows {
            let row = match view.table.rows().get(&row.name) {
                Some(known) => merged(known, row).into(),
                None => row.clone(),
            };
            news |= view.table.set(row);
        }
        view.unsaved |= news;
        news
    }

    /// The revision that registryd can tell the differences to; 0 where there is none.
    pub fn revision(&self) -> u64 {
        self.read().revision.unwrap_or(0)
    }

    /// Notes why no view arrives.
    pub fn unavailable(&self, reason: String) {
        self.write().missing = reason;
    }

    /// Writes the current view for the next start, unless it was already. Returns how many bytes that took. Waits for
    /// another one that is at it.
    ///
    /// # Errors
    /// The folder cannot be written to.
    pub fn save(&self) -> std::io::Result<usize> {
        let _saving = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        let roster = {
            let mut view = self.write();
            if !std::mem::take(&mut view.unsaved) {
                return Ok(0);
            }
            let nodes = view.table.rows().values().cloned().collect();
            Roster { revision: view.revision.unwrap_or(0), nodes, partial: view.partial }
        };
        let saved = self.cache.write(&roster);
        self.write().unsaved |= saved.is_err();
        saved
    }

    /// Where the view is kept.
    pub fn path(&self) -> &Path {
        self.cache.path()
    }

    /// Whether any view was ever had.
    pub fn is_known(&self) -> bool {
        self.read().known
    }

    /// All nodes with the agents on them; `None` while that may not be all.
    pub fn hosted(&self) -> Option<Vec<(NodeName, Vec<String>)>> {
        let view = self.read();
        let rows = view.table.rows().iter().map(|(name, row)| (name.clone(), row.agents.clone()));
        (view.known && !view.partial).then(|| rows.collect())
    }

    /// Whether `node` is registered as a host of `agent`.
    pub fn hosts(&self, node: &NodeName, agent: &str) -> bool {
        let view = self.read();
        view.table.rows().get(node).is_some_and(|row| row.agents.iter().any(|each| each == agent))
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
        let view = self.read();
        let route = view.table.node(name).cloned();
        route.ok_or_else(|| view.unknown(|| ProxyError::UnknownNode(name.clone())))
    }

    /// The other nodes that are not known to be offline.
    pub fn others(&self) -> Vec<NodeName> {
        let view = self.read();
        let rows = view.table.rows().values();
        let others = rows.filter(|row| row.name != self.own_node && row.status != Status::Offline);
        others.map(|row| row.name.clone()).collect()
    }

    /// The ways to all nodes that host `agent`, whatever their state.
    ///
    /// # Errors
    /// No node hosts the agent.
    pub fn agent(&self, agent: &AgentName) -> Result<Vec<Arc<Route>>, ProxyError> {
        let view = self.read();
        let routes = view.table.agent(agent).map(<[_]>::to_vec);
        routes.ok_or_else(|| view.unknown(|| ProxyError::UnknownAgent(agent.clone())))
    }

    fn read(&self) -> RwLockReadGuard<'_, View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, View> {
        self.view.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl View {
    /// Without any view, nothing can be said to be unknown.
    fn unknown(&self, error: impl FnOnce() -> ProxyError) -> ProxyError {
        match self.known && !self.partial {
            true => error(),
            false => ProxyError::NoRoster(self.missing.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_shared::local_api::RosterNode;

    use super::*;

    fn node(name: &str, agents: &[&str]) -> Arc<RosterNode> {
        let row = RosterNode {
            name: name.parse().unwrap(),
            status: Status::Online,
            agents: agents.iter().map(|agent| (*agent).into()).collect(),
            addresses: vec!["127.0.0.9".parse().unwrap()],
            port: 3000,
            unresolved: None,
        };
        row.into()
    }

    fn whole(revision: u64, nodes: Vec<Arc<RosterNode>>) -> RosterUpdate {
        RosterUpdate { revision, since: None, nodes, removed: Vec::new(), partial: false }
    }

    fn store(folder: &Path) -> RosterStore {
        RosterStore::open(folder, "ct110".parse().unwrap(), "127.0.0.1:3000".parse().unwrap())
    }

    /// The code of the error, or where the first node is dialled.
    fn agent(store: &RosterStore, name: &str) -> Result<String, &'static str> {
        let routes = store.agent(&name.parse().unwrap()).map_err(|error| error.kind().code)?;
        Ok(routes[0].addresses[0].to_string())
    }

    fn node_code(store: &RosterStore, name: &str) -> Option<&'static str> {
        store.node(&name.parse().unwrap()).err().map(|error| error.kind().code)
    }

    #[test]
    fn a_view_is_replaced_only_by_another_one() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        assert_eq!(agent(&store, "grok"), Err("no_roster"));
        let mut nodes = vec![node("ct111", &["grok"])];
        assert!(store.publish(whole(1, nodes.clone())).unwrap());
        assert!(!store.publish(whole(2, nodes.clone())).unwrap());
        assert_eq!(agent(&store, "grok").as_deref(), Ok("127.0.0.9:3000"));
        assert_eq!(agent(&store, "none"), Err("unknown_agent"));
        nodes.insert(0, node("ct110", &["grok"]));
        assert!(store.publish(whole(3, nodes)).unwrap());
        assert_eq!(agent(&store, "grok").as_deref(), Ok("127.0.0.1:3000"), "this node's own address");
    }

    #[test]
    fn a_partial_view_forgets_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let partial = |nodes| RosterUpdate { partial: true, ..whole(1, nodes) };
        // With nothing else known, it says where to dial, but not who is missing.
        store.publish(partial(vec![node("ct111", &[])])).unwrap();
        assert_eq!(node_code(&store, "ct111"), None);
        assert_eq!(node_code(&store, "ct112"), Some("no_roster"));

        let nodes = vec![node("ct111", &["grok"]), node("ct112", &["scout"])];
        store.publish(whole(2, nodes)).unwrap();
        let addresses = vec!["127.0.0.10".parse().unwrap()];
        let moved = RosterNode { addresses, ..RosterNode::clone(&node("ct111", &[])) };
        assert!(store.publish(partial(vec![moved.into(), node("ct113", &[])])).unwrap());
        assert_eq!(store.revision(), 0, "no difference to it can be had");
        assert_eq!(agent(&store, "grok").as_deref(), Ok("127.0.0.10:3000"));
        assert!(agent(&store, "scout").is_ok());
        assert_eq!(node_code(&store, "ct113"), None);
        assert_eq!(node_code(&store, "ct114"), Some("unknown_node"));
        store.publish(whole(3, Vec::new())).unwrap();
        assert_eq!(node_code(&store, "ct112"), Some("unknown_node"));
    }

    #[test]
    fn the_view_survives_a_restart_and_a_bad_file_is_no_view() {
        let folder = tempfile::tempdir().unwrap();
        let first = store(folder.path());
        first.publish(whole(7, vec![node("ct111", &[])])).unwrap();
        first.save().unwrap();
        let again = store(folder.path());
        assert_eq!((node_code(&again, "ct111"), again.revision()), (None, 7));
        std::fs::write(first.path(), "{\"revision\":").unwrap();
        assert!(!store(folder.path()).is_known());
    }

    #[test]
    fn a_difference_counts_only_for_the_view_that_it_continues() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let change = |since, revision, nodes, removed: &[&str]| RosterUpdate {
            revision,
            since: Some(since),
            nodes,
            removed: removed.iter().map(|name| name.parse().unwrap()).collect(),
            partial: false,
        };
        assert!(store.publish(change(0, 1, vec![node("ct111", &[])], &[])).is_err());
        assert!(!store.is_known());
        store.publish(whole(5, vec![node("ct111", &["grok"]), node("ct112", &[])])).unwrap();
        let news = change(5, 7, vec![node("ct112", &["grok"]), node("ct113", &[])], &["ct111", "ct119"]);
        assert!(store.publish(news).unwrap());
        assert_eq!(store.revision(), 7);
        assert_eq!((node_code(&store, "ct111"), node_code(&store, "ct113")), (Some("unknown_node"), None));
        let hosts = store.agent(&"grok".parse().unwrap()).unwrap();
        assert_eq!(hosts.iter().map(|route| route.node.as_str()).collect::<Vec<_>>(), ["ct112"]);
        assert!(!store.publish(change(7, 8, vec![node("ct113", &[])], &[])).unwrap(), "nothing new");
        // Of another line of revisions: asked for again from the beginning.
        assert!(store.publish(change(7, 9, Vec::new(), &["ct112"])).is_err());
        assert_eq!((node_code(&store, "ct112"), store.revision()), (None, 0));
    }
}
