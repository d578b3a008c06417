//! The roster that the sidecar follows: a row for each node, and what changed since it had the last one.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_shared::NodeName;
use mesh_shared::local_api::{RosterNode, RosterUpdate};

use super::changes::Changes;

/// The rows as they are published.
#[derive(Debug)]
pub(super) struct RosterRows {
    rows: BTreeMap<NodeName, Arc<RosterNode>>,
    changes: Changes,
    partial: bool,
}

impl RosterRows {
    /// Without rows, before anything was published.
    pub(super) fn new(epoch_ms: u64) -> Self {
        Self { rows: BTreeMap::new(), changes: Changes::new(epoch_ms), partial: true }
    }

    pub(super) fn revision(&self) -> u64 {
        self.changes.revision()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &NodeName> {
        self.rows.keys()
    }

    /// Makes this the row of a node, or takes it out.
    pub(super) fn set(&mut self, name: &NodeName, row: Option<RosterNode>) {
        if self.rows.get(name).map(|held| &**held) == row.as_ref() {
            return;
        }
        match row {
            Some(row) => self.rows.insert(name.clone(), row.into()),
            None => self.rows.remove(name),
        };
        self.changes.note(name);
    }

    /// Says whether the registry has not been seen yet. What a sidecar made of a partial roster is not a start for
    /// differences: it keeps what it knew before.
    pub(super) fn set_partial(&mut self, partial: bool) {
        if std::mem::replace(&mut self.partial, partial) != partial {
            self.changes.note_all();
        }
    }

    /// What brings a sidecar that has revision `known` up to date: all rows where that is unknown or not given.
    pub(super) fn since(&self, known: Option<u64>) -> RosterUpdate {
        let (revision, partial) = (self.revision(), self.partial);
        let changed = known.filter(|_| !partial).and_then(|known| self.changes.since(known));
        let Some(changed) = changed else {
            let nodes = self.rows.values().cloned().collect();
            return RosterUpdate { revision, since: None, nodes, removed: Vec::new(), partial };
        };
        let (mut nodes, mut removed) = (Vec::new(), Vec::new());
        for name in changed {
            match self.rows.get(&name) {
                Some(row) => nodes.push(row.clone()),
                None => removed.push(name),
            }
        }
        RosterUpdate { revision, since: known, nodes, removed, partial }
    }
}

#[cfg(test)]
mod tests {
    use mesh_shared::registry::Status;

    use super::*;

    fn row(name: &str, port: u16) -> RosterNode {
        let (name, agents, addresses) = (name.parse().unwrap(), Vec::new(), Vec::new());
        RosterNode { name, status: Status::Online, agents, addresses, port, unresolved: None }
    }

    /// What an update says: `name:port` for each row, `-name` for one that is gone.
    fn told(rows: &RosterRows, known: Option<u64>) -> (bool, Vec<String>) {
        let update = rows.since(known);
        let nodes = update.nodes.iter().map(|row| format!("{}:{}", row.name, row.port));
        (update.since.is_some(), nodes.chain(update.removed.iter().map(|name| format!("-{name}"))).collect())
    }

    #[test]
    fn a_sidecar_gets_what_it_lacks_and_everything_where_that_is_not_known() {
        let mut rows = RosterRows::new(7);
        let set = |rows: &mut RosterRows, name: &str, port: Option<u16>| {
            rows.set(&name.parse().unwrap(), port.map(|port| row(name, port)));
        };
        set(&mut rows, "ct111", Some(1));
        let partial = rows.revision();
        assert_eq!(
            told(&rows, Some(partial)),
            (false, vec!["ct111:1".into()]),
            "a partial one is told whole"
        );
        rows.set_partial(false);
        let first = rows.revision();
        set(&mut rows, "ct112", Some(1));
        set(&mut rows, "ct111", Some(2));
        let second = rows.revision();
        set(&mut rows, "ct111", Some(2));
        assert_eq!(rows.revision(), second, "the same row is no change");
        set(&mut rows, "ct112", None);
        let all = vec!["ct111:2".to_owned()];
        assert_eq!(told(&rows, Some(first)), (true, vec!["ct111:2".into(), "-ct112".into()]));
        assert_eq!(told(&rows, Some(second)), (true, vec!["-ct112".into()]));
        assert_eq!(told(&rows, Some(rows.revision())), (true, vec![]));
        for unknown in [None, Some(partial), Some(0), Some(3), Some(rows.revision() + 1)] {
            assert_eq!(told(&rows, unknown), (false, all.clone()), "{unknown:?}");
        }
    }
}
